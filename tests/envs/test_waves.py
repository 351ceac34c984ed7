"""Predators and waves of prey, held against reference rules in plain Python, step by step."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.envs import find_task
from comarl.envs.check import check, random_action
from comarl.envs.waves import PRESETS, Square, Waves
from tests.envs.reference_waves import ReferenceWaves

# Prey at 0.1 and 0.9
PAIR = Waves(predators=2, prey=4, catchers=2, radius=0.1, start="apart", horizon=6)
step_pair = jax.jit(PAIR.step)


def random_episodes(env, episodes, seed=0, chase=0.0, scale=1.0):
    """Episodes of random play to the horizon: [episodes, time, ...]. `chase` of the steps head for
    the nearest prey."""

    def one_step(env_state, key):
        action_key, chase_key = jax.random.split(key)
        offset = (
            jnp.where(env_state.alive[:, None], jnp.asarray(env.lattice), 9.0)
            - env_state.predators[:, None]
        )
        nearest = jnp.square(offset).sum(-1).argmin(1)
        towards = jnp.sign(offset[jnp.arange(env.predators), nearest])
        action = jnp.where(
            jax.random.bernoulli(chase_key, chase),
            towards,
            scale * random_action(env.spec, None, action_key),
        )
        after, *results = env.step(env_state, action, key)
        return after, (action, after, *results)

    def episode(key):
        reset_key, steps_key = jax.random.split(key)
        first = env.reset(reset_key)
        return first, jax.lax.scan(one_step, first[0], jax.random.split(steps_key, env.horizon))[1]

    return jax.tree.map(
        np.asarray, jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(seed), episodes))
    )


def square(predators, alive=(True,) * 4, wave=0, time=0):
    number = lambda x: jnp.int32(x)
    return Square(
        jnp.array(predators, jnp.float32), jnp.array(alive), number(wave), number(0), number(time)
    )


@pytest.mark.parametrize(
    "env",
    [
        PRESETS["3"],
        PRESETS["4"],
        Waves(predators=3, prey=9, speed=0.2, growth="double", start="apart", capture_reward=1.0),
        Waves(predators=2, prey=4, catchers=2, speed=0.2, growth="constant"),
    ],
    ids=lambda env: f"{env.predators}-{env.growth}",
)
def test_every_step_of_random_episodes_is_that_of_the_slow_rules(env):
    (starts, looks), steps = random_episodes(env, 6, chase=0.7, scale=1.3)
    waves = 0
    for episode in range(6):
        start, look, rest = jax.tree.map(lambda x, e=episode: x[e], (starts, looks, steps))
        settings = env.catchers, env.radius, env.speed, env.capture_reward, env.growth, env.horizon
        reference = ReferenceWaves(start.predators.tolist(), round(env.prey**0.5), *settings)
        seen = lambda reference=reference: [reference.obs(agent) for agent in range(env.predators)]
        np.testing.assert_allclose(look.obs, seen(), atol=1e-6)
        for time in range(env.horizon):
            action, after, later, reward, terminated, truncated = jax.tree.map(
                lambda x, t=time: x[t], rest
            )
            assert (float(reward), bool(truncated)) == reference.step(action.tolist())
            assert not terminated
            np.testing.assert_allclose(after.predators, reference.predators, atol=2e-6)
            np.testing.assert_allclose(later.obs, seen(), atol=4e-6)
            assert later.state.tolist() == later.obs.reshape(-1).tolist()
        assert int(after.captures) == reference.captures
        waves += int(after.wave)
    assert waves > 3, "the comparison must see waves that follow one another"


@pytest.mark.parametrize(("name", "obs_size"), [("2", 36), ("3", 38), ("4", 40)])
def test_every_preset_keeps_the_contract_and_has_the_papers_sizes(name, obs_size):
    env = find_task(f"waves/{name}")
    check(env, steps=200)
    spec = env.spec
    assert (spec.num_agents, spec.obs_size, spec.state_size) == (
        int(name),
        obs_size,
        int(name) * obs_size,
    )
    assert (env.catchers, env.prey, env.horizon) == (2 if name == "4" else 1, 16, 100)


def test_the_prey_stand_on_a_lattice_with_a_spacing_of_0267():
    lattice = PRESETS["2"].lattice
    assert lattice.shape == (16, 2)
    np.testing.assert_allclose(
        np.unique(lattice), [0.1, 0.1 + 0.8 / 3, 0.9 - 0.8 / 3, 0.9], atol=1e-6
    )


def test_a_prey_is_caught_by_as_many_as_it_takes_and_not_by_one_fewer():
    both = square([(0.18, 0.1), (0.1, 0.28)])
    after, timestep, reward, *_ = step_pair(
        both, jnp.array([[0.0, 0.0], [0.0, -1.0]]), jax.random.key(0)
    )
    assert float(reward) == 0.0  # the second is 0.13 away, and 0.125 would do
    after, timestep, reward, *_ = step_pair(
        after, jnp.array([[0.0, 0.0], [0.0, -1.0]]), jax.random.key(0)
    )
    assert float(reward) == 10.0 and after.alive.tolist() == [False, True, True, True]
    assert timestep.obs[:, 4:6].tolist() == [[3.0, 3.0]] * 2
    assert float(PAIR.metrics(after)["captures"]) == 1.0


def test_the_last_prey_brings_the_next_wave_in_the_same_step_and_it_is_worth_more():
    last = square([(0.1, 0.1), (0.1, 0.1)], alive=(True, False, False, False), wave=1)
    after, timestep, reward, *_ = step_pair(last, jnp.zeros((2, 2)), jax.random.key(0))
    assert float(reward) == 20.0 and after.alive.all() and int(after.wave) == 2
    assert float(timestep.obs.max()) < 3.0
    assert float(step_pair(after, jnp.zeros((2, 2)), jax.random.key(0))[2]) == 30.0


def test_the_worth_of_a_wave_grows_as_its_setting_says():
    of = lambda pair: [float(pair.worth(jnp.int32(wave))) for wave in range(4)]
    growths = ("constant", "linear", "double")
    worths = {growth: of(replace(PAIR, growth=growth)) for growth in growths}
    assert worths == {
        "constant": [1.0] * 4,
        "linear": [1.0, 2.0, 3.0, 4.0],
        "double": [1.0, 2.0, 4.0, 8.0],
    }


def test_walls_stop_predators_and_time_truncates():
    after, _, _, terminated, truncated = step_pair(
        square([(0.98, 0.02), (0.5, 0.5)], time=PAIR.horizon - 1),
        jnp.array([[5.0, -1.0], [1.0, 1.0]]),
        jax.random.key(0),
    )
    np.testing.assert_allclose(after.predators, [(1.0, 0.0), (0.55, 0.55)], atol=1e-6)
    assert (bool(terminated), bool(truncated)) == (False, True)


def test_two_who_walk_along_the_lattice_together_catch_wave_after_wave():
    """A tour of 16 prey along the rows is 15 spacings of 0.267; at speed 0.2 an episode is worth
    two waves and more."""
    env = Waves(speed=0.2, start="centre")
    tour = env.lattice.reshape(4, 4, 2)
    tour = np.concatenate([row if i % 2 == 0 else row[::-1] for i, row in enumerate(tour)])
    tour = np.concatenate([tour, tour[::-1]])
    advance = jax.jit(env.step)
    env_state, total, goal = env.reset(jax.random.key(0))[0], 0.0, 0
    for _ in range(env.horizon):
        towards = (tour[goal] - np.asarray(env_state.predators)) / env.speed
        env_state, _, reward, *_ = advance(env_state, jnp.asarray(towards), jax.random.key(0))
        total += float(reward)
        goal = (goal + (np.abs(np.asarray(env_state.predators) - tour[goal]).max() < 1e-3)) % len(
            tour
        )
    waves, left = divmod(int(env_state.captures), 16)
    assert waves >= 2
    assert total == sum(160.0 * (wave + 1) for wave in range(waves)) + 10.0 * (waves + 1) * left


def test_random_starts_are_away_from_all_prey_together_or_apart():
    for env in (PRESETS["2"], replace(PRESETS["3"], start="apart")):
        starts = jax.jit(jax.vmap(lambda key, env=env: env.reset(key)[0].predators))(
            jax.random.split(jax.random.key(1), 300)
        )
        away = np.linalg.norm(np.asarray(starts)[:, :, None] - env.lattice, axis=-1)
        assert away.min() > 1.5 * env.radius
        assert (np.ptp(starts, axis=1).max(1) == 0.0).all() == (env.start == "together")
        assert len(np.unique(np.asarray(starts)[:, 0], axis=0)) == 300
        # Nine patches of the square are far enough: each is found.
        patches = {
            tuple(cell)
            for cell in np.floor((np.asarray(starts)[:, 0] - 0.1) / (0.8 / 3)).astype(int).tolist()
        }
        assert {(i, j) for i in range(3) for j in range(3)} <= patches


def test_all_start_in_the_centre_when_four_do_and_touch_nothing_there():
    env = PRESETS["4"]
    env_state, _ = env.reset(jax.random.key(3))
    assert (env_state.predators == 0.5).all()
    assert float(env.step(env_state, jnp.zeros((4, 2)), jax.random.key(0))[2]) == 0.0


def test_the_farthest_point_is_that_of_a_fine_grid():
    line = np.linspace(0, 1, 201)
    points = np.stack(np.meshgrid(line, line), -1).reshape(-1, 1, 2)
    for prey in (4, 16, 25, 49):
        env = Waves(prey=prey, radius=0.05)
        found = np.linalg.norm(points - env.lattice, axis=-1).min(1).max()
        assert found <= env.farthest + 1e-6 and found > env.farthest - 0.005


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"radius": 0.15},
            r"away from all 16 prey, and none is more than 0.1886 away; make radius=0.15 less than "
            r"0.1257",
        ),
        (
            {"radius": 0.15, "start": "apart", "predators": 4},
            r"start='apart' of Waves needs a point that is more than",
        ),
        ({"prey": 15}, "prey=15 of Waves must be a square number, 4 or more"),
        ({"catchers": 3}, "catchers=3 of Waves must be between 1 and 2"),
        ({"horizon": 0}, "horizon=0 of Waves must be 1 or more"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Waves(**settings)


def test_a_fifteenth_of_the_square_is_far_enough_for_a_random_start():
    points = np.random.default_rng(0).uniform(size=(100_000, 1, 2))
    far = (np.linalg.norm(points - PRESETS["2"].lattice, axis=-1) > 0.15).all(1).mean()
    assert abs(far - 0.067) < 0.003


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        (PRESETS["2"], 56.0),
        (PRESETS["3"], 60.0),
        (Waves(predators=4, catchers=2, start="apart"), 23.0),
    ],
    ids=["2", "3", "4"],
)
def test_random_play_returns_about_what_an_independent_measurement_gave(env, expected):
    """Its means are of a few episodes, at speed 0.05 and radius 0.1; one episode's deviation is 11
    to 17."""
    returns = random_episodes(env, 500)[1][3].sum(1)
    assert abs(returns.mean() - expected) < 6.0
