"""LSF-SAC against its docstring's equations in NumPy, its properties, its temperature, and its
ablations."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.algorithms.lsf_sac import LsfSac, Messaging, Temperature
from comarl.algorithms.presets import LSF_SAC_FIXED_TEMPERATURE, MASAC, MASAC_DOUBLE_Q
from comarl.algorithms.qmix import Qmix
from comarl.nn.recurrent import Memory
from comarl.ops.learner import Adam
from comarl.ops.returns import masked_mean
from comarl.types import Clock, EnvSpec, Timestep
from tests.data import SMOOTH, make_episodes
from tests.oracles import Reference

AGENTS, OBS, STATE, ACTIONS, HORIZON = 3, 2, 4, 3, 4
SPEC = EnvSpec(AGENTS, OBS, STATE, ACTIONS, discrete=True, horizon=HORIZON)
LENGTHS = (2, HORIZON, 3)  # terminated, cut at the horizon, cut early
GAMMA, SIZE = 0.9, 2
KEY = jax.random.key(7)
CLAMP = (-0.4, 0.5)
BASE = LsfSac(
    messages=Messaging(size=SIZE, hidden=3, weight=0.5, kl_weight=0.3, entropy_weight=0.2),
    temperature=Temperature(log_alpha=-0.5, optimiser=SMOOTH),
    logit_clamp=CLAMP,
    hidden=4,
    mixer_width=3,
    hypernet=4,
    gamma=GAMMA,
    target_period=3,
    actor_optimiser=SMOOTH,
    critic_optimiser=SMOOTH,
)


def but(messages=None, temperature=None, **changes):
    """The same with other settings; those of messages and of the temperature are dictionaries."""
    return dataclasses.replace(
        BASE,
        messages=dataclasses.replace(BASE.messages, **(messages or {})),
        temperature=dataclasses.replace(BASE.temperature, **(temperature or {})),
        **changes,
    )


VARIANTS = {
    "the defaults": BASE,
    "as the paper": but(
        dict(routing="broadcast", encoder="gru"),
        td_lambda=0.0,
        logit_clamp=None,
        target_value="expected",
    ),
    "policies as the code": but(dict(weight=0.0), policy_sign="code"),
    "soft targets, messages by themselves": but(
        dict(stop_td_into_encoder=True), dict(mode="sac-discrete"), target_value="soft"
    ),
    "two critics": but(temperature=dict(mode="fixed", alpha=0.3), critics=2),
    "masac": but(dict(routing="none"), logit_clamp=None),
    "noise": but(dict(routing="noise"), target_value="max"),
}


def at_update(number: int, env_steps: int = 1000) -> Clock:
    return Clock(jnp.int32(env_steps), jnp.int32(number), jnp.int32(0))


@functools.partial(jax.jit, static_argnums=0)
def init(algorithm, key):
    return algorithm.init(SPEC, key)


@functools.partial(jax.jit, static_argnums=0)
def update(algorithm, state, batch, clock, key):
    return algorithm.update(state, batch, clock, key)


def make_batch(**more):
    return make_episodes(SPEC, LENGTHS, terminated=(0,), **more)


@pytest.fixture(scope="module")
def batch():
    return make_batch()


@pytest.fixture(scope="module")
def states(scramble):
    """`states(algorithm)`: a state whose target is not its critic, and in which values differ a
    good deal."""

    @functools.cache
    def make(algorithm):
        state = init(algorithm, jax.random.key(0))
        where = lambda s: (s.actor.value, s.critics.value, s.critics.target)
        return eqx.tree_at(
            where, state, tuple(scramble(x, 8 + k, 0.5) for k, x in enumerate(where(state)))
        )

    return make


@pytest.fixture(scope="module")
def updated(batch, states):
    """`updated(algorithm)`: state and metrics after one update."""
    return functools.cache(
        lambda algorithm: update(algorithm, states(algorithm), batch, at_update(100), KEY)
    )


# The equations, in float64 NumPy


def inputs_of(batch):
    """x of every step, agent by agent."""
    obs, action = np.asarray(batch.timesteps.obs, np.float64), np.asarray(batch.action)
    x = np.zeros((len(obs), HORIZON + 1, AGENTS, OBS + ACTIONS + AGENTS))
    for b, t, i in np.ndindex(x.shape[:-1]):
        last = np.eye(ACTIONS)[action[b, t - 1, i]] if t else np.zeros(ACTIONS)
        x[b, t, i] = np.concatenate([obs[b, t, i], last, np.eye(AGENTS)[i]])
    return x


def unroll(encoder, x):
    """Linear, ReLU, GRU, step by step."""
    sigmoid, gru = lambda x: 1 / (1 + np.exp(-x)), encoder.gru
    gates = lambda m, x: [x @ m.weight[k] + m.bias[k] for k in range(3)]
    h, result = np.zeros((*x[:, 0].shape[:-1], encoder.layer.bias.shape[-1])), []
    for t in range(x.shape[1]):
        w = gates(
            gru.from_input, Reference.relu(x[:, t] @ encoder.layer.weight + encoder.layer.bias)
        )
        u = gates(gru.from_memory, h)
        r, z = sigmoid(w[0] + u[0]), sigmoid(w[1] + u[1])
        h = (1 - z) * np.tanh(w[2] + r * u[2]) + z * h
        result.append(h)
    return np.stack(result, axis=1)


def linear(layer, x):
    return x @ layer.weight + layer.bias


def noise_of(key, critics, time, shape):
    """[critics, batch, time, ...]: each critic, episode and step by a key of its own."""
    keys = jax.random.split(key, (critics, len(LENGTHS)))
    one = lambda k, b, t: jax.random.normal(jax.random.fold_in(keys[k, b], t), shape)
    rows = [
        [[one(k, b, t) for t in range(time)] for b in range(len(LENGTHS))] for k in range(critics)
    ]
    return np.float64(np.array(rows))


def send(algorithm, messenger, x, noise):
    """The messages' means, the messages, and what each agent receives."""
    recurrent = algorithm.messages.encoder == "gru"
    features = (
        unroll(messenger.encoder, x)
        if recurrent
        else Reference.torso(messenger.encoder, x, Reference.relu)
    )
    receivers = AGENTS if algorithm.messages.routing == "pairwise" else 1
    mean = linear(messenger.head, features).reshape(*x.shape[:-1], receivers, SIZE)
    sent, received = mean + noise, np.zeros((*x.shape[:-1], AGENTS * SIZE))
    for i in range(AGENTS):
        for j in range(AGENTS):
            received[..., i, SIZE * j : SIZE * (j + 1)] = sent[..., j, i if receivers > 1 else 0, :]
    return mean, sent, received


