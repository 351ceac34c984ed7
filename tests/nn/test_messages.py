"""Who receives what from whom; what messages learn."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.nn.messages import MessageConditionedNet, Messenger, concat_messages, deliver
from comarl.nn.recurrent import input_size
from comarl.ops.distributions import noise_of_steps
from comarl.types import EnvSpec

AGENTS, SIZE, TIME = 3, 2, 4
SPEC = EnvSpec(AGENTS, 2, 4, 3, discrete=True, horizon=TIME)


def make(routing, recurrent=False):
    return Messenger(SPEC, routing, size=SIZE, hidden=4, recurrent=recurrent, key=jax.random.key(0))


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(1), (TIME, AGENTS, input_size(SPEC)))


def changed(one, other):
    """Which agents' rows differ anywhere."""
    return (np.asarray(one) != np.asarray(other)).any(axis=(0, 2)).tolist()


def test_each_agent_receives_all_messages_to_it_in_the_senders_order():
    sent = jnp.arange(AGENTS * AGENTS * SIZE, dtype=jnp.float32).reshape(AGENTS, AGENTS, SIZE)
    for i in range(AGENTS):
        np.testing.assert_array_equal(
            deliver(sent)[i], np.concatenate([sent[j, i] for j in range(AGENTS)])
        )
    to_all = sent[:, :1]
    for i in range(AGENTS):
        np.testing.assert_array_equal(
            deliver(to_all)[i], np.concatenate([sent[j, 0] for j in range(AGENTS)])
        )


def test_a_message_from_j_to_i_changes_what_i_makes_of_it_and_nothing_else(x):
    net = MessageConditionedNet(SPEC, 4, AGENTS * SIZE, key=jax.random.key(2))
    sent = jax.random.normal(jax.random.key(3), (TIME, AGENTS, AGENTS, SIZE))
    value = jax.jit(lambda sent: net.unroll(concat_messages(x, deliver(sent))))
    for j in range(AGENTS):
        for i in range(AGENTS):
            other = sent.at[:, j, i].add(1.0)
            assert changed(deliver(sent), deliver(other)) == [k == i for k in range(AGENTS)]
            assert changed(value(sent), value(other)) == [k == i for k in range(AGENTS)]


@pytest.mark.parametrize(
    ("routing", "recurrent"), [("pairwise", False), ("broadcast", False), ("broadcast", True)]
)
def test_what_one_agent_sees_changes_its_messages_to_all_and_no_others(routing, recurrent, x):
    messenger = make(routing, recurrent)
    send = jax.jit(lambda x: messenger(x, jax.random.key(4), 1.0))
    before, after = send(x), send(x.at[:, 1].add(1.0))
    assert before.mean.shape == (TIME, AGENTS, AGENTS if routing == "pairwise" else 1, SIZE)
    differs = (
        np.asarray(before.received != after.received)
        .reshape(TIME, AGENTS, AGENTS, SIZE)
        .any((0, 3))
    )
    # [receiver, sender]
    np.testing.assert_array_equal(differs, np.tile([False, True, False], (AGENTS, 1)))
    same = [np.array_equal(before.received[:, 0], before.received[:, i]) for i in (1, 2)]
    assert same == [routing == "broadcast"] * 2


def test_an_encoder_with_memory_tells_of_the_past_and_one_without_does_not(x):
    for recurrent in (False, True):
        messenger = make("pairwise", recurrent)
        mean = jax.jit(lambda x, m=messenger: m(x, jax.random.key(4), 0.0).mean)
        assert np.array_equal(mean(x)[2], mean(x.at[0].add(1.0))[2]) != recurrent


def test_noise_is_standard_normal_new_at_each_step_and_does_not_depend_on_the_padding():
    noise = np.asarray(noise_of_steps(jax.random.key(0), (200, AGENTS, AGENTS, SIZE)))
    assert abs(noise.mean()) < 0.06 and abs(noise.std() - 1.0) < 0.05
    assert len(np.unique(noise)) > 0.99 * noise.size
    np.testing.assert_array_equal(
        noise[:7], noise_of_steps(jax.random.key(0), (7, AGENTS, AGENTS, SIZE))
    )


def test_messages_are_their_mean_and_noise_of_the_standard_deviation(x):
    messenger = make("pairwise")
    send = lambda std: messenger(x, jax.random.key(4), std)
    noise = noise_of_steps(jax.random.key(4), (TIME, AGENTS, AGENTS, SIZE))
    np.testing.assert_array_equal(send(0.0).sent, send(1.0).mean)
    np.testing.assert_allclose(send(0.5).sent, send(1.0).mean + 0.5 * noise, atol=1e-6)


@pytest.mark.parametrize("routing", ["pairwise", "broadcast"])
def test_the_bottleneck_is_its_equation(routing, x, reference, scramble):
    messenger = scramble(make(routing), 1)
    messages = messenger(x, jax.random.key(4), 1.0)
    label = jnp.asarray(np.random.default_rng(0).integers(0, 3, (TIME, AGENTS)), jnp.int32)
    found = messenger.bottleneck(x, messages, label, 0.3, 0.2)
    mean, sent = np.float64(messages.mean), np.float64(messages.sent)
    for t in range(TIME):
        expected = 0.0
        for i in range(AGENTS):
            received = [
                np.float64(sent[t, j, i if routing == "pairwise" else 0]) for j in range(AGENTS)
            ]
            logits = reference.mlp(
                reference.doubles(messenger.posterior),
                np.concatenate([np.float64(x[t, i]), *received]),
                reference.relu,
            )
            expected += np.log(np.exp(logits).sum()) - logits[label[t, i]]
        expected += 0.3 * sum(m**2 / 2 for m in mean[t].flat)
        expected += 0.2 * sum(m**2 / 2 + np.log(2 * np.pi) / 2 for m in sent[t].flat)
        np.testing.assert_allclose(found[t], expected, rtol=1e-4)


def test_messages_learn_what_lets_others_predict_an_agents_action():
    """Agent 1's label is what agent 0 alone sees: with messages it can be predicted, and is."""
    seen = jnp.asarray(np.random.default_rng(0).integers(0, 2, TIME * 16), jnp.float32)
    x = jnp.zeros((len(seen), AGENTS, input_size(SPEC))).at[:, 0, 0].set(seen)
    label = jnp.zeros((len(seen), AGENTS), jnp.int32).at[:, 1].set(seen.astype(jnp.int32))

    def loss(messenger, key):
        messages = messenger(x, key, 1.0)
        return messenger.bottleneck(x, messages, label, 1e-3, 0.0).mean()

    def descend(messenger, key):
        gradient = jax.grad(loss)(messenger, key)
        return jax.tree.map(lambda p, g: p - 0.3 * g, messenger, gradient), None

    keys = jax.random.split(jax.random.key(5), 1000)
    learnt = jax.jit(lambda m: jax.lax.scan(descend, m, keys)[0])(make("pairwise"))

    @jax.jit
    def log_posterior(messenger):
        messages = messenger(x, jax.random.key(6), 1.0)
        return jax.nn.log_softmax(messenger.posterior(concat_messages(x, messages.received)))

    def likely(messenger):
        """The mean probability of agent 1's label."""
        taken = np.take_along_axis(log_posterior(messenger), np.asarray(label)[..., None], -1)
        return np.exp(taken)[:, 1].mean()

    gone = eqx.tree_at(lambda m: m.head, learnt, jax.tree.map(jnp.zeros_like, learnt.head))
    assert likely(learnt) > 0.85
    assert likely(gone) < 0.7
