"""QMIX against its docstring's equations in NumPy, its properties, and its runs."""

import dataclasses
import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

from comarl.algorithms.presets import IQL, VDN
from comarl.algorithms.qmix import Network, Qmix, State
from comarl.nn.recurrent import Memory
from comarl.ops.exploration import Epsilon
from comarl.ops.learner import Adam
from comarl.replay.episodes import EpisodeRing, EpisodeRingState
from comarl.replay.pace import EpisodePace
from comarl.training.settings import Run
from comarl.training.train import updates_due
from comarl.types import Clock, EnvSpec, Episode
from tests.data import SMOOTH, make_episodes
from tests.sessions import compilations, raw, session
from tests.training.tasks import Stroll

AGENTS, OBS, STATE, ACTIONS, HORIZON = 3, 2, 4, 3, 4
SPEC = EnvSpec(AGENTS, OBS, STATE, ACTIONS, discrete=True, horizon=HORIZON)
LENGTHS = (2, HORIZON, 3)  # terminated, cut at the horizon, cut early
GAMMA = 0.9
SMALL: dict[str, Any] = dict(
    hidden=4, mixer_width=3, hypernet=4, gamma=GAMMA, optimiser=SMOOTH, target_period=3
)
QMIX = Qmix(**SMALL, td_lambda=0.6)
VARIANTS = {
    "qmix": QMIX,
    "one step, not double": dataclasses.replace(QMIX, td_lambda=0.0, double=False),
    "vdn": dataclasses.replace(VDN, **SMALL, td_lambda=0.6),
    "iql": dataclasses.replace(IQL, **SMALL, td_lambda=0.6),
}


@functools.partial(jax.jit, static_argnums=0)
def init(algorithm, key):
    return algorithm.init(SPEC, key)


@functools.partial(jax.jit, static_argnums=0)
def values(algorithm, network, target, batch):
    return jax.vmap(lambda episode: algorithm.values(network, target, episode))(batch)


@functools.partial(jax.jit, static_argnums=0)
def update(algorithm, state, batch, clock):
    return algorithm.update(state, batch, clock, jax.random.key(0))


def at_update(number: int) -> Clock:
    return Clock(jnp.int32(1000), jnp.int32(number), jnp.int32(0))


def make_batch(**more) -> Episode:
    """Three episodes, one per ending."""
    return make_episodes(SPEC, LENGTHS, terminated=(0,), **more)


@pytest.fixture(scope="module")
def batch():
    return make_batch()


@pytest.fixture(scope="module")
def states(scramble):
    """`states(algorithm)`: a state whose target is not its network, and in which values differ a
    good deal."""

    @functools.cache
    def make(algorithm) -> State:
        state = init(algorithm, jax.random.key(0))
        networks = scramble(state.network.value, 1, 0.6), scramble(state.network.target, 2, 0.6)
        return eqx.tree_at(lambda s: (s.network.value, s.network.target), state, networks)

    return make


# The equations, in float64 NumPy: episode by episode, agent by agent, step by step


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def utilities_of(net, episode):
    """Q_i(tau_i, .) `[time+1][agents, actions]` of one episode."""
    layer, gru, head = net.encoder.layer, net.encoder.gru, net.head
    steps = len(episode.timesteps.obs)
    result = np.zeros((steps, AGENTS, ACTIONS))
    for i in range(AGENTS):
        h = np.zeros(head.weight.shape[0])
        for t in range(steps):
            last = np.zeros(ACTIONS)
            if t > 0:
                last[episode.action[t - 1, i]] = 1.0
            x = np.concatenate([episode.timesteps.obs[t, i], last, np.eye(AGENTS)[i]])
            x = np.maximum(x @ layer.weight + layer.bias, 0.0)
            w, u = (
                [x_ @ m.weight[k] + m.bias[k] for k in range(3)]
                for x_, m in ((x, gru.from_input), (h, gru.from_memory))
            )
            r, z = sigmoid(w[0] + u[0]), sigmoid(w[1] + u[1])
            h = (1 - z) * np.tanh(w[2] + r * u[2]) + z * h
            result[t, i] = h @ head.weight + head.bias
    return result


