"""FACMAC against its docstring's equations in NumPy, and its properties."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.algorithms.facmac import Facmac, FacmacContinuous, State
from comarl.algorithms.presets import FACMAC_NONMONOTONIC
from comarl.nn.recurrent import Memory
from comarl.replay.transitions import Ring
from comarl.types import Clock, EnvSpec
from tests.data import SMOOTH, make_episodes

SPEC = EnvSpec(2, 3, 4, 3, discrete=True, horizon=5)
LENGTHS, TERMINATED = (
    (2, 5, 3, 5),
    (0, 3),
)  # terminated early, cut at the horizon, cut early, terminated at the last step
GAMMA = 0.9
FACMAC = Facmac(
    hidden=6,
    mixer_width=4,
    hypernet=4,
    gamma=GAMMA,
    td_lambda=0.7,
    target_period=3,
    actor_optimiser=SMOOTH,
    critic_optimiser=SMOOTH,
)
MIXINGS = {"monotonic": FACMAC, "any": dataclasses.replace(FACMAC, mixing="any")}
NETWORKS = lambda s: (s.actor.value, s.critic.value, s.actor.target, s.critic.target)


@functools.partial(jax.jit, static_argnums=0)
def init(algorithm, key):
    return algorithm.init(SPEC, key)


@functools.partial(jax.jit, static_argnums=0)
def update(algorithm, state, batch, clock, key):
    return algorithm.update(state, batch, clock, key)


@functools.partial(jax.jit, static_argnums=0)
def fit_critic(algorithm, state, batch):
    return algorithm.fit_critic(state, batch)


@functools.partial(jax.jit, static_argnums=(0, 4))
def act(algorithm, state, memory, timestep, explore, clock, key):
    return algorithm.act(state, 0, memory, timestep, clock, key, explore=explore)


def at(updates=0, env_steps=1000) -> Clock:
    return Clock(jnp.int32(env_steps), jnp.int32(updates), jnp.int32(0))


def make_batch(**more):
    return make_episodes(SPEC, LENGTHS, TERMINATED, **more)


@pytest.fixture(scope="module")
def batch():
    return make_batch()


@pytest.fixture(scope="module")
def states(scramble):
    """`states(algorithm)`: a state in which no target equals what it follows."""

    @functools.cache
    def make(algorithm) -> State:
        state = init(algorithm, jax.random.key(0))
        return eqx.tree_at(
            NETWORKS, state, tuple(scramble(n, i, 0.6) for i, n in enumerate(NETWORKS(state)))
        )

    return make


@pytest.fixture(scope="module")
def state(states) -> State:
    return states(FACMAC)


@pytest.fixture(scope="module")
def updated(state, batch, key):
    return update(FACMAC, state, batch, at(), key)


class Equations:
    """FACMAC's targets and losses in NumPy."""

    def __init__(self, reference, state, batch):
        self.reference, self.batch, self.state = reference, batch, reference.doubles(state)
        self.obs, self.states = np.float64(batch.timesteps.obs), np.float64(batch.timesteps.state)
        self.available = np.asarray(batch.timesteps.available)

    def logits(self, actor):
        return (
            self.reference.histories(actor.encoder, SPEC, self.batch) @ actor.head.weight
            + actor.head.bias
        )

    def target(self, td_lambda):
        s = self.state
        action = self.reference.best(self.logits(s.actor.target), self.available)
        q = self.reference.factored_critic(
            s.critic.target, self.obs[:, 1:], action[:, 1:], self.states[:, 1:]
        )
        return self.reference.lambda_targets(self.batch, q, GAMMA, td_lambda)

    def q(self, critic, action):
        return self.reference.factored_critic(critic, self.obs[:, :-1], action, self.states[:, :-1])

    def critic_loss(self, critic, target):
        action = np.eye(SPEC.action_size)[np.asarray(self.batch.action)]
        return self.reference.masked_mean((self.q(critic, action) - target) ** 2, self.batch.mask)

    def actor_loss(self, actor, critic, key, agents=(0, 1)):
        """Only the actions of `agents` move."""
        before, now = (self.logits(a)[:, :-1] for a in (self.state.actor.value, actor))
        noise = self.reference.gumbel(key, now.shape)
        fixed, moving = (
            self.reference.straight_through(x, before, self.available[:, :-1], noise)
            for x in (before, now)
        )
        action = np.where(np.isin(np.arange(2), agents)[:, None], moving, fixed)
        return -self.reference.masked_mean(self.q(critic, action), self.batch.mask)


