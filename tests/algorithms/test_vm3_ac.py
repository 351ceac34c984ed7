"""VM3-AC against its equations, agent by agent and pair by pair in float64; its gradients' paths;
its diagnostics."""

import dataclasses
import functools
import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.algorithms.presets import MA_AC, MA_SAC
from comarl.algorithms.vm3_ac import Vm3Ac
from comarl.nn.predictors import ActionInformation, Predictors
from comarl.nn.stochastic import Noise, Policies, squashed_log_density
from comarl.nn.values import obs_mask
from comarl.ops.information import squared_correlation
from comarl.replay.transitions import Ring
from comarl.types import EnvSpec
from tests.data import SMOOTH

AGENTS, PAIRS = range(3), list(itertools.permutations(range(3), 2))
SIZES: dict[str, Any] = dict(
    hidden=(6, 5), latent_size=2, log_std_range=(-2.0, 1.0), beta=0.3, replay=Ring(100, 8)
)
PAPER = ActionInformation(optimiser=SMOOTH)
OPTIMISERS: dict[str, Any] = dict(
    actor_optimiser=SMOOTH, critic_optimiser=SMOOTH, information=PAPER
)
TINY = Vm3Ac(**SIZES, **OPTIMISERS)
VARIANTS = {
    "paper": TINY,
    "other choices": dataclasses.replace(
        TINY,
        information=ActionInformation(
            norm="N-1",
            constant=True,
            swapped_by="self",
            gradient_terms="a",
            sharing="agent",
            variance=0.5,
            optimiser=SMOOTH,
        ),
        actor_q="minimum",
        critic_sees="state",
    ),
    "modern": dataclasses.replace(
        TINY,
        value="target-q",
        entropy="marginal",
        marginal_draws=3,
        information=ActionInformation(
            gradient_terms="both", sharing="all", variance=None, constant=True, optimiser=SMOOTH
        ),
        share_parameters=True,
    ),
}


@functools.partial(jax.jit, static_argnums=0)
def update(algorithm, state, batch, clock, key):
    return algorithm.update(state, batch, clock, key)


@functools.partial(jax.jit, static_argnums=(0, 3))
def act(algorithm, state, timestep, explore, clock, key):
    return algorithm.act(state, 0, (), timestep, clock, key, explore=explore)[1]


def tracked(state):
    """What the target follows: V, or Q where there is no V."""
    return state.critic if state.value is None else state.value


@pytest.fixture(scope="module")
def make_state(spec, scramble):
    """Networks of which no two are equal, targets included."""

    @functools.cache
    def make(algorithm):
        state = jax.jit(lambda k: algorithm.init(spec, k))(jax.random.key(0))
        names = ("policies", "predictors", "critic", "value")
        learners = [n for n in names if getattr(state, n) is not None]
        networks = lambda s: (*(getattr(s, n).value for n in learners), tracked(s).target)
        return eqx.tree_at(
            networks, state, tuple(scramble(n, seed, 0.4) for seed, n in enumerate(networks(state)))
        )

    return make


@pytest.fixture(scope="module")
def batch(make_batch, spec):
    return make_batch(spec, 8)


@pytest.fixture(scope="module")
def updated(make_state, batch, clock_at, key):
    """State and metrics after one update."""
    return functools.cache(
        lambda algorithm: update(algorithm, make_state(algorithm), batch, clock_at(0), key)
    )


