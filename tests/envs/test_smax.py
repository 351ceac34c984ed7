import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.envs import TASKS, find_task
from comarl.envs.check import check
from comarl.envs.known import MISSING
from comarl.envs.smax import MAPS, Smax, game_of
from comarl.types import Environment
from comarl.validation import UnknownName

SIZES = {  # allies, enemies, obs, state, actions, SMAC's limit
    "2m_vs_1z": (2, 1, 36, 36, 6, 150),
    "3m": (3, 3, 75, 72, 8, 60),
    "8m": (8, 8, 205, 192, 13, 120),
    "25m": (25, 25, 647, 600, 30, 150),
    "5m_vs_6m": (5, 6, 140, 132, 11, 70),
    "8m_vs_9m": (8, 9, 218, 204, 14, 120),
    "10m_vs_11m": (10, 11, 270, 252, 16, 150),
    "27m_vs_30m": (27, 30, 738, 684, 35, 180),
    "2s3z": (5, 5, 127, 120, 10, 120),
    "3s5z": (8, 8, 205, 192, 13, 150),
    "3s5z_vs_3s6z": (8, 9, 218, 204, 14, 170),
    "3s_vs_3z": (3, 3, 75, 72, 8, 150),
    "3s_vs_4z": (3, 4, 88, 84, 9, 200),
    "3s_vs_5z": (3, 5, 101, 96, 10, 250),
    "6h_vs_8z": (6, 8, 179, 168, 13, 150),
    "corridor": (6, 24, 387, 360, 29, 400),
    "smacv2_5_units": (5, 5, 127, 120, 10, 200),
    "smacv2_10_units": (10, 10, 257, 240, 15, 200),
    "smacv2_20_units": (20, 20, 517, 480, 25, 200),
}
STOP, RIGHT, SHOOT = 4, 1, 5
EPISODES = 8
FULL = 45.0  # a marine's health


@pytest.fixture(scope="module")
def short():
    """A battle cut after five steps, its start, and its compiled step: `(start, step)`."""
    env = Smax("3m", horizon=5)
    start, _ = jax.jit(env.reset)(jax.random.key(0))
    step = jax.jit(env.step)
    return start, lambda env_state, action=(STOP,) * 3: step(
        env_state, jnp.array(action, jnp.int32), jax.random.key(1)
    )


def with_health(env_state, health, time=0):
    """The same battle, units as healthy as that, the first three of them allies."""
    health = jnp.array(health, jnp.float32)
    state = env_state.state.replace(unit_health=health, unit_alive=health > 0, step=jnp.int32(time))
    return env_state.replace(state=state)


def attack(timestep, key):
    """Everyone shoots the first enemy in reach; who reaches none walks right, where they come from,
    or anywhere."""
    shoots = timestep.available[:, SHOOT:]
    walk = jnp.where(
        jax.random.bernoulli(key, 0.8), RIGHT, jax.random.randint(key, shoots.shape[:1], 0, STOP)
    )
    return jnp.where(shoots.any(1), SHOOT + jnp.argmax(shoots, 1), walk).astype(jnp.int32)


@pytest.fixture(scope="module")
def battles():
    """Battles on 3m, played on after their ends: keys of starts and steps, actions, and what `Smax`
    makes of them."""
    env = Smax("3m")

    def battle(key):
        start_key, *keys = jax.random.split(key, env.spec.horizon + 1)

        def one_step(carry, key):
            env_state, timestep = carry
            action = attack(timestep, key)
            env_state, after, reward, terminated, truncated = env.step(env_state, action, key)
            won = env.metrics(env_state)["won"]
            return (env_state, after), (key, action, after, reward, terminated, truncated, won)

        return start_key, *jax.lax.scan(one_step, env.reset(start_key), jnp.stack(keys))[1]

    return jax.jit(jax.vmap(battle))(jax.random.split(jax.random.key(3), EPISODES))


