"""LSF-SAC against its docstring's equations in NumPy, its properties, its temperature, and its
ablations."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.algorithms.lsf_sac import LSF_SAC_FIXED_TEMPERATURE, MASAC, MASAC_DOUBLE_Q, LsfSac
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
BASE = LsfSac(
    **dict(
        hidden=4,
        mixer_width=3,
        hypernet=4,
        message_size=SIZE,
        message_width=3,
        gamma=GAMMA,
        target_period=3,
    ),
    **dict(message_weight=0.5, kl_weight=0.3, message_entropy_weight=0.2, logit_clamp=(-0.4, 0.5)),
    **dict(
        actor_optimiser=SMOOTH,
        critic_optimiser=SMOOTH,
        temperature_optimiser=SMOOTH,
        log_alpha=-0.5,
    ),
)
but = functools.partial(dataclasses.replace, BASE)
VARIANTS = {
    "the defaults": BASE,
    "as the paper": but(messages="broadcast", encoder="gru", td_lambda=0.0, logit_clamp=None),
    "policies as the code": but(policy_sign="code", message_weight=0.0),
    "soft targets, messages by themselves": but(
        soft_target=True, stop_td_into_encoder=True, temperature="sac-discrete"
    ),
    "twins": but(twin_critic=True, temperature="fixed", alpha=0.3),
    "masac": but(messages="none", logit_clamp=None),
    "noise": but(messages="noise"),
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
        where = lambda s: (s.actor.value, s.critic.value, s.target_critic)
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
    obs, action = np.float64(batch.timesteps.obs), np.asarray(batch.action)
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


def noise_of(key, towers, time, shape):
    """[towers, batch, time, ...]: each tower, episode and step by a key of its own."""
    keys = jax.random.split(key, (towers, len(LENGTHS)))
    one = lambda k, b, t: jax.random.normal(jax.random.fold_in(keys[k, b], t), shape)
    rows = [
        [[one(k, b, t) for t in range(time)] for b in range(len(LENGTHS))] for k in range(towers)
    ]
    return np.float64(np.array(rows))


def speak(algorithm, messenger, x, noise):
    """The messages' means, the messages, and what each agent is told."""
    recurrent = algorithm.encoder == "gru"
    features = (
        unroll(messenger.encoder, x)
        if recurrent
        else Reference.torso(messenger.encoder, x, Reference.relu)
    )
    receivers = AGENTS if algorithm.messages == "pairwise" else 1
    mean = linear(messenger.head, features).reshape(*x.shape[:-1], receivers, SIZE)
    sent, told = mean + noise, np.zeros((*x.shape[:-1], AGENTS * SIZE))
    for i in range(AGENTS):
        for j in range(AGENTS):
            told[..., i, SIZE * j : SIZE * (j + 1)] = sent[..., j, i if receivers > 1 else 0, :]
    return mean, sent, told


def draw(algorithm, key, towers, time):
    shape = {
        "pairwise": (AGENTS, AGENTS, SIZE),
        "broadcast": (AGENTS, 1, SIZE),
        "noise": (AGENTS, AGENTS * SIZE),
    }
    return (
        None
        if algorithm.messages == "none"
        else noise_of(key, towers, time, shape[algorithm.messages])
    )


