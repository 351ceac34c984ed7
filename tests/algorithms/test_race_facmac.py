"""RACE on FACMAC against its docstring's equations in NumPy, its switches, and its runs."""

import dataclasses
import functools
import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.algorithms import facmac as facmac_module
from comarl.algorithms.facmac import Facmac
from comarl.algorithms.race_facmac import RaceFacmac, State
from comarl.evolution.population import HeadBreeding, Population
from comarl.nn.recurrent import Memory, RecurrentNet, unroll_episode
from comarl.ops.learner import Adam, Learner, Tracked, descend_jointly
from comarl.replay.episodes import EpisodeRing
from comarl.training.settings import Run
from comarl.types import Clock, EnvSpec
from tests.data import CLIPPED, SMOOTH, make_episodes
from tests.sessions import compilations, raw, session
from tests.training.tasks import Stroll

SPEC = EnvSpec(2, 3, 4, 3, discrete=True, horizon=5)
LENGTHS, TERMINATED = (2, 5, 3, 5), (0, 3)
GAMMA, TRACE, TEAMS = 0.9, 0.7, 4  # three that evolve, and the MARL team
MODES = ("both", "marl", "teams", "neither")
SIZES: dict[str, Any] = dict(
    hidden=6, mixer_width=4, hypernet=4, gamma=GAMMA, td_lambda=TRACE, target_period=3
)
RACE = RaceFacmac(
    **SIZES,
    breeding=HeadBreeding(mutated_fraction=0.05, population=3),
    beta=0.5,
    embedding=4,
    mine_width=5,
    value_hidden=4,
    actor_optimiser=SMOOTH,
    head_optimiser=SMOOTH,
    critic_optimiser=SMOOTH,
    mine_optimiser=SMOOTH,
)
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
TRACKED = ("encoder", "head", "critic", "team_critic")  # what has a target


@functools.partial(jax.jit, static_argnums=0)
def update(algorithm, state, batch, clock, key):
    return algorithm.update(state, batch, clock, key)


@functools.partial(jax.jit, static_argnums=0)
def fit_critics(algorithm, state, batch, key):
    """Both critics' targets, and their metrics."""
    z = jax.vmap(lambda e: unroll_episode(state.encoder.value, SPEC, e))(batch)
    _, own, metrics = algorithm.fit_critic(state, batch)
    _, team, more = algorithm.fit_team_critic(state, batch, z, key)
    return own, team, metrics | more


@functools.partial(jax.jit, static_argnums=0)
def fit_encoder(algorithm, state, batch, keys):
    """Encoder, W_marl and T after a step down the whole loss as it is written, histories
    included."""

    def loss(trained):
        encoder, head, mine = trained
        z = jax.vmap(lambda e: unroll_episode(encoder, SPEC, e))(batch)
        return algorithm.encoder_loss(z, head, mine, state, batch, list(keys))

    learners = (state.encoder, state.head, state.mine)
    (encoder, head, mine), (_, metrics) = descend_jointly(learners, loss)
    return dataclasses.replace(state, encoder=encoder, head=head, mine=mine), metrics


@functools.partial(jax.jit, static_argnums=(0, 5))
def act(algorithm, state, team, memory, timestep, explore, clock, key):
    return algorithm.act(state, team, memory, timestep, clock, key, explore=explore)


def at(updates=0, env_steps=1000) -> Clock:
    return Clock(jnp.int32(env_steps), jnp.int32(updates), jnp.int32(0))


def make_batch(**more):
    return make_episodes(SPEC, LENGTHS, TERMINATED, **more)


def keys_of(key):
    """The keys of an update: for the team of the critic; for the MARL team's draws, the encoder's
    team, its draws."""
    team_key, *actor_keys = jax.random.split(key, 4)
    return team_key, actor_keys


def drawn(key) -> int:
    return int(jax.random.randint(key, (), 0, TEAMS))


def a_key(critic_team: int, encoder_team: int):
    """A key with which an update draws these teams."""
    for key in jax.random.split(jax.random.key(7), 500):
        team_key, actor_keys = keys_of(key)
        if (drawn(team_key), drawn(actor_keys[1])) == (critic_team, encoder_team):
            return key
    raise AssertionError("no such key")


@pytest.fixture(scope="module")
def batch():
    return make_batch()


@pytest.fixture(scope="module")
def initial() -> State:
    return jax.jit(lambda k: RACE.init(SPEC, k))(jax.random.key(0))


@pytest.fixture(scope="module")
def state(initial, scramble) -> State:
    """Every network changed by noise, so that no target equals what it follows."""
    state = eqx.tree_at(
        NETWORKS, initial, tuple(scramble(n, i, 0.6) for i, n in enumerate(NETWORKS(initial)))
    )
    targets = lambda s: (s.critic.target, s.team_critic.target)
    state = eqx.tree_at(
        targets, state, tuple(scramble(n, i, 0.2) for i, n in enumerate(targets(initial), 9))
    )
    # So that each of the two targets is the larger somewhere.
    return eqx.tree_at(
        lambda s: s.team_critic.target.mixer.second_bias.output.bias,
        state,
        replace_fn=lambda b: b - 1.5,
    )


KEY = a_key(critic_team=1, encoder_team=2)


@pytest.fixture(scope="module")
def updated(state, batch):
    return update(RACE, state, batch, at(), KEY)