def draw(algorithm, key, critics, time):
    shape = {
        "pairwise": (AGENTS, AGENTS, SIZE),
        "broadcast": (AGENTS, 1, SIZE),
        "noise": (AGENTS, AGENTS * SIZE),
    }
    routing = algorithm.messages.routing
    return None if routing == "none" else noise_of(key, critics, time, shape[routing])


def utilities_of(algorithm, critic, x, noise, sender=None):
    """q_i; `sender` is whose messages they receive, if not those of `critic`."""
    if algorithm.messages.routing == "none":
        inputs = x
    elif algorithm.messages.routing == "noise":
        inputs = np.concatenate([x, noise], axis=-1)
    else:
        _, _, received = send(algorithm, (sender or critic).messenger, x, noise)
        inputs = np.concatenate([x, received], axis=-1)
    return linear(critic.utility.head, unroll(critic.utility.encoder, inputs))


def logits_of(algorithm, actor, batch):
    logits = linear(actor.head, Reference.histories(actor.encoder, SPEC, batch))
    return logits if algorithm.logit_clamp is None else np.clip(logits, *algorithm.logit_clamp)


def log_policy_of(logits, available):
    x = np.where(available, logits, -np.inf)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def soft(q, log_policy, alpha):
    """E_pi[q - alpha log pi], over what is available."""
    with np.errstate(invalid="ignore"):
        return np.where(
            np.isneginf(log_policy), 0.0, np.exp(log_policy) * (q - alpha * log_policy)
        ).sum(-1)