class Written:
    """The paper's equations in float64, of a whole batch for one agent or one pair at a time."""

    def __init__(self, algorithm, spec, reference):
        self.algorithm, self.spec, self.reference = algorithm, spec, reference

    def net(self, stack, row, x):
        return self.reference.mlp(self.reference.part(stack.networks, row), x, self.reference.relu)

    def one_hot(self, row, like):
        return np.tile(np.eye(3)[row], (len(like), 1))

    def real_obs(self, timestep, i):
        """Padded with zeros."""
        size = self.spec.obs_sizes[i]
        return np.pad(np.float64(timestep.obs)[:, i, :size], ((0, 0), (0, 5 - size)))

    def known(self, timestep):
        if self.algorithm.critic_sees == "state":
            return np.float64(timestep.state)
        return np.concatenate(
            [np.float64(timestep.obs)[:, i, : self.spec.obs_sizes[i]] for i in AGENTS], axis=1
        )

    def joint(self, timestep, action):
        real = [a[:, : self.spec.action_sizes[i]] for i, a in enumerate(action)]
        return np.concatenate([self.known(timestep), *real], axis=1)

    def values(self, values, i, x):
        if self.algorithm.share_parameters:
            return self.net(values.networks, 0, np.concatenate([x, self.one_hot(i, x)], axis=1))[
                :, 0
            ]
        return self.net(values.networks, i, x)[:, 0]

    def q(self, critic, k, i, x):
        return self.values(self.reference.part(critic, k), i, x)

    def gaussian(self, policies, timestep, i, z):
        x = np.concatenate([self.real_obs(timestep, i), z], axis=1)
        share = self.algorithm.share_parameters
        out = self.net(
            policies.networks, 0 if share else i, np.hstack([x, self.one_hot(i, x)]) if share else x
        )
        low, high = self.algorithm.log_std_range
        return out[:, :2], np.exp(low + (high - low) * (np.tanh(out[:, 2:]) + 1) / 2)

    def draw(self, policies, timestep, noise):
        """Actions, and log pi of each agent."""
        actions, log_pi = [], []
        for i in AGENTS:
            real = self.spec.action_sizes[i]
            mean, std = self.gaussian(policies, timestep, i, noise.z)
            u = mean + std * noise.normal[i]

            def log_density(mean, std, u=u, real=real):
                log = (
                    -0.5 * ((u - mean) / std) ** 2
                    - np.log(std)
                    - 0.5 * np.log(2 * np.pi)
                    - np.log1p(-(np.tanh(u) ** 2))
                )
                return log[:, :real].sum(1)

            every = [log_density(mean, std)]
            every += [
                log_density(*self.gaussian(policies, timestep, i, z)) for z in noise.marginal_z
            ]
            actions.append(np.tanh(u) * (np.arange(2) < real))
            log_pi.append(np.log(np.mean(np.exp(every), axis=0)))
        return actions, log_pi

    def log_q(self, predictors, pair, given, said, obs_given, obs_said, size):
        """The network of the pair (i, j), asked for an action `said` of so many entries."""
        (i, j), x = pair, np.concatenate([given, obs_given, obs_said], axis=1)
        sharing = self.algorithm.information.sharing
        if sharing == "pair":
            out = self.net(predictors.networks, PAIRS.index(pair), x)
        elif sharing == "agent":
            out = self.net(predictors.networks, i, np.hstack([x, self.one_hot(j, x)]))
        else:
            out = self.net(
                predictors.networks, 0, np.hstack([x, self.one_hot(i, x), self.one_hot(j, x)])
            )
        mean, result = np.tanh(out[:, :2]), np.zeros(len(x))
        for d in range(size):
            variance = self.algorithm.information.variance
            if variance is None:
                variance = np.exp(-10 + 12 * (np.tanh(out[:, 2 + d]) + 1) / 2)
            result -= (said[:, d] - mean[:, d]) ** 2 / (2 * variance)
            if self.algorithm.information.constant:
                result -= 0.5 * np.log(2 * np.pi * variance)
        return result

    def forward(self, predictors, timestep, i, j, given, said):
        """(b) of i and j: log q_ij(a_j | a_i, o_i, o_j)."""
        mine, other = (self.real_obs(timestep, n) for n in (i, j))
        size = self.spec.action_sizes[j]
        return self.log_q(predictors, (i, j), given[i], said[j], mine, other, size)

    def backward(self, predictors, timestep, i, j, given, said):
        """(a) of i and j: log q(a_i | a_j, o_i, o_j), by whoever evaluates it."""
        pair = (j, i) if self.algorithm.information.swapped_by == "partner" else (i, j)
        mine, other = (self.real_obs(timestep, n) for n in (j, i))
        size = self.spec.action_sizes[i]
        return self.log_q(predictors, pair, given[j], said[i], mine, other, size)

    @property
    def divisor(self):
        return 3 if self.algorithm.information.norm == "N" else 2

    def information(self, predictors, timestep, i, action):
        """M_i."""
        terms = [
            direction(predictors, timestep, i, j, action, action)
            for j in AGENTS
            if j != i
            for direction in (self.forward, self.backward)
        ]
        return sum(terms) / self.divisor

    def soft_values(self, policies, predictors, critic, timestep, noise):
        """V^ of each agent (Eq. 17)."""
        action, log_pi = self.draw(policies, timestep, noise)
        beta, x = self.algorithm.beta, self.joint(timestep, action)
        q = [np.minimum(self.q(critic, 0, i, x), self.q(critic, 1, i, x)) for i in AGENTS]
        m = [
            self.information(predictors, timestep, i, action) if predictors else 0.0 for i in AGENTS
        ]
        return [q[i] - beta * log_pi[i] + beta * m[i] for i in AGENTS]

    def policy_loss(
        self, policies, predictors, critic, timestep, noise, before, *, live_backward=False
    ):
        """The sum of Eq. 20 over agents, where what is no path of gradients stays as `before` has
        it."""
        terms = self.algorithm.information.gradient_terms
        maximised = {"both": "ab", "none": ""}.get(terms, str(terms)) + "a" * live_backward
        fixed, _ = self.draw(before[0], timestep, noise)
        action, log_pi = self.draw(policies, timestep, noise)
        total, beta = 0.0, self.algorithm.beta
        for i in AGENTS:
            mine = [action[j] if j == i else fixed[j] for j in AGENTS]
            x = self.joint(timestep, mine)
            q = self.q(critic, 0, i, x)
            if self.algorithm.actor_q == "minimum":
                q = np.minimum(q, self.q(critic, 1, i, x))
            m = 0.0
            for j in AGENTS:
                if j != i and predictors:
                    m = m + self.forward(
                        predictors, timestep, i, j, mine if "b" in maximised else fixed, fixed
                    )
                    m = m + self.backward(
                        before[1], timestep, i, j, fixed, mine if "a" in maximised else fixed
                    )
            total += np.mean(-q + beta * log_pi[i] - beta * m / self.divisor)
        return total


