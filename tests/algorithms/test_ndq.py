"""NDQ against its docstring's equations in NumPy, and the messages that its agents send."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.algorithms.ndq import Ndq
from comarl.algorithms.presets import NDQ_PYMARL2, PYMARL2
from comarl.algorithms.qmix import Qmix
from comarl.nn.messages import Messages, deliver
from comarl.nn.recurrent import Memory, agent_inputs
from comarl.ops.returns import masked_mean
from comarl.types import Clock, EnvSpec, Timestep
from tests.data import SMOOTH, make_episodes
from tests.oracles import Reference

AGENTS, OBS, STATE, ACTIONS, HORIZON = 3, 2, 4, 3, 4
SPEC = EnvSpec(AGENTS, OBS, STATE, ACTIONS, discrete=True, horizon=HORIZON)
LENGTHS = (2, HORIZON, 3)  # terminated, cut at the horizon, cut early
GAMMA, SIZE = 0.9, 2
KEY = jax.random.key(7)
NDQ = Ndq(
    hidden=4,
    mixer_width=3,
    hypernet=4,
    message_size=SIZE,
    message_width=3,
    message_weight=0.5,
    kl_weight=0.3,
    message_entropy_weight=0.2,
    gamma=GAMMA,
    td_lambda=0.6,
    target_period=3,
    optimiser=SMOOTH,
)


def at_update(number: int) -> Clock:
    return Clock(jnp.int32(1000), jnp.int32(number), jnp.int32(0))


@functools.partial(jax.jit, static_argnums=0)
def init(algorithm, key):
    return algorithm.init(SPEC, key)


@functools.partial(jax.jit, static_argnums=0)
def update(algorithm, state, batch, clock, key):
    return algorithm.update(state, batch, clock, key)


@pytest.fixture(scope="module")
def batch():
    return make_episodes(SPEC, LENGTHS, terminated=(0,))


@pytest.fixture(scope="module")
def state(scramble):
    state = init(NDQ, jax.random.key(0))
    where = lambda s: (s.network.value, s.network.target)
    return eqx.tree_at(where, state, tuple(scramble(x, k, 0.6) for k, x in enumerate(where(state))))


@pytest.fixture(scope="module")
def updated(batch, state):
    return update(NDQ, state, batch, at_update(0), KEY)


# The equations, in float64 NumPy: agent by agent


def inputs_of(batch):
    obs, action = np.asarray(batch.timesteps.obs, np.float64), np.asarray(batch.action)
    x = np.zeros((len(obs), HORIZON + 1, AGENTS, OBS + ACTIONS + AGENTS))
    for b, t, i in np.ndindex(x.shape[:-1]):
        last = np.eye(ACTIONS)[action[b, t - 1, i]] if t else np.zeros(ACTIONS)
        x[b, t, i] = np.concatenate([obs[b, t, i], last, np.eye(AGENTS)[i]])
    return x


def gru_step(encoder, h, x):
    sigmoid, gru = lambda x: 1 / (1 + np.exp(-x)), encoder.gru
    gates = lambda m, x: [x @ m.weight[k] + m.bias[k] for k in range(3)]
    w, u = (
        gates(gru.from_input, Reference.relu(x @ encoder.layer.weight + encoder.layer.bias)),
        gates(gru.from_memory, h),
    )
    r, z = sigmoid(w[0] + u[0]), sigmoid(w[1] + u[1])
    return (1 - z) * np.tanh(w[2] + r * u[2]) + z * h


def send(messenger, x, noise):
    """Means, messages sent, and messages received by each agent: of any leading axes."""
    layer = messenger.head
    mean = Reference.torso(messenger.encoder, x, Reference.relu) @ layer.weight + layer.bias
    mean = mean.reshape(*x.shape[:-1], AGENTS, SIZE)
    sent = mean + noise
    received = [sent[..., i, :].reshape(*x.shape[:-2], -1) for i in range(AGENTS)]
    return mean, sent, np.stack(received, axis=-2)


def utilities_of(network, x, noise):
    net, received = network.utilities, send(network.messenger, x, noise)[2]
    h, result = np.zeros((len(x), AGENTS, 4)), []
    for t in range(x.shape[1]):
        h = gru_step(net.encoder, h, np.concatenate([x[:, t], received[:, t]], axis=-1))
        result.append(h @ net.head.weight + net.head.bias)
    return np.stack(result, axis=1)


def pick(values, action):
    return np.take_along_axis(values, np.asarray(action)[..., None], axis=-1)[..., 0]


def test_an_update_descends_the_loss_of_the_equations(batch, state, updated, reference):
    after, metrics = updated
    live, target = reference.doubles(state.network.value), reference.doubles(state.network.target)
    x, s = inputs_of(batch), np.float64(batch.timesteps.state)
    keys = jax.random.split(KEY, (2, len(LENGTHS)))
    one = lambda key, t: jax.random.normal(jax.random.fold_in(key, t), (AGENTS, AGENTS, SIZE))
    noise = [[[one(key, t) for t in range(HORIZON + 1)] for key in row] for row in keys]
    noise = np.asarray(noise, np.float64)
    later, best = (utilities_of(net, x, n) for net, n in ((target, noise[1]), (live, noise[0])))
    choose = lambda q: np.where(np.asarray(batch.timesteps.available), q, -np.inf).argmax(-1)
    assert (choose(later) != choose(best)).any(), "who chooses would not show"
    v = Reference.mixer(target.mixer, pick(later, choose(best))[:, 1:], s[:, 1:])
    y, label = Reference.lambda_targets(batch, v, GAMMA, NDQ.td_lambda), choose(later)

    def q_of(network):
        chosen = pick(utilities_of(network, x, noise[0])[:, :-1], batch.action)
        return Reference.mixer(network.mixer, chosen, s[:, :-1])

    def losses(network):
        q = q_of(network)
        mean, sent, received = send(network.messenger, x, noise[0])
        logits = Reference.mlp(
            network.messenger.posterior, np.concatenate([x, received], axis=-1), Reference.relu
        )
        each = (np.log(np.exp(logits).sum(-1)) - pick(logits, label)).sum(-1)
        each = each + 0.3 * (mean**2 / 2).sum((-3, -2, -1))
        each = each + 0.2 * (sent**2 / 2 + np.log(2 * np.pi) / 2).sum((-3, -2, -1))
        errors = (q - y) ** 2, each[:, :-1]
        return tuple(reference.masked_mean(error, batch.mask) for error in errors)

    td_loss, message_loss = losses(live)
    total = lambda network: losses(network)[0] + 0.5 * losses(network)[1]
    q = q_of(live)
    expected = {
        "loss": total(live),
        "td_loss": td_loss,
        "message_loss": message_loss,
        "q_taken_mean": reference.masked_mean(q, batch.mask),
        "target_value": reference.masked_mean(y, batch.mask),
        "td_error_abs": reference.masked_mean(np.abs(q - y), batch.mask),
        "epsilon": NDQ.epsilon.at(at_update(0)),
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)
    reference.assert_descends(state.network.value, after.network.value, total, entries=4)


def test_every_parameter_learns_and_the_target_waits(state, updated, bits):
    after, _ = updated
    assert bits(after.network.target) == bits(state.network.target)
    for (path, old), (_, new) in zip(
        *(jax.tree.leaves_with_path(s.network.value) for s in (state, after)), strict=True
    ):
        assert (np.asarray(old) != np.asarray(new)).any(), jax.tree_util.keystr(path)


def test_with_messages_that_nobody_weighs_it_is_qmix(batch, state, scramble):
    """The same values and targets, one step ahead or by lambda."""
    qmix = Qmix(hidden=4, mixer_width=3, hypernet=4, gamma=GAMMA, td_lambda=NDQ.td_lambda)
    network, target = (
        scramble(init(qmix, jax.random.key(k)).network.value, k, 0.6) for k in (1, 2)
    )

    def deaf(own, other):
        layer = own.utilities.encoder.layer
        silent = jnp.zeros((AGENTS * SIZE, layer.weight.shape[-1]))
        weight = jnp.concatenate([other.utilities.encoder.layer.weight, silent])
        encoder = eqx.tree_at(lambda e: e.layer.weight, other.utilities.encoder, weight)
        where = lambda n: (n.utilities.encoder, n.utilities.head, n.mixer)
        return eqx.tree_at(where, own, (encoder, other.utilities.head, other.mixer))

    where = lambda s: (s.network.value, s.network.target)
    same = eqx.tree_at(
        where,
        state,
        tuple(deaf(x, other) for x, other in zip(where(state), (network, target), strict=True)),
    )
    _, metrics = update(NDQ, same, batch, at_update(0), KEY)
    q, y = jax.jit(jax.vmap(lambda episode: qmix.values(network, target, episode)))(batch)
    error = masked_mean((q - y) ** 2, batch.mask)
    np.testing.assert_allclose(metrics["td_loss"], error, rtol=1e-5)
    np.testing.assert_allclose(metrics["target_value"], masked_mean(y, batch.mask), rtol=1e-5)


def test_presets_are_what_they_say():
    assert dataclasses.replace(Ndq(), hypernet=64, **PYMARL2) == NDQ_PYMARL2
    fields = dataclasses.fields(Ndq)
    changed = {f.name for f in fields if getattr(NDQ_PYMARL2, f.name) != getattr(Ndq(), f.name)}
    assert changed == PYMARL2.keys() | {"hypernet"}


# Messages while agents act


def test_acting_uses_the_messages_that_learning_uses(batch, state, reference):
    """Step by step, by the noise of each step's key; greedily, too."""
    network = reference.doubles(state.network.value)
    timestep = jax.tree.map(lambda x: x[1, 0], batch.timesteps)
    timestep = Timestep(timestep.obs, timestep.state, jnp.ones((AGENTS, ACTIONS), bool))
    memory = Memory(jax.random.normal(jax.random.key(1), (AGENTS, 4)), jnp.array([-1, 0, 2]))
    x = np.float64(agent_inputs(SPEC, timestep.obs, memory.last_action))
    act = jax.jit(lambda key: NDQ.act(state, 0, memory, timestep, at_update(0), key, explore=False))
    seen = set()
    for k in range(20):
        message_key, _ = jax.random.split(jax.random.key(k))
        noise = jax.random.normal(jax.random.fold_in(message_key, 0), (AGENTS, AGENTS, SIZE))
        received = send(network.messenger, x, np.float64(noise))[2]
        hidden = gru_step(
            network.utilities.encoder,
            np.float64(memory.hidden),
            np.concatenate([x, received], axis=-1),
        )
        after, action = act(jax.random.key(k))
        np.testing.assert_allclose(after.hidden, hidden, atol=1e-5)
        np.testing.assert_array_equal(
            action,
            (hidden @ network.utilities.head.weight + network.utilities.head.bias).argmax(-1),
        )
        seen.add(tuple(action.tolist()))
    assert len(seen) > 1


