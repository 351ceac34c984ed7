"""What every algorithm that learns from episodes promises, whatever it is."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.replay.episodes import Latent
from comarl.replay.packing import pack
from comarl.training.settings import Run, num_teams
from comarl.types import Clock, Communicates, EnvSpec, Packs, Timestep
from tests.algorithms.tiny import TINY
from tests.data import make_episodes
from tests.sessions import raw, session
from tests.training.tasks import Stroll

SPEC = EnvSpec(2, 3, 4, 3, discrete=True, horizon=6)
LENGTHS, TERMINATED = (2, 3, 3, 1), (0, 2)
START = Clock(jnp.int32(0), jnp.int32(0), jnp.int32(0))


@pytest.fixture(params=TINY)
def algorithm(request):
    return TINY[request.param]


@functools.partial(jax.jit, static_argnums=(0, 1))
def init(algorithm, spec):
    return algorithm.init(spec, jax.random.key(0))


def batch_for(algorithm, **more):
    """Episodes with whatever the algorithm's replay keeps beside them."""
    batch = make_episodes(SPEC, LENGTHS, TERMINATED, **more)
    latent = algorithm.replay.latent
    memory = Latent(jax.nn.one_hot(jnp.arange(len(LENGTHS)) % latent, latent)) if latent else ()
    return dataclasses.replace(batch, memory=memory)


def test_what_comes_after_an_end_changes_nothing(algorithm):
    """An update on episodes padded with garbage is the one on episodes cut to the longest, random
    draws included."""
    batch, state = batch_for(algorithm, garbage=50.0), init(algorithm, SPEC)
    update = jax.jit(lambda batch: algorithm.update(state, batch, START, jax.random.key(1)))
    for one, two in zip(*map(jax.tree.leaves, (update(batch), update(batch.cut(3)))), strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_allclose(one, two, atol=1e-5)


@pytest.mark.parametrize(
    "name", [name for name, algorithm in TINY.items() if isinstance(algorithm, Packs)]
)
def test_episodes_that_share_a_row_teach_what_they_teach_apart(name):
    """Of actor-critics the critic: what an actor draws in its loss depends on where a step
    stands."""
    algorithm, lengths = TINY[name], (2, 3, 3, 1, 6, 1, 1)
    batch = make_episodes(SPEC, lengths, TERMINATED, garbage=50.0)
    state = init(algorithm, SPEC)
    packed = pack(batch)
    assert packed.mask.any(axis=1).sum() == 4 and packed.mask.sum() == sum(lengths)
    update = jax.jit(lambda batch: algorithm.update(state, batch, START, jax.random.key(1))[0])
    learnt = lambda state: state.critic if hasattr(state, "critic") else state
    for one, two in zip(
        *(jax.tree.leaves(learnt(update(b))) for b in (batch, packed.rows(4))), strict=True
    ):
        np.testing.assert_allclose(one, two, atol=1e-5)


def test_no_agents_greedy_action_depends_on_what_another_sees(algorithm, scramble):
    """Unless it says that its agents communicate, in which case it does."""
    fresh = init(algorithm, SPEC)
    obs = jnp.asarray(np.random.default_rng(0).normal(size=(40, 2, 3)), jnp.float32)
    other = obs.at[:, 1].add(3.0 * jax.random.normal(jax.random.key(4), (40, 3)))

    @jax.jit
    def greedy(state, obs):
        seen = Timestep(obs, jnp.zeros(SPEC.state_size), jnp.ones((2, 3), bool))
        memory = algorithm.initial_memory(state, seen, jax.random.key(2))
        return algorithm.act(state, 0, memory, seen, START, jax.random.key(3), explore=False)[1]

    def actions(seed):
        """Of both agents before and after the second sees something else: `[40, 2]` each."""
        state = scramble(fresh, seed, 1.0)
        return tuple(np.asarray(jax.vmap(greedy, (None, 0))(state, x)) for x in (obs, other))

    def would_show(before, after):
        return len(set(before[:, 0].tolist())) > 1 and (before[:, 1] != after[:, 1]).any()

    # Of random networks some always choose the same: those prove nothing.
    before, after = next(pair for pair in map(actions, range(1, 20)) if would_show(*pair))
    assert (before[:, 0] != after[:, 0]).any() == isinstance(algorithm, Communicates)


def run_of(algorithm, **more):
    return Run(
        algorithm,
        Stroll(),
        **{**dict(seeds=2, steps=70, evaluate_every=40, evaluation_episodes=2), **more},
    )


def test_a_resumed_run_never_stopped_and_a_seed_does_not_see_its_neighbour(
    algorithm, tmp_path, bits
):
    whole = session(run_of(algorithm), tmp_path / "whole").train()
    assert int(whole.clock.updates.min()) > 0
    for steps in (30, 70):
        stretches = session(run_of(algorithm, steps=steps), tmp_path / "stretches").train()
    assert bits(raw(stretches)) == bits(raw(whole))
    shifted = raw(session(run_of(algorithm, first_seed=1), tmp_path / "shifted").train().agent)
    one = lambda tree, seed: jax.tree.map(lambda x: x[seed], tree)
    assert bits(one(shifted, 0)) == bits(one(raw(whole.agent), 1))
    assert bits(one(shifted, 0)) != bits(one(shifted, 1))


def test_only_what_is_available_is_ever_played(algorithm):
    """By any team, whether it explores or not, and whatever it would like best."""
    state = init(algorithm, SPEC)

    @functools.partial(jax.jit, static_argnums=3)
    def action(available, team, key, explore):
        seen = Timestep(jnp.ones((2, 3)), jnp.ones(4), available)
        memory = algorithm.initial_memory(state, seen, key)
        return algorithm.act(state, team, memory, seen, START, key, explore=explore)[1]

    for i, (one, other) in enumerate([(0, 1), (1, 2), (2, 0), (1, 1)]):
        available = jnp.zeros((2, 3), bool).at[0, one].set(True).at[1, other].set(True)
        for explore in (True, False):
            for team in range(num_teams(algorithm)):
                assert action(available, team, jax.random.key(i), explore).tolist() == [one, other]
