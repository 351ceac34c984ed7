import dataclasses
import functools
import itertools
from unittest import mock

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.algorithms import matd3 as matd3_module
from comarl.algorithms.race_matd3 import RaceMatd3, State
from comarl.evolution import operators as evolution
from comarl.evolution.population import Population
from comarl.ops.learner import Learner, Tracked
from tests.data import CLIPPED, clipped_norms

GAMMA, TEAMS = 0.99, 6  # five that evolve, and the MARL team
MODES = ("both", "marl", "teams", "neither")
TRACKED = ("encoder", "head", "critic", "team_critic")  # what has a target


@functools.partial(jax.jit, static_argnums=0)
def update(algorithm, state, batch, clock, key):
    return algorithm.update(state, batch, clock, key)


@functools.partial(jax.jit, static_argnums=0)
def fit_critic(algorithm, state, batch, key):
    return algorithm.fit_critic(state, batch, key)


@functools.partial(jax.jit, static_argnums=0)
def fit_team_critic(algorithm, state, batch, key):
    return algorithm.fit_team_critic(state, batch, key)


@functools.partial(jax.jit, static_argnums=0)
def fit_encoders(algorithm, state, batch, key):
    return algorithm.fit_encoders(state, batch, key)


@functools.partial(jax.jit, static_argnums=(0, 4))
def act(algorithm, state, team, timestep, explore, clock, key):
    return algorithm.act(state, team, (), timestep, clock, key, explore=explore)[1]


@pytest.fixture(scope="module")
def initial(race, spec) -> State:
    return jax.jit(lambda k: race.init(spec, k))(jax.random.key(0))


NETWORKS = lambda s: (
    s.encoder.value,
    s.head.value,
    s.population.teams,
    s.critic.value,
    s.team_critic.value,
    s.value.value,
    s.mine.value,
    s.encoder.target,
    s.head.target,
    s.critic.target,
    s.team_critic.target,
)


@pytest.fixture(scope="module")
def state(initial, scramble) -> State:
    """Every network changed by noise, so that no target equals what it follows."""
    return eqx.tree_at(
        NETWORKS, initial, tuple(scramble(n, seed) for seed, n in enumerate(NETWORKS(initial)))
    )


@pytest.fixture(scope="module")
def batch(make_batch, spec):
    return make_batch(spec)


@pytest.fixture(scope="module")
def plain(race) -> RaceMatd3:
    return dataclasses.replace(race, target_noise=0.0)


@pytest.fixture(scope="module")
def updated(plain, state, batch, clock_at, key):
    """The states after the first update of a round, which moves the policy, and after the second,
    which does not."""
    return {i: update(plain, state, batch, clock_at(i), key) for i in (0, 1)}


@pytest.fixture(scope="module")
def encoded(plain, state, batch, key):
    """The states after the encoders' step alone, for every choice of whose values they maximise."""
    return {
        mode: fit_encoders(dataclasses.replace(plain, encoder_learns_from=mode), state, batch, key)[
            0
        ]
        for mode in MODES
    }


class Equations:
    """RACE's targets and losses in NumPy, read from the paper (docstring of the algorithm) and the
    fact sheet."""

    def __init__(self, reference, spec, state: State, batch):
        self.reference, self.spec, self.batch = reference, spec, batch
        self.state = reference.doubles(state)
        self.now, self.next = np.float64(batch.now.state), np.float64(batch.next.state)
        self.obs, self.next_obs = np.asarray(batch.now.obs), np.asarray(batch.next.obs)
        self.action = np.float64(batch.action)

    def team(self, j: int):
        return (
            self.state.head.value
            if j == TEAMS - 1
            else self.reference.part(self.state.population.teams, j)
        )

    def one_step(self, next_q):
        """r + gamma (1 - d) min_k Q_k"""
        result = np.zeros(len(self.batch.reward))
        for b in range(len(result)):
            result[b] = self.batch.reward[b]
            if not self.batch.terminated[b]:
                result[b] += GAMMA * min(next_q[:, b])
        return result

    def marl_target(self, noise: float | np.ndarray = 0.0):
        """y_psi: target encoders, target W_marl, target critic."""
        s = self.state
        action = self.reference.actions(s.encoder.target, s.head.target, self.next_obs, self.spec)
        return self.one_step(
            self.reference.critic(s.critic.target, self.next, np.clip(action + noise, -1, 1))
        )

    def team_target(self, j: int):
        """y_theta: the live encoders and W_j, the target of the team critic, no smoothing."""
        s, heads = self.state, self.team(j)
        action = self.reference.actions(s.encoder.value, heads, self.next_obs, self.spec)
        return self.one_step(
            self.reference.team_critic(s.team_critic.target, self.next, action, heads, self.spec)
        )

    @functools.cached_property
    def team_targets(self):
        return [self.team_target(j) for j in range(TEAMS)]

    def critic_loss(self, critic, target):
        return sum(
            np.mean((q - target) ** 2) for q in self.reference.critic(critic, self.now, self.action)
        )

    def team_critic_loss(self, critic, target, j: int):
        values = self.reference.team_critic(critic, self.now, self.action, self.team(j), self.spec)
        return sum(np.mean((q - target) ** 2) for q in values)

    def weights(self):
        """w(s) = (V - min V) / (max V - min V)"""
        values = self.reference.mlp(self.state.value.value, self.now)[:, 0]
        return (values - min(values)) / (max(values) - min(values))

    def mutual_information_loss(self, encoders, mine, weights):
        """sum_i mean_b w_b gap_i,b"""
        reference, total = self.reference, 0.0
        for i, z in enumerate(reference.features(encoders, self.obs)):
            t = reference.part(mine, i)
            f = reference.torso(t.state_branch, self.now, reference.leaky_relu)
            g = reference.torso(t.z_branch, z, reference.leaky_relu)
            total += np.mean(weights * reference.gaps(f @ g.T))
        return total

    def marl_loss(self, encoders, head):
        action = self.reference.actions(encoders, head, self.obs, self.spec)
        return -np.mean(self.reference.critic(self.state.critic.value, self.now, action)[0])

    def teams_loss(self, encoders, j: int):
        heads = self.team(j)
        action = self.reference.actions(encoders, heads, self.obs, self.spec)
        return -np.mean(
            self.reference.team_critic(
                self.state.team_critic.value, self.now, action, heads, self.spec
            )[0]
        )