def pick(values, action):
    return np.take_along_axis(values, np.asarray(action)[..., None], axis=-1)[..., 0]


class Equations:
    """What one update of `algorithm` from `state` should be."""

    def __init__(self, algorithm, state, batch):
        self.algorithm, self.batch, self.number = algorithm, batch, algorithm.critics
        self.actor, self.critics, self.targets = map(
            Reference.doubles, (state.actor.value, state.critics.value, state.critics.target)
        )
        self.x, self.s = inputs_of(batch), np.float64(batch.timesteps.state)
        self.online, target = jax.random.split(KEY)
        self.noise = draw(algorithm, self.online, self.number, HORIZON)
        self.target_noise = draw(algorithm, target, self.number, HORIZON + 1)
        settings = algorithm.temperature
        falls = {"schedule": settings.log_alpha - 1e-4 * 100, "sac-discrete": settings.log_alpha}
        self.alpha = settings.alpha if settings.mode == "fixed" else np.exp(falls[settings.mode])
        self.available = np.array(batch.timesteps.available)
        for b, length in enumerate(LENGTHS):
            # Nothing is available after the end, and nothing there counts
            self.available[b, length + 1 :] = True
        logits = logits_of(algorithm, self.actor, batch)
        self.log_policy = log_policy_of(logits, self.available)
        self.greedy = np.where(self.available, logits, -np.inf).argmax(-1)
        self.y = self.lambda_targets()

    def part(self, noise, k):
        return None if noise is None else noise[k]

    def lambda_targets(self):
        values = []
        for k in range(self.number):
            critic = Reference.part(self.targets, k)
            q = utilities_of(self.algorithm, critic, self.x, self.part(self.target_noise, k))
            v = {
                "soft": soft(q, self.log_policy, self.alpha),
                "expected": soft(q, self.log_policy, 0.0),
                "max": np.where(self.available, q, -np.inf).max(-1),
                "greedy": pick(q, self.greedy),
            }[self.algorithm.target_value]
            values.append(Reference.mixer(critic.mixer, v[:, 1:], self.s[:, 1:]))
        return Reference.lambda_targets(
            self.batch, np.min(values, axis=0), GAMMA, self.algorithm.td_lambda
        )

    def td_loss(self, critics):
        """Half the squared error, summed over critics."""
        loss = 0.0
        for k in range(self.number):
            critic, before = Reference.part(critics, k), Reference.part(self.critics, k)
            sender = before if self.algorithm.messages.stop_td_into_encoder else None
            q = utilities_of(
                self.algorithm, critic, self.x[:, :-1], self.part(self.noise, k), sender
            )
            q_tot = Reference.mixer(critic.mixer, pick(q, self.batch.action), self.s[:, :-1])
            loss += Reference.masked_mean(0.5 * (q_tot - self.y) ** 2, self.batch.mask)
        return loss

    def message_loss(self, critics):
        settings = self.algorithm.messages
        if settings.routing in ("none", "noise"):
            return 0.0
        loss, x = 0.0, self.x[:, :-1]
        for k in range(self.number):
            messenger = Reference.part(critics, k).messenger
            mean, sent, received = send(self.algorithm, messenger, x, self.noise[k])
            logits = Reference.mlp(
                messenger.posterior, np.concatenate([x, received], axis=-1), Reference.relu
            )
            log_q = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            of_steps = -pick(log_q, self.greedy[:, :-1]).sum(-1)
            of_steps = of_steps + settings.kl_weight * (mean**2 / 2).sum((-3, -2, -1))
            normal = (sent**2 / 2 + np.log(2 * np.pi) / 2).sum((-3, -2, -1))
            of_steps = of_steps + settings.entropy_weight * normal
            loss += Reference.masked_mean(of_steps, self.batch.mask)
        return loss

    def critic_loss(self, critics):
        return self.td_loss(critics) + self.algorithm.messages.weight * self.message_loss(critics)

    def actor_loss(self, actor):
        critic = Reference.part(self.critics, 0)
        q = utilities_of(self.algorithm, critic, self.x[:, :-1], self.part(self.noise, 0))
        log_policy = log_policy_of(logits_of(self.algorithm, actor, self.batch), self.available)[
            :, :-1
        ]
        value, sign = (
            soft(q, log_policy, self.alpha),
            1 if self.algorithm.policy_sign == "paper" else -1,
        )
        return -sign * Reference.masked_mean(
            Reference.mixer(critic.mixer, sign * value, self.s[:, :-1]), self.batch.mask
        )

    def entropy(self):
        """Of each step, the mean over agents; and the same of a uniform policy."""
        uniform = log_policy_of(np.zeros_like(self.log_policy), self.available)
        return (soft(0.0, p[:, :-1], 1.0).mean(-1) for p in (self.log_policy, uniform))


