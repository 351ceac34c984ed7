"""Treasure collection, held against reference rules in plain Python and against mpe2, step by
step."""

import dataclasses
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mpe2 import collect_treasure_v1

from comarl.envs import find_task
from comarl.envs.check import check, random_action
from comarl.envs.treasure import GONE, NOTHING, Draws, Treasure, World
from tests.envs.reference_treasure import ReferenceTreasure

TRIO = Treasure()
FOUR = Treasure(deposits=2)
outcomes = {env: jax.jit(env.outcome) for env in (TRIO, replace(TRIO, maac_compat=True))}


def random_episodes(env, episodes, crowd=0.5):
    """Episodes from crowded starts in which agents mostly head for what their reward wants:
    [episodes, time, ...]."""

    def one_step(env_state, key):
        action_key, eager_key, step_key = jax.random.split(key, 3)
        collectors, deposits = jnp.split(env_state.agents, [env.collectors])
        offset = env_state.treasures - collectors[:, None]
        nearest = jnp.square(offset).sum(-1).argmin(1)
        to_treasure = offset[jnp.arange(env.collectors), nearest]
        to_deposit = deposits[env_state.holding] - collectors
        goal = jnp.where((env_state.holding == NOTHING)[:, None], to_treasure, to_deposit)
        towards = jnp.sign(
            jnp.concatenate([goal, collectors.mean(0) - deposits]) - 0.3 * env_state.velocity
        )
        chance = jax.random.bernoulli(eager_key, 0.7, (env.agents, 1))
        action = jnp.where(chance, towards, 1.3 * random_action(env.spec, None, action_key))
        draws = env.draws(step_key)
        draws = draws._replace(place=crowd * draws.place)
        after, *results = env.outcome(env_state, action, draws)
        return after, (action, draws, after, *results)

    def episode(key):
        first = env.reset(key)[0]
        first = first._replace(agents=crowd * first.agents, treasures=crowd * first.treasures)
        return (first, env.observe(first)), jax.lax.scan(
            one_step, first, jax.random.split(key, env.horizon)
        )[1]

    return jax.tree.map(
        np.asarray, jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(0), episodes))
    )


def padded(env, observations):
    return [[*obs, *[0.0] * (env.spec.obs_size - len(obs))] for obs in observations]


@pytest.mark.parametrize(
    "env",
    [
        TRIO,
        replace(TRIO, maac_compat=True),
        FOUR,
        replace(FOUR, maac_compat=True, treasures=1),
        Treasure(collectors=6, deposits=2, horizon=60),
        Treasure(collectors=9, deposits=2, horizon=60, maac_compat=True),
    ],
    ids=lambda env: f"{env.collectors}-{env.deposits}-{'maac' if env.maac_compat else 'mpe2'}",
)
def test_every_step_of_random_episodes_is_that_of_the_slow_rules(env):
    (starts, looks), steps = random_episodes(env, 3)
    deliveries = overlaps = 0
    for episode in range(3):
        start, look, rest = jax.tree.map(lambda x, e=episode: x[e], (starts, looks, steps))
        agents = start.agents.tolist()
        things = (
            agents[: env.collectors],
            agents[env.collectors :],
            start.treasures.tolist(),
            start.kind.tolist(),
        )
        reference = ReferenceTreasure(*things, env.maac_compat)
        np.testing.assert_allclose(look.obs, padded(env, reference.observations()), atol=1e-6)
        for time in range(env.horizon):
            action, draws, after, later, reward, terminated, truncated = jax.tree.map(
                lambda x, t=time: x[t], rest
            )
            expected, seen = reference.step(action.tolist(), *(x.tolist() for x in draws))
            np.testing.assert_allclose(reward, expected, atol=2e-4)
            assert (bool(terminated), bool(truncated)) == (False, time + 1 == env.horizon)
            np.testing.assert_allclose(later.obs, padded(env, seen), atol=2e-4)
            holding = [
                NOTHING if c["holding"] is None else c["holding"] for c in reference.collectors
            ]
            assert after.holding.tolist() == holding
            overlaps += reward < -1.0
            for agent, place, velocity in zip(
                reference.agents, after.agents.tolist(), after.velocity.tolist(), strict=True
            ):
                # Or rounding would grow from bump to bump
                agent.update(at=place, velocity=velocity)
        assert int(after.deliveries) == reference.deliveries
        deliveries += reference.deliveries
    assert deliveries > 5 and overlaps > 5, "the comparison must see deliveries and overlaps"