@pytest.fixture(scope="module")
def equations(reference, state, batch) -> Equations:
    return Equations(reference, state, batch)


# Losses


@pytest.mark.parametrize("td_lambda", [0.7, 0.0])
def test_the_critic_descends_to_the_lambda_return_of_the_targets_however_an_episode_ended(
    state, batch, equations, reference, td_lambda
):
    critic, metrics = fit_critic(dataclasses.replace(FACMAC, td_lambda=td_lambda), state, batch)
    target = equations.target(td_lambda)
    loss = lambda c: equations.critic_loss(c, target)
    np.testing.assert_allclose(
        metrics["target_value"], reference.masked_mean(target, batch.mask), rtol=1e-4
    )
    np.testing.assert_allclose(
        metrics["critic_loss"], loss(reference.doubles(state.critic.value)), rtol=1e-4
    )
    reference.assert_descends(state.critic.value, critic.value, loss, entries=3)


@pytest.mark.parametrize("mixing", ["any", "sum"])
def test_the_other_mixings_keep_the_equations(states, batch, reference, mixing):
    algorithm = dataclasses.replace(FACMAC, mixing=mixing)
    equations = Equations(reference, states(algorithm), batch)
    _, metrics = fit_critic(algorithm, states(algorithm), batch)
    expected = equations.critic_loss(equations.state.critic.value, equations.target(0.7))
    np.testing.assert_allclose(metrics["critic_loss"], expected, rtol=1e-4)


def test_an_episode_of_one_step_is_worth_its_reward_and_if_cut_what_follows(reference, state):
    """The targets of a terminated and of a cut step, without any recursion."""
    batch = make_episodes(SPEC, (1, 1), (0,))
    equations = Equations(reference, state, batch)
    action = reference.best(equations.logits(equations.state.actor.target), equations.available)[
        1, 1
    ]
    value = reference.factored_critic(
        equations.state.critic.target, equations.obs[1, 1], action, equations.states[1, 1]
    )
    _, metrics = fit_critic(FACMAC, state, batch)
    expected = (batch.reward[0, 0] + (batch.reward[1, 0] + GAMMA * value)) / 2
    np.testing.assert_allclose(metrics["target_value"], expected, rtol=1e-4)


def test_all_actors_maximise_the_critic_at_once_by_the_relaxed_draw(
    updated, state, equations, reference, key
):
    """The critic is the one that was just fitted; moving one agent's action at a time would be
    another step."""
    after, metrics = updated
    critic = reference.doubles(after.critic.value)
    loss = lambda actor: equations.actor_loss(actor, critic, key)
    np.testing.assert_allclose(
        metrics["actor_loss"], loss(reference.doubles(state.actor.value)), rtol=1e-4
    )
    reference.assert_descends(state.actor.value, after.actor.value, loss, entries=4)
    alone = lambda actor: equations.actor_loss(actor, critic, key, agents=(0,))
    expected, found = reference.steps(state.actor.value, after.actor.value, alone, entries=4)
    assert np.abs(expected - found).max() > 1e-4