@pytest.mark.parametrize("name", VARIANTS)
def test_an_update_descends_the_losses_of_the_equations(name, batch, states, updated, reference):
    algorithm = VARIANTS[name]
    state, (after, metrics) = states(algorithm), updated(algorithm)
    expected = Equations(algorithm, state, batch)
    td_loss = expected.td_loss(expected.critics)
    message_loss = expected.message_loss(expected.critics)
    total = td_loss + algorithm.messages.weight * message_loss
    np.testing.assert_allclose(metrics["td_loss"], td_loss, rtol=1e-4)
    np.testing.assert_allclose(metrics["message_loss"], message_loss, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["critic_loss"], total, rtol=1e-4)
    np.testing.assert_allclose(
        metrics["target_value"], reference.masked_mean(expected.y, batch.mask), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        metrics["actor_loss"], expected.actor_loss(expected.actor), rtol=1e-4
    )
    np.testing.assert_allclose(metrics["temperature"], expected.alpha, rtol=1e-5)
    reference.assert_descends(
        state.critics.value, after.critics.value, expected.critic_loss, entries=3
    )
    reference.assert_descends(state.actor.value, after.actor.value, expected.actor_loss, entries=4)
    entropy, uniform = expected.entropy()
    np.testing.assert_allclose(
        metrics["entropy"], reference.masked_mean(entropy, batch.mask), rtol=1e-4
    )
    if algorithm.temperature.mode == "sac-discrete":
        gradient = reference.masked_mean(entropy - 0.2 * uniform, batch.mask)
        moved = after.log_alpha.value - state.log_alpha.value
        np.testing.assert_allclose(moved, -0.1 * gradient / (abs(gradient) + 1.0), rtol=1e-4)


def test_the_checks_above_could_tell(batch, states):
    """Either critic is the smaller now and then, and logits are clamped here and there."""
    two = Equations(VARIANTS["two critics"], states(VARIANTS["two critics"]), batch)
    values = []
    for k in range(2):
        critic = Reference.part(two.targets, k)
        q = utilities_of(two.algorithm, critic, two.x, two.target_noise[k])
        values.append(Reference.mixer(critic.mixer, pick(q, two.greedy), two.s))
    first_is_less = (values[0] < values[1])[:, 1:][np.asarray(batch.mask)]
    assert 0 < first_is_less.sum() < first_is_less.size
    free = linear(two.actor.head, Reference.histories(two.actor.encoder, SPEC, batch))
    clamped = free != np.clip(free, *CLAMP)
    assert 0.1 < clamped.mean() < 0.9


# Who learns from what


def test_each_loss_reaches_its_own_networks_and_no_others(states, updated, bits):
    """TD teaches utilities, mixer and encoder; L_m encoder and posterior; L_pi the actors."""
    start = states(BASE).critics.value.messenger

    def after(messages=None, **changes):
        return updated(but(messages, **changes))[0]

    silent = after(dict(weight=0.0), policy_sign="code").critics.value.messenger
    assert bits(silent.posterior) == bits(start.posterior)
    for one, other in zip(
        *map(jax.tree.leaves, ((silent.encoder, silent.head), (start.encoder, start.head))),
        strict=True,
    ):
        assert (np.asarray(one) != np.asarray(other)).any(), "TD did not reach the encoder"
    deaf = after(dict(weight=0.0, stop_td_into_encoder=True))
    assert bits(deaf.critics.value.messenger) == bits(start)
    base, other_sign = after(), after(dict(weight=0.0), policy_sign="code")
    assert bits(base.critics.value.messenger.posterior) != bits(start.posterior)
    assert bits(deaf.actor) == bits(base.actor), "what messages learn is no matter of the actor's"
    assert bits(other_sign.actor) != bits(base.actor)
    heads = (s.critics.value.utility.head.weight for s in (other_sign, base))
    np.testing.assert_allclose(
        *heads, atol=1e-6, err_msg="the actor's loss is no matter of the critic's"
    )