@pytest.mark.parametrize("name", MAPS)
def test_sizes_and_limits_are_those_of_the_map(name):
    spec = Smax(name).spec
    _, enemies, *sizes, limit = SIZES[name]
    assert (spec.num_agents, spec.obs_size, spec.state_size, spec.action_size, spec.horizon) == (
        SIZES[name][0],
        *sizes,
        limit,
    )
    assert enemies == game_of(Smax(name)).num_enemies
    assert spec.discrete and spec.obs_range is None
    assert isinstance(Smax(name), Environment)
    assert find_task(f"smax/{name}") == Smax(name) and TASKS[f"smax/{name}"]


def test_armies_are_those_of_jaxmarl_where_it_has_the_map():
    _ = Smax().spec  # imports JaxMARL quietly
    from jaxmarl.environments.smax.smax_env import MAP_NAME_TO_SCENARIO

    assert set(MAP_NAME_TO_SCENARIO) < set(MAPS)
    for name, scenario in MAP_NAME_TO_SCENARIO.items():
        ours = game_of(Smax(name))
        np.testing.assert_array_equal(ours.scenario, scenario.unit_types)
        assert ours.smacv2_position_generation == scenario.smacv2_position_generation
        assert ours.smacv2_unit_type_generation == scenario.smacv2_unit_type_generation


def test_it_keeps_the_contract():
    assert check(Smax("3m", horizon=12), steps=96).mean_length <= 12


def test_every_step_is_that_of_jaxmarl(battles):
    from jaxmarl.environments.smax import HeuristicEnemySMAX, map_name_to_scenario

    theirs = HeuristicEnemySMAX(scenario=map_name_to_scenario("3m"), max_steps=60)
    start_key, keys, actions, timesteps, rewards, *_ = battles

    def battle(start_key, keys, actions):
        def one_step(env_state, inputs):
            key, action = inputs
            by_agent = {agent: action[i] for i, agent in enumerate(theirs.agents)}
            obs, env_state, reward, _, _ = theirs.step_env(key, env_state, by_agent)
            available = theirs.get_avail_actions(env_state)
            return env_state, (obs, available, reward)

        return jax.lax.scan(one_step, theirs.reset(start_key)[1], (keys, actions))[1]

    with jax.numpy_dtype_promotion("standard"):
        obs, available, reward = jax.jit(jax.vmap(battle))(start_key, keys, actions)
    for i, agent in enumerate(theirs.agents):
        np.testing.assert_array_equal(timesteps.obs[:, :, i], obs[agent])
        np.testing.assert_array_equal(timesteps.available[:, :, i], available[agent])
        np.testing.assert_array_equal(rewards, 10 * reward[agent])
    world = np.asarray(obs["world_state"])
    expected = np.array([[scaled_by_hand(state) for state in battle] for battle in world])
    np.testing.assert_allclose(timesteps.state, expected, atol=1e-6)
    assert np.abs(world).max() > 20 and np.abs(timesteps.state).max() < 1.5


def scaled_by_hand(world):
    """JaxMARL's state of 3m, unit by unit: a field of 32; of all types the stalker's cooldown is
    the longest, 1.87."""
    state = world.copy()
    for unit in range(6):
        state[10 * unit + 1 : 10 * unit + 3] /= 32
        state[10 * unit + 3] = max(state[10 * unit + 3], 0) / 1.87
    state[66:] /= 5
    return state


def test_the_state_may_be_left_in_jaxmarls_units():
    scaled, raw = Smax("3m"), Smax("3m", scaled_state=False)
    states = [np.asarray(jax.jit(env.reset)(jax.random.key(0))[1].state) for env in (scaled, raw)]
    np.testing.assert_allclose(states[0], scaled_by_hand(states[1]), atol=1e-6)