def draws(algorithm, spec, timestep, key, which):
    """What `update` draws with this key, at the first end of transitions or the second."""
    noise = algorithm.noise(
        spec, algorithm.observe(timestep, spec), jax.random.split(key, 3)[which]
    )
    return jax.tree.map(lambda x: np.asarray(x, np.float64), noise)


@pytest.fixture(scope="module", params=VARIANTS)
def case(request, spec, reference, make_state, updated, batch, key):
    """An algorithm, its equations, and doubles of what it was before the update."""
    algorithm = VARIANTS[request.param]
    state, (after, metrics) = make_state(algorithm), updated(algorithm)
    before = {
        n: reference.doubles(getattr(state, n).value) for n in ("policies", "predictors", "critic")
    }
    noise = [draws(algorithm, spec, t, key, n) for n, t in enumerate((batch.now, batch.next))]
    return algorithm, Written(algorithm, spec, reference), state, after, metrics, before, noise


def test_policies_and_predictors_descend_the_losses_of_their_agents(case, batch, reference):
    """Eq. 20 and 21: policies through Q_i1, log pi and the condition of (b) alone, predictors
    through (b) alone."""
    _, written, state, after, metrics, before, noise = case
    fixed = (before["policies"], before["predictors"])

    def loss(policies=fixed[0], predictors=fixed[1]):
        return written.policy_loss(
            policies, predictors, before["critic"], batch.now, noise[0], fixed
        )

    np.testing.assert_allclose(metrics["actor_loss"], loss(), rtol=1e-4)
    reference.assert_descends(
        state.policies.value, after.policies.value, lambda p: loss(policies=p)
    )
    reference.assert_descends(
        state.predictors.value, after.predictors.value, lambda p: loss(predictors=p)
    )


def test_gradients_through_the_swapped_prediction_would_show(
    make_state, updated, batch, spec, reference, key
):
    """This guards the power of the test above."""
    state, (after, _), written = make_state(TINY), updated(TINY), Written(TINY, spec, reference)
    before = {
        n: reference.doubles(getattr(state, n).value) for n in ("policies", "predictors", "critic")
    }
    fixed, noise = (before["policies"], before["predictors"]), draws(TINY, spec, batch.now, key, 0)
    loss = lambda p: written.policy_loss(
        p, fixed[1], before["critic"], batch.now, noise, fixed, live_backward=True
    )
    expected, found = reference.steps(state.policies.value, after.policies.value, loss)
    assert np.abs(expected - found).max() > 1e-4


