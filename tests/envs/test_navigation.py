"""Cooperative navigation, held against reference rules in plain Python, against mpe2 and against
JaxMARL, step by step."""

import contextlib
import io
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mpe2 import simple_spread_v3

from comarl.envs import find_task
from comarl.envs.check import check, random_action
from comarl.envs.navigation import Navigation, Plane
from tests.envs.reference_navigation import ReferenceNavigation

TEAM = Navigation()
RULES = ("mpe2", "openai", "jaxmarl")
steps_of = {rules: jax.jit(replace(TEAM, rules=rules).step) for rules in RULES}


def random_episodes(env, episodes, crowd=0.3):
    """Episodes of random play from starts within [-crowd, crowd]^2, so that agents meet: [episodes,
    time, ...]."""

    def one_step(env_state, key):
        action = 1.3 * random_action(env.spec, None, key)
        after, *results = env.step(env_state, action, key)
        return after, (action, after, *results)

    def episode(key):
        first = jax.tree.map(lambda x: crowd * x if x.ndim else x, env.reset(key)[0])
        return first, jax.lax.scan(one_step, first, jax.random.split(key, env.spec.horizon))[1]

    return jax.tree.map(
        np.asarray, jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(0), episodes))
    )


def five(direction):
    """The particle environments' vector of five, for a direction."""
    x, y = np.clip(direction, -1.0, 1.0)
    return np.array([0.0, max(-x, 0.0), max(x, 0.0), max(-y, 0.0), max(y, 0.0)], np.float32)


def plane(agents, landmarks, time=0):
    agents = jnp.array(agents, jnp.float32)
    return Plane(agents, jnp.zeros_like(agents), jnp.array(landmarks, jnp.float32), jnp.int32(time))


@pytest.mark.parametrize("rules", RULES)
def test_every_step_of_random_episodes_is_that_of_the_slow_rules(rules):
    env = Navigation(rules=rules)
    starts, steps = random_episodes(env, 12)
    met = 0
    for episode in range(12):
        start, rest = jax.tree.map(lambda x, e=episode: x[e], (starts, steps))
        reference = ReferenceNavigation(start.agents.tolist(), start.landmarks.tolist(), rules)
        for time in range(env.spec.horizon):
            action, after, later, reward, terminated, truncated = jax.tree.map(
                lambda x, t=time: x[t], rest
            )
            expected, ended = reference.step(action.tolist())
            np.testing.assert_allclose(reward, expected, atol=1e-4)
            assert (bool(terminated), bool(truncated)) == (False, ended)
            np.testing.assert_allclose(
                later.obs, [reference.obs(agent) for agent in range(3)], atol=1e-4
            )
            assert later.state.tolist() == later.obs.reshape(-1).tolist()
            met += (np.linalg.norm(after.agents[:, None] - after.agents, axis=-1) < 0.3).sum() - 3
    assert met > 30, "the comparison must see agents that push each other"


def test_mpe2_plays_the_same():
    env = Navigation(rules="mpe2")
    starts, steps = random_episodes(env, 8)
    other = simple_spread_v3.parallel_env(continuous_actions=True)
    for episode in range(8):
        start, rest = jax.tree.map(lambda x, e=episode: x[e], (starts, steps))
        other.reset(seed=0)
        world = other.unwrapped.world
        for entities, places in ((world.agents, start.agents), (world.landmarks, start.landmarks)):
            for entity, place in zip(entities, places, strict=True):
                entity.state.p_pos = place.astype(np.float64)
        for time in range(env.spec.horizon):
            action, _, later, reward, _, truncated = jax.tree.map(lambda x, t=time: x[t], rest)
            obs, rewards, _, truncations, _ = other.step(
                {
                    name: five(direction)
                    for name, direction in zip(other.agents, action, strict=True)
                }
            )
            np.testing.assert_allclose(later.obs, list(obs.values()), atol=1e-4)
            np.testing.assert_allclose(reward, np.mean(list(rewards.values())), atol=1e-4)
            assert bool(truncated) == all(truncations.values())