@pytest.fixture(scope="module")
def encoded(state, batch):
    """The state after the encoder's step alone, for every choice of whose values it maximises."""
    keys = keys_of(KEY)[1]
    make = lambda mode: dataclasses.replace(RACE, encoder_learns_from=mode)
    return {mode: fit_encoder(make(mode), state, batch, keys)[0] for mode in MODES}


def for_both_agents(head):
    """W_marl, which is one for all agents, as a team of two."""
    return jax.tree.map(lambda w: np.concatenate([w, w]), head)


class Equations:
    """RACE's targets and losses in NumPy, read from the paper (docstring of the algorithm) and the
    fact sheet."""

    def __init__(self, reference, state, batch, shared=False):
        self.reference, self.batch, self.state, self.shared = (
            reference,
            batch,
            reference.doubles(state),
            shared,
        )
        self.obs, self.states = np.float64(batch.timesteps.obs), np.float64(batch.timesteps.state)
        self.available, self.mask = np.asarray(batch.timesteps.available), np.asarray(batch.mask)
        self.action = np.eye(SPEC.action_size)[np.asarray(batch.action)]

    def team(self, j: int):
        return (
            for_both_agents(self.state.head.value)
            if j == TEAMS - 1
            else self.reference.part(self.state.population.teams, j)
        )

    def logits(self, encoder, heads):
        z = self.reference.histories(encoder, SPEC, self.batch)
        policy = lambda i, heads: 0 if self.shared or len(heads.weight) == 1 else i
        each = [
            z[..., i, :] @ heads.weight[policy(i, heads)] + heads.bias[policy(i, heads)]
            for i in range(2)
        ]
        return np.stack(each, axis=-2)

    def marl_target(self):
        """y_psi: target encoder, target W_marl, target critic."""
        s = self.state
        action = self.reference.best(self.logits(s.encoder.target, s.head.target), self.available)
        q = self.reference.factored_critic(
            s.critic.target, self.obs[:, 1:], action[:, 1:], self.states[:, 1:]
        )
        return self.reference.lambda_targets(self.batch, q, GAMMA, TRACE)

    def team_target(self, j: int):
        """y_theta: the live encoder and W_j, the target of the team critic."""
        s, heads = self.state, self.team(j)
        action = self.reference.best(self.logits(s.encoder.value, heads), self.available)
        steps = (self.obs[:, 1:], action[:, 1:], self.states[:, 1:])
        q = self.reference.team_factored_critic(s.team_critic.target, *steps, heads)
        return self.reference.lambda_targets(self.batch, q, GAMMA, TRACE)

    def critic_loss(self, critic, target):
        q = self.reference.factored_critic(
            critic, self.obs[:, :-1], self.action, self.states[:, :-1]
        )
        return self.reference.masked_mean((q - target) ** 2, self.mask)

    def team_critic_loss(self, critic, target, j: int):
        steps = (self.obs[:, :-1], self.action, self.states[:, :-1])
        q = self.reference.team_factored_critic(critic, *steps, self.team(j))
        return self.reference.masked_mean((q - target) ** 2, self.mask)

    def value(self, value):
        return self.reference.mlp(value, self.states[:, :-1], self.reference.relu)[..., 0]

    def draws(self, encoder, heads, heads_before, key):
        """The joint actions that stand for the draws of a team; `heads_before` were those that
        drew."""
        before = self.logits(self.state.encoder.value, heads_before)[:, :-1]
        noise = self.reference.gumbel(key, before.shape)
        return self.reference.straight_through(
            self.logits(encoder, heads)[:, :-1], before, self.available[:, :-1], noise
        )

    def marl_loss(self, encoder, head, key):
        action = self.draws(encoder, head, self.state.head.value, key)
        q = self.reference.factored_critic(
            self.state.critic.value, self.obs[:, :-1], action, self.states[:, :-1]
        )
        return -self.reference.masked_mean(q, self.mask)

    def teams_loss(self, encoder, j: int, key):
        heads = self.team(j)
        action = self.draws(encoder, heads, heads, key)
        steps = (self.obs[:, :-1], action, self.states[:, :-1])
        return -self.reference.masked_mean(
            self.reference.team_factored_critic(self.state.team_critic.value, *steps, heads),
            self.mask,
        )

    def weights(self):
        """w(s) = (V - min V) / (max V - min V), over the steps that took place."""
        values = self.value(self.state.value.value)
        live = values[self.mask]
        return (values - live.min()) / (live.max() - live.min())

    def gaps(self, encoder, mine):
        """[batch, time]: the mean over agents; 0 where no step took place."""
        reference, z, result = (
            self.reference,
            self.reference.histories(encoder, SPEC, self.batch),
            np.zeros(self.mask.shape),
        )
        for t in range(SPEC.horizon):
            f = reference.torso(mine.state_branch, self.states[:, t], reference.leaky_relu)
            g = reference.torso(mine.z_branch, z[:, t], reference.leaky_relu)
            scores = np.array([[[f_ @ g_i for g_i in g_k] for g_k in g] for f_ in f])
            result[:, t] = reference.team_gaps(scores, self.mask[:, t]).mean(1)
        return result

    def vmm(self, encoder, mine, weights, reduce="sum"):
        weighted = (weights * self.gaps(encoder, mine))[self.mask].sum()
        return weighted / (len(self.mask) if reduce == "sum" else self.mask.sum())

    def encoder_loss(self, encoder, mode, j, keys, beta=0.5):
        s = self.state
        total = beta * self.vmm(encoder, s.mine.value, self.weights())
        if mode in ("both", "marl"):
            total += self.marl_loss(encoder, s.head.value, keys[0])
        if mode in ("both", "teams"):
            total += self.teams_loss(encoder, j, keys[2])
        return total