def test_every_parameter_learns(states, updated):
    for name in ("the defaults", "as the paper", "two critics"):
        state, (after, _) = states(VARIANTS[name]), updated(VARIANTS[name])
        where = lambda s: (s.actor.value, s.critics.value)
        for (path, old), (_, new) in zip(
            *(jax.tree.leaves_with_path(where(s)) for s in (state, after)), strict=True
        ):
            assert (np.asarray(old) != np.asarray(new)).any(), jax.tree_util.keystr(path)


def test_what_comes_after_an_end_changes_nothing(states, updated):
    for name in ("the defaults", "soft targets, messages by themselves"):
        algorithm = VARIANTS[name]
        spoilt = update(algorithm, states(algorithm), make_batch(garbage=50.0), at_update(100), KEY)
        for one, two in zip(*map(jax.tree.leaves, (spoilt, updated(algorithm))), strict=True):
            np.testing.assert_allclose(one, two, atol=2e-5)


def test_the_target_is_copied_after_every_third_update_and_only_then(batch, states, bits):
    state = states(BASE)
    for number in range(4):
        before, (state, _) = state, update(BASE, state, batch, at_update(number), KEY)
        source = state.critics.value if number == 2 else before.critics.target
        assert bits(state.critics.target) == bits(source)


# Ablations equal their base


def test_without_messages_and_with_an_actor_greedy_in_the_critic_it_is_qmix(batch, scramble):
    """The same values and targets; L_crit is half of QMIX's loss."""
    qmix = Qmix(hidden=4, mixer_width=3, hypernet=4, gamma=GAMMA, td_lambda=BASE.td_lambda)
    network, target = (
        scramble(init(qmix, jax.random.key(k)).network.value, k, 0.6) for k in (1, 2)
    )
    algorithm = VARIANTS["masac"]
    lead = lambda tree: jax.tree.map(lambda x: x[None], tree)
    parts = lambda c: (c.utility.encoder, c.utility.head, c.mixer)
    of_qmix = lambda n: lead((n.utilities.encoder, n.utilities.head, n.mixer))
    where = lambda s: (s.actor.value, *parts(s.critics.value), *parts(s.critics.target))
    state = init(algorithm, jax.random.key(0))
    state = eqx.tree_at(where, state, (network.utilities, *of_qmix(network), *of_qmix(target)))
    _, metrics = update(algorithm, state, batch, at_update(100), KEY)
    q, y = jax.jit(jax.vmap(lambda episode: qmix.values(network, target, episode)))(batch)
    np.testing.assert_allclose(metrics["q_taken_mean"], masked_mean(q, batch.mask), rtol=1e-5)
    np.testing.assert_allclose(metrics["target_value"], masked_mean(y, batch.mask), rtol=1e-5)
    np.testing.assert_allclose(
        metrics["critic_loss"], 0.5 * masked_mean((q - y) ** 2, batch.mask), rtol=1e-5
    )


def test_chance_is_in_the_messages_alone(batch, states, updated, bits):
    """Without noise two keys give one result, with it they do not, and without messages there is
    none."""
    for changes, same in (
        ({}, False),
        ({"std": 0.0, "weight": 0.0}, True),
        ({"routing": "none"}, True),
    ):
        algorithm = but(changes, logit_clamp=None)
        two = (
            update(algorithm, states(algorithm), batch, at_update(100), jax.random.key(k))
            for k in (1, 2)
        )
        one, other = (bits(result) for result in two)
        assert (one == other) == same