@pytest.fixture(scope="module")
def equations(reference, spec, state, batch) -> Equations:
    return Equations(reference, spec, state, batch)


@pytest.fixture(scope="module")
def team_of_critic(equations, updated) -> int:
    """The team that the update's fit of the team critic drew, told by the mean of its targets."""
    return nearest_team(equations, float(updated[0][1]["team_target_value"]))


def nearest_team(equations, mean_target: float) -> int:
    errors = [abs(target.mean() - mean_target) for target in equations.team_targets]
    assert sorted(errors)[0] < 1e-5 < 1e-4 < sorted(errors)[1]
    return int(np.argmin(errors))


# --- targets and losses ---


def test_the_marl_critic_descends_to_its_clipped_double_q_target(
    updated, state, equations, reference
):
    after, metrics = updated[0]
    target = equations.marl_target()
    loss = lambda critic: equations.critic_loss(critic, target)
    np.testing.assert_allclose(metrics["target_value"], target.mean(), atol=1e-5)
    np.testing.assert_allclose(
        metrics["critic_loss"], loss(reference.doubles(state.critic.value)), rtol=1e-4
    )
    assert metrics["td_loss"] == metrics["critic_loss"]
    q = reference.critic(reference.doubles(state.critic.value), equations.now, equations.action)[0]
    np.testing.assert_allclose(metrics["q_taken_mean"], q.mean(), atol=1e-5)
    np.testing.assert_allclose(metrics["td_error_abs"], np.abs(q - target).mean(), rtol=1e-4)
    reference.assert_descends(state.critic.value, after.critic.value, loss)


def test_the_team_critic_descends_to_the_target_of_one_team(
    updated, state, equations, reference, team_of_critic
):
    after, metrics = updated[0]
    target = equations.team_targets[team_of_critic]
    loss = lambda critic: equations.team_critic_loss(critic, target, team_of_critic)
    np.testing.assert_allclose(
        metrics["team_critic_loss"], loss(reference.doubles(state.team_critic.value)), rtol=1e-4
    )
    reference.assert_descends(state.team_critic.value, after.team_critic.value, loss)


def test_each_transition_gets_its_own_target(plain, state, batch, equations):
    """Targets of all transitions, not only their mean: terminated ones are their rewards."""
    ended, reward = np.asarray(batch.terminated), np.asarray(batch.reward)
    for k in jax.random.split(jax.random.key(3), 3):
        target = np.asarray(fit_critic(plain, state, batch, k)[1])
        np.testing.assert_allclose(target, equations.marl_target(), atol=1e-5)
        np.testing.assert_array_equal(target[ended], reward[ended])
        _, target, metrics = fit_team_critic(plain, state, batch, k)
        j = nearest_team(equations, float(metrics["team_target_value"]))
        np.testing.assert_allclose(target, equations.team_targets[j], atol=1e-5)
        np.testing.assert_array_equal(np.asarray(target)[ended], reward[ended])


def test_the_team_critic_draws_the_population_and_the_marl_team_alike(
    plain, state, batch, equations
):
    draws = jax.random.split(jax.random.key(4), 150)
    means = np.array(
        [fit_team_critic(plain, state, batch, k)[2]["team_target_value"] for k in draws]
    )
    teams = [nearest_team(equations, mean) for mean in np.unique(means)]
    assert sorted(teams) == list(range(TEAMS))
    shares = np.unique(means, return_counts=True)[1] / 150
    assert np.all(np.abs(shares - 1 / 6) < 0.12)


def test_the_team_target_is_not_smoothed_and_the_marl_target_is(race, plain, state, batch, key):
    np.testing.assert_array_equal(
        fit_team_critic(race, state, batch, key)[1], fit_team_critic(plain, state, batch, key)[1]
    )
    smoothed, exact = (
        np.asarray(fit_critic(algorithm, state, batch, key)[1]) for algorithm in (race, plain)
    )
    ended = np.asarray(batch.terminated)
    np.testing.assert_array_equal(smoothed[ended], exact[ended])
    assert np.all(smoothed[~ended] != exact[~ended])


def test_smoothing_adds_noise_of_at_most_its_clip(race, state, make_batch, spec, reference):
    """With a huge spread the noise is plus or minus the clip, so each target is one of 32: a sign
    per real action."""
    batch = dataclasses.replace(make_batch(spec, 4), terminated=jnp.zeros(4, bool))
    equations = Equations(reference, spec, state, batch)
    candidates = []
    for signs in itertools.product((-0.5, 0.5), repeat=5):
        noise = np.zeros((3, 2))
        noise[[0, 0, 1, 2, 2], [0, 1, 0, 0, 1]] = signs
        candidates.append(equations.marl_target(noise))
    _, target, _ = fit_critic(
        dataclasses.replace(race, target_noise=1e9), state, batch, jax.random.key(0)
    )
    assert np.all(np.abs(np.array(candidates) - target).min(axis=0) < 1e-5)