def q_tot(algorithm, mixer, q, state):
    """Of one step; for IQL every agent's own."""
    if algorithm.mixing == "none":
        return np.array(q)
    if algorithm.mixing == "sum":
        return sum(q)
    linear = lambda layer, x: x @ layer.weight + layer.bias
    net = lambda m, x: (
        linear(m.output, np.maximum(linear(m.torso.layers[0], x), 0.0))
        if hasattr(m, "torso")
        else linear(m, x)
    )
    sign = np.abs if algorithm.mixing == "monotonic" else lambda x: x
    first = sign(net(mixer.first_weights, state)).reshape(AGENTS, -1)
    x = sum(q[i] * first[i] for i in range(AGENTS)) + linear(mixer.first_bias, state)
    hidden = np.where(x > 0, x, np.expm1(np.minimum(x, 0.0)))
    return hidden @ sign(net(mixer.second_weights, state)) + net(mixer.second_bias, state)[0]


def best_actions(utilities, available):
    """argmax among what is available, for one step."""
    return [
        max(np.flatnonzero(available[i]), key=lambda u, i=i: utilities[i, u]) for i in range(AGENTS)
    ]


def pick(utilities, action):
    return [utilities[i, action[i]] for i in range(AGENTS)]


def q_and_target(algorithm, network, target, episode):
    """Q_tot and y of the steps that took place."""
    live = utilities_of(network.utilities, episode)
    reference = utilities_of(target.utilities, episode)
    length, state = int(np.sum(episode.mask)), np.float64(episode.timesteps.state)
    q = [
        q_tot(algorithm, network.mixer, pick(live[t], episode.action[t]), state[t])
        for t in range(length)
    ]
    y = [None] * length
    for t in reversed(range(length)):
        best = best_actions(
            (live if algorithm.double else reference)[t + 1], episode.timesteps.available[t + 1]
        )
        value = q_tot(algorithm, target.mixer, pick(reference[t + 1], best), state[t + 1])
        if t < length - 1:
            value = (1 - algorithm.td_lambda) * value + algorithm.td_lambda * y[t + 1]
        y[t] = episode.reward[t] + (0.0 if episode.terminated[t] else GAMMA) * value
    return np.array(q), np.array(y)


def episodes_of(batch):
    """Each episode of a batch, as NumPy arrays."""
    return [jax.tree.map(lambda x, b=b: np.asarray(x[b]), batch) for b in range(len(batch.reward))]


@pytest.mark.parametrize("name", VARIANTS)
def test_values_and_targets_equal_the_equations_step_by_step(name, batch, states, reference):
    algorithm = VARIANTS[name]
    state = states(algorithm)
    found = values(algorithm, state.network.value, state.network.target, batch)
    networks = reference.doubles(state.network.value), reference.doubles(state.network.target)
    for b, episode in enumerate(episodes_of(batch)):
        for one, expected in zip(found, q_and_target(algorithm, *networks, episode), strict=True):
            assert one.shape[1:] == (HORIZON, AGENTS)[: 1 + (name == "iql")]
            np.testing.assert_allclose(one[b, : LENGTHS[b]], expected, atol=1e-4)


def test_the_live_and_the_target_network_would_choose_differently(batch, states, reference):
    """Otherwise the test above could not tell who chooses."""
    state = states(QMIX)
    live, target = reference.doubles(state.network.value), reference.doubles(state.network.target)
    differs = 0
    for length, episode in zip(LENGTHS, episodes_of(batch), strict=True):
        both = [utilities_of(network.utilities, episode) for network in (live, target)]
        for t in range(1, length + 1):
            one, other = (
                best_actions(utilities[t], episode.timesteps.available[t]) for utilities in both
            )
            differs += one != other
    assert differs >= 3


def test_the_sign_constraint_and_the_presets_are_what_they_say(key):
    for mixing, monotonic in (("monotonic", True), ("any", False)):
        state = jax.eval_shape(lambda mixing=mixing: Qmix(**SMALL, mixing=mixing).init(SPEC, key))
        assert (
            state.network.value.mixer.monotonic is state.network.target.mixer.monotonic is monotonic
        )
    assert dataclasses.replace(Qmix(), mixing="sum") == VDN
    assert dataclasses.replace(Qmix(), mixing="none") == IQL