def test_presets_differ_from_the_defaults_in_what_their_names_say():
    assert LsfSac(messages=Messaging(routing="none")) == MASAC
    assert dataclasses.replace(MASAC, critics=2) == MASAC_DOUBLE_Q
    assert LsfSac(temperature=Temperature(mode="fixed")) == LSF_SAC_FIXED_TEMPERATURE
    assert LSF_SAC_FIXED_TEMPERATURE.temperature.alpha == 1.0
    shapes = jax.eval_shape(lambda: MASAC.init(SPEC, jax.random.key(0)))
    assert shapes.critics.value.messenger is None


def test_noise_is_as_large_as_messages_and_two_critics_start_apart():
    sizes = {}
    for routing in ("pairwise", "broadcast", "noise", "none"):
        critic = init(but(dict(routing=routing)), jax.random.key(0)).critics.value
        sizes[routing] = critic.utility.encoder.layer.weight.shape[-2]
    assert (
        sizes["pairwise"] == sizes["broadcast"] == sizes["noise"] == sizes["none"] + AGENTS * SIZE
    )
    two = init(VARIANTS["two critics"], jax.random.key(0)).critics.value
    assert not np.allclose(two.mixer.first_bias.weight[0], two.mixer.first_bias.weight[1])


# Execution


@functools.partial(jax.jit, static_argnums=(0, 4))
def act(algorithm, state, memory, timestep, explore, clock, key):
    return algorithm.act(state, 0, memory, timestep, clock, key, explore=explore)


def test_agents_act_without_messages(batch, states):
    """Even if every parameter of the critic, its messages included, is lost; and whatever the
    others see."""
    state = states(BASE)
    lost = eqx.tree_at(
        lambda s: s.critics.value, state, jax.tree.map(lambda x: x * jnp.nan, state.critics.value)
    )
    steps, episode = [], jax.tree.map(lambda x: x[1], batch)
    everything = lambda t: Timestep(t.obs, t.state, jnp.ones_like(t.available))
    for agent_state, others in ((state, 0.0), (lost, 0.0), (state, 9.0), (state, -9.0)):
        memory, actions = Memory.empty(AGENTS, BASE.hidden), []
        for t in range(HORIZON):
            timestep = everything(jax.tree.map(lambda x, t=t: x[t], episode.timesteps))
            timestep = eqx.tree_at(
                lambda s: (s.obs, s.state),
                timestep,
                (timestep.obs.at[1:].add(others), timestep.state),
            )
            memory, action = act(
                BASE, agent_state, memory, timestep, False, at_update(0), jax.random.key(t)
            )
            actions.append(action.tolist())
        steps.append(actions)
    assert steps[0] == steps[1] and len(np.unique(steps[0])) > 1
    assert all([a[0] for a in steps[0]] == [a[0] for a in other] for other in steps)
    assert any(steps[0] != other for other in steps[2:])


def test_exploring_is_epsilon_greedy_or_a_draw_from_the_policies(states):
    timestep = Timestep(
        jnp.ones((AGENTS, OBS)),
        jnp.ones(STATE),
        jnp.ones((AGENTS, ACTIONS), bool).at[0, 1].set(False),
    )
    keys, memory = jax.random.split(jax.random.key(0), 4000), Memory.empty(AGENTS, BASE.hidden)
    logits = np.asarray(states(BASE).actor.value.step(memory, timestep.obs)[1])
    policy = np.exp(log_policy_of(np.clip(logits, *CLAMP), np.asarray(timestep.available)))
    best = np.eye(ACTIONS)[policy.argmax(-1)]
    anything = np.asarray(timestep.available) / np.asarray(timestep.available).sum(
        -1, keepdims=True
    )
    expected = {"sample": policy, "epsilon-greedy": 0.05 * anything + 0.95 * best}
    for behaviour, chances in expected.items():
        algorithm = but(behaviour=behaviour)
        draws = jax.vmap(
            lambda k, a=algorithm: act(
                a, states(BASE), memory, timestep, True, at_update(0, 10**6), k
            )[1]
        )
        found = np.eye(ACTIONS)[np.asarray(draws(keys))].mean(0)
        np.testing.assert_allclose(found, chances, atol=0.03)
        assert found[0, 1] == 0.0