def test_the_value_follows_the_larger_of_both_targets(
    updated, state, equations, reference, team_of_critic
):
    after, metrics = updated[0]
    own, team = equations.marl_target(), equations.team_targets[team_of_critic]
    best = np.array([max(a, b) for a, b in zip(own, team, strict=True)])
    # Each is the larger somewhere
    assert 0 < np.sum(own > team) < np.sum(~equations.batch.terminated)
    loss = lambda value: np.mean((reference.mlp(value, equations.now)[:, 0] - best) ** 2)
    np.testing.assert_allclose(
        metrics["value_loss"], loss(reference.doubles(state.value.value)), rtol=1e-4
    )
    reference.assert_descends(state.value.value, after.value.value, loss)


def encoder_steps(equations, before, after, mode: str, weights, beta: float = 0.5) -> np.ndarray:
    """For each team that may have been drawn: the largest error of a step down Eq 6."""

    def losses(encoders):
        total = beta * equations.mutual_information_loss(
            encoders, equations.state.mine.value, weights
        )
        if mode in ("both", "marl"):
            total += equations.marl_loss(encoders, equations.state.head.value)
        if mode in ("both", "teams"):
            return np.array([total + equations.teams_loss(encoders, j) for j in range(TEAMS)])
        return np.array([total])

    expected, found = equations.reference.steps(
        before.encoder.value, after.encoder.value, losses, entries=2
    )
    assert np.abs(found).max() > 1e-4
    return np.abs(expected - found[:, None]).max(axis=0)


@pytest.mark.parametrize("mode", MODES)
def test_the_encoders_maximise_the_values_that_they_are_to_learn_from(
    encoded, state, equations, mode
):
    """L_phi = - Q_psi - Q_theta + beta L_VMM, with the terms of the switch, and one team for
    Q_theta."""
    errors = encoder_steps(equations, state, encoded[mode], mode, equations.weights())
    assert min(errors) < 2e-5
    if mode in ("both", "teams"):
        assert sorted(errors)[1] > 2e-4  # the step shows which team it was


def test_w_marl_maximises_its_own_q_alone(encoded, state, equations, reference):
    loss = lambda head: equations.marl_loss(equations.state.encoder.value, head)
    reference.assert_descends(state.head.value, encoded["both"].head.value, loss, entries=20)


@pytest.mark.parametrize("mode", MODES)
def test_whatever_the_encoders_learn_from_w_marl_learns_the_same(encoded, mode):
    for one, two in zip(
        *map(jax.tree.leaves, (encoded[mode].head, encoded["both"].head)), strict=True
    ):
        np.testing.assert_allclose(one, two, atol=1e-7)


def test_whom_the_encoders_learn_from_changes_their_step(encoded):
    steps = {mode: np.asarray(encoded[mode].encoder.value.layers[0].weight) for mode in MODES}
    for one, two in itertools.combinations(MODES, 2):
        assert np.abs(steps[one] - steps[two]).max() > 1e-4


@pytest.mark.parametrize("mode", MODES)
def test_the_switch_leaves_the_estimators_of_information_alone(encoded, bits, mode):
    for one, two in zip(
        *map(jax.tree.leaves, (encoded[mode].mine, encoded["both"].mine)), strict=True
    ):
        np.testing.assert_allclose(one, two, atol=1e-7)


def test_the_team_critic_has_no_say_in_the_step_of_w_marl(
    plain, encoded, state, batch, key, bits, scramble
):
    """Whichever team is drawn, the MARL team among them."""
    other = eqx.tree_at(lambda s: s.team_critic.value, state, scramble(state.team_critic.value, 99))
    for k in jax.random.split(key, 8):
        one, two = fit_encoders(plain, state, batch, k)[0], fit_encoders(plain, other, batch, k)[0]
        assert bits(one.head) == bits(two.head) == bits(encoded["both"].head)
        one, two = (np.asarray(s.encoder.value.layers[0].weight) for s in (one, two))
        assert np.abs(one - two).max() > 1e-4


def test_the_encoders_draw_the_population_and_the_marl_team(plain, state, batch, key):
    """As many different steps come up as there are teams."""
    steps = [fit_encoders(plain, state, batch, k)[0].encoder for k in jax.random.split(key, 50)]
    assert len({np.asarray(s.value.layers[0].weight).tobytes() for s in steps}) == TEAMS


def test_the_estimators_descend_the_same_weighted_gap(encoded, state, equations, reference):
    loss = lambda mine: (
        0.5
        * equations.mutual_information_loss(
            equations.state.encoder.value, mine, equations.weights()
        )
    )
    reference.assert_descends(state.mine.value, encoded["both"].mine.value, loss)


def test_value_weights_off_is_plain_mutual_information(
    plain, state, batch, key, equations, bits, clock_at
):
    unweighted = dataclasses.replace(plain, value_weights=False, encoder_learns_from="neither")
    after, _ = fit_encoders(unweighted, state, batch, key)
    assert min(encoder_steps(equations, state, after, "neither", np.ones(16))) < 2e-5
    assert min(encoder_steps(equations, state, after, "neither", equations.weights())) > 1e-4
    after, metrics = update(unweighted, state, batch, clock_at(0), key)
    # Then nobody needs V; nor the team critic, whose value nothing maximises here.
    assert bits(after.value) == bits(state.value) and "value_loss" not in metrics
    assert bits(trained(after, "team_critic")) == bits(trained(state, "team_critic"))
    assert "team_critic_loss" not in metrics