@pytest.fixture(scope="module")
def updated(batch, states):
    return update(QMIX, states(QMIX), batch, at_update(0))


def test_an_update_descends_the_mean_squared_error_over_the_steps_that_took_place(
    updated, batch, states, reference
):
    """Through utilities, mixer and all steps of the recurrence; the target is a number."""
    state, (after, metrics) = states(QMIX), updated
    episodes, target = episodes_of(batch), reference.doubles(state.network.target)
    network = reference.doubles(state.network.value)
    y = [q_and_target(QMIX, network, target, episode)[1] for episode in episodes]

    def loss(network):
        q = [q_and_target(QMIX, network, target, episode)[0] for episode in episodes]
        return sum(((q_ - y_) ** 2).sum() for q_, y_ in zip(q, y, strict=True)) / sum(LENGTHS)

    q = [q_and_target(QMIX, network, target, episode)[0] for episode in episodes]
    q, target_values = np.concatenate(q), np.concatenate(y)
    expected = {
        "loss": loss(network),
        "td_loss": loss(network),
        "q_taken_mean": q.mean(),
        "target_value": target_values.mean(),
        "td_error_abs": np.abs(q - target_values).mean(),
        "epsilon": 1.0 - 0.95 * 1000 / 50_000,
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)
    reference.assert_descends(state.network.value, after.network.value, loss, entries=4)


def test_iql_learns_every_agents_error(batch, states, reference):
    algorithm = VARIANTS["iql"]
    state = states(algorithm)
    _, metrics = update(algorithm, state, batch, at_update(0))
    networks = reference.doubles(state.network.value), reference.doubles(state.network.target)
    pairs = [q_and_target(algorithm, *networks, episode) for episode in episodes_of(batch)]
    errors = np.concatenate([(q - y).reshape(-1) for q, y in pairs])
    assert len(errors) == sum(LENGTHS) * AGENTS
    np.testing.assert_allclose(metrics["loss"], np.mean(errors**2), rtol=1e-4)


def test_vdn_is_the_sum_of_what_iql_values(batch, states):
    iql, vdn = VARIANTS["iql"], VARIANTS["vdn"]
    agents, team = states(iql), states(vdn)
    utilities = lambda s: (s.network.value.utilities, s.network.target.utilities)
    team = eqx.tree_at(utilities, team, utilities(agents))
    each, _ = values(iql, agents.network.value, agents.network.target, batch)
    total, _ = values(vdn, team.network.value, team.network.target, batch)
    np.testing.assert_allclose(total, np.asarray(each).sum(-1), atol=1e-5)


def test_gradient_reaches_every_parameter_and_the_target_stays(updated, states, bits):
    state, (after, _) = states(QMIX), updated
    assert bits(after.network.target) == bits(state.network.target)
    pairs = zip(*(jax.tree.leaves_with_path(s.network.value) for s in (after, state)), strict=True)
    for (path, new), (_, old) in pairs:
        assert (np.asarray(new) != np.asarray(old)).any(), jax.tree_util.keystr(path)


def test_steps_that_did_not_take_place_change_nothing(updated, states):
    spoilt, metrics = update(QMIX, states(QMIX), make_batch(garbage=100.0), at_update(0))
    for one, two in zip(*map(jax.tree.leaves, ((spoilt, metrics), updated)), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)


def test_episodes_may_stand_in_any_order(updated, batch, states):
    shuffled = jax.tree.map(lambda x: x[jnp.array([2, 0, 1])], batch)
    for one, two in zip(
        *map(jax.tree.leaves, (update(QMIX, states(QMIX), shuffled, at_update(0)), updated)),
        strict=True,
    ):
        np.testing.assert_allclose(one, two, atol=1e-5)


def test_the_target_is_copied_after_every_third_update_and_only_then(batch, states, bits):
    state = states(QMIX)
    for number in range(7):
        before, (state, _) = state, update(QMIX, state, batch, at_update(number))
        source = state.network.value if number in (2, 5) else before.network.target
        assert bits(state.network.target) == bits(source)


# Another mixer