@pytest.fixture(scope="module")
def equations(reference, state, batch) -> Equations:
    return Equations(reference, state, batch)


# Targets and losses


@pytest.mark.parametrize("j", range(TEAMS))
def test_each_step_gets_the_lambda_returns_of_the_marl_team_and_of_the_team_drawn(
    state, batch, equations, j
):
    """For the second with the live encoder and the target critic; W_marl may be drawn, too."""
    own, team, _ = fit_critics(RACE, state, batch, keys_of(a_key(j, 0))[0])
    live = np.asarray(batch.mask)
    np.testing.assert_allclose(np.asarray(own)[live], equations.marl_target()[live], atol=1e-4)
    np.testing.assert_allclose(np.asarray(team)[live], equations.team_target(j)[live], atol=1e-4)
    other = equations.team_target((j + 1) % TEAMS)
    assert np.abs(np.asarray(team) - other)[live].max() > 1e-3


def test_both_critics_descend_to_their_targets(updated, state, equations, reference):
    after, metrics = updated
    own, team = equations.marl_target(), equations.team_target(1)
    loss = lambda critic: equations.critic_loss(critic, own)
    np.testing.assert_allclose(
        metrics["target_value"], reference.masked_mean(own, equations.mask), rtol=1e-4
    )
    np.testing.assert_allclose(
        metrics["critic_loss"], loss(reference.doubles(state.critic.value)), rtol=1e-4
    )
    reference.assert_descends(state.critic.value, after.critic.value, loss, entries=2)
    loss = lambda critic: equations.team_critic_loss(critic, team, 1)
    np.testing.assert_allclose(
        metrics["team_target_value"], reference.masked_mean(team, equations.mask), rtol=1e-4
    )
    np.testing.assert_allclose(
        metrics["team_critic_loss"], loss(reference.doubles(state.team_critic.value)), rtol=1e-4
    )
    reference.assert_descends(state.team_critic.value, after.team_critic.value, loss, entries=2)


def test_the_value_follows_the_larger_of_both_targets_step_by_step(
    updated, state, equations, reference
):
    after, metrics = updated
    own, team = equations.marl_target(), equations.team_target(1)
    larger = (own > team)[equations.mask]
    assert 0 < larger.sum() < larger.size  # each is the larger somewhere
    best = np.where(own > team, own, team)
    loss = lambda value: reference.masked_mean((equations.value(value) - best) ** 2, equations.mask)
    np.testing.assert_allclose(
        metrics["value_loss"], loss(reference.doubles(state.value.value)), rtol=1e-4
    )
    reference.assert_descends(state.value.value, after.value.value, loss)


@pytest.mark.parametrize("mode", MODES)
def test_the_encoder_maximises_the_values_that_it_is_to_learn_from(
    encoded, state, equations, reference, mode
):
    """L_phi = - Q_psi - Q_theta + beta L_VMM, with the terms of the switch."""
    keys = keys_of(KEY)[1]
    loss = lambda encoder: equations.encoder_loss(encoder, mode, 2, keys)
    reference.assert_descends(state.encoder.value, encoded[mode].encoder.value, loss, entries=2)


def test_whom_the_encoder_learns_from_changes_its_step(encoded):
    steps = {mode: np.asarray(encoded[mode].encoder.value.layer.weight) for mode in MODES}
    for one, two in itertools.combinations(MODES, 2):
        assert np.abs(steps[one] - steps[two]).max() > 1e-4


def test_w_marl_maximises_its_own_q_alone_whatever_the_encoder_learns_from(
    encoded, state, equations, reference
):
    key = keys_of(KEY)[1][0]
    loss = lambda head: equations.marl_loss(equations.state.encoder.value, head, key)
    reference.assert_descends(state.head.value, encoded["both"].head.value, loss, entries=12)
    for mode in MODES:
        for one, two in zip(
            *map(jax.tree.leaves, (encoded[mode].head, encoded["both"].head)), strict=True
        ):
            np.testing.assert_allclose(one, two, atol=1e-7)


def test_w_marl_gets_no_gradient_from_the_team_critic_even_where_it_is_the_team_drawn(
    state, batch, scramble, encoded
):
    other = eqx.tree_at(lambda s: s.team_critic.value, state, scramble(state.team_critic.value, 99))
    base = keys_of(KEY)[1]
    keys = [base[0], keys_of(a_key(0, TEAMS - 1))[1][1], base[2]]
    assert drawn(keys[1]) == TEAMS - 1
    one, two = (fit_encoder(RACE, s, batch, keys)[0] for s in (state, other))
    for a, b, c in zip(
        *map(jax.tree.leaves, (one.head, two.head, encoded["both"].head)), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-7)
        np.testing.assert_allclose(a, c, atol=1e-7)
    assert (
        np.abs(np.asarray(one.encoder.value.layer.weight) - two.encoder.value.layer.weight).max()
        > 1e-4
    )


def test_the_estimator_descends_the_same_weighted_gap_in_every_mode(
    encoded, state, equations, reference
):
    s = equations.state
    loss = lambda mine: 0.5 * equations.vmm(s.encoder.value, mine, equations.weights())
    reference.assert_descends(state.mine.value, encoded["both"].mine.value, loss, entries=3)
    for mode in MODES:
        for one, two in zip(
            *map(jax.tree.leaves, (encoded[mode].mine, encoded["both"].mine)), strict=True
        ):
            np.testing.assert_allclose(one, two, atol=1e-7)