def test_information_that_is_not_maximised_moves_predictors_alone(
    make_state, updated, batch, clock_at, key, bits
):
    """Policies learn as without it; predictors as with it."""
    state, (paper, _) = make_state(TINY), updated(TINY)
    none = dataclasses.replace(PAPER, gradient_terms="none")
    after, _ = update(dataclasses.replace(TINY, information=none), state, batch, clock_at(0), key)
    without = dataclasses.replace(TINY, mutual_information=False)
    start = eqx.tree_at(
        lambda s: s.predictors, state, None, is_leaf=lambda x: x is state.predictors
    )
    alone, _ = update(without, start, batch, clock_at(0), key)
    close(after.policies.value, alone.policies.value)
    close(after.predictors.value, paper.predictors.value)
    assert bits(after.policies.value) != bits(paper.policies.value)


def test_critics_descend_the_squared_error_to_their_own_agents_target(case, batch, reference):
    """Eq. 16 to 19; or with two target critics in the place of V."""
    algorithm, written, state, after, metrics, before, noise = case
    target_net = reference.doubles(tracked(state).target)
    if algorithm.value == "v":
        following = [written.values(target_net, i, written.known(batch.next)) for i in AGENTS]
    else:
        networks = (before["policies"], before["predictors"], target_net)
        following = written.soft_values(*networks, batch.next, noise[1])
    going_on = 1.0 - np.float64(batch.terminated)
    target = [np.float64(batch.reward) + 0.99 * going_on * v for v in following]
    action = [np.float64(batch.action)[:, i] for i in AGENTS]
    x = written.joint(batch.now, action)

    def loss(critic):
        return sum(
            0.5 * np.mean((written.q(critic, k, i, x) - target[i]) ** 2)
            for k in (0, 1)
            for i in AGENTS
        )

    np.testing.assert_allclose(metrics["target_value"], np.mean(target), rtol=1e-4)
    np.testing.assert_allclose(metrics["critic_loss"], loss(before["critic"]), rtol=1e-4)
    reference.assert_descends(state.critic.value, after.critic.value, loss)
    if algorithm.value == "v":
        soft = written.soft_values(
            *(before[n] for n in ("policies", "predictors", "critic")), batch.now, noise[0]
        )

        def value_loss(value):
            known = written.known(batch.now)
            return sum(
                0.5 * np.mean((written.values(value, i, known) - soft[i]) ** 2) for i in AGENTS
            )

        np.testing.assert_allclose(
            metrics["value_loss"], value_loss(reference.doubles(state.value.value)), rtol=1e-4
        )
        reference.assert_descends(state.value.value, after.value.value, value_loss)


def test_metrics_are_entropy_and_information_of_the_draw(case, batch):
    _, written, _, _, metrics, before, noise = case
    action, log_pi = written.draw(before["policies"], batch.now, noise[0])
    m = [written.information(before["predictors"], batch.now, i, action) for i in AGENTS]
    np.testing.assert_allclose(metrics["entropy"], -np.mean(log_pi), rtol=1e-4)
    np.testing.assert_allclose(metrics["mutual_information"], np.mean(m), rtol=1e-4)


def test_the_target_moves_by_tau(case):
    _, _, state, after, _, _, _ = case
    networks = (tracked(after).target, tracked(after).value, tracked(state).target)
    for t, o, b in zip(*map(jax.tree.leaves, networks), strict=True):
        np.testing.assert_allclose(
            t, np.asarray(b) + 0.005 * (np.asarray(o) - np.asarray(b)), atol=1e-6
        )


def test_an_agents_loss_moves_its_own_policy_and_predictors_alone(make_state, batch, spec, key):
    """Row i of the losses' Jacobian is zero at the parameters of other agents and of others'
    pairs."""
    state = make_state(TINY)
    seen = TINY.observe(batch.now, spec)
    noise = TINY.noise(spec, seen, key)
    learnt = (state.policies.value, state.predictors.value)
    of = lambda learnt, critic: TINY.policy_losses(learnt[0], learnt[1], critic, seen, noise)[0]
    policies, predictors = jax.jit(jax.jacrev(of))(learnt, state.critic.value)
    for owner, tree in ((list(AGENTS), policies), ([i for i, _ in PAIRS], predictors)):
        for leaf in jax.tree.leaves(tree):  # [losses, agents or pairs, ...]
            for i, (row, n) in itertools.product(AGENTS, enumerate(owner)):
                assert np.any(leaf[i, row] != 0) == (i == n)


