"""Episodes are cut to the steps that took place before they are learnt from: that changes only the time it takes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.algorithms.facmac import Facmac
from comarl.algorithms.matd3 import Matd3
from comarl.algorithms.qmix import Qmix
from comarl.algorithms.race_facmac import RaceFacmac
from comarl.training.train import cuts, which_cut
from comarl.types import Clock, EnvSpec
from tests.conftest import SMOOTH, make_episodes

SPEC = EnvSpec(2, 3, 4, 3, discrete=True, horizon=6)
LENGTHS, TERMINATED = (2, 3, 3, 1), (0, 2)
SIZES = dict(hidden=4, mixer_width=3, hypernet=3)
BOTH = dict(actor_optimiser=SMOOTH, critic_optimiser=SMOOTH)
ALGORITHMS = {
    "qmix": Qmix(**SIZES, optimiser=SMOOTH),
    "facmac": Facmac(**SIZES, **BOTH),
    "race-facmac": RaceFacmac(
        **SIZES, **BOTH, mine_optimiser=SMOOTH, population=2, embedding=3, mine_width=3, value_hidden=3, beta=0.5
    ),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_update_on_a_cut_batch_is_the_one_on_the_whole_batch(name):
    """Random draws included."""
    algorithm, batch = ALGORITHMS[name], make_episodes(SPEC, LENGTHS, TERMINATED, garbage=50.0)
    state = jax.jit(lambda k: algorithm.init(SPEC, k))(jax.random.key(0))
    clock = Clock(jnp.int32(0), jnp.int32(0), jnp.int32(0))
    update = jax.jit(lambda batch: algorithm.update(state, batch, clock, jax.random.key(1)))
    for one, two in zip(*map(jax.tree.leaves, (update(batch), update(batch.cut(3)))), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


def test_a_cut_keeps_the_first_steps_and_the_timestep_after_them():
    batch = dataclasses.replace(make_episodes(SPEC, LENGTHS, TERMINATED), metrics={"won": jnp.ones(4)})
    short = batch.cut(3)
    assert short.timesteps.obs.shape == (4, 4, 2, 3) and short.timesteps.available.shape == (4, 4, 2, 3)
    for name in ("action", "reward", "terminated", "mask"):
        np.testing.assert_array_equal(getattr(short, name), getattr(batch, name)[:, :3])
    np.testing.assert_array_equal(short.timesteps.state, batch.timesteps.state[:, :4])
    np.testing.assert_array_equal(short.returns(), batch.returns())
    assert short.metrics is batch.metrics


LONG = dataclasses.replace(SPEC, horizon=42)  # quarters end at 11, 21, 32 and 42


@pytest.mark.parametrize(
    ("longest", "kept"), [(1, 11), (11, 11), (12, 21), (21, 21), (22, 32), (32, 32), (33, 42), (42, 42)]
)
def test_the_first_cut_that_holds_every_step_is_taken(longest, kept):
    batch = make_episodes(LONG, (1, longest, 1))
    stacked = jax.tree.map(lambda x: x[None, None], batch)  # one seed, one update
    index = which_cut(ALGORITHMS["facmac"], LONG, stacked, jnp.arange(1))
    assert index.shape == (1, 1)
    short = cuts(ALGORITHMS["facmac"], LONG)[int(index[0, 0])](batch)
    assert short.mask.shape == (3, kept) and short.mask.sum() == batch.mask.sum()


def test_each_seed_and_each_update_has_a_cut_of_its_own():
    batches = [[make_episodes(LONG, (1, n)) for n in seed] for seed in ((5, 40, 20), (30, 12, 11))]
    stack = lambda *trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)
    found = which_cut(ALGORITHMS["qmix"], LONG, stack(*(stack(*seed) for seed in batches)), jnp.arange(3))
    np.testing.assert_array_equal(found, [[0, 3, 1], [2, 1, 0]])


def test_transitions_and_short_episodes_are_not_cut():
    for algorithm, spec in ((Matd3(), LONG), (ALGORITHMS["qmix"], dataclasses.replace(SPEC, horizon=31))):
        (same,) = cuts(algorithm, spec)
        batch = make_episodes(SPEC, (1, 6))
        assert same(batch) is batch
        stacked = jax.tree.map(lambda x: jnp.stack([x, x]), batch)
        np.testing.assert_array_equal(which_cut(algorithm, spec, stacked, jnp.arange(3)), np.zeros((2, 3)))
    assert len(cuts(ALGORITHMS["qmix"], dataclasses.replace(SPEC, horizon=32))) == 4