def test_an_update_is_the_encoders_step_by_the_critics_and_the_value_that_were_just_fitted(
    updated, state, batch
):
    """There the histories' gradient is carried back through the unroll apart; here the whole loss
    is differentiated."""
    after, metrics = updated
    fitted = dataclasses.replace(
        state, critic=after.critic, team_critic=after.team_critic, value=after.value
    )
    expected, more = fit_encoder(RACE, fitted, batch, keys_of(KEY)[1])
    for name in ("encoder", "head", "mine"):
        leaves = map(jax.tree.leaves, (getattr(after, name), getattr(expected, name)))
        for one, two in zip(*leaves, strict=True):
            np.testing.assert_allclose(one, two, atol=2e-6)
    assert set(more) == {
        "marl_actor_loss",
        "team_actor_loss",
        "vmm_loss",
        "mutual_information",
    }
    for name, value in more.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5)
    np.testing.assert_allclose(metrics["epsilon"], RACE.epsilon.at(at()))


def test_the_terms_of_the_encoders_loss_are_recorded(state, batch, equations):
    """Eqs. 2, 5 and 7."""
    keys, s = keys_of(KEY)[1], equations.state
    _, metrics = fit_encoder(RACE, state, batch, keys)
    expected = {
        "marl_actor_loss": equations.marl_loss(s.encoder.value, s.head.value, keys[0]),
        "team_actor_loss": equations.teams_loss(s.encoder.value, 2, keys[2]),
        "vmm_loss": equations.vmm(s.encoder.value, s.mine.value, equations.weights()),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4)


@functools.partial(jax.jit, static_argnums=0)
def information(algorithm, state, batch):
    z = jax.vmap(lambda e: unroll_episode(state.encoder.value, SPEC, e))(batch)[:, :-1]
    return algorithm.information(z, state.mine.value, state, batch)


def test_the_information_is_weighted_by_value_and_summed_over_an_episodes_steps(
    state, batch, equations
):
    s, weights = equations.state, equations.weights()
    gap = equations.gaps(s.encoder.value, s.mine.value)
    found, vmm = information(RACE, state, batch)
    np.testing.assert_allclose(
        found, -equations.reference.masked_mean(gap, equations.mask), rtol=1e-4
    )
    np.testing.assert_allclose(
        vmm, equations.vmm(s.encoder.value, s.mine.value, weights), rtol=1e-4
    )
    assert weights[equations.mask].min() == 0 and weights[equations.mask].max() == 1
    # 15 steps of 4 episodes: the sum of a mean episode is 15 / 4 times the mean of all steps.
    _, mean = information(dataclasses.replace(RACE, vmm_reduce="mean"), state, batch)
    np.testing.assert_allclose(vmm, mean * 15 / 4, rtol=1e-5)
    _, plain = information(dataclasses.replace(RACE, value_weights=False), state, batch)
    ones = np.ones_like(weights)
    np.testing.assert_allclose(plain, equations.vmm(s.encoder.value, s.mine.value, ones), rtol=1e-4)
    assert abs(plain - vmm) > 1e-3


# What an update moves


def test_no_gradient_reaches_the_population(updated, state, bits):
    assert bits(updated[0].population) == bits(state.population)


def test_every_other_parameter_learns_and_the_targets_stay(updated, state, bits):
    for name in ("encoder", "head", "critic", "team_critic", "value", "mine"):
        pairs = zip(
            *(jax.tree.leaves_with_path(getattr(s, name).value) for s in (updated[0], state)),
            strict=True,
        )
        for (path, new), (_, old) in pairs:
            assert (np.asarray(new) != np.asarray(old)).any(), (name, jax.tree_util.keystr(path))
    for name in TRACKED:
        assert bits(getattr(updated[0], name).target) == bits(getattr(state, name).target)


def test_all_targets_are_copied_after_every_third_update_and_only_then(state, batch, bits):
    for number in range(4):
        before, (state, _) = state, update(RACE, state, batch, at(number), KEY)
        for name in TRACKED:
            now, was = getattr(state, name), getattr(before, name)
            assert bits(now.target) == bits(now.value if number == 2 else was.target)


def test_steps_that_did_not_take_place_change_nothing(updated, state):
    spoilt = update(RACE, state, make_batch(garbage=100.0), at(), KEY)
    for one, two in zip(*map(jax.tree.leaves, (spoilt, updated)), strict=True):
        np.testing.assert_allclose(one, two, atol=2e-6)


def test_without_beta_neither_the_estimator_nor_the_value_learns(state, batch, bits):
    silent = dataclasses.replace(RACE, beta=0.0)
    after, metrics = update(silent, state, batch, at(), KEY)
    assert bits(after.mine) == bits(state.mine) and bits(after.value) == bits(state.value)
    for name in ("team_critic", "encoder"):
        assert bits(getattr(after, name)) != bits(getattr(state, name))
    assert not {"mutual_information", "value_loss"} & metrics.keys()


def test_without_value_weights_nobody_needs_the_value_nor_without_its_term_the_team_critic(
    state, batch, bits
):
    plain = dataclasses.replace(RACE, value_weights=False, encoder_learns_from="marl")
    after, metrics = update(plain, state, batch, at(), KEY)
    for name in ("value", "team_critic"):
        assert (
            bits(getattr(after, name)) == bits(getattr(state, name))
            and f"{name}_loss" not in metrics
        )
    assert "mutual_information" in metrics and bits(after.mine) != bits(state.mine)