def utilities_of(algorithm, critic, x, noise, teller=None):
    """q_i; `teller` is whose messages they hear, if not those of `critic`."""
    if algorithm.messages == "none":
        heard = x
    elif algorithm.messages == "noise":
        heard = np.concatenate([x, noise], axis=-1)
    else:
        heard = np.concatenate(
            [x, speak(algorithm, (teller or critic).messenger, x, noise)[2]], axis=-1
        )
    return linear(critic.utility.head, unroll(critic.utility.encoder, heard))


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
        self.algorithm, self.batch, self.towers = algorithm, batch, 1 + algorithm.twin_critic
        self.actor, self.critics, self.targets = map(
            Reference.doubles, (state.actor.value, state.critic.value, state.target_critic)
        )
        self.x, self.s = inputs_of(batch), np.float64(batch.timesteps.state)
        self.online, target = jax.random.split(KEY)
        self.noise = draw(algorithm, self.online, self.towers, HORIZON)
        self.target_noise = draw(algorithm, target, self.towers, HORIZON + 1)
        falls = {"schedule": algorithm.log_alpha - 1e-4 * 100, "sac-discrete": algorithm.log_alpha}
        self.alpha = (
            algorithm.alpha
            if algorithm.temperature == "fixed"
            else np.exp(falls[algorithm.temperature])
        )
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
        for k in range(self.towers):
            critic = Reference.part(self.targets, k)
            q = utilities_of(self.algorithm, critic, self.x, self.part(self.target_noise, k))
            v = (
                soft(q, self.log_policy, self.alpha)
                if self.algorithm.soft_target
                else pick(q, self.greedy)
            )
            values.append(Reference.mixer(critic.mixer, v[:, 1:], self.s[:, 1:]))
        return Reference.lambda_targets(
            self.batch, np.min(values, axis=0), GAMMA, self.algorithm.td_lambda
        )

    def td_loss(self, critics):
        """Half the squared error, summed over towers."""
        loss = 0.0
        for k in range(self.towers):
            critic, before = Reference.part(critics, k), Reference.part(self.critics, k)
            teller = before if self.algorithm.stop_td_into_encoder else None
            q = utilities_of(
                self.algorithm, critic, self.x[:, :-1], self.part(self.noise, k), teller
            )
            q_tot = Reference.mixer(critic.mixer, pick(q, self.batch.action), self.s[:, :-1])
            loss += Reference.masked_mean(0.5 * (q_tot - self.y) ** 2, self.batch.mask)
        return loss

    def message_loss(self, critics):
        if self.algorithm.messages in ("none", "noise"):
            return 0.0
        loss, x = 0.0, self.x[:, :-1]
        for k in range(self.towers):
            messenger = Reference.part(critics, k).messenger
            mean, sent, told = speak(self.algorithm, messenger, x, self.noise[k])
            logits = Reference.mlp(
                messenger.posterior, np.concatenate([x, told], axis=-1), Reference.relu
            )
            log_q = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            each = -pick(log_q, self.greedy[:, :-1]).sum(-1)
            each = each + self.algorithm.kl_weight * (mean**2 / 2).sum((-3, -2, -1))
            normal = (sent**2 / 2 + np.log(2 * np.pi) / 2).sum((-3, -2, -1))
            loss += Reference.masked_mean(
                each + self.algorithm.message_entropy_weight * normal, self.batch.mask
            )
        return loss

    def critic_loss(self, critics):
        return self.td_loss(critics) + self.algorithm.message_weight * self.message_loss(critics)

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
    loss, said = expected.td_loss(expected.critics), expected.message_loss(expected.critics)
    np.testing.assert_allclose(metrics["critic_loss"], loss, rtol=1e-4)
    np.testing.assert_allclose(metrics["message_loss"], said, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        metrics["target_value"], reference.masked_mean(expected.y, batch.mask), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        metrics["actor_loss"], expected.actor_loss(expected.actor), rtol=1e-4
    )
    np.testing.assert_allclose(metrics["alpha"], expected.alpha, rtol=1e-5)
    reference.assert_descends(
        state.critic.value, after.critic.value, expected.critic_loss, entries=3
    )
    reference.assert_descends(state.actor.value, after.actor.value, expected.actor_loss, entries=4)
    entropy, uniform = expected.entropy()
    np.testing.assert_allclose(
        metrics["entropy"], reference.masked_mean(entropy, batch.mask), rtol=1e-4
    )
    if algorithm.temperature == "sac-discrete":
        gradient = reference.masked_mean(entropy - 0.2 * uniform, batch.mask)
        moved = after.temperature.value - state.temperature.value
        np.testing.assert_allclose(moved, -0.1 * gradient / (abs(gradient) + 1.0), rtol=1e-4)


def test_the_checks_above_could_tell(batch, states):
    """Either tower is the smaller now and then, and logits are clamped here and there."""
    twins = Equations(VARIANTS["twins"], states(VARIANTS["twins"]), batch)
    values = []
    for k in range(2):
        critic = Reference.part(twins.targets, k)
        q = utilities_of(twins.algorithm, critic, twins.x, twins.target_noise[k])
        values.append(Reference.mixer(critic.mixer, pick(q, twins.greedy), twins.s))
    first_is_less = (values[0] < values[1])[:, 1:][np.asarray(batch.mask)]
    assert 0 < first_is_less.sum() < first_is_less.size
    free = linear(twins.actor.head, Reference.histories(twins.actor.encoder, SPEC, batch))
    clamped = free != np.clip(free, *BASE.logit_clamp)
    assert 0.1 < clamped.mean() < 0.9


# Who learns from what