class Drawn:
    """A random generator that gives what it was told: where each treasure that comes back lies, and
    its kind."""

    def tell(self, places, kinds):
        self.places, self.kinds = list(places), list(kinds)

    def uniform(self, low=None, high=None, size=None):
        return 0.0 if size is None else np.array(self.places.pop(0), np.float64)

    def integers(self, low, high):
        return self.kinds.pop(0)


@pytest.mark.parametrize(
    "env", [TRIO, FOUR, Treasure(collectors=6, deposits=2, horizon=40)], ids=["3", "4", "8"]
)
def test_mpe2_plays_the_same(env):
    (starts, _), steps = random_episodes(env, 2)
    sizes: dict[str, Any] = dict(
        num_collectors=env.collectors, num_deposits=env.deposits, num_treasures=env.num_treasures
    )
    other = collect_treasure_v1.parallel_env(
        **sizes, continuous_actions=True, max_cycles=env.horizon
    )
    deliveries = 0
    for episode in range(2):
        start, rest = jax.tree.map(lambda x, e=episode: x[e], (starts, steps))
        other.reset(seed=0)
        world = other.unwrapped.world
        for agent, place in zip(world.agents, start.agents, strict=True):
            agent.state.p_pos = place.astype(np.float64)
        for treasure, place, kind in zip(world.landmarks, start.treasures, start.kind, strict=True):
            treasure.state.p_pos, treasure.type = place.astype(np.float64), int(kind)
        world._np_random = drawn = Drawn()
        for time in range(env.horizon):
            action, draws, after, later, reward, _, truncated = jax.tree.map(
                lambda x, t=time: x[t], rest
            )
            back = [i for i, treasure in enumerate(world.landmarks) if not treasure.alive]
            drawn.tell(draws.place[back], draws.kind[back])
            x, y = np.clip(action, -1.0, 1.0).T
            five = np.stack(
                [0 * x, np.maximum(-x, 0), np.maximum(x, 0), np.maximum(-y, 0), np.maximum(y, 0)],
                axis=1,
            )
            obs, rewards, _, truncations, _ = other.step(dict(zip(other.agents, five, strict=True)))
            np.testing.assert_allclose(later.obs, padded(env, obs.values()), atol=2e-4)
            np.testing.assert_allclose(reward, np.mean(list(rewards.values())), atol=2e-4)
            assert bool(truncated) == all(truncations.values())
        deliveries += int(after.deliveries)
    assert deliveries > 3, "the comparison must see deliveries"


@pytest.mark.parametrize(
    ("name", "sizes"), [("3", (23, 23, 22)), ("4", (38, 38, 36, 36)), ("8", (86,) * 6 + (84,) * 2)]
)
@pytest.mark.parametrize("maac_compat", [False, True])
def test_every_preset_keeps_the_contract_and_has_mpe2s_sizes(name, sizes, maac_compat):
    env = replace(find_task(f"treasure/{name}"), maac_compat=maac_compat)
    check(env, steps=200)
    assert env.spec.obs_sizes == sizes and env.spec.state_size == sum(sizes)
    assert env.horizon == (25 if name == "8" else 100)