def test_the_encoders_see_the_critics_and_the_value_that_were_just_fitted(
    updated, state, reference, spec, batch
):
    """The encoders' step of a whole update: networks of before, but critics and V of after (the
    order of Sec 1.4)."""
    after, _ = updated[0]
    mixed = dataclasses.replace(
        state, critic=after.critic, team_critic=after.team_critic, value=after.value
    )
    equations = Equations(reference, spec, mixed, batch)
    assert min(encoder_steps(equations, state, after, "both", equations.weights())) < 2e-5
    reference.assert_descends(
        state.head.value,
        after.head.value,
        lambda head: equations.marl_loss(equations.state.encoder.value, head),
    )


def test_the_metric_is_the_mean_information_of_the_updates_that_compute_it(
    updated, equations, plain
):
    gap = equations.mutual_information_loss(
        equations.state.encoder.value, equations.state.mine.value, np.ones(16)
    )
    np.testing.assert_allclose(
        updated[0][1]["mutual_information"], plain.policy_delay * -gap / 3, rtol=1e-4
    )
    assert updated[1][1]["mutual_information"] == 0
    assert updated[1][1]["marl_actor_loss"] == updated[1][1]["team_actor_loss"] == 0


def test_the_terms_of_the_encoders_loss_are_recorded(plain, state, batch, key, equations):
    """Each once per policy update, and so `policy_delay` times as large (Eqs. 2, 5, 7)."""
    _, metrics = fit_encoders(plain, state, batch, key)
    s = equations.state
    vmm = equations.mutual_information_loss(s.encoder.value, s.mine.value, equations.weights())
    own = equations.marl_loss(s.encoder.value, s.head.value)
    teams = [equations.teams_loss(s.encoder.value, j) for j in range(TEAMS)]
    found = {name: float(value) / plain.policy_delay for name, value in metrics.items()}
    np.testing.assert_allclose(found["vmm_loss"], vmm, rtol=1e-4)
    np.testing.assert_allclose(found["marl_actor_loss"], own, rtol=1e-4)
    assert np.abs(np.array(teams) - found["team_actor_loss"]).min() < 1e-4
    alone = dataclasses.replace(plain, encoder_learns_from="marl")
    assert fit_encoders(alone, state, batch, key)[1]["team_actor_loss"] == 0


def test_each_agents_networks_are_clipped_by_a_norm_of_their_own(plain, spec, state, batch, key):
    """Encoder, policy and estimator of every agent get a gradient of the largest norm, which they
    would share if they were clipped together."""
    names = ("encoder_optimiser", "head_optimiser", "mine_optimiser")
    clipped = dataclasses.replace(plain, **dict.fromkeys(names, CLIPPED))
    fresh = jax.jit(lambda k: clipped.init(spec, k))(key)
    before = eqx.tree_at(NETWORKS, fresh, NETWORKS(state))
    after, _ = fit_encoders(clipped, before, batch, key)
    for name in ("encoder", "head", "mine"):
        norms = clipped_norms(getattr(before, name).value, getattr(after, name).value)
        np.testing.assert_allclose(norms, [CLIPPED.max_grad_norm] * 3, rtol=1e-3, err_msg=name)


def test_the_step_size_of_w_marl_moves_it_and_nothing_else(
    plain, spec, state, batch, key, encoded, bits
):
    """Twice the step size gives a first step that is twice as long."""
    usual = plain.head_optimiser
    twice = dataclasses.replace(usual, learning_rate=2 * usual.learning_rate)
    loud = dataclasses.replace(plain, head_optimiser=twice)
    fresh = jax.jit(lambda k: loud.init(spec, k))(key)
    after, _ = fit_encoders(loud, eqx.tree_at(NETWORKS, fresh, NETWORKS(state)), batch, key)
    leaves = (jax.tree.leaves(s.head.value) for s in (state, encoded["both"], after))
    for start, once, now in zip(*leaves, strict=True):
        np.testing.assert_allclose(now - start, 2 * (once - start), rtol=1e-3, atol=1e-6)
        assert np.abs(once - start).max() > 1e-4
    of_head = lambda s: (s.head.value, s.head.target)
    others = lambda s: [net for net in NETWORKS(s) if not any(net is own for own in of_head(s))]
    assert bits(others(after)) == bits(others(encoded["both"]))


def test_states_may_be_weighed_by_the_value_before_its_step(
    plain, updated, state, batch, clock_at, key, equations, reference, spec
):
    """L_VMM in NumPy, by V before and after its step; V itself learns the same."""
    new_after, new_metrics = updated[0]
    old = dataclasses.replace(plain, new_value_weighs=False)
    old_after, old_metrics = update(old, state, batch, clock_at(0), key)
    for a, b in zip(*map(jax.tree.leaves, (new_after.value, old_after.value)), strict=True):
        np.testing.assert_array_equal(a, b)
    fitted = dataclasses.replace(state, value=new_after.value)
    networks = (equations.state.encoder.value, equations.state.mine.value)
    before, after = (
        plain.policy_delay * equations.mutual_information_loss(*networks, by.weights())
        for by in (equations, Equations(reference, spec, fitted, batch))
    )
    assert abs(before - after) > 1e-3 * abs(before)
    np.testing.assert_allclose(old_metrics["vmm_loss"], before, rtol=1e-4)
    np.testing.assert_allclose(new_metrics["vmm_loss"], after, rtol=1e-4)


# --- what an update moves ---


@pytest.mark.parametrize("update_in_round", [0, 1])
def test_no_gradient_reaches_the_population(updated, state, bits, update_in_round):
    after, _ = updated[update_in_round]
    assert bits(after.population) == bits(state.population)


def trained(state: State, name: str):
    """What an optimiser changes of a part, without its target."""
    part = getattr(state, name)
    return part.learner if isinstance(part, Tracked) else part