def test_a_win_returns_twenty_as_in_smac_and_nothing_else_does(battles):
    rewards, terminated, _, won = map(np.asarray, battles[4:])
    before_end = np.cumsum(terminated, axis=1) <= terminated
    returns = np.where(before_end, rewards, 0).sum(1)
    won = np.where(before_end, won, 0).max(1) > 0
    assert 0 < won.sum() < EPISODES, (
        "choose another seed: of these battles some should be won and some lost"
    )
    np.testing.assert_allclose(returns[won], 20.0, rtol=1e-6)
    assert (returns[~won] <= 10.0 + 1e-5).all()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 10.0),
        ({"reward_scale": 1.0}, 1.0),
        ({"reward": "sparse"}, 1.0),
        ({"reward": "sparse", "reward_scale": 0.05}, 0.05),
    ],
)
def test_rewards_have_the_scale_of_smac_unless_told_otherwise(settings, expected):
    assert Smax("3m", **settings).scale == expected


# Health after a step of three marines against three -> what it gives; all were alive before
SPARSE = {
    "nothing": ([FULL] * 6, -0.1),
    "a kill": ([FULL] * 5 + [0], 10 - 0.1),
    "a loss and two kills": ([0, FULL, FULL, FULL, 0, 0], 20 - 1 - 0.1),
    "defeat": ([0, 0, 0, FULL, FULL, FULL], -3 - 0.1),
    "draw": ([0] * 6, 30 - 3 - 0.1),
    "win": ([FULL, FULL, 0, 0, 0, 0], 230 - 1 - 0.1),
}


@pytest.mark.parametrize("name", SPARSE)
def test_the_sparse_reward_is_for_deaths_time_and_the_win(short, name):
    health, expected = SPARSE[name]
    env, (before, _) = Smax("3m", reward="sparse"), short
    np.testing.assert_allclose(
        env.sparse_reward(before, with_health(before, health)), expected, rtol=1e-6
    )
    dead_already = env.sparse_reward(with_health(before, health), with_health(before, health))
    np.testing.assert_allclose(dead_already, -0.1 + 200 * (name == "win"), rtol=1e-6)


def test_sparse_returns_on_3s_vs_3z_are_the_arithmetic_of_deaths_steps_and_wins():
    """230 - 0.1 T - losses for a win; in a twentieth of it, as an option."""
    env, episodes = Smax("3s_vs_3z", reward="sparse", reward_scale=0.05), 6
    allies = env.spec.num_agents

    def battle(key):
        start_key, *keys = jax.random.split(key, env.spec.horizon + 1)

        def one_step(carry, key):
            env_state, timestep = carry
            env_state, after, reward, terminated, truncated = env.step(
                env_state, attack(timestep, key), key
            )
            alive = env_state.state.unit_alive
            return (env_state, after), (
                reward,
                terminated | truncated,
                alive,
                env.metrics(env_state)["won"],
            )

        return jax.lax.scan(one_step, env.reset(start_key), jnp.stack(keys))[1]

    outcome = jax.jit(jax.vmap(battle))(jax.random.split(jax.random.key(0), episodes))
    rewards, over, alive, won = map(np.asarray, outcome)
    ends = over.argmax(1)  # the last step
    assert {bool(won[e, t]) for e, t in enumerate(ends)} == {True, False}, "choose another seed"
    for episode, end in enumerate(ends):
        survivors = alive[episode, end]
        lost, killed = allies - survivors[:allies].sum(), allies - survivors[allies:].sum()
        expected = 10 * killed - lost - 0.1 * (end + 1) + 200 * won[episode, end]
        if won[episode, end]:
            np.testing.assert_allclose(expected, 230 - 0.1 * (end + 1) - lost)
        np.testing.assert_allclose(rewards[episode, : end + 1].sum(), expected / 20, rtol=1e-5)


def test_the_sparse_reward_keeps_the_contract():
    assert check(Smax("3m", horizon=12, reward="sparse"), steps=96).mean_return < 10


def test_time_runs_out_after_exactly_the_limit_and_never_terminates(short):
    env_state, step = short
    flags = []
    for _ in range(5):
        env_state, _, _, terminated, truncated = step(env_state)
        flags.append((bool(terminated), bool(truncated)))
    assert flags == [(False, False)] * 4 + [(False, True)]
    assert Smax("3m").metrics(env_state) == {"won": 0.0}