def test_the_team_critic_is_fitted_where_somebody_needs_it():
    needs = lambda **fields: dataclasses.replace(RACE, **fields).parts.team_critic
    assert needs() and needs(beta=0.0) and needs(encoder_learns_from="neither")
    assert not needs(evolution=False) and not needs(beta=0.0, encoder_learns_from="marl")
    assert not needs(value_weights=False, encoder_learns_from="marl")


def test_the_number_of_an_action_means_nothing(state, batch):
    """Targets and losses stay if actions are renumbered everywhere: in the batch, the policies and
    the networks."""
    order = jnp.array([2, 0, 1])  # action k becomes the new number of order's entry k
    old = jnp.argsort(order)
    rows = lambda w, at_: w.at[..., at_ + jnp.arange(3), :].set(w[..., at_ + old, :])
    columns = lambda w: w[..., old]
    renumber = {
        lambda s: ([s.population.teams, s.head.target, s.head.value]): lambda h: jax.tree.map(
            columns, h
        ),
        lambda s: [s.encoder.value.layer.weight, s.encoder.target.layer.weight]: lambda w: rows(
            w, 3
        ),
        lambda s: [
            c.utility.torso.layers[0].weight for c in (s.critic.value, s.critic.target)
        ]: lambda w: rows(w, 3),
        lambda s: [
            c.utility.torso.layers[0].weight for c in (s.team_critic.value, s.team_critic.target)
        ]: lambda w: rows(w, 7),
    }
    moved = state
    for where, change in renumber.items():
        moved = eqx.tree_at(where, moved, [change(x) for x in where(moved)])
    other = eqx.tree_at(
        lambda b: (b.action, b.timesteps.available),
        batch,
        (order[batch.action], batch.timesteps.available[..., old]),
    )
    key = keys_of(KEY)[0]
    expected, found, spoilt = (
        fit_critics(RACE, *of, key) for of in ((state, batch), (moved, other), (state, other))
    )
    for i in range(2):
        one, two, three = (
            np.asarray(targets[i])[np.asarray(batch.mask)] for targets in (expected, found, spoilt)
        )
        np.testing.assert_allclose(two, one, atol=2e-5)
        assert np.abs(three - one).max() > 1e-2
    for name, value in expected[2].items():
        np.testing.assert_allclose(found[2][name], value, rtol=1e-4)


# Policies that agents share, and FACMAC


SHARED = dataclasses.replace(RACE, heads_shared_by_agents=True)


def test_where_agents_share_a_policy_it_is_that_of_agent_0_in_targets_too(
    state, batch, reference, bits
):
    equations = Equations(reference, state, batch, shared=True)
    own, team, _ = fit_critics(SHARED, state, batch, keys_of(KEY)[0])
    live = np.asarray(batch.mask)
    np.testing.assert_allclose(np.asarray(own)[live], equations.marl_target()[live], atol=1e-4)
    np.testing.assert_allclose(np.asarray(team)[live], equations.team_target(1)[live], atol=1e-4)
    timestep, memory = (
        jax.tree.map(lambda x: x[1, 0], batch.timesteps),
        Memory.empty(2, RACE.hidden),
    )
    heads = lambda s: (s.population.teams.weight, s.head.value.weight)
    other = eqx.tree_at(heads, state, tuple(w.at[..., 1, :, :].add(3.0) for w in heads(state)))
    first = eqx.tree_at(
        heads, state, tuple(w.at[..., 0, :, :].multiply(-3.0) for w in heads(state))
    )
    moved = set()
    for team, seed in itertools.product(range(TEAMS), range(5)):
        choose = lambda s, t=team, k=seed: np.asarray(
            act(SHARED, s, jnp.int32(t), memory, timestep, True, at(), jax.random.key(k))[1]
        )
        np.testing.assert_array_equal(choose(state), choose(other))
        moved |= {team} if (choose(state) != choose(first)).any() else set()
    assert moved == set(range(TEAMS))


def test_injection_gives_every_agent_the_policy_that_they_share(state):
    after = SHARED.inject(ranked(state, (3.0, 50.0, -4.0), 1))
    for new, own in zip(
        *map(jax.tree.leaves, (after.population.teams, state.head.value)), strict=True
    ):
        np.testing.assert_array_equal(new[2], np.stack([own[0], own[0]]))


def test_w_marl_is_one_policy_unless_each_agent_is_to_have_its_own():
    own = dataclasses.replace(RACE, shared_head=False).init(SPEC, jax.random.key(0))
    shared = RACE.init(SPEC, jax.random.key(0))
    assert own.head.value.weight.shape == (2, 6, 3)
    assert shared.head.value.weight.shape == (1, 6, 3)
    for team, parts in ((shared.own_team(), 1), (own.own_team(), 2)):
        assert team.weight.shape == (2, 6, 3)
        assert len(np.unique(np.asarray(team.weight), axis=0)) == parts


def test_policies_that_nobody_acts_by_cannot_be_w_marls():
    with pytest.raises(ValueError, match="shared_head=False of RaceFacmac must be True where"):
        dataclasses.replace(SHARED, shared_head=False)


def test_an_agent_with_a_policy_of_its_own_learns_it(batch):
    own = dataclasses.replace(RACE, shared_head=False)
    before = own.init(SPEC, jax.random.key(0))
    after, _ = update(own, before, batch, at(0), KEY)
    moved = np.asarray(after.head.value.weight != before.head.value.weight)
    assert moved.any((-1, -2)).all(), "every agent's"