def test_each_loss_reaches_its_own_networks_and_no_others(states, updated, bits):
    """TD teaches utilities, mixer and encoder; L_m encoder and posterior; L_pi the actors."""
    start = states(BASE).critic.value.messenger

    def after(**changes):
        return updated(but(**changes))[0]

    silent = after(message_weight=0.0, policy_sign="code").critic.value.messenger
    assert bits(silent.posterior) == bits(start.posterior)
    for one, other in zip(
        *map(jax.tree.leaves, ((silent.encoder, silent.head), (start.encoder, start.head))),
        strict=True,
    ):
        assert (np.asarray(one) != np.asarray(other)).any(), "TD did not reach the encoder"
    deaf = after(message_weight=0.0, stop_td_into_encoder=True)
    assert bits(deaf.critic.value.messenger) == bits(start)
    base, other_sign = after(), after(message_weight=0.0, policy_sign="code")
    assert bits(base.critic.value.messenger.posterior) != bits(start.posterior)
    assert bits(deaf.actor) == bits(base.actor), "what messages learn is no matter of the actor's"
    assert bits(other_sign.actor) != bits(base.actor)
    heads = (s.critic.value.utility.head.weight for s in (other_sign, base))
    np.testing.assert_allclose(
        *heads, atol=1e-6, err_msg="the actor's loss is no matter of the critic's"
    )


def test_every_parameter_learns(states, updated):
    for name in ("the defaults", "as the paper", "twins"):
        state, (after, _) = states(VARIANTS[name]), updated(VARIANTS[name])
        where = lambda s: (s.actor.value, s.critic.value)
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
        source = state.critic.value if number == 2 else before.target_critic
        assert bits(state.target_critic) == bits(source)


# Ablations equal their base


def test_without_messages_and_with_an_actor_greedy_in_the_critic_it_is_qmix(batch, scramble):
    """The same values and targets; L_crit is half of QMIX's loss."""
    qmix = Qmix(hidden=4, mixer_width=3, hypernet=4, gamma=GAMMA, td_lambda=BASE.td_lambda)
    network, target = (
        scramble(init(qmix, jax.random.key(k)).learner.value, k, 0.6) for k in (1, 2)
    )
    algorithm = VARIANTS["masac"]
    lead = lambda tree: jax.tree.map(lambda x: x[None], tree)
    parts = lambda c: (c.utility.encoder, c.utility.head, c.mixer)
    of_qmix = lambda n: lead((n.utilities.encoder, n.utilities.head, n.mixer))
    where = lambda s: (s.actor.value, *parts(s.critic.value), *parts(s.target_critic))
    state = init(algorithm, jax.random.key(0))
    state = eqx.tree_at(where, state, (network.utilities, *of_qmix(network), *of_qmix(target)))
    _, metrics = update(algorithm, state, batch, at_update(100), KEY)
    q, y = jax.jit(jax.vmap(lambda episode: qmix.values(network, target, episode)))(batch)
    np.testing.assert_allclose(metrics["value"], masked_mean(q, batch.mask), rtol=1e-5)
    np.testing.assert_allclose(metrics["target_value"], masked_mean(y, batch.mask), rtol=1e-5)
    np.testing.assert_allclose(
        metrics["critic_loss"], 0.5 * masked_mean((q - y) ** 2, batch.mask), rtol=1e-5
    )


def test_chance_is_in_the_messages_alone(batch, states, updated, bits):
    """Without noise two keys give one result, with it they do not, and without messages there is
    none."""
    for changes, same in (
        ({}, False),
        ({"message_std": 0.0, "message_weight": 0.0}, True),
        ({"messages": "none"}, True),
    ):
        algorithm = but(logit_clamp=None, **changes)
        two = (
            update(algorithm, states(algorithm), batch, at_update(100), jax.random.key(k))
            for k in (1, 2)
        )
        one, other = (bits(result) for result in two)
        assert (one == other) == same


def test_presets_differ_from_the_defaults_in_what_their_names_say():
    assert dataclasses.replace(LsfSac(), messages="none") == MASAC
    assert dataclasses.replace(MASAC, twin_critic=True) == MASAC_DOUBLE_Q
    assert dataclasses.replace(LsfSac(), temperature="fixed") == LSF_SAC_FIXED_TEMPERATURE
    assert LSF_SAC_FIXED_TEMPERATURE.alpha == 1.0
    shapes = jax.eval_shape(lambda: MASAC.init(SPEC, jax.random.key(0)))
    assert shapes.critic.value.messenger is None