def test_no_value_follows_termination(make_state, batch, clock_at, key):
    ended = dataclasses.replace(
        batch,
        terminated=jnp.ones(8, bool),
        next=jax.tree.map(lambda x: jnp.full_like(x, jnp.inf), batch.next),
    )
    for algorithm in (TINY, VARIANTS["modern"]):
        state, metrics = update(algorithm, make_state(algorithm), ended, clock_at(0), key)
        np.testing.assert_allclose(metrics["target_value"], batch.reward.mean(), rtol=1e-5)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("name", VARIANTS)
def test_padding_changes_nothing_and_learns_nothing(
    name, make_state, updated, batch, spec, clock_at, key, bits
):
    algorithm, state = VARIANTS[name], make_state(VARIANTS[name])
    spoil = lambda x, real: jnp.where(real, x, 7.0)
    seen = lambda t: dataclasses.replace(t, obs=spoil(t.obs, obs_mask(spec)))
    garbage = dataclasses.replace(
        batch,
        now=seen(batch.now),
        next=seen(batch.next),
        action=spoil(batch.action, spec.action_mask > 0),
    )
    after, metrics = updated(algorithm)
    assert bits(update(algorithm, state, garbage, clock_at(0), key)) == bits((after, metrics))
    if not algorithm.share_parameters:
        heads = [jax.tree.leaves(s.policies.value.networks.networks.output) for s in (state, after)]
        for before, now in zip(*heads, strict=True):
            for column in (1, 3):  # mean and deviation of the action that agent 1 does not have
                np.testing.assert_array_equal(before[1, ..., column], now[1, ..., column])
            assert np.any(before[1, ..., 0] != now[1, ..., 0])


def test_what_a_smaller_agent_does_not_have_is_never_played_or_seen(
    make_state, batch, spec, clock_at
):
    state, timestep = make_state(TINY), jax.tree.map(lambda x: x[0], batch.now)
    garbage = dataclasses.replace(timestep, obs=jnp.where(obs_mask(spec), timestep.obs, 7.0))
    for explore in (False, True):
        actions = [
            act(TINY, state, t, explore, clock_at(0), jax.random.key(0))
            for t in (timestep, garbage)
        ]
        np.testing.assert_array_equal(*actions)
        assert actions[0][1, 1] == 0.0 and np.all(
            np.asarray(actions[0])[[0, 0, 1, 2, 2], [0, 1, 0, 0, 1]] != 0
        )
        assert np.abs(actions[0]).max() <= 1.0


def test_without_beta_and_latent_it_is_ma_ac_bit_for_bit(
    spec, batch, clock_at, key, bits, make_state, scramble
):
    tiny: dict[str, Any] = dict(SIZES, beta=0.0, latent_size=0)
    nothing = Vm3Ac(**tiny, **OPTIMISERS)
    same: dict[str, Any] = {n: tiny[n] for n in ("hidden", "log_std_range", "replay")} | OPTIMISERS
    ma_ac = dataclasses.replace(MA_AC, **same)
    assert not ma_ac.mutual_information and nothing.mutual_information
    starts = [make_state(a) for a in (ma_ac, nothing)]
    ends = [
        update(a, s, batch, clock_at(0), key) for a, s in zip((ma_ac, nothing), starts, strict=True)
    ]
    assert bits(starts[0]) == bits(starts[1]) and bits(ends[0]) == bits(ends[1])
    # As beta goes to 0 the terms that it weighs do, too: nothing else depends on whether they are
    # there.
    almost = dataclasses.replace(nothing, beta=1e-20)
    state = eqx.tree_at(
        networks_of,
        make_state(almost),
        networks_of(starts[0]),
    )
    end = update(almost, state, batch, clock_at(0), key)[0]
    close(networks_of(end), networks_of(ends[0][0]))
    assert bits(end.predictors.value) == bits(state.predictors.value)