def test_between_policy_updates_only_critics_and_value_move(updated, state, bits):
    after, _ = updated[1]
    for name in ("critic", "team_critic", "value"):
        assert bits(trained(after, name)) != bits(trained(state, name))
        assert bits(trained(after, name)) == bits(trained(updated[0][0], name))
    for name in ("encoder", "head", "mine"):
        assert bits(trained(after, name)) == bits(trained(state, name))
        assert bits(trained(updated[0][0], name)) != bits(trained(state, name))


def test_targets_move_by_tau_when_the_policy_does(updated, state, bits, plain):
    for name in TRACKED:
        before, moved, between = (getattr(s, name) for s in (state, updated[0][0], updated[1][0]))
        leaves = map(jax.tree.leaves, (moved.target, moved.value, before.target))
        for t, o, b in zip(*leaves, strict=True):
            np.testing.assert_allclose(
                t, np.asarray(b) + plain.tau * (np.asarray(o) - np.asarray(b)), atol=1e-6
            )
            assert np.any(t != b)
        assert bits(between.target) == bits(before.target)


def test_without_beta_neither_estimators_nor_value_learn(plain, state, batch, clock_at, key, bits):
    silent = dataclasses.replace(plain, beta=0.0)
    after, metrics = update(silent, state, batch, clock_at(0), key)
    assert bits(after.mine) == bits(state.mine) and bits(after.value) == bits(state.value)
    for name in ("team_critic", "encoder"):
        assert bits(trained(after, name)) != bits(trained(state, name))
    assert metrics["mutual_information"] == 0 and "value_loss" not in metrics


def test_without_beta_and_values_the_encoders_stand_still_and_w_marl_learns(
    plain, state, batch, key, bits, encoded
):
    still = dataclasses.replace(plain, beta=0.0, encoder_learns_from="neither")
    after, _ = fit_encoders(still, state, batch, key)
    assert bits(after.encoder.value) == bits(state.encoder.value)
    for one, two in zip(*map(jax.tree.leaves, (after.head, encoded["both"].head)), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-7)


def test_the_team_critic_is_fitted_where_somebody_needs_it(race):
    needs = lambda **fields: dataclasses.replace(race, **fields).parts.team_critic
    assert needs() and needs(beta=0.0) and needs(encoder_learns_from="neither")
    assert not needs(evolution=False) and not needs(beta=0.0, encoder_learns_from="marl")
    assert not needs(value_weights=False, encoder_learns_from="marl")


def test_the_order_of_a_batch_does_not_matter(plain, updated, state, batch, clock_at, key):
    shuffled = jax.tree.map(
        lambda x: x[jnp.asarray(np.random.default_rng(0).permutation(16))], batch
    )
    for one, two in zip(
        *map(jax.tree.leaves, (update(plain, state, shuffled, clock_at(0), key), updated[0])),
        strict=True,
    ):
        np.testing.assert_allclose(one, two, atol=2e-5)


def without_teams(state: State) -> State:
    """The state of an algorithm whose evolution is off."""
    make_team = lambda k: state.head.value
    empty = Population.create(make_team, 0, jax.random.key(0))
    return dataclasses.replace(state, population=empty)


def as_matd3(state: State, matd3) -> matd3_module.State:
    """The same networks as MATD3's."""
    value = matd3_module.Actors(state.encoder.value, state.head.value, state.spec)
    target = matd3_module.Actors(state.encoder.target, state.head.target, state.spec)
    learner = Learner.create_each(value, matd3.actor_optimiser)
    return matd3_module.State(actors=Tracked(learner, target), critic=state.critic)


def test_race_without_evolution_and_information_is_matd3(
    plain, matd3, state, make_batch, spec, clock_at, key
):
    """Four updates with smoothing off; clipping is off, as MATD3 clips an agent's encoder
    and head together."""
    base = dataclasses.replace(plain, evolution=False, beta=0.0)
    unsmoothed = dataclasses.replace(matd3, target_noise=0.0)
    one, two = without_teams(state), as_matd3(state, matd3)
    update_matd3 = jax.jit(unsmoothed.update)
    for i in range(4):
        batch = make_batch(spec, 16, seed=i)
        one, metrics = update(base, one, batch, clock_at(i), key)
        two, expected = update_matd3(two, batch, clock_at(i), key)
        for name in expected:
            np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5)
    pairs = (
        (one.encoder.value, two.actors.value.encoders),
        (one.head.value, two.actors.value.heads),
        (one.critic.value, two.critic.value),
        (one.encoder.target, two.actors.target.encoders),
        (one.head.target, two.actors.target.heads),
        (one.critic.target, two.critic.target),
    )
    for mine, theirs in pairs:
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
    assert not np.allclose(
        one.encoder.value.layers[0].weight, state.encoder.value.layers[0].weight, atol=1e-4
    )