def test_the_critics_step_depends_on_targets_and_the_actors_on_the_critic_alone(
    updated, state, batch, scramble, key, bits
):
    other = eqx.tree_at(lambda s: s.actor.value, state, scramble(state.actor.value, 9))
    after, _ = update(FACMAC, other, batch, at(), key)
    assert bits(after.critic) == bits(updated[0].critic), "the critic learnt from the live actor"
    targets = lambda s: (s.actor.target, s.critic.target)
    other = eqx.tree_at(targets, state, scramble(targets(state), 9))
    after, _ = update(FACMAC, other, batch, at(), key)
    assert bits(after.critic.learner) != bits(updated[0].critic.learner)
    one, two = (
        jax.jit(FACMAC.fit_actor)(s.actor, state.critic.value, batch, key)[0].learner
        for s in (state, other)
    )
    assert bits(one) == bits(two), "the actor learnt from the targets"


def test_every_parameter_learns_and_the_targets_stay(updated, state, bits):
    after, _ = updated
    assert bits((after.actor.target, after.critic.target)) == bits(
        (state.actor.target, state.critic.target)
    )
    networks = lambda s: (s.actor.value, s.critic.value)
    pairs = zip(*(jax.tree.leaves_with_path(networks(s)) for s in (after, state)), strict=True)
    for (path, new), (_, old) in pairs:
        assert (np.asarray(new) != np.asarray(old)).any(), jax.tree_util.keystr(path)


def test_only_the_critic_without_the_sign_constraint_may_count_a_utility_against_the_team(states):
    random = np.random.default_rng(0)
    q, s = (jnp.asarray(2 * random.normal(size=(200, n)), jnp.float32) for n in (2, 4))
    slopes = {}
    for name, algorithm in MIXINGS.items():
        mixer = states(algorithm).critic.value.mixer
        slopes[name] = jax.jit(jax.vmap(jax.grad(lambda q, s, mixer=mixer: mixer(q, s))))(q, s)
    assert (slopes["monotonic"] >= 0).all() and (slopes["any"] < 0).any()
    assert dataclasses.replace(Facmac(), mixing="any") == FACMAC_NONMONOTONIC


def test_both_targets_are_copied_after_every_third_update_and_only_then(state, batch, bits, key):
    online = lambda s: (s.actor.value, s.critic.value)
    targets = lambda s: (s.actor.target, s.critic.target)
    for number in range(7):
        before, (state, _) = state, update(FACMAC, state, batch, at(number), key)
        assert bits(targets(state)) == bits(online(state) if number in (2, 5) else targets(before))


def test_steps_that_did_not_take_place_change_nothing(updated, state, key):
    spoilt = update(FACMAC, state, make_batch(garbage=100.0), at(), key)
    for one, two in zip(*map(jax.tree.leaves, (spoilt, updated)), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)


# Acting


def test_acting_is_greedy_in_what_learning_unrolls(state, batch, reference):
    """Step by step, among what is available, whatever the key."""
    memory, episode, taken = (
        Memory.empty(2, FACMAC.hidden),
        jax.tree.map(lambda x: x[1:2], batch),
        [],
    )
    for t in range(SPEC.horizon):
        timestep = jax.tree.map(lambda x, t=t: x[0, t], episode.timesteps)
        memory, action = act(FACMAC, state, memory, timestep, False, at(), jax.random.key(t))
        taken.append(np.asarray(action))
        np.testing.assert_array_equal(memory.last_action, action)
    episode = eqx.tree_at(lambda e: e.action, episode, jnp.asarray(np.stack(taken))[None])
    actor = reference.doubles(state.actor.value)
    logits = reference.histories(actor.encoder, SPEC, episode) @ actor.head.weight + actor.head.bias
    best = reference.best(logits, np.asarray(episode.timesteps.available)).argmax(-1)
    np.testing.assert_array_equal(best[0, :-1], taken)