def test_without_information_and_latent_it_is_ma_sac(spec, batch, clock_at, key, bits, make_state):
    """With a variance without bounds all predictions are equally good, and information counts for
    nothing."""
    sac = dataclasses.replace(TINY, mutual_information=False, latent_size=0)
    names = (
        "hidden",
        "log_std_range",
        "replay",
        "beta",
        *OPTIMISERS,
    )
    ma_sac = dataclasses.replace(MA_SAC, **{n: getattr(TINY, n) for n in names})
    assert ma_sac == sac and MA_SAC.beta == Vm3Ac().beta
    start = make_state(ma_sac)
    end, metrics = update(ma_sac, start, batch, clock_at(0), key)
    assert end.predictors is None and "mutual_information" not in metrics
    anything = dataclasses.replace(PAPER, variance=1e9)
    vague = dataclasses.replace(TINY, latent_size=0, information=anything)
    state = eqx.tree_at(networks_of, make_state(vague), networks_of(start))
    close(networks_of(update(vague, state, batch, clock_at(0), key)[0]), networks_of(end))


def networks_of(state):
    return state.policies, state.critic, state.value


def close(one, other):
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7)


def test_neither_values_nor_replay_know_of_the_latent(spec, make_state):
    assert TINY.replay.latent == 0 and TINY.replay.init(spec).latent is None
    state, known, joint = make_state(TINY), 4 + 2 + 5, 4 + 2 + 5 + 2 + 1 + 2
    inputs = lambda values: values.networks.networks.torso.layers[0].weight.shape[-2]
    assert (inputs(state.value.value), inputs(state.value.target), inputs(state.critic.value)) == (
        known,
        known,
        joint,
    )
    assert inputs(state.policies.value) == 5 + TINY.latent_size


def test_greedy_play_is_decentralised_and_needs_no_key(
    make_state, batch, clock_at, reference, spec
):
    state, timestep = make_state(TINY), jax.tree.map(lambda x: x[:1], batch.now)
    one = jax.tree.map(lambda x: x[0], timestep)
    found = [act(TINY, state, one, False, clock_at(0), jax.random.key(k)) for k in range(2)]
    np.testing.assert_array_equal(*found)
    written, policies = Written(TINY, spec, reference), reference.doubles(state.policies.value)
    mean = [written.gaussian(policies, timestep, i, np.zeros((1, 2)))[0][0] for i in AGENTS]
    np.testing.assert_allclose(found[0], np.tanh(mean) * spec.action_mask, atol=1e-5)
    for algorithm in (TINY, dataclasses.replace(TINY, execution_latent="shared")):
        before, after = (
            act(
                algorithm,
                state,
                dataclasses.replace(one, obs=o),
                False,
                clock_at(0),
                jax.random.key(0),
            )
            for o in (one.obs, one.obs.at[1].add(1.0))
        )
        np.testing.assert_array_equal(before[jnp.array([0, 2])], after[jnp.array([0, 2])])
        assert np.any(before[1] != after[1])


def test_a_shared_seed_gives_all_agents_one_latent_per_step(batch, clock_at, scramble):
    """Of agents with equal networks and observations every one does the same, and another thing at
    another step."""
    spec = EnvSpec(3, 2, 2, 1, discrete=False, horizon=4)
    shared = dataclasses.replace(TINY, execution_latent="shared")
    state = scramble(jax.jit(lambda k: shared.init(spec, k))(jax.random.key(0)), 0, 0.4)
    state = eqx.tree_at(
        lambda s: s.policies.value,
        state,
        jax.tree.map(lambda x: jnp.stack([x[0]] * 3), state.policies.value),
    )
    timestep = dataclasses.replace(
        jax.tree.map(lambda x: x[0], batch.now), obs=jnp.ones((3, 2)), state=jnp.ones(2)
    )
    actions = np.stack(
        [act(shared, state, timestep, False, clock_at(0), jax.random.key(k)) for k in range(4)]
    )[..., 0]
    np.testing.assert_allclose(actions, np.tile(actions[:, :1], 3), atol=1e-6)
    assert len(set(np.round(actions[:, 0], 4).tolist())) == 4
    explored = act(shared, state, timestep, True, clock_at(0), jax.random.key(0))[:, 0]
    assert len(set(np.round(np.asarray(explored), 4).tolist())) == 3