def test_noise_is_as_large_as_messages_and_twins_start_apart():
    sizes = {}
    for messages in ("pairwise", "broadcast", "noise", "none"):
        critic = init(but(messages=messages), jax.random.key(0)).critic.value
        sizes[messages] = critic.utility.encoder.layer.weight.shape[-2]
    assert (
        sizes["pairwise"] == sizes["broadcast"] == sizes["noise"] == sizes["none"] + AGENTS * SIZE
    )
    twins = init(VARIANTS["twins"], jax.random.key(0)).critic.value
    assert not np.allclose(twins.mixer.first_bias.weight[0], twins.mixer.first_bias.weight[1])


# Execution


@functools.partial(jax.jit, static_argnums=(0, 4))
def act(algorithm, state, memory, timestep, explore, clock, key):
    return algorithm.act(state, 0, memory, timestep, clock, key, explore=explore)


def test_agents_act_without_messages(batch, states):
    """Even if every parameter of the critic, its messages included, is lost; and whatever the
    others see."""
    state = states(BASE)
    lost = eqx.tree_at(
        lambda s: s.critic.value, state, jax.tree.map(lambda x: x * jnp.nan, state.critic.value)
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
    policy = np.exp(
        log_policy_of(np.clip(logits, *BASE.logit_clamp), np.asarray(timestep.available))
    )
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
    critic = Reference.part(Reference.doubles(state.critic.value), 0)
    q = utilities_of(algorithm, critic, inputs_of(batch), None)[1, :-1]
    expected = Reference.mixer(
        critic.mixer, pick(q, episode.action), np.float64(episode.timesteps.state[:-1])
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


# Temperature


def test_the_schedule_is_what_the_codes_tuning_comes_to():
    """Adam (1e-4) down the gradient H + |A|, which is positive whatever the policies do."""
    algorithm, random = LsfSac(), np.random.default_rng(0)
    log_alpha, m, v, found = -0.07, 0.0, 0.0, {}
    for k in range(20_001):
        found[k] = log_alpha
        gradient = sum(random.uniform(0.0, np.log(9.0)) + 9.0 for _ in range(3))
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        log_alpha -= (
            1e-4 * (m / (1 - 0.9 ** (k + 1))) / (np.sqrt(v / (1 - 0.999 ** (k + 1))) + 1e-8)
        )
    state = jax.eval_shape(lambda: algorithm.init(SPEC, jax.random.key(0)))
    for k in (0, 100, 1000, 5000, 20_000):
        scheduled = float(jnp.log(algorithm.alpha_at(state, at_update(k, 2_000_000))))
        np.testing.assert_allclose(scheduled, -0.07 - 1e-4 * k, rtol=1e-4)
        np.testing.assert_allclose(scheduled, found[k], rtol=0.02)
    late = at_update(20_000, 3_000_001)
    np.testing.assert_allclose(algorithm.alpha_at(state, late), 0.19, rtol=1e-6)
    np.testing.assert_allclose(LSF_SAC_FIXED_TEMPERATURE.alpha_at(state, late), 1.0)


def test_sac_discrete_brings_the_entropy_to_its_target(batch, states):
    """From above and from below, with a critic that stands still."""
    still, quick = Adam(0.0), Adam(0.05, max_grad_norm=0.0)
    algorithm = but(
        messages="none",
        logit_clamp=None,
        temperature="sac-discrete",
        entropy_share=0.5,
        critic_optimiser=still,
    )
    algorithm = dataclasses.replace(algorithm, actor_optimiser=quick, temperature_optimiser=quick)
    uniform = np.log(np.maximum(np.asarray(batch.timesteps.available)[:, :-1].sum(-1), 1))
    target = 0.5 * Reference.masked_mean(uniform.mean(-1), batch.mask)
    state = states(algorithm)

    @jax.jit
    def run(log_alpha):
        start = eqx.tree_at(lambda s: s.temperature.value, state, log_alpha)

        def step(state, number):
            clock = Clock(number, number, number)
            state, metrics = algorithm.update(state, batch, clock, KEY)
            return state, (metrics["entropy"], metrics["alpha"])

        return jax.lax.scan(step, start, jnp.arange(500))[1]

    for log_alpha, above in ((2.0, True), (-4.0, False)):
        entropy, alpha = map(np.asarray, run(jnp.float32(log_alpha)))
        assert (entropy[25] > target) == above and (alpha[-1] < alpha[0]) == above
        np.testing.assert_allclose(entropy[-100:].mean(), target, rtol=0.15)