class LinearMixer(eqx.Module):
    """Q_tot = sum_i |w_i| Q_i."""

    weight: Float[Array, " agents"]

    def __call__(
        self, utilities: Float[Array, "*batch agents"], state: Float[Array, "*batch state"]
    ) -> Float[Array, "*batch"]:
        return (jnp.abs(self.weight) * utilities).sum(-1)


class LinearQmix(Qmix):
    def make_mixer(self, spec, key):
        return LinearMixer(jax.random.normal(key, (spec.num_agents,)))


def test_a_subclass_that_makes_another_mixer_learns_with_it(batch):
    algorithm = LinearQmix(**SMALL)
    state = init(algorithm, jax.random.key(0))
    after, metrics = update(algorithm, state, batch, at_update(0))
    mixers = [s.network.value.mixer for s in (state, after)]
    assert all(isinstance(mixer, LinearMixer) for mixer in mixers)
    assert (mixers[0].weight != mixers[1].weight).all() and np.isfinite(metrics["loss"])
    q, _ = values(algorithm, state.network.value, state.network.target, batch)
    utilities = jax.jit(jax.vmap(state.network.value.utilities.unroll))(batch)[:, :-1]
    taken = np.take_along_axis(np.asarray(utilities), np.asarray(batch.action)[..., None], -1)
    expected = (np.abs(mixers[0].weight) * taken[..., 0]).sum(-1)
    np.testing.assert_allclose(q, expected, atol=1e-5)


class PerAgent(eqx.Module):
    def __call__(self, utilities, state):
        return utilities  # it joins nothing


class MeanWithAnAxis(eqx.Module):
    def __call__(self, utilities, state):
        return utilities.mean(-1, keepdims=True)


@pytest.mark.parametrize("mixer", [PerAgent(), MeanWithAnAxis()], ids=lambda x: type(x).__name__)
def test_a_mixer_whose_result_has_another_shape_is_refused_with_the_right_one(mixer, batch):
    class Mistaken(Qmix):
        def make_mixer(self, spec, key):
            return mixer

    algorithm = Mistaken(**SMALL)
    state = init(algorithm, jax.random.key(0))
    with pytest.raises(ValueError) as error:
        update(algorithm, state, batch, at_update(0))
    words = f"the mixer {type(mixer).__name__} gives an array of shape"
    assert words in str(error.value) and f"it must be ({HORIZON},)" in str(error.value)


# Agents


def renumbered(network: Network, order) -> Network:
    """The network to which the agent that stood at `order[i]` is number i: what it knows of numbers
    is rearranged."""
    ids = OBS + ACTIONS + jnp.arange(AGENTS)
    weight = network.utilities.encoder.layer.weight
    network = eqx.tree_at(
        lambda n: n.utilities.encoder.layer.weight, network, weight.at[ids].set(weight[ids[order]])
    )

    def rearrange(x):  # the hypernetwork's outputs are agents times width
        return x.reshape(*x.shape[:-1], AGENTS, -1)[..., order, :].reshape(x.shape)

    where = lambda n: (n.mixer.first_weights.output.weight, n.mixer.first_weights.output.bias)
    return eqx.tree_at(where, network, tuple(map(rearrange, where(network))))


def test_agents_are_told_apart_by_their_numbers_alone(batch, states):
    """Who stands where does not matter to values and targets, if what belongs to each number moves
    with it."""
    order, state = jnp.array([2, 0, 1]), states(QMIX)
    swap = lambda e: (e.timesteps.obs, e.timesteps.available, e.action)
    moved = eqx.tree_at(swap, batch, tuple(x[:, :, order] for x in swap(batch)))
    network, target = state.network.value, state.network.target
    expected = np.stack(values(QMIX, network, target, batch))
    found = np.stack(values(QMIX, renumbered(network, order), renumbered(target, order), moved))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    other = np.stack(values(QMIX, network, target, moved))
    assert np.abs(other - expected).max() > 0.01, "the numbers meant nothing"


@functools.partial(jax.jit, static_argnums=(0, 4))
def act(algorithm, state, memory, timestep, explore, clock, key):
    return algorithm.act(state, 0, memory, timestep, clock, key, explore=explore)