def test_jaxmarl_plays_the_same_and_26_steps():
    with contextlib.redirect_stdout(io.StringIO()):
        jaxmarl = pytest.importorskip("jaxmarl")
    env = Navigation(rules="jaxmarl")
    starts, steps = random_episodes(env, 4)
    with jax.numpy_dtype_promotion("standard"):
        other = jaxmarl.make("MPE_simple_spread_v3", action_type="Continuous")
        advance = jax.jit(other.step_env)
        for episode in range(4):
            start, rest = jax.tree.map(lambda x, e=episode: x[e], (starts, steps))
            places = jnp.concatenate([start.agents, start.landmarks])
            state = other.reset(jax.random.key(0))[1].replace(p_pos=places)
            for time in range(26):
                action, _, later, reward, _, truncated = jax.tree.map(lambda x, t=time: x[t], rest)
                actions = {
                    name: jnp.asarray(five(a)) for name, a in zip(other.agents, action, strict=True)
                }
                obs, state, rewards, dones, _ = advance(jax.random.key(0), state, actions)
                np.testing.assert_allclose(later.obs, list(obs.values()), atol=1e-4)
                np.testing.assert_allclose(reward, np.mean(list(rewards.values())), atol=1e-4)
                assert bool(truncated) == bool(dones["__all__"])


@pytest.mark.parametrize("rules", RULES)
def test_all_rules_keep_the_contract(rules):
    env = replace(find_task("navigation/3"), rules=rules)
    check(env, steps=100)
    spec = env.spec
    assert (spec.num_agents, spec.obs_size, spec.state_size, spec.action_size) == (3, 18, 54, 2)
    assert spec.horizon == (26 if rules == "jaxmarl" else 25)


@pytest.mark.parametrize(
    ("rules", "expected"), [("mpe2", -0.5), ("jaxmarl", -0.5), ("openai", -6.0)]
)
def test_the_reward_of_landmarks_that_are_covered_but_for_one(rules, expected):
    """One landmark is 1 away: 1 from the team's sum; OpenAI's rules count it for each agent, and
    each with itself."""
    far = plane([(0, 0), (2, 0), (0, 2)], [(0, 0), (2, 0), (0, 3)])
    after, _, reward, *_ = steps_of[rules](far, jnp.zeros((3, 2)), jax.random.key(0))
    np.testing.assert_allclose(reward, expected, atol=1e-5)
    assert float(TEAM.metrics(after)["covered"]) == 2.0


@pytest.mark.parametrize(("rules", "cost"), [("mpe2", 1 / 3), ("jaxmarl", 1 / 3), ("openai", 2.0)])
def test_two_agents_that_overlap_each_count_it_once(rules, cost):
    env = replace(TEAM, rules=rules)
    landmarks = [(0, 0), (0, 0.2), (5, 5)]
    apart = env.reward(plane([(0, 0), (0, 0.5), (5, 5)], landmarks))
    both = env.reward(plane([(0, 0), (0, 0.2), (5, 5)], landmarks))
    # The second landmark is nearer to the first
    distance = {"mpe2": 0.5, "jaxmarl": 0.5, "openai": 3.0}[rules] * 0.2
    np.testing.assert_allclose(apart - (both - distance), cost, atol=1e-5)


def test_places_follow_the_old_velocity_but_by_openais_rules_the_new():
    still, right = plane([(0, 0), (3, 0), (0, 3)], [(0, 0)] * 3), jnp.array([[1.0, 0.0]] * 3)
    for rules, expected in (("mpe2", 0.0), ("jaxmarl", 0.0), ("openai", 0.05)):
        after = steps_of[rules](still, right, jax.random.key(0))[0]
        np.testing.assert_allclose(after.agents[0], [expected, 0.0], atol=1e-6)
        np.testing.assert_allclose(after.velocity[0], [0.5, 0.0], atol=1e-6)


def test_agents_at_one_point_stay_finite():
    _, timestep, reward, *_ = steps_of["mpe2"](
        plane([(0, 0)] * 3, [(0, 0)] * 3), jnp.zeros((3, 2)), jax.random.key(0)
    )
    assert np.isfinite(timestep.obs).all() and float(reward) == -1.0


def test_starts_fill_the_square():
    starts = jax.jit(jax.vmap(lambda key: TEAM.reset(key)[0]))(
        jax.random.split(jax.random.key(0), 1000)
    )
    for places in (np.asarray(starts.agents), np.asarray(starts.landmarks)):
        assert -1.0 <= places.min() < -0.98 and 0.98 < places.max() <= 1.0
        np.testing.assert_allclose(places.mean((0, 1)), 0.0, atol=0.05)


@pytest.mark.parametrize("settings", [{"agents": 0}, {"horizon": 0}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match=r"=0 of Navigation must be 1 or more"):
        Navigation(**settings)