def test_the_marl_critic_is_matd3s_with_smoothing_too(race, matd3, state, batch, key):
    after, _, metrics = fit_critic(race, state, batch, key)
    expected, expected_metrics = jax.jit(matd3.fit_critic)(as_matd3(state, matd3), batch, key)
    for a, b in zip(
        *map(jax.tree.leaves, ((after.critic, metrics), (expected, expected_metrics))), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


# --- acting ---


@pytest.mark.parametrize("team", range(TEAMS))
def test_every_team_acts_by_its_own_policies_on_the_shared_encoders(
    race, state, batch, equations, clock_at, key, team
):
    timestep = jax.tree.map(lambda x: x[0], batch.now)
    action = act(race, state, jnp.int32(team), timestep, False, clock_at(0), key)
    expected = equations.reference.actions(
        equations.state.encoder.value, equations.team(team), equations.obs[:1], equations.spec
    )
    np.testing.assert_allclose(action, expected[0], atol=1e-5)


def test_only_the_marl_team_explores(race, state, batch, clock_at, spec):
    timestep = jax.tree.map(lambda x: x[0], batch.now)
    for team in range(TEAMS):
        greedy = act(race, state, jnp.int32(team), timestep, False, clock_at(0), jax.random.key(0))
        one, two = (
            act(race, state, jnp.int32(team), timestep, True, clock_at(0), jax.random.key(i))
            for i in (1, 2)
        )
        if team < TEAMS - 1:
            np.testing.assert_array_equal(one, greedy)
        else:
            real = spec.action_mask == 1
            assert np.all(one[real] != two[real]) and np.all(one[real] != greedy[real])
            assert one[1, 1] == 0 and np.abs(one).max() <= 1
            assert np.abs(one - greedy).max() < 0.6  # 6 standard deviations


def test_without_evolution_the_only_team_is_marls_and_explores(
    race, state, batch, clock_at, equations
):
    alone = dataclasses.replace(race, evolution=False)
    assert alone.num_teams == 1 and race.num_teams == TEAMS
    timestep = jax.tree.map(lambda x: x[0], batch.now)
    greedy, noisy = (
        act(alone, without_teams(state), jnp.int32(0), timestep, e, clock_at(0), jax.random.key(1))
        for e in (False, True)
    )
    expected = equations.reference.actions(
        equations.state.encoder.value, equations.team(TEAMS - 1), equations.obs[:1], equations.spec
    )
    np.testing.assert_allclose(greedy, expected[0], atol=1e-5)
    assert np.all(noisy[0] != greedy[0])
    assert alone.best_team(without_teams(state)) == 0


def test_heads_of_the_population_start_whole_and_the_marl_head_at_a_tenth(initial, race, bits):
    bound = race.hidden[-1] ** -0.5
    assert 0.8 * bound < np.abs(initial.population.teams.weight).max() <= bound
    assert 0.08 * bound < np.abs(initial.head.value.weight).max() <= 0.1 * bound
    assert initial.population.teams.weight.shape == (5, 3, 8, 2)
    assert not np.any(initial.population.teams.weight[0] == initial.population.teams.weight[1])
    for name in TRACKED:
        part = getattr(initial, name)
        assert bits(part.target) == bits(part.value)


# --- evolution ---


@pytest.fixture(scope="module")
def labelled(state) -> State:
    """Every number of team p's agent i is 100 p + 10 i + 1 in its weights, and + 2 in its
    biases."""
    label = 100.0 * jnp.arange(5.0)[:, None] + 10.0 * jnp.arange(3.0)
    spread = lambda leaf, more: (
        jnp.broadcast_to(label.reshape(5, 3, *[1] * (leaf.ndim - 2)), leaf.shape) + more
    )
    heads = state.population.teams
    return eqx.tree_at(
        lambda s: (s.population.teams.weight, s.population.teams.bias),
        state,
        (spread(heads.weight, 1.0), spread(heads.bias, 2.0)),
    )


# Slot 1 is the elite, slot 2 the worst; the last is the MARL team's
FITNESS = (3.0, 50.0, -4.0, 20.0, 7.0, 1000.0)
ELITE, WORST = 1, 2


@functools.partial(jax.jit, static_argnums=(0, 4))
def _evolve(algorithm, state, clock, keys, winners):
    def one(key):
        after, metrics = algorithm.evolve(state, jnp.array(FITNESS), clock, key)
        return after.population.teams, metrics

    fixed = lambda *_: jnp.array(winners, jnp.int32)
    with mock.patch.object(evolution, "tournaments", fixed if winners else evolution.tournaments):
        return jax.vmap(one)(keys)


def evolved(algorithm, state, clock, winners=None, generations: int = 200):
    """Many possible next generations of one population, and their metrics. `winners` fixes who wins
    the tournaments."""
    return _evolve(
        algorithm, state, clock, jax.random.split(jax.random.key(5), generations), winners
    )


@pytest.fixture(scope="module")
def bred(race, labelled, clock_at):
    """Generations without mutation."""
    return evolved(
        dataclasses.replace(
            race, breeding=dataclasses.replace(race.breeding, mutation_probability=0.0)
        ),
        labelled,
        clock_at(0),
    )


@pytest.fixture(scope="module")
def mutants(race, state, clock_at):
    return evolved(race, state, clock_at(0))


def sources(population) -> np.ndarray:
    """[..., teams, agents]: which team each agent of a labelled population came from; it must be
    one whole agent."""
    weight, bias = np.asarray(population.weight), np.asarray(population.bias)
    agent = 10 * np.arange(3)
    origin = (bias[..., 0] - 2 - agent) / 100
    assert set(np.unique(origin)) <= {0, 1, 2, 3, 4}
    label = (100 * origin + agent)[..., None]
    np.testing.assert_array_equal(bias, np.broadcast_to(label + 2, bias.shape))
    np.testing.assert_array_equal(weight, np.broadcast_to(label[..., None] + 1, weight.shape))
    return origin.astype(int)


def test_the_elite_stays_in_its_slot_bit_for_bit(mutants, state):
    for new, old in zip(*map(jax.tree.leaves, (mutants[0], state.population.teams)), strict=True):
        np.testing.assert_array_equal(
            new[:, ELITE], np.broadcast_to(old[ELITE], new[:, ELITE].shape)
        )


def test_evolution_changes_the_population_and_its_records_alone(race, state, clock_at, key, bits):
    after, _ = jax.jit(race.evolve)(state, jnp.array(FITNESS), clock_at(0), key)
    np.testing.assert_array_equal(after.population.fitness, FITNESS[:5])  # not the MARL team's
    assert int(after.population.elite) == ELITE == int(race.best_team(after))
    assert bits(after.population.teams) != bits(state.population.teams)
    same = dataclasses.replace(
        after,
        population=state.population,
    )
    assert bits(same) == bits(state)


def test_offspring_consist_of_whole_agents_of_the_elite_and_one_other_team(bred):
    origin = sources(bred[0])
    np.testing.assert_array_equal(origin[:, ELITE], ELITE)
    for slot in range(5):
        for agents in origin[:, slot]:
            if not np.all(agents == slot):  # an offspring
                assert len(set(agents.tolist()) - {ELITE}) <= 1
    mixed = np.sum([len(set(agents.tolist())) > 1 for agents in origin.reshape(-1, 3)])
    assert mixed > 100


def test_worse_teams_are_replaced_more_often(bred):
    """A team stays if one of four tournaments picks it: 1 - (1 - p)^4 with p of its rank."""
    origin = sources(bred[0])
    stayed = np.mean(np.all(origin == np.arange(5)[:, None], axis=2), axis=0)
    rank = {3: 0.296, 4: 0.152, 0: 0.056, WORST: 0.008}
    for slot, p in rank.items():
        # What looks unchanged may also be an offspring of the team and the elite that is equal to
        # the team: no, the team would have to be a winner, which is not replaced.
        assert abs(stayed[slot] - (1 - (1 - p) ** 4)) < 0.13
    assert stayed[ELITE] == 1


def test_winners_stay_and_a_pair_of_losers_becomes_both_offspring(race, labelled, clock_at):
    """Slots 3 and 1 won, so 0, 2 and 4 are replaced: two of them by a pair that loses no agent of
    its parents, the third by one offspring of a pair of its own."""
    winners = (3, 3, 1, 3)
    after, _ = evolved(
        dataclasses.replace(
            race, breeding=dataclasses.replace(race.breeding, mutation_probability=0.0)
        ),
        labelled,
        clock_at(0),
        winners,
    )
    origin = sources(after)
    np.testing.assert_array_equal(origin[:, 3], 3)
    np.testing.assert_array_equal(origin[:, 1], 1)
    assert set(np.unique(origin[:, [0, 2, 4]])) == {1, 3}
    complementary = np.zeros((len(origin), 3), bool)
    for n, (a, b) in enumerate(((0, 2), (0, 4), (2, 4))):
        both = np.sort(origin[:, [a, b]], axis=1)
        complementary[:, n] = np.all(both == np.array([[1], [3]]), axis=(1, 2)) | np.all(
            both == 1, axis=(1, 2)
        )
    assert np.all(complementary.any(axis=1))
    assert np.all(complementary.mean(axis=0) > 0.2)  # any two may be the pair
    parents = origin[:, [0, 2, 4]].reshape(-1, 9)
    # Both pairs drew the elite itself: one in four
    assert 0.05 < np.mean(np.all(parents == 1, axis=1)) < 0.5


def test_second_parents_are_drawn_from_the_distinct_winners(race, labelled, clock_at):
    """2 won twice, 3 and 4 once: each is the parent of the only offspring one time in three."""
    winners = (2, 3, 2, 4)
    unmutated = dataclasses.replace(
        race, breeding=dataclasses.replace(race.breeding, mutation_probability=0.0)
    )
    after, _ = evolved(unmutated, labelled, clock_at(0), winners, generations=600)
    origin = sources(after)
    np.testing.assert_array_equal(
        origin[:, 1:], np.broadcast_to(np.arange(1, 5)[:, None], origin[:, 1:].shape)
    )
    child = origin[:, 0]
    for winner in (2, 3, 4):
        # Of a parent's offspring 1 in 8 has no agent of it.
        assert abs(np.mean(np.any(child == winner, axis=1)) - (1 / 3) * (7 / 8)) < 0.08
    assert abs(np.mean(child == ELITE) - 0.5) < 0.06


def test_nine_of_ten_agents_of_every_team_but_the_elite_mutate_each_on_its_own(
    race, state, clock_at
):
    winners = (0, 2, 3, 4)  # nobody is replaced
    after, _ = evolved(
        dataclasses.replace(
            race, breeding=dataclasses.replace(race.breeding, mutated_fraction=1.0)
        ),
        state,
        clock_at(0),
        winners,
    )
    changed = np.any(
        np.asarray(after.weight) != np.asarray(state.population.teams.weight), axis=(3, 4)
    )
    share = changed[:, [0, 2, 3, 4]].mean(axis=0)  # [teams, agents]
    assert np.all(np.abs(share - 0.9) < 0.09) and abs(share.mean() - 0.9) < 0.025
    # Some teams keep one agent: 3 * 0.9^2 * 0.1
    assert 0.15 < np.mean(changed[:, 0].sum(axis=1) == 2) < 0.35
    assert not changed[:, ELITE].any()
    np.testing.assert_array_equal(
        after.bias, np.broadcast_to(state.population.teams.bias, after.bias.shape)
    )


def test_alpha_is_the_share_of_weights_that_a_mutation_touches(race, state, clock_at):
    winners = (0, 2, 3, 4)
    for count, fraction, expected in (("bernoulli", 0.3, 0.3 * 0.9), ("floor", 0.4, 3 / 8 * 0.9)):
        algorithm = dataclasses.replace(
            race,
            breeding=dataclasses.replace(
                race.breeding, mutated_fraction=fraction, mutation_count=count
            ),
        )
        after, _ = evolved(algorithm, state, clock_at(0), winners)
        changed = np.asarray(after.weight) != np.asarray(state.population.teams.weight)
        assert abs(changed[:, [0, 2, 3, 4]].mean() - expected) < 0.02


def test_parameter_level_crossover_mixes_rows_of_the_same_two_teams(race, labelled, clock_at):
    winners = (2, 3, 4, 4)
    algorithm = dataclasses.replace(
        race,
        breeding=dataclasses.replace(
            race.breeding, mutation_probability=0.0, crossover="parameter"
        ),
    )
    after, _ = evolved(algorithm, labelled, clock_at(0), winners)
    weight = np.asarray(after.weight)[:, 0]  # [generations, agents, features, action]
    origin = weight // 100
    assert np.all(origin == origin[:, :, :1])  # a row has one source
    np.testing.assert_array_equal(
        weight % 100, np.broadcast_to((10 * np.arange(3) + 1)[:, None, None], weight.shape)
    )
    others = [set(np.unique(o).astype(int).tolist()) - {ELITE} for o in origin]
    assert all(len(other) <= 1 for other in others) and set().union(*others) == {2, 3, 4}
    within_agent = (origin[:, :, 0, 0] != origin[:, :, 0, 1]).mean()
    assert within_agent > 0.1  # rows of one agent have different sources, unlike with whole agents
    np.testing.assert_array_equal(np.asarray(after.weight)[:, ELITE] // 100, ELITE)


def test_parameter_level_mutation_touches_single_weights(race, state, clock_at):
    winners = (0, 2, 3, 4)
    algorithm = dataclasses.replace(
        race,
        breeding=dataclasses.replace(race.breeding, mutated_fraction=0.5, mutation="parameter"),
    )
    after, _ = evolved(algorithm, state, clock_at(0), winners)
    changed = np.asarray(after.weight) != np.asarray(state.population.teams.weight)
    counts = changed[:, [0, 2, 3, 4]].sum(axis=(3, 4)).reshape(-1)
    assert counts.max() == 7  # fewer than half of an agent's 16
    assert abs(np.mean(counts > 0) - 13 / 18 * 7 / 8) < 0.05
    assert not changed[:, ELITE].any()


def test_without_evolution_nothing_evolves_and_nobody_is_injected(race, state, clock_at, key, bits):
    alone = dataclasses.replace(race, evolution=False)
    state = without_teams(state)
    after, metrics = alone.evolve(state, jnp.zeros(1), clock_at(0), key)
    assert metrics == {} and bits(after) == bits(state)
    assert bits(alone.inject(state)) == bits(state)
    assert bits(jax.jit(lambda k: alone.init(state.spec, k))(key).population) == bits(
        state.population
    )


# --- injection ---


def with_injected(state: State, slot: int) -> State:
    population = dataclasses.replace(state.population, injected=jnp.int32(slot))
    return dataclasses.replace(state, population=population)


def ranked(state, fitness, elite: int) -> State:
    population = dataclasses.replace(
        state.population, fitness=jnp.array(fitness), elite=jnp.int32(elite)
    )
    return dataclasses.replace(state, population=population)


@pytest.mark.parametrize(
    ("fitness", "elite", "slot"),
    [
        ((3.0, 50.0, -4.0, 20.0, 7.0), 1, 2),
        ((-3.0, -50.0, -4.0, -2.0, -7.0), 3, 1),
        ((5.0, 5.0, 5.0, 5.0, 5.0), 0, 1),  # all equal: next to the elite
        ((5.0, 5.0, 9.0, 5.0, 5.0), 2, 0),
        ((5.0, 5.0, 5.0, 5.0, 4.0), 0, 4),
    ],
)
def test_w_marl_takes_the_worst_slot_and_never_the_elites(race, state, fitness, elite, slot):
    assert int(jnp.argmax(jnp.array(fitness))) == elite
    after = race.inject(ranked(state, fitness, elite))
    assert int(after.population.injected) == slot != elite
    for new, old, own in zip(
        *map(jax.tree.leaves, (after.population.teams, state.population.teams, state.head.value)),
        strict=True,
    ):
        np.testing.assert_array_equal(new[slot], own)
        others = [team for team in range(5) if team != slot]
        np.testing.assert_array_equal(new[jnp.array(others)], old[jnp.array(others)])


def test_without_injection_the_population_stays_closed(race, state, bits):
    closed = dataclasses.replace(race, breeding=dataclasses.replace(race.breeding, injection=False))
    assert bits(closed.inject(ranked(state, (1.0, 2.0, 3.0, 4.0, 5.0), 4))) == bits(
        ranked(state, (1.0, 2.0, 3.0, 4.0, 5.0), 4)
    )


def test_what_w_marl_learns_later_does_not_reach_the_injected_copy(
    race, plain, state, batch, clock_at, key, bits
):
    injected = race.inject(ranked(state, FITNESS[:5], ELITE))
    after, _ = update(plain, injected, batch, clock_at(0), key)
    assert bits(after.head.value) != bits(state.head.value)
    assert bits(after.population.teams) == bits(injected.population.teams)


def test_before_the_first_injection_there_is_no_fate(mutants):
    assert all(np.isnan(value).all() for value in mutants[1].values()) and len(mutants[1]) == 3


def test_the_metrics_of_evolution_follow_the_slot_that_was_injected(race, state, clock_at):
    _, metrics = evolved(race, with_injected(state, WORST), clock_at(0))
    assert np.mean(metrics["injected_discarded"]) > 0.9 and np.all(metrics["injected_elite"] == 0)
    _, metrics = evolved(race, with_injected(state, ELITE), clock_at(0))
    assert np.all(metrics["injected_elite"] == 1)