def test_no_agents_greedy_action_depends_on_what_another_sees_or_may_do(state, batch):
    memory, timestep = (
        Memory.empty(2, FACMAC.hidden),
        jax.tree.map(lambda x: x[1, 0], batch.timesteps),
    )
    choose = lambda t: np.asarray(act(FACMAC, state, memory, t, False, at(), jax.random.key(0))[1])
    before, changed = choose(timestep), set()
    for j in range(2):
        for shift in np.random.default_rng(j).normal(size=(20, SPEC.obs_size)):
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
            action = choose(other)
            assert action[1 - j] == before[1 - j]
            changed |= {j} if action[j] != before[j] else set()
    assert changed == {0, 1}, "nothing that was tried changed an agent's own action"


def test_exploring_draws_from_the_policy_with_a_share_of_random_actions(state):
    """Logits log 6, log 3, log 1 with the last unavailable to agent 1: 0.6, 0.3, 0.1
    and 2/3, 1/3. Epsilon falls from 0.5 at step 0 by 0.1 at 50 of 100 to 0.3 in the end."""
    algorithm = dataclasses.replace(
        FACMAC, epsilon=dataclasses.replace(FACMAC.epsilon, first=0.5, last=0.3, steps=100)
    )
    head = lambda s: (s.actor.value.head.weight, s.actor.value.head.bias)
    fixed = eqx.tree_at(
        head, state, (jnp.zeros((FACMAC.hidden, 3)), jnp.log(jnp.array([6.0, 3.0, 1.0])))
    )
    timestep = jax.tree.map(lambda x: x[1, 0], make_batch().timesteps)
    timestep = eqx.tree_at(
        lambda t: t.available, timestep, jnp.array([[True, True, True], [True, True, False]])
    )
    memory, keys = Memory.empty(2, FACMAC.hidden), jax.random.split(jax.random.key(1), 4000)
    one = lambda now, k: algorithm.act(
        fixed, 0, memory, timestep, at(env_steps=now), k, explore=True
    )[1]
    explore = jax.jit(jax.vmap(one, (None, 0)))
    policy = np.array([[0.6, 0.3, 0.1], [2 / 3, 1 / 3, 0.0]])
    uniform = np.array([[1 / 3] * 3, [0.5, 0.5, 0.0]])
    for now, epsilon in ((0, 0.5), (50, 0.4), (100, 0.3), (10**6, 0.3)):
        action = np.asarray(explore(jnp.int32(now), keys))
        shares = np.stack([np.bincount(a, minlength=3) for a in action.T]) / len(action)
        np.testing.assert_allclose(shares, (1 - epsilon) * policy + epsilon * uniform, atol=0.03)
        assert shares[1, 2] == 0
    # A team that evolves adds nothing to its policy.
    one = lambda k: algorithm.perform(fixed.actor.value, memory, timestep, k, explore=True)[1]
    shares = np.mean(np.eye(3)[np.asarray(jax.jit(jax.vmap(one))(keys))], axis=0)
    np.testing.assert_allclose(shares, policy, atol=0.03)


# Continuous actions


CONTINUOUS = FacmacContinuous(
    hidden=(6, 6),
    mixer_width=4,
    hypernet=4,
    gamma=GAMMA,
    action_penalty=0.3,
    tau=0.2,
    replay=Ring(100, 16),
    actor_optimiser=SMOOTH,
    critic_optimiser=SMOOTH,
)


@pytest.fixture(scope="module")
def continuous(spec, scramble) -> State:
    state = jax.jit(lambda k: CONTINUOUS.init(spec, k))(jax.random.key(0))
    return eqx.tree_at(
        NETWORKS, state, tuple(scramble(n, i) for i, n in enumerate(NETWORKS(state)))
    )


@pytest.fixture(scope="module")
def transitions(make_batch, spec):
    return make_batch(spec)


@pytest.fixture(scope="module")
def moved(continuous, transitions, key):
    return jax.jit(CONTINUOUS.update)(continuous, transitions, at(), key)


def with_identity(obs):
    return np.concatenate([np.float64(obs), np.tile(np.eye(3), (len(obs), 1, 1))], axis=-1)


