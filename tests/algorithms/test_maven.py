"""MAVEN against its docstring's equations in NumPy, and its properties."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.algorithms.maven import Maven, Memory, State
from comarl.algorithms.qmix import Qmix
from comarl.ops.exploration import greedy
from comarl.play.rollout import play
from comarl.replay.episodes import EpisodeRing, Latent
from comarl.types import Clock, EnvSpec, Timestep
from tests.data import SMOOTH, make_episodes
from tests.training.tasks import Stroll

AGENTS, ACTIONS, LATENTS = 2, 3, 3
SPEC = EnvSpec(AGENTS, 3, 4, ACTIONS, discrete=True, horizon=5)
# Ended early, cut at the horizon, cut early, ended at the last step
LENGTHS, TERMINATED = (2, 5, 3, 5), (0, 3)
MODES = np.eye(LATENTS, dtype=np.float32)[[2, 0, 1, 2]]
GAMMA = 0.9
MAVEN = Maven(
    latents=LATENTS,
    latent_policy="learned",
    latent_hidden=4,
    latent_entropy=0.5,
    mi_weight=0.7,
    discriminator=(4, 3),
    hidden=4,
    mixer_width=3,
    gamma=GAMMA,
    td_lambda=0.6,
    target_period=3,
    optimiser=SMOOTH,
    latent_optimiser=SMOOTH,
)


@functools.partial(jax.jit, static_argnums=0)
def init(algorithm, key):
    return algorithm.init(SPEC, key)


@functools.partial(jax.jit, static_argnums=0)
def update(algorithm, state, batch, clock):
    return algorithm.update(state, batch, clock, jax.random.key(0))


@functools.partial(jax.jit, static_argnums=0)
def values(algorithm, state, batch):
    network, target = state.network.value, state.network.target
    return jax.vmap(lambda episode: algorithm.values(network, target, episode))(batch)


def at_update(number: int) -> Clock:
    return Clock(jnp.int32(1000), jnp.int32(number), jnp.int32(0))


@pytest.fixture(scope="module")
def batch():
    return dataclasses.replace(
        make_episodes(SPEC, LENGTHS, TERMINATED), memory=Latent(jnp.asarray(MODES))
    )


@pytest.fixture(scope="module")
def state(scramble, key) -> State:
    """One whose target is not its network."""
    state = init(MAVEN, key)
    where = lambda s: (s.network.value, s.network.target, s.latent_policy.value)
    return eqx.tree_at(where, state, tuple(scramble(x, i, 0.4) for i, x in enumerate(where(state))))


@pytest.fixture(scope="module")
def updated(state, batch):
    return update(MAVEN, state, batch, at_update(0))


class Equations:
    """Values, targets and losses in NumPy, mode by mode and agent by agent."""

    def __init__(self, reference, batch, intrinsic=0.0):
        self.reference, self.batch, self.intrinsic = reference, batch, intrinsic
        self.states = np.float64(batch.timesteps.state)
        self.available = np.asarray(batch.timesteps.available)

    def utilities(self, net):
        """`[batch, time+1, agents, actions]`"""
        h, result = self.reference.histories(net.encoder, SPEC, self.batch), []
        for b, mode in enumerate(MODES):
            each = []
            for i in range(AGENTS):
                who = np.concatenate([np.eye(AGENTS)[i], mode])
                weights = who @ net.head.weight + net.head.bias
                w = lambda k, a, weights=weights: weights[k * ACTIONS + a]  # of unit k to action a
                each.append(
                    np.array(
                        [
                            [sum(x[k] * w(k, a) for k in range(4)) for a in range(3)]
                            for x in h[b, :, i]
                        ]
                    )
                )
            result.append(np.stack(each, axis=1))
        return np.stack(result)

    def mix(self, network, q):
        modes = np.repeat(MODES[:, None], q.shape[1], axis=1)
        states = (
            self.states[:, -q.shape[1] :]
            if q.shape[1] == SPEC.horizon + 1
            else self.states[:, : q.shape[1]]
        )
        return self.reference.mixer(network.mixer, q, np.concatenate([states, modes], axis=-1))

    def q(self, network):
        taken = np.eye(ACTIONS)[np.asarray(self.batch.action)]
        return self.mix(network, (self.utilities(network.utilities)[:, :-1] * taken).sum(-1))

    def log_guess(self, network, behaving):
        """log q(z | ..) where the utilities of `behaving` act."""
        utilities = self.utilities(behaving.utilities)
        boltzmann = self.reference.relaxed(utilities, self.available, 0.0)[:, :-1]
        each = [boltzmann[:, :, i] for i in range(AGENTS)]
        inputs = np.concatenate([self.states[:, :-1], *each], axis=-1)
        logits = self.reference.mlp(network.discriminator, inputs, self.reference.relu)
        log_all = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return np.stack([log_all[b, :, np.argmax(mode)] for b, mode in enumerate(MODES)])

    def target(self, network, target):
        best = self.reference.best(self.utilities(network.utilities), self.available)
        next_value = self.mix(target, (self.utilities(target.utilities) * best).sum(-1))[:, 1:]
        bonus = self.intrinsic * (self.log_guess(network, network) + np.log(LATENTS))
        rewarded = dataclasses.replace(
            self.batch, reward=self.batch.reward + jnp.asarray(bonus, jnp.float32)
        )
        return self.reference.lambda_targets(rewarded, next_value, GAMMA, 0.6)

    def mean(self, x):
        return self.reference.masked_mean(x, self.batch.mask)


@pytest.fixture(scope="module")
def equations(reference, batch):
    return Equations(reference, batch)


def test_an_update_descends_the_squared_error_and_the_discriminators_loss(
    state, updated, equations, reference
):
    """Utilities, mixer and discriminator together; the target is a number."""
    after, metrics = updated
    before = reference.doubles(state.network.value)
    y = equations.target(before, reference.doubles(state.network.target))

    def loss(network):
        guess = equations.mean(equations.log_guess(network, network))
        return equations.mean((equations.q(network) - y) ** 2) - 0.7 * guess

    q, guess = equations.q(before), equations.log_guess(before, before)
    expected = {
        "loss": loss(before),
        "td_loss": equations.mean((q - y) ** 2),
        "mutual_information": equations.mean(guess + np.log(LATENTS)),
        "q_taken_mean": equations.mean(q),
        "target_value": equations.mean(y),
        "td_error_abs": equations.mean(np.abs(q - y)),
        "epsilon": MAVEN.epsilon.at(at_update(0)),
    }
    assert metrics.keys() == expected.keys() | {"latent_policy_loss", "latent_entropy"}
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    reference.assert_descends(state.network.value, after.network.value, loss, entries=4)


def test_with_an_intrinsic_reward_the_discriminator_learns_alone_and_its_success_is_paid(
    state, batch, reference
):
    equations = Equations(reference, batch, intrinsic=0.4)
    before = reference.doubles(state.network.value)
    after, metrics = update(dataclasses.replace(MAVEN, intrinsic=0.4), state, batch, at_update(0))
    y = equations.target(before, reference.doubles(state.network.target))

    def loss(network):
        guess = equations.mean(equations.log_guess(network, before))  # what teams do does not move
        return equations.mean((equations.q(network) - y) ** 2) - 0.7 * guess

    np.testing.assert_allclose(metrics["target_value"], equations.mean(y), rtol=1e-4)
    reference.assert_descends(state.network.value, after.network.value, loss, entries=4)


def test_the_policy_of_modes_descends_reinforce_with_a_baseline_and_entropy(
    state, batch, updated, reference
):
    first = np.float64(batch.timesteps.state)[:, 0]
    returns = [np.asarray(batch.reward)[b, :length].sum() for b, length in enumerate(LENGTHS)]

    def loss(policy):
        total = 0.0
        for b, mode in enumerate(MODES):
            logits = reference.mlp(policy, first[b], reference.relu)
            log_pi = logits - np.log(np.exp(logits).sum())
            entropy = -(np.exp(log_pi) * log_pi).sum()
            total -= (returns[b] - np.mean(returns)) * log_pi[np.argmax(mode)] + 0.5 * entropy
        return total / len(MODES)

    after, metrics = updated
    policy = reference.doubles(state.latent_policy.value)
    np.testing.assert_allclose(metrics["latent_policy_loss"], loss(policy), rtol=1e-4)
    reference.assert_descends(state.latent_policy.value, after.latent_policy.value, loss)


def test_without_mutual_information_and_use_of_the_mode_it_is_qmix(state, batch, scramble):
    """The same weights in every mode, agents without biases, and a mixer that does not look at the
    mode."""
    qmix = Qmix(hidden=4, mixer_width=3, hypernet=0, gamma=GAMMA, td_lambda=0.6, optimiser=SMOOTH)
    theirs = jax.jit(lambda key: qmix.init(SPEC, key))(jax.random.key(1))
    maven = dataclasses.replace(MAVEN, mi_weight=0.0)

    def pair(seed, network, other):
        """A network of MAVEN and one of QMIX that are the same."""
        network, other = scramble(network, seed, 0.6), scramble(other, seed, 0.6)
        head = lambda n: (n.utilities.head.weight, n.utilities.head.bias)
        weight, bias = head(other)
        other = eqx.tree_at(lambda n: n.utilities.head.bias, other, jnp.zeros_like(bias))
        network = eqx.tree_at(head, network, (jnp.zeros_like(head(network)[0]), weight.reshape(-1)))
        network = eqx.tree_at(lambda n: n.utilities.encoder, network, other.utilities.encoder)
        longer = lambda x: jnp.concatenate([x, jnp.zeros((LATENTS, x.shape[1]))])
        where = lambda m: [m.first_weights.weight, m.first_bias.weight, m.second_weights.weight]
        mixer = eqx.tree_at(where, other.mixer, [longer(x) for x in where(other.mixer)])
        first = lambda m: m.second_bias.torso.layers[0].weight
        mixer = eqx.tree_at(first, mixer, longer(first(mixer)))
        return eqx.tree_at(lambda n: n.mixer, network, mixer), other

    (network, live), (target, target_live) = (
        pair(i, state.network.value, theirs.network.value) for i in (1, 2)
    )
    ours = eqx.tree_at(lambda s: (s.network.value, s.network.target), state, (network, target))
    theirs = eqx.tree_at(lambda s: (s.network.value, s.network.target), theirs, (live, target_live))
    q, y, _ = values(maven, ours, batch)
    expected = jax.jit(jax.vmap(lambda e: qmix.values(live, target_live, e)))(batch)
    np.testing.assert_allclose(q, expected[0], atol=1e-5)
    np.testing.assert_allclose(y, expected[1], atol=1e-5)
    after, _ = update(maven, ours, batch, at_update(0))
    expected, _ = update(qmix, theirs, batch, at_update(0))
    encoders = (s.network.value.utilities.encoder for s in (after, expected))
    for one, two in zip(*map(jax.tree.leaves, encoders), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


def test_the_discriminator_reaches_the_utilities_and_never_the_mixer(state, batch, bits):
    mixers, encoders = [], []
    for weight in (0.0, 0.7):
        algorithm = dataclasses.replace(MAVEN, mi_weight=weight)
        after, _ = update(algorithm, state, batch, at_update(0))
        network = after.network.value
        mixers.append(bits(network.mixer))
        encoders.append(np.asarray(network.utilities.encoder.layer.weight))
        assert (bits(network.discriminator) == bits(state.network.value.discriminator)) == (
            weight == 0
        )
    assert mixers[0] == mixers[1]
    assert np.abs(encoders[0] - encoders[1]).max() > 2e-5


def test_the_target_is_copied_after_every_third_update_and_only_then(state, batch, bits):
    for number in range(4):
        before, (state, _) = state, update(MAVEN, state, batch, at_update(number))
        assert bits(state.network.target) == bits(
            state.network.value if number == 2 else before.network.target
        )


# Modes


def seen() -> Timestep:
    random = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
    return Timestep(draw(AGENTS, 3), draw(4), jnp.ones((AGENTS, ACTIONS), bool))


def test_modes_are_drawn_uniformly_or_by_the_policy(state, key, reference):
    keys, timestep = jax.random.split(jax.random.key(1), 4000), seen()
    logits = reference.mlp(
        reference.doubles(state.latent_policy.value), np.float64(timestep.state), reference.relu
    )
    uniform = dataclasses.replace(MAVEN, latent_policy="uniform")
    cases = [
        (MAVEN, state, np.exp(logits) / np.exp(logits).sum()),
        (uniform, init(uniform, key), np.full(3, 1 / 3)),
    ]
    for algorithm, start, expected in cases:
        draw = jax.jit(
            jax.vmap(lambda k, a=algorithm, s=start: a.initial_memory(s, timestep, k).latent)
        )
        drawn = np.asarray(draw(keys))
        assert (drawn.sum(-1) == 1).all() and set(np.unique(drawn)) == {0.0, 1.0}
        np.testing.assert_allclose(drawn.mean(0), expected, atol=0.03)
    assert cases[1][1].latent_policy is None and np.ptp(cases[0][2]) > 0.2


def test_all_agents_share_a_mode_to_the_end_and_it_changes_what_they_do(state):
    timestep, clock, actions = seen(), at_update(0), []

    @functools.partial(jax.jit, static_argnums=1)
    def act(latent, explore):
        memory = Memory(jnp.zeros((AGENTS, 4)), jnp.full(AGENTS, -1, jnp.int32), latent)
        return MAVEN.act(state, 0, memory, timestep, clock, jax.random.key(0), explore=explore)

    for mode in np.eye(LATENTS, dtype=np.float32):
        for explore in (True, False):
            memory, action = act(jnp.asarray(mode), explore)
            np.testing.assert_array_equal(memory.latent, mode)
        actions.append(tuple(action.tolist()))
    assert len(set(actions)) > 1


def test_replay_gives_back_the_mode_in_which_an_episode_was_played(key, scramble):
    """Greedy play, learnt from later: in its own mode every action is the best, in another it need
    not be."""
    task, algorithm = (
        Stroll(),
        dataclasses.replace(MAVEN, latent_policy="uniform", replay=EpisodeRing(8, 8)),
    )
    state = scramble(jax.jit(lambda k: algorithm.init(task.spec, k))(key), 1, 1.0)
    agent = jax.tree.map(lambda x: x[None], state)
    clock = Clock(jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32), jnp.int32(0))
    teams, keys = np.zeros((1, 8), int), jax.random.split(key, 1)
    played = jax.tree.map(
        lambda x: x[0], play(algorithm, task, agent, clock, teams, teams == 0, keys, "greedy")
    )
    ring = algorithm.replay.add(algorithm.replay.init(task.spec), played, task.spec)
    batch = algorithm.replay.sample(ring, task.spec, key)
    assert len(np.unique(np.asarray(batch.memory.latent), axis=0)) > 1

    @jax.jit
    def best(batch):
        utilities = jax.vmap(state.network.value.utilities.unroll)(batch)
        return greedy(utilities, batch.timesteps.available)[:, :-1]

    wrong = eqx.tree_at(lambda e: e.memory.latent, batch, jnp.roll(batch.memory.latent, 1, axis=-1))
    same, other = (
        (np.asarray(best(b)) == np.asarray(batch.action))[np.asarray(batch.mask)]
        for b in (batch, wrong)
    )
    assert same.all() and not other.all()


def test_the_number_of_modes_is_said_once():
    assert Maven(latents=5).replay == EpisodeRing(5_000, 32, latent=5)
    assert dataclasses.replace(MAVEN, latents=7, replay=EpisodeRing(9, 3)).replay.latent == 7
    with pytest.raises(ValueError, match="latents=0 of Maven must be 1 or more"):
        Maven(latents=0)