def at_steps(number: int) -> Clock:
    return Clock(jnp.int32(number), jnp.int32(0), jnp.int32(0))


def test_no_agents_utilities_depend_on_what_another_sees(batch, states):
    network = states(QMIX).network.value
    episode = jax.tree.map(lambda x: x[1], batch)
    unroll = jax.jit(lambda episode: network.utilities.unroll(episode))
    before = np.asarray(unroll(episode))
    for j in range(AGENTS):
        where = lambda e: (e.timesteps.obs, e.action)
        obs, action = where(episode)
        other = eqx.tree_at(
            where,
            episode,
            (obs.at[:, j].add(1.0), action.at[:, j].set((action[:, j] + 1) % ACTIONS)),
        )
        differs = (np.asarray(unroll(other)) != before).any((0, 2))
        np.testing.assert_array_equal(differs, np.arange(AGENTS) == j)


def test_no_agents_greedy_action_depends_on_what_another_sees_or_may_do(batch, states):
    state, memory = states(QMIX), Memory.empty(AGENTS, QMIX.hidden)
    timestep = jax.tree.map(lambda x: x[1, 0], batch.timesteps)
    choose = lambda t: act(QMIX, state, memory, t, False, at_steps(0), jax.random.key(0))
    _, before = choose(timestep)
    changed = set()
    for j in range(AGENTS):
        for shift in np.random.default_rng(j).normal(size=(20, OBS)):
            other = eqx.tree_at(
                lambda t: t.obs,
                timestep,
                timestep.obs.at[j].add(jnp.asarray(5 * shift, jnp.float32)),
            )
            other = eqx.tree_at(
                lambda t: (t.state, t.available),
                other,
                (other.state + 1, other.available.at[j].set(True)),
            )
            _, action = choose(other)
            assert all(action[i] == before[i] for i in range(AGENTS) if i != j)
            changed |= {j} if action[j] != before[j] else set()
    assert changed == set(range(AGENTS)), "nothing that was tried changed an agent's own action"


def test_acting_step_by_step_is_greedy_in_the_utilities_that_learning_unrolls(batch, states):
    state, memory = states(QMIX), Memory.empty(AGENTS, QMIX.hidden)
    net, episode = state.network.value.utilities, jax.tree.map(lambda x: x[1], batch)
    step, taken, seen = jax.jit(lambda memory, obs: net.step(memory, obs)[1]), [], []
    for t in range(HORIZON):
        timestep = jax.tree.map(lambda x, t=t: x[t], episode.timesteps)
        seen.append(np.asarray(step(memory, timestep.obs)))
        memory, action = act(QMIX, state, memory, timestep, False, at_steps(0), jax.random.key(t))
        taken.append(np.asarray(action))
        np.testing.assert_array_equal(
            action, best_actions(seen[-1], np.asarray(timestep.available))
        )
    episode = eqx.tree_at(lambda e: e.action, episode, jnp.asarray(np.stack(taken)))
    unrolled = jax.jit(lambda episode: net.unroll(episode))(episode)
    np.testing.assert_allclose(unrolled[:-1], seen, atol=1e-5)


def test_exploration_falls_with_the_environment_steps_of_the_seed(batch, states):
    """Epsilon 1, 0.6 and 0.2 at 0, 50 and 100 or more steps of 100; a random action is the best one
    time in three."""
    algorithm = dataclasses.replace(QMIX, epsilon=Epsilon(1.0, 0.2, 100))
    state, memory = states(QMIX), Memory.empty(AGENTS, QMIX.hidden)
    timestep = jax.tree.map(lambda x: x[1, 0], batch.timesteps)
    timestep = eqx.tree_at(lambda t: t.available, timestep, jnp.ones((AGENTS, ACTIONS), bool))
    _, best = act(QMIX, state, memory, timestep, False, at_steps(0), jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 3000)
    explore = jax.jit(
        jax.vmap(
            lambda now, key: algorithm.act(
                state, 0, memory, timestep, at_steps(now), key, explore=True
            )[1],
            (None, 0),
        )
    )
    for now, epsilon in ((0, 1.0), (50, 0.6), (100, 0.2), (10**6, 0.2)):
        rate = (np.asarray(explore(jnp.int32(now), keys)) != np.asarray(best)).mean()
        assert abs(rate - epsilon * 2 / 3) < 0.02