def world(collectors, deposit, treasures, holding=(NOTHING, NOTHING), there=(True, True), time=0):
    """A world of `TRIO`, at rest."""
    agents = jnp.array([*collectors, deposit], jnp.float32)
    places = [at if exists else (GONE, GONE) for at, exists in zip(treasures, there, strict=True)]
    int32 = lambda x: jnp.array(x, jnp.int32)
    return World(
        agents=agents,
        velocity=jnp.zeros_like(agents),
        holding=int32(holding),
        treasures=jnp.array(places, jnp.float32),
        kind=int32([0, 0]),
        there=jnp.array(there),
        deliveries=int32(0),
        time=int32(time),
    )


def play(env_state, maac=False, action=((0.0, 0.0),) * 3):
    """One step of `TRIO`, in which what comes back lies at (3, 0) and (0, 3)."""
    draws = Draws(jnp.array([(3.0, 0.0), (0.0, 3.0)]), jnp.array([0, 0], jnp.int32))
    env = replace(TRIO, maac_compat=maac)
    after, timestep, reward, terminated, truncated = outcomes[env](
        env_state, jnp.array(action), draws
    )
    return after, timestep, float(reward), bool(terminated), bool(truncated)


def test_a_treasure_goes_to_the_first_free_collector_that_touches_it_and_is_gone_for_a_step():
    # Both collectors touch the first treasure and overlap; the second treasure is 3 away from both.
    start = world([(0.0, 0.0), (0.05, 0.0)], (0.0, 1.0), [(0.02, 0.0), (0.05, 3.0)])
    after, timestep, reward, *_ = play(start)
    assert after.holding.tolist() == [0, NOTHING] and after.there.tolist() == [False, True]
    # The deposit is 1 from who is loaded, who is 1 from it; the free one is 3 from the treasure
    # that is left.
    np.testing.assert_allclose(reward, 5.0 + (-5.0 - 0.1 - 5.0 - 0.3 - 0.1) / 3, atol=1e-5)
    assert timestep.obs[0, -3:].tolist() == [0.0] * 3  # the last treasure seen is gone
    later = play(after)[0]
    assert later.there.all() and later.treasures[0].tolist() == [3.0, 0.0]


def test_maac_pays_two_on_one_treasure_twice_and_shows_it_before_it_is_picked_up():
    start = world([(0.0, 0.0), (0.08, 0.0)], (0.0, 1.0), [(0.04, 0.0), (0.05, 3.0)])
    after, timestep, reward, *_ = play(start, maac=True)
    # They overlap by 0.02, which pushes each by as much. Both are then 0.06 from the treasure.
    np.testing.assert_allclose(after.agents[:2, 0], [-0.02, 0.1], atol=1e-5)
    assert after.holding.tolist() == [0, NOTHING]
    np.testing.assert_allclose(
        reward, 10.0 - 0.1 * (0.06 + 0.06 + np.hypot(0.04, 1.0)) / 3, atol=1e-5
    )
    # Holds nothing yet; the treasure is still near
    assert timestep.obs[0, 4] == 0.0 and abs(timestep.obs[0, -6]) < 0.1
    # A step later it lies far away, and is seen there.
    assert play(after, maac=True)[1].obs[0, -3] < -998.0


def arriving(env_state):
    """The first collector moves right by a tenth in the step, and somewhat further by mpe2's
    rules."""
    return env_state._replace(velocity=jnp.array([[4 / 3, 0.0], [0.0, 0.0], [0.0, 0.0]]))


def test_a_delivery_is_worth_five_and_frees_the_collector():
    start = arriving(
        world([(0.0, 0.0), (1.0, 0.0)], (0.2, 0.0), [(2.0, 0.0), (2.0, 0.0)], holding=(0, NOTHING))
    )
    for maac in (False, True):
        after, _, reward, *_ = play(start, maac=maac)
        assert after.holding.tolist() == [NOTHING, NOTHING]
        assert float(TRIO.metrics(after)["deliveries"]) == 1.0
        assert 4.5 < reward < 5.0