def without_teams(state: State) -> State:
    """The state of an algorithm whose evolution is off."""
    make_team = lambda k: state.head.value
    empty = Population.create(make_team, 0, jax.random.key(0))
    return dataclasses.replace(state, population=empty)


def test_race_without_evolution_and_information_is_facmac(state, batch):
    """Four updates, of which each clips encoder and policy together: gradients, and parameters
    relative to their size, to 1e-6."""
    sizes: dict[str, Any] = SIZES | dict(actor_optimiser=CLIPPED, critic_optimiser=CLIPPED)
    alone: dict[str, Any] = dict(evolution=False, beta=0.0, head_optimiser=CLIPPED)
    base, facmac = dataclasses.replace(RACE, **sizes, **alone), Facmac(**sizes)
    net = jax.eval_shape(lambda k: RecurrentNet(SPEC, RACE.hidden, key=k), jax.random.key(0))
    actor = lambda encoder, head: eqx.tree_at(
        lambda n: (n.encoder, n.head), net, (encoder, jax.tree.map(lambda w: w[0], head))
    )
    afresh = lambda tracked: Tracked(Learner.create(tracked.value, CLIPPED), tracked.target)
    one = dataclasses.replace(
        without_teams(state),
        encoder=afresh(state.encoder),
        head=afresh(state.head),
        critic=afresh(state.critic),
    )
    online = actor(state.encoder.value, state.head.value)
    slow = actor(state.encoder.target, state.head.target)
    two = facmac_module.State(
        actor=Tracked(Learner.create(online, CLIPPED), slow), critic=one.critic
    )
    update_facmac = jax.jit(facmac.update)
    for number in range(4):
        key = jax.random.key(number)
        episodes = make_batch(seed=number)
        one, metrics = update(base, one, episodes, at(number), key)
        two, expected = update_facmac(two, episodes, at(number), keys_of(key)[1][0])
        expected["marl_actor_loss"] = expected.pop("actor_loss")
        assert metrics.keys() == expected.keys()
        for name in metrics:
            np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-6, atol=1e-7)
        encoder, head = (float(part.learner.grad_norm) for part in (one.encoder, one.head))
        whole = float(two.actor.learner.grad_norm)
        assert whole > 2 * CLIPPED.max_grad_norm
        np.testing.assert_allclose(np.hypot(encoder, head), whole, rtol=1e-6)
    # Beside values and targets, Adam's moments, which are those of the clipped gradients.
    moments = lambda tracked: tracked.learner.opt_state[0]
    pairs = (
        (actor(one.encoder.value, one.head.value), two.actor.value),
        (actor(one.encoder.target, one.head.target), two.actor.target),
        (one.critic, two.critic),
        (
            actor(moments(one.encoder).mu, moments(one.head).mu),
            moments(two.actor).mu,
        ),
    )
    for pair in pairs:
        for a, b in zip(*map(jax.tree.leaves, pair), strict=True):
            scale = float(np.abs(np.asarray(b)).max())
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * scale)
    moved = np.abs(one.encoder.value.layer.weight - state.encoder.value.layer.weight)
    assert moved.max() > 1e-3, "and it is no trifle"
    # And they act alike.
    memory, timestep = (
        Memory.empty(2, RACE.hidden),
        jax.tree.map(lambda x: x[1, 0], batch.timesteps),
    )
    act_facmac = jax.jit(
        lambda k, explore: facmac.act(two, 0, memory, timestep, at(), k, explore=explore),
        static_argnums=1,
    )
    for seed, explore in itertools.product(range(4), (False, True)):
        k = jax.random.key(seed)
        mine, its = (
            act(base, one, jnp.int32(0), memory, timestep, explore, at(), k),
            act_facmac(k, explore),
        )
        np.testing.assert_array_equal(mine[1], its[1])
        np.testing.assert_allclose(mine[0].hidden, its[0].hidden, atol=1e-4)


# Acting


def test_each_team_acts_by_its_own_policies_and_the_last_by_w_marl(
    state, batch, equations, reference
):
    timestep, memory = (
        jax.tree.map(lambda x: x[1, 0], batch.timesteps),
        Memory.empty(2, RACE.hidden),
    )
    for team in range(TEAMS):
        heads = equations.team(team)
        best = reference.best(
            equations.logits(equations.state.encoder.value, heads), equations.available
        )[1, 0].argmax(-1)
        after, action = act(
            RACE, state, jnp.int32(team), memory, timestep, False, at(), jax.random.key(0)
        )
        np.testing.assert_array_equal(action, best)
        np.testing.assert_array_equal(after.last_action, action)


def test_exploring_evolving_teams_draw_from_their_policies_and_the_marl_team_adds_random_actions(
    state, batch
):
    """All with logits log 8, 0, 0: 0.8, 0.1, 0.1; epsilon is 0.5."""
    heads = lambda s: (
        s.population.teams.weight,
        s.head.value.weight,
        s.population.teams.bias,
        s.head.value.bias,
    )
    bias = jnp.log(jnp.array([8.0, 1.0, 1.0]))
    values = tuple(0 * w for w in heads(state)[:2]) + tuple(
        jnp.broadcast_to(bias, b.shape) for b in heads(state)[2:]
    )
    fixed = eqx.tree_at(heads, state, values)
    timestep, memory = (
        jax.tree.map(lambda x: x[1, 0], batch.timesteps),
        Memory.empty(2, RACE.hidden),
    )
    timestep = eqx.tree_at(lambda t: t.available, timestep, jnp.ones((2, 3), bool))
    one = lambda j, k: RACE.act(fixed, j, memory, timestep, at(env_steps=0), k, explore=True)[1]
    draw = jax.jit(jax.vmap(one, (None, 0)))
    for team, share in ((0, 0.8), (TEAMS - 2, 0.8), (TEAMS - 1, 0.5 * 0.8 + 0.5 / 3)):
        action = np.asarray(draw(jnp.int32(team), jax.random.split(jax.random.key(2), 3000)))
        np.testing.assert_allclose((action == 0).mean(0), share, atol=0.03)