def test_team_values_are_those_that_learning_sees(batch, states):
    algorithm = VARIANTS["masac"]
    episode, state = jax.tree.map(lambda x: x[1], batch), states(algorithm)
    found = jax.jit(lambda s, e: algorithm.team_values(s, e, jax.random.key(0)))(state, episode)
    critic = Reference.part(Reference.doubles(state.critics.value), 0)
    q = utilities_of(algorithm, critic, inputs_of(batch), None)[1, :-1]
    expected = Reference.mixer(
        critic.mixer, pick(q, episode.action), np.float64(episode.timesteps.state[:-1])
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


# Temperature


def test_the_schedule_is_what_the_codes_tuning_comes_to():
    """Adam (1e-4) down the gradient H + |A|, which is positive whatever the policies do."""
    temperature, random = Temperature(), np.random.default_rng(0)
    log_alpha, m, v, found = -0.07, 0.0, 0.0, {}
    for k in range(20_001):
        found[k] = log_alpha
        gradient = sum(random.uniform(0.0, np.log(9.0)) + 9.0 for _ in range(3))
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        log_alpha -= (
            1e-4 * (m / (1 - 0.9 ** (k + 1))) / (np.sqrt(v / (1 - 0.999 ** (k + 1))) + 1e-8)
        )
    for k in (0, 100, 1000, 5000, 20_000):
        scheduled = float(jnp.log(temperature.at(None, at_update(k, 2_000_000))))
        np.testing.assert_allclose(scheduled, -0.07 - 1e-4 * k, rtol=1e-4)
        np.testing.assert_allclose(scheduled, found[k], rtol=0.02)
    late = at_update(20_000, 3_000_001)
    np.testing.assert_allclose(temperature.at(None, late), 0.19, rtol=1e-6)
    np.testing.assert_allclose(LSF_SAC_FIXED_TEMPERATURE.temperature.at(None, late), 1.0)


def test_sac_discrete_brings_the_entropy_to_its_target(batch, states):
    """From above and from below, with a critic that stands still."""
    still, quick = Adam(0.0), Adam(0.05, max_grad_norm=0.0)
    algorithm = but(
        dict(routing="none"),
        dict(mode="sac-discrete", entropy_share=0.5, optimiser=quick),
        logit_clamp=None,
        critic_optimiser=still,
        actor_optimiser=quick,
    )
    uniform = np.log(np.maximum(np.asarray(batch.timesteps.available)[:, :-1].sum(-1), 1))
    target = 0.5 * Reference.masked_mean(uniform.mean(-1), batch.mask)
    state = states(algorithm)

    @jax.jit
    def run(log_alpha):
        start = eqx.tree_at(lambda s: s.log_alpha.value, state, log_alpha)

        def step(state, number):
            clock = Clock(number, number, number)
            state, metrics = algorithm.update(state, batch, clock, KEY)
            return state, (metrics["entropy"], metrics["temperature"])

        return jax.lax.scan(step, start, jnp.arange(500))[1]

    for log_alpha, above in ((2.0, True), (-4.0, False)):
        entropy, alpha = map(np.asarray, run(jnp.float32(log_alpha)))
        assert (entropy[25] > target) == above and (alpha[-1] < alpha[0]) == above
        np.testing.assert_allclose(entropy[-100:].mean(), target, rtol=0.15)


@pytest.mark.parametrize(
    ("target_value", "value"),
    [
        ("greedy", 1.0),  # of the likelier action
        ("max", 5.0),
        ("expected", 0.75 * 1.0 + 0.25 * 5.0),
        ("soft", 2.0 - 0.5 * (0.75 * np.log(0.75) + 0.25 * np.log(0.25))),
    ],
)
def test_each_reading_of_eq_16_values_the_next_step_as_it_says(target_value, value):
    """By hand: policies of 3/4 and 1/4 over two actions; a third is not available, for all its
    value."""
    utilities, logits = jnp.array([[1.0, 5.0, 9.0]]), jnp.log(jnp.array([[3.0, 1.0, 8.0]]))
    available = jnp.array([[True, True, False]])
    found = but(target_value=target_value).values_of_agents(
        utilities, logits, available, jnp.float32(0.5)
    )
    np.testing.assert_allclose(found, [value], rtol=1e-6)