def test_what_is_picked_up_at_the_deposit_is_delivered_in_the_same_step_and_maac_pays_it_once():
    start = arriving(world([(0.0, 0.0), (1.0, 0.0)], (0.2, 0.0), [(0.1, 0.0), (2.0, 0.0)]))
    for maac, paid in ((False, 10.0), (True, 5.0)):
        after, _, reward, *_ = play(start, maac=maac)
        assert after.holding.tolist() == [NOTHING, NOTHING] and int(after.deliveries) == 1
        assert paid - 0.5 < reward < paid


def test_maac_draws_free_collectors_to_where_treasures_are_gone():
    start = world([(0.0, 0.0), (1.0, 0.0)], (0.5, 0.0), [(0.0, 0.0)] * 2, there=(False, False))
    # Two of three agents are 1413 away from the treasures
    assert -100.0 < play(start, maac=True)[2] < -94.0
    assert -0.5 < play(start)[2] < 0.0  # they are back before the reward: 2 to 3 away


def test_no_treasure_left_costs_a_free_collector_nothing():
    start = world(
        [(0.0, 0.0), (1.0, 0.0)], (0.5, 0.0), [(0.0, 0.0), (1.0, 0.0)], holding=(NOTHING, NOTHING)
    )
    one_kind = replace(TRIO, treasures=1)
    single = start._replace(
        treasures=start.treasures[:1], kind=start.kind[:1], there=start.there[:1]
    )
    gone = Draws(jnp.array([(3.0, 0.0)]), jnp.array([0], jnp.int32))
    after, _, reward, *_ = jax.jit(one_kind.outcome)(single, jnp.zeros((3, 2)), gone)
    assert not after.there.any()
    np.testing.assert_allclose(reward, 5.0 + (-0.05 - 0.0 - 0.05) / 3, atol=1e-5)


def test_accelerations_are_by_mass_but_maacs_and_speed_is_limited():
    still = world([(-5.0, 0.0), (5.0, 0.0)], (0.0, 5.0), [(9.0, 9.0)] * 2)
    right = ((1.0, 0.0),) * 3
    np.testing.assert_allclose(
        play(still, action=right)[0].velocity[:, 0], [0.15, 0.15, 0.15 / 2.25], atol=1e-6
    )
    np.testing.assert_allclose(
        play(still, maac=True, action=right)[0].velocity[:, 0], [0.225] * 3, atol=1e-6
    )
    fast = still._replace(velocity=jnp.array([[3.0, 4.0], [-0.8, 0.0], [0.0, 0.0]]))
    np.testing.assert_allclose(play(fast)[0].velocity[:2], [[0.6, 0.8], [-0.6, 0.0]], atol=1e-6)


def test_time_truncates_and_nothing_terminates():
    start = world([(0.0, 0.0), (1.0, 0.0)], (0.5, 0.0), [(2.0, 0.0)] * 2, time=TRIO.horizon - 1)
    assert play(start)[3:] == (False, True)
    assert play(start._replace(time=start.time - 1))[3:] == (False, False)


def test_starts_and_kinds_are_uniform():
    env = FOUR
    starts = jax.jit(jax.vmap(lambda key: env.reset(key)[0]))(
        jax.random.split(jax.random.key(0), 2000)
    )
    for places, bound in ((starts.agents, 1.0), (starts.treasures, 0.95)):
        places = np.asarray(places)
        assert 0.98 * bound < np.abs(places).max() <= bound
        np.testing.assert_allclose(places.mean((0, 1)), 0.0, atol=0.05)
    assert abs(np.asarray(starts.kind).mean() - 0.5) < 0.04


@pytest.mark.parametrize("field", ["collectors", "deposits", "treasures", "horizon"])
def test_impossible_settings_are_refused(field):
    with pytest.raises(ValueError, match=f"{field}=0 of Treasure must be 1 or more"):
        dataclasses.replace(Treasure(), **{field: 0})