# Evolution and injection


FITNESS, ELITE, WORST = (3.0, 50.0, -4.0, 1000.0), 1, 2  # the last is the MARL team's


def ranked(state, fitness, elite: int) -> State:
    population = dataclasses.replace(
        state.population, fitness=jnp.array(fitness), elite=jnp.int32(elite)
    )
    return dataclasses.replace(state, population=population)


@functools.partial(jax.jit, static_argnums=0)
def evolve(algorithm, state, keys):
    return jax.vmap(lambda k: algorithm.evolve(state, jnp.array(FITNESS), at(), k))(keys)


def evolved(algorithm, state, generations=100):
    return evolve(algorithm, state, jax.random.split(jax.random.key(5), generations))


def test_the_elite_keeps_its_slot_bit_for_bit_and_evolution_changes_the_population_alone(
    state, bits
):
    after, _ = evolved(RACE, state)
    for new, old in zip(
        *map(jax.tree.leaves, (after.population.teams, state.population.teams)), strict=True
    ):
        np.testing.assert_array_equal(
            new[:, ELITE], np.broadcast_to(old[ELITE], new[:, ELITE].shape)
        )
    np.testing.assert_array_equal(after.population.fitness, np.broadcast_to(FITNESS[:3], (100, 3)))
    assert (np.asarray(after.population.elite) == ELITE).all() and int(
        RACE.best_team(jax.tree.map(lambda x: x[0], after))
    ) == ELITE
    first = jax.tree.map(lambda x: x[0], after)
    assert bits(first.population.teams) != bits(state.population.teams)
    same = dataclasses.replace(
        first,
        population=state.population,
    )
    assert bits(same) == bits(state)


@pytest.mark.parametrize("kind", ["copy", "parameter"])
def test_offspring_consist_of_whole_agents_or_of_whole_rows_of_weights(state, kind):
    algorithm = dataclasses.replace(
        RACE, breeding=dataclasses.replace(RACE.breeding, mutation_probability=0.0, crossover=kind)
    )
    weight, old = (
        np.asarray(s.population.teams.weight) for s in (evolved(algorithm, state)[0], state)
    )
    of_agents = np.stack([(weight == team).all((-1, -2)) for team in old]).any(0)
    of_rows = np.stack([(weight == team).all(-2) for team in old]).any(0)
    assert of_rows.all() and of_agents.all() == (kind == "copy")
    assert np.any(weight[:, 0] != old[0])


@pytest.mark.parametrize(
    ("fields", "share"),
    [
        (dict(mutation_count="floor", mutated_fraction=0.005), 0.0),
        (dict(mutation_count="floor", mutated_fraction=0.05), 0.9 * 3 / 64),
        (dict(mutation_count="bernoulli", mutated_fraction=0.05), 0.9 * 0.05),
        (dict(mutation_probability=0.0, mutated_fraction=1.0), 0.0),
    ],
)
def test_alpha_and_its_counting_decide_how_many_weights_mutate(state, fields, share):
    """floor(0.005 * 64) is 0: on three maps the released code mutates nothing."""
    breeding = dataclasses.replace(RACE.breeding, **fields)
    algorithm = dataclasses.replace(RACE, breeding=breeding, hidden=64)
    sevens, fives = jnp.full((3, 2, 64, 3), 7.0), jnp.full((3, 2, 3), 5.0)
    of_teams = lambda s: (s.population.teams.weight, s.population.teams.bias)
    after, _ = evolved(algorithm, eqx.tree_at(of_teams, state, (sevens, fives)))
    changed = np.asarray(after.population.teams.weight)[:, [0, 2]] != 7.0
    assert abs(changed.mean() - share) < 0.1 * share + 1e-9
    np.testing.assert_array_equal(after.population.teams.bias, 5.0)


def test_single_weights_of_each_agent_mutate_where_operators_are_of_parameters(state):
    algorithm = dataclasses.replace(
        RACE,
        breeding=dataclasses.replace(RACE.breeding, mutated_fraction=0.5, mutation="parameter"),
    )
    after, _ = evolved(
        algorithm,
        eqx.tree_at(lambda s: s.population.teams.weight, state, jnp.full((3, 2, 6, 3), 7.0)),
    )
    counts = (np.asarray(after.population.teams.weight)[:, [0, 2]] != 7.0).sum((-1, -2))
    assert counts.max() <= 8 and (counts == 0).any()  # fewer than half of an agent's 18


@pytest.mark.parametrize(
    ("fitness", "elite", "slot"),
    [((3.0, 50.0, -4.0), 1, 2), ((5.0, 5.0, 5.0), 0, 1), ((-9.0, -7.0, -8.0), 1, 0)],
)
def test_w_marl_takes_the_worst_slot_and_never_the_elites(state, fitness, elite, slot):
    after = RACE.inject(ranked(state, fitness, elite))
    assert int(after.population.injected) == slot != elite
    for new, old, own in zip(
        *map(jax.tree.leaves, (after.population.teams, state.population.teams, state.own_team())),
        strict=True,
    ):
        np.testing.assert_array_equal(new[slot], own)
        others = jnp.array([team for team in range(3) if team != slot])
        np.testing.assert_array_equal(new[others], old[others])