def actions_of(reference, actor, obs, spec):
    """tanh, and 0 where an agent has no such action."""
    return (
        np.tanh(reference.mlp(actor.network, with_identity(obs), reference.relu)) * spec.action_mask
    )


def test_the_continuous_critic_descends_to_one_step_of_the_targets(
    moved, continuous, transitions, reference, spec
):
    (after, metrics), s, batch = moved, reference.doubles(continuous), transitions
    action = actions_of(reference, s.actor.target, batch.next.obs, spec)
    assert (action[:, 1, 1] == 0).all() and (action[:, 0] != 0).all()
    value = reference.factored_critic(
        s.critic.target, with_identity(batch.next.obs), action, np.float64(batch.next.state)
    )
    y = np.float64(batch.reward) + np.where(batch.terminated, 0.0, GAMMA * value)

    def loss(critic):
        inputs = with_identity(batch.now.obs), np.float64(batch.action), np.float64(batch.now.state)
        return np.mean((reference.factored_critic(critic, *inputs) - y) ** 2)

    np.testing.assert_allclose(metrics["target_value"], y.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["critic_loss"], loss(s.critic.value), rtol=1e-4)
    reference.assert_descends(continuous.critic.value, after.critic.value, loss, entries=3)


def test_the_continuous_actors_maximise_the_critic_at_once_and_pay_for_large_actions(
    moved, continuous, transitions, reference, spec
):
    after, metrics = moved
    critic, batch = reference.doubles(after.critic.value), transitions

    def loss(actor):
        action = actions_of(reference, actor, batch.now.obs, spec)
        q = reference.factored_critic(
            critic, with_identity(batch.now.obs), action, np.float64(batch.now.state)
        )
        return -q.mean() + 0.3 * np.sum(action**2) / action.size

    np.testing.assert_allclose(
        metrics["actor_loss"], loss(reference.doubles(continuous.actor.value)), rtol=1e-4
    )
    reference.assert_descends(continuous.actor.value, after.actor.value, loss, entries=5)


def test_the_continuous_targets_move_by_tau(moved, continuous):
    after, _ = moved
    leaves = lambda *trees: jax.tree.leaves(trees)
    follow = leaves(after.actor.target, after.critic.target)
    online, before = (
        leaves(after.actor.value, after.critic.value),
        leaves(continuous.actor.target, continuous.critic.target),
    )
    for t, o, b in zip(follow, online, before, strict=True):
        np.testing.assert_allclose(t, b + 0.2 * (np.asarray(o) - np.asarray(b)), atol=1e-6)


def test_continuous_agents_act_by_their_policies_with_noise_only_while_exploring(
    continuous, transitions, reference, spec
):
    timestep = jax.tree.map(lambda x: x[0], transitions.now)
    one = lambda t, k, explore: CONTINUOUS.act(continuous, 0, (), t, at(), k, explore=explore)[1]
    choose = jax.jit(one, static_argnums=2)
    greedy = np.asarray(choose(timestep, jax.random.key(0), False))
    expected = actions_of(
        reference, reference.doubles(continuous.actor.value), transitions.now.obs[:1], spec
    )[0]
    np.testing.assert_allclose(greedy, expected, atol=1e-5)
    noisy = np.stack([choose(timestep, jax.random.key(i), True) for i in range(300)])
    real = spec.action_mask == 1
    assert (noisy[:, ~real] == 0).all() and np.abs(noisy).max() <= 1
    inside = real & (np.abs(greedy) < 0.6)
    assert inside.any() and np.abs(noisy.std(0)[inside] - 0.1).max() < 0.02
    for j in range(3):
        other = eqx.tree_at(lambda t: t.obs, timestep, timestep.obs.at[j].add(1.0))
        differs = np.asarray(choose(other, jax.random.key(0), False)) != greedy
        np.testing.assert_array_equal(differs.any(1), np.arange(3) == j)