# How often it learns


@pytest.mark.parametrize(
    ("parallel_envs", "updates_per_episode", "played", "held", "due"),
    [
        (8, 0.125, 8, 100, 1),
        (8, 1.0, 8, 100, 8),
        (8, 1.0, 5, 100, 5),
        (2, 3.0, 2, 4, 6),
        (2, 3.0, 2, 3, 0),
        (1, 1, 0, 9, 0),
    ],
)
def test_updates_are_due_per_episode_played_once_the_replay_can_fill_a_batch(
    parallel_envs, updates_per_episode, played, held, due
):
    ring = EpisodeRing(100, 4)
    algorithm = Qmix(
        replay=ring,
        pace=EpisodePace(
            parallel_envs=parallel_envs, updates_per_episode=float(updates_per_episode)
        ),
    )
    mask = np.arange(HORIZON) < np.random.default_rng(0).integers(1, HORIZON, (8, 1))
    mask[played:] = False
    state = eqx.tree_at(lambda s: s.size, ring.init(SPEC), jnp.int32(held))
    assert isinstance(state, EpisodeRingState)
    assert int(updates_due(algorithm, state, jnp.asarray(mask))) == due


# Whole runs


RUN = Run(
    Qmix(
        **{**SMALL, "optimiser": Adam(1e-2)},
        epsilon=Epsilon(1.0, 0.05, 100),
        replay=EpisodeRing(100, 5),
        pace=EpisodePace(parallel_envs=2, updates_per_episode=1.5),
    ),
    Stroll(),
    seeds=3,
    steps=90,
    evaluate_every=40,
    evaluation_episodes=2,
)


@pytest.fixture(scope="module")
def compiled():
    """How often the run below compiled each part of the loop."""
    return {}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, compiled):
    with compilations() as counts:
        state = session(RUN, tmp_path_factory.mktemp("qmix")).train()
    compiled.update(counts)
    return state


def test_one_compilation_serves_all_rounds(finished, compiled):
    """And two of playing: to explore, and to be evaluated."""
    assert compiled == {"learn": 1, "store_and_evolve": 1, "finish_round": 1, "play": 2}
    assert int(finished.replay.size.max()) > 2 * 5, "there were too few rounds to tell"


def test_a_seed_alone_is_that_seed_beside_others(finished, tmp_path):
    """To rounding: arrays of another shape are added up in another order."""
    alone = session(dataclasses.replace(RUN, seeds=1, first_seed=1), tmp_path).train()
    assert int(alone.clock.env_steps[0]) == int(finished.clock.env_steps[1])
    for a, b in zip(
        jax.tree.leaves(raw(alone.agent)), jax.tree.leaves(raw(finished.agent)), strict=True
    ):
        np.testing.assert_allclose(a[0], b[1], atol=1e-5, rtol=1e-5)


def test_every_seed_learns_from_its_own_episodes_and_waits_for_a_batch(finished):
    """Two episodes a round and three updates, but none in the first two rounds, when five could not
    be drawn."""
    played = np.asarray(finished.replay.size)
    np.testing.assert_array_equal(finished.clock.updates, 3 * (played // 2 - 2))
    assert len(set(played.tolist())) > 1 and (played % 2 == 0).all()
    lengths = np.asarray(finished.replay.kept.mask).sum((1, 2))
    np.testing.assert_array_equal(finished.clock.env_steps, lengths)
    assert (
        len(
            set(
                np.asarray(finished.replay.kept.mask)
                .sum(2)[played[:, None] > np.arange(100)]
                .tolist()
            )
        )
        > 2
    )


def test_seeds_differ(finished):
    weights = finished.agent.network.value.utilities.head.weight
    assert not np.allclose(weights[0], weights[1])


def test_only_available_actions_are_ever_played(finished):
    kept = raw(finished.replay.kept)
    chosen = np.take_along_axis(
        kept.available[:, :, :-1], kept.action[..., None].astype(int), axis=-1
    )[..., 0]
    assert chosen[kept.mask].all() and not kept.available[:, :, :-1][kept.mask].all()