def test_the_fate_of_the_injected_team_follows_its_slot(state):
    for injected, name in ((ELITE, "injected_elite"), (-1, None)):
        population = dataclasses.replace(state.population, injected=jnp.int32(injected))
        _, metrics = evolved(RACE, dataclasses.replace(state, population=population))
        assert len(metrics) == 3
        if name:
            assert all((np.asarray(value) == (key == name)).all() for key, value in metrics.items())
        else:
            assert all(np.isnan(value).all() for value in metrics.values())


def test_without_injection_or_evolution_the_population_stays_closed(state, bits, key):
    ready = ranked(state, FITNESS[:3], ELITE)
    assert bits(
        dataclasses.replace(
            RACE, breeding=dataclasses.replace(RACE.breeding, injection=False)
        ).inject(ready)
    ) == bits(ready)
    alone = dataclasses.replace(RACE, evolution=False)
    state = without_teams(state)
    after, metrics = alone.evolve(state, jnp.zeros(1), at(), key)
    assert metrics == {} and bits(after) == bits(state) == bits(alone.inject(state))
    assert (alone.num_teams, RACE.num_teams) == (1, TEAMS)
    assert (
        int(alone.trained_team(state)),
        int(RACE.trained_team(state)),
        int(alone.best_team(state)),
    ) == (0, 3, 0)


def test_targets_start_as_what_they_follow_and_teams_start_apart(initial, bits):
    for name in TRACKED:
        part = getattr(initial, name)
        assert bits(part.target) == bits(part.value)
    weights = [initial.head.value.weight, *initial.population.teams.weight]
    assert initial.population.teams.weight.shape == (3, 2, 6, 3)
    assert initial.head.value.weight.shape == (1, 6, 3)
    for one, two in itertools.combinations([agent for team in weights for agent in team], 2):
        assert not np.any(one == two)


# Whole runs


RUN = Run(
    dataclasses.replace(
        RACE,
        breeding=dataclasses.replace(RACE.breeding, population=2),
        population_after=15,
        replay=EpisodeRing(60, 3),
        actor_optimiser=Adam(1e-2),
    ),
    Stroll(),
    seeds=2,
    steps=70,
    evaluate_every=30,
    evaluation_episodes=2,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return session(RUN, tmp_path_factory.mktemp("race")).train()


def test_a_resumed_run_is_the_run_that_never_stopped_and_compiles_nothing_new(
    finished, tmp_path, bits
):
    """Stopped while the MARL team was alone, and again later."""
    with compilations() as compiled:
        for steps in (10, 45, RUN.steps):
            last = session(dataclasses.replace(RUN, steps=steps), tmp_path).train()
    assert bits(raw(last)) == bits(raw(finished))
    assert not compiled


def test_the_population_joins_after_the_marl_team_was_alone(finished):
    """One update for each episode from when the replay held three."""
    agent, clock = finished.agent, finished.clock
    np.testing.assert_array_equal(clock.updates, np.asarray(finished.replay.size) - 2)
    assert (np.asarray(agent.population.injected) >= 0).all() and np.asarray(
        agent.population.fitness
    ).any()
    for seed, slot in enumerate(np.asarray(agent.population.injected)):
        np.testing.assert_array_equal(
            agent.population.teams.weight[seed, slot],
            np.repeat(agent.head.value.weight[seed], 2, axis=0),
        )


def test_states_may_be_weighed_by_the_value_before_its_step(state, batch):
    """V itself learns the same."""
    old = dataclasses.replace(RACE, new_value_weighs=False)
    new_after, new_metrics = update(RACE, state, batch, at(0), KEY)
    old_after, old_metrics = update(old, state, batch, at(0), KEY)
    for a, b in zip(*map(jax.tree.leaves, (new_after.value, old_after.value)), strict=True):
        np.testing.assert_array_equal(a, b)
    z = RACE.unroll(state.encoder.value, SPEC, batch)[:, :-1]
    losses = [
        float(RACE.information(z, state.mine.value, weighing, batch)[1])
        for weighing in (state, dataclasses.replace(state, value=new_after.value))
    ]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(old_metrics["vmm_loss"], losses[0], rtol=1e-5)
    np.testing.assert_allclose(new_metrics["vmm_loss"], losses[1], rtol=1e-5)


def test_the_step_size_of_w_marl_moves_it_and_nothing_else(state, batch, updated, bits):
    """Twice the step size gives a first step that is twice as long."""
    twice = dataclasses.replace(SMOOTH, learning_rate=2 * SMOOTH.learning_rate)
    loud = dataclasses.replace(RACE, head_optimiser=twice)
    fresh = jax.jit(lambda k: loud.init(SPEC, k))(jax.random.key(0))
    after, _ = update(loud, eqx.tree_at(NETWORKS, fresh, NETWORKS(state)), batch, at(), KEY)
    usual = updated[0]
    leaves = (jax.tree.leaves(s.head.value) for s in (state, usual, after))
    for start, once, now in zip(*leaves, strict=True):
        np.testing.assert_allclose(now - start, 2 * (once - start), rtol=1e-3, atol=1e-6)
        assert np.abs(once - start).max() > 1e-4
    others = lambda s: [leaf for leaf in NETWORKS(s) if leaf is not s.head.value]
    assert bits(others(after)) == bits(others(usual))