@pytest.fixture(scope="module")
def messages():
    mean = jnp.asarray(np.random.default_rng(0).normal(size=(2, AGENTS, AGENTS, SIZE)), jnp.float32)
    sent = mean + 1.0
    return Messages(mean, sent, deliver(sent))


def test_numbers_that_carry_little_are_dropped_but_for_those_to_oneself(messages):
    found = dataclasses.replace(NDQ, drop_below=0.7).drop(messages)
    own = np.eye(AGENTS, dtype=bool)[None, :, :, None]
    keep = own | (np.abs(np.asarray(messages.mean)) >= 0.7)
    assert 0.2 < keep.mean() < 0.9
    np.testing.assert_array_equal(found, np.where(keep, messages.sent, 0.0))
    np.testing.assert_array_equal(NDQ.drop(messages), messages.sent)


def test_the_share_dropped_is_that_of_the_least_at_each_step(messages):
    """A quarter of the twelve numbers that go to others: three at each step."""
    found = np.asarray(dataclasses.replace(NDQ, drop_share=0.25).drop(messages))
    for t in range(2):
        others = [
            (abs(messages.mean[t, j, i, n]), (j, i, n))
            for j, i, n in np.ndindex(3, 3, SIZE)
            if i != j
        ]
        least = {place for _, place in sorted(others)[:3]}
        for place in np.ndindex(3, 3, SIZE):
            assert (found[t][place] == 0.0) == (place in least)
    silent = np.asarray(dataclasses.replace(NDQ, drop_share=1.0).drop(messages))
    np.testing.assert_array_equal(
        silent != 0.0, np.broadcast_to(np.eye(3, dtype=bool)[None, :, :, None], silent.shape)
    )


def test_silent_agents_depend_on_nobody_else(batch, state):
    """With all messages to others dropped; and only while they act greedily."""
    algorithm = dataclasses.replace(NDQ, drop_share=1.0)
    timestep = jax.tree.map(lambda x: x[1, 0], batch.timesteps)
    memory = Memory.empty(AGENTS, NDQ.hidden)

    @jax.jit
    def latent_of(obs):
        seen = Timestep(obs, timestep.state, timestep.available)
        act = lambda explore: (
            algorithm.act(state, 0, memory, seen, at_update(0), KEY, explore=explore)[0].hidden
        )
        return act(False), act(True)

    before, after = latent_of(timestep.obs), latent_of(timestep.obs.at[0].add(1.0))
    greedy, exploring = (
        np.asarray(a != b).any(axis=1).tolist() for a, b in zip(before, after, strict=True)
    )
    assert greedy == [True, False, False] and exploring == [True, True, True]