@pytest.mark.parametrize(
    ("health", "over", "won"),
    [
        ([FULL, 0, 0, 0, 0, FULL], False, 0.0),
        ([FULL, 0, 0, 0, 0, 0], True, 1.0),
        ([0, 0, 0, 0, FULL, 0], True, 0.0),
        ([0, 0, 0, 0, 0, 0], True, 0.0),
    ],
    ids=["on", "victory", "defeat", "draw"],
)
@pytest.mark.parametrize("time", [0, 4], ids=["early", "at the limit"])
def test_a_side_without_units_terminates_and_only_survivors_win(short, health, over, won, time):
    env_state, step = short
    after, _, reward, terminated, truncated = step(with_health(env_state, health, time))
    assert bool(terminated) == over
    assert bool(truncated) == (time == 4 and not over)
    assert Smax("3m").metrics(after) == {"won": won}
    assert reward == 10 * won  # nothing was shot in this step, so it is the bonus alone


def test_the_dead_see_nothing_can_only_stop_and_change_nothing(short):
    env_state, step = short
    env_state = with_health(env_state, [0, FULL, FULL, FULL, FULL, FULL])
    _, idle, *_ = step(env_state)
    np.testing.assert_array_equal(idle.available[0], np.arange(8) == STOP)
    assert idle.available[1:, : STOP + 1].all()
    assert not idle.obs[0].any()
    for order in (RIGHT, SHOOT):
        _, timestep, *_ = step(env_state, (order, STOP, STOP))
        np.testing.assert_array_equal(timestep.obs, idle.obs)
        np.testing.assert_array_equal(timestep.state, idle.state)


def test_enemies_can_be_shot_when_they_are_in_range_and_alive(short):
    env_state, step = short
    places = jnp.array([[8, 8], [8, 24], [4, 16], [12, 8], [14, 8], [12.5, 8]], jnp.float32)
    env_state = with_health(env_state, [FULL] * 5 + [0])
    env_state = env_state.replace(state=env_state.state.replace(unit_positions=places))
    _, timestep, reward, *_ = step(env_state, (SHOOT, STOP, STOP))
    shootable = timestep.available[:, SHOOT:]
    assert shootable[0, 0] and not shootable[0, 2]
    assert not shootable[1:].any()
    # A marine takes 9 once in this time, of one enemy of three
    np.testing.assert_allclose(reward, 10 * 9 / FULL / 3, rtol=1e-6)


def test_a_first_use_inside_a_trace_leaks_nothing_and_prints_nothing():
    program = """
import sys, jax
from comarl.envs import find_task
env = find_task("smax/3m")
assert "jaxmarl" not in sys.modules
streams = sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__
env_state, _ = jax.eval_shape(env.reset, jax.random.key(0))
assert streams == (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
jax.eval_shape(env.step, env_state, jax.ShapeDtypeStruct((3,), "int32"), jax.random.key(0))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_unknown_map_gets_the_nearest():
    with pytest.raises(
        UnknownName, match=r"map '3s_vs_6z' does not exist; did you mean '3s_vs_[345]z' or '3s"
    ):
        Smax("3s_vs_6z")
    with pytest.raises(UnknownName, match="did you mean 'smax/25m'"):
        find_task("smax/25n")


@pytest.mark.parametrize(("name", "unit"), MISSING.items())
def test_a_map_of_units_that_smax_lacks_names_the_unit(name, unit):
    with pytest.raises(UnknownName, match=f"{name}.*{unit}"):
        find_task(f"smax/{name}")


def test_an_impossible_limit_is_an_error():
    with pytest.raises(ValueError, match="horizon=0 of Smax must be 1 or more"):
        Smax("3m", horizon=0)


def test_without_jaxmarl_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "jaxmarl.environments", None)
    with pytest.raises(ImportError, match=r'pip install "comarl\[smax\]"'):
        _ = Smax("3m", horizon=7).spec