def test_squashed_densities_are_exact_far_out_and_sum_to_one():
    mask, mean, log_std = np.ones((1, 1), np.float32), 0.7, np.log(0.8)
    u = np.linspace(-30.0, 30.0, 60_001)
    column = lambda x: jnp.asarray(np.broadcast_to(x, u.shape)[None, :, None], jnp.float32)
    found = squashed_log_density(column((u - mean) / 0.8), column(u), column(log_std), mask)[0]
    # log (1 - tanh(u)^2) = -2 log cosh u, in float64
    exact = (
        -0.5 * ((u - mean) / 0.8) ** 2
        - log_std
        - 0.5 * np.log(2 * np.pi)
        + 2 * (np.logaddexp(u, -u) - np.log(2))
    )
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-4)
    inside = np.abs(u) < 8
    density, a = np.exp(np.float64(found))[inside], np.tanh(u[inside])
    assert np.trapezoid(density, a) == pytest.approx(1.0, abs=1e-4)


def toy(c, s, variance, constant, scale=1e-2):
    """Two agents whose actions are c z + s noise, and networks q that expect the conditional mean.

    All of it is so small that tanh is the identity; information does not depend on the scale.
    """
    spec = EnvSpec(2, 1, 1, 1, discrete=False, horizon=1)
    weights = lambda layer: (layer.weight, layer.bias)
    policies = Policies(spec, (2,), 1, (-20.0, 2.0), share=False, key=jax.random.key(0))
    predictors = Predictors(
        spec, (2,), "pair", variance * scale**2, constant, key=jax.random.key(0)
    )
    raw = np.arctanh((np.log(s * scale) + 20.0) / 11.0 - 1.0)
    sign = np.array([1.0, -1.0])  # x = relu(x) - relu(-x)

    def linear(module, entry, gain, outputs, bias):
        first, last = (
            np.zeros((2, module.networks.networks.torso.layers[0].weight.shape[1], 2)),
            np.zeros((2, 2, outputs)),
        )
        first[:, entry], last[:, :, 0] = sign, gain * sign
        new = (first, np.zeros((2, 2)), last, np.broadcast_to(bias, (2, outputs)))
        where = lambda m: (
            *weights(m.networks.networks.torso.layers[0]),
            *weights(m.networks.networks.output),
        )
        return eqx.tree_at(where, module, tuple(jnp.asarray(x, jnp.float32) for x in new))

    gain = c**2 / (c**2 + s**2)
    return linear(policies, 1, c * scale, 2, [0.0, raw]), linear(predictors, 0, gain, 1, [0.0])


@pytest.fixture(scope="module")
def toy_terms():
    """Of `toy`: mean log-probabilities, given z and marginal, mean log q, and the error of the
    prediction."""

    def terms(c, s, variance, constant, size=20_000):
        policies, predictors = toy(c, s, variance, constant)
        random = np.random.default_rng(0)
        normal = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
        noise = Noise(normal(size, 1), normal(2, size, 1), normal(64, size, 1))
        obs = jnp.zeros((2, size, 1))

        @jax.jit
        def of(policies, predictors):
            action, conditional = policies.draw(
                obs, noise._replace(marginal_z=noise.marginal_z[:0])
            )
            marginal = policies.draw(obs, noise).log_pi
            log_q = predictors.log_q(action, action, obs)
            return (
                conditional.mean(),
                marginal.mean(),
                log_q.mean(),
                predictors.error(action, action, obs),
            )

        return [float(x) for x in of(policies, predictors)]

    return terms


def test_the_bound_is_tight_for_the_linear_gaussian_toy(toy_terms):
    """c = .6, s = .3: Var(a_j | a_i) = .162 and I(a_i; a_j) = .511 = H(a_j) + E log q(a_j |
    a_i)."""
    c, s = 0.6, 0.3
    variance = c**2 + s**2 - c**4 / (c**2 + s**2)
    information = -0.5 * np.log(1 - (c**2 / (c**2 + s**2)) ** 2)
    assert variance == pytest.approx(0.162) and information == pytest.approx(0.511, abs=1e-3)
    conditional, marginal, log_q, error = toy_terms(c, s, variance, True)
    assert error / 1e-4 == pytest.approx(variance, rel=0.02)
    assert -marginal + log_q == pytest.approx(information, abs=0.03)
    # Given z the entropy is smaller by I(a; z), and the bound so much looser.
    assert -conditional + log_q == pytest.approx(
        information - 0.5 * np.log((c**2 + s**2) / s**2), abs=0.03
    )


def test_the_papers_entropy_does_not_pay_for_variation_by_z(toy_terms):
    """Entropy plus M_i of the toy with sigma = 1: .170 without z; with it .134 given z, .939
    marginal."""
    for c, given_z, marginal in ((1e-6, 0.170, 0.170), (0.6, 0.134, 0.939)):
        terms = toy_terms(c, 0.3, 1.0, False)
        m = 2 * terms[2] / 2  # both directions, over N
        unit = np.log(1e2)  # the entropy of actions a hundred times as large
        assert -terms[0] + m + unit == pytest.approx(given_z, abs=0.02)
        assert -terms[1] + m + unit == pytest.approx(marginal, abs=0.03)


def test_correlation_is_none_for_independent_actions_and_one_for_equal_ones():
    random, mask = np.random.default_rng(0), np.array([[1, 1], [1, 0]], np.float32)
    normal = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
    independent = normal(8, 2, 4000, 2) * mask[:, None]
    assert float(squared_correlation(independent, mask)) == pytest.approx(0.0, abs=0.02)
    same = normal(8, 1, 40, 1) * jnp.asarray([1.0, -2.0]) + 0.3
    assert float(
        squared_correlation(jnp.concatenate([same, -same], axis=1), mask)
    ) == pytest.approx(1.0, abs=1e-4)
    assert np.isfinite(squared_correlation(jnp.zeros((8, 2, 3, 2)), mask))


def test_a_latent_that_no_policy_depends_on_moves_nothing(make_state, batch, spec, key):
    state, seen = make_state(TINY), TINY.observe(batch.now, spec)
    first = lambda s: s.policies.value.networks.networks.torso.layers[0].weight
    deaf = eqx.tree_at(first, state, replace_fn=lambda w: w.at[:, 5:].set(0.0))
    diagnose = jax.jit(jax.vmap(lambda s, k: TINY.diagnose(s, seen, k), in_axes=(None, 0)))
    keys = jax.random.split(key, 200)
    silent, dependent = diagnose(deaf, keys), diagnose(state, keys)
    assert silent["latent_sensitivity"].max() == 0.0 < dependent["latent_sensitivity"].min()
    assert abs(silent["action_correlation"].mean()) < 0.01
    without = dataclasses.replace(TINY, latent_size=0)
    metrics = without.diagnose(make_state(without), seen, key)
    assert "latent_sensitivity" not in metrics and "prediction_error" in metrics


def test_predictors_err_more_given_another_draw(batch, key):
    """The toy's networks, which know how much one action says of the other."""
    spec = EnvSpec(2, 1, 1, 1, discrete=False, horizon=1)
    algorithm = dataclasses.replace(TINY, hidden=(2,), latent_size=1, log_std_range=(-20.0, 2.0))
    state = algorithm.init(spec, jax.random.key(0))
    state = eqx.tree_at(
        lambda s: (s.policies.value, s.predictors.value), state, toy(0.6, 0.3, 1e4, False)
    )
    obs = jnp.zeros((8, 2, 1))
    seen = algorithm.observe(dataclasses.replace(batch.now, obs=obs, state=obs[:, 0]), spec)
    metrics = jax.jit(jax.vmap(lambda k: algorithm.diagnose(state, seen, k)))(
        jax.random.split(key, 1000)
    )
    mean = lambda name: float(metrics[name].mean())
    assert mean("prediction_error") / 1e-4 == pytest.approx(0.162, abs=0.02)
    assert mean("prediction_error_unpaired") / 1e-4 == pytest.approx(0.45 * (1 + 0.8**2), abs=0.03)
    # The mean of r^2 over 8 draws of normal variables whose correlation is .8, by its series.
    series, term = 1.0, 1.0
    for n in range(1, 30):
        term *= n * 0.64 / (3.5 + n)
        series += term
    expected = 1 - 6 / 7 * (1 - 0.64) * series
    assert mean("action_correlation") == pytest.approx((7 * expected - 1) / 6, abs=0.02)


def test_impossible_settings_are_named():
    for field, value in (("beta", -0.1), ("latent_size", -1)):
        with pytest.raises(ValueError, match=field):
            dataclasses.replace(Vm3Ac(), **{field: value})
    with pytest.raises(ValueError, match=r"variance=0\.0 of ActionInformation must be above 0"):
        ActionInformation(variance=0.0)
