"""Batches are cut to what took place before they are learnt from.

That this changes only the time it takes is in tests/algorithms/test_contract.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.algorithms.matd3 import Matd3
from comarl.algorithms.qmix import Qmix
from comarl.algorithms.race_facmac import RaceFacmac
from comarl.replay.sizes import cuts, share_of, which_cut
from comarl.types import EnvSpec
from tests.data import make_episodes

SPEC = EnvSpec(2, 3, 4, 3, discrete=True, horizon=6)
LENGTHS, TERMINATED = (2, 3, 3, 1), (0, 2)


def test_a_cut_keeps_the_first_steps_and_the_timestep_after_them():
    batch = dataclasses.replace(
        make_episodes(SPEC, LENGTHS, TERMINATED), metrics={"won": jnp.ones(4)}
    )
    short = batch.cut(3)
    assert short.timesteps.obs.shape == (4, 4, 2, 3)
    assert short.timesteps.available.shape == (4, 4, 2, 3)
    for name in ("action", "reward", "terminated", "mask"):
        np.testing.assert_array_equal(getattr(short, name), getattr(batch, name)[:, :3])
    np.testing.assert_array_equal(short.timesteps.state, batch.timesteps.state[:, :4])
    np.testing.assert_array_equal(short.returns(), batch.returns())
    assert short.metrics is batch.metrics


LONG = dataclasses.replace(SPEC, horizon=42)  # quarters end at 11, 21, 32 and 42


@pytest.mark.parametrize(
    ("longest", "kept"),
    [(1, 11), (11, 11), (12, 21), (21, 21), (22, 32), (32, 32), (33, 42), (42, 42)],
)
def test_the_first_cut_that_holds_every_step_is_taken(longest, kept):
    batch = make_episodes(LONG, (1, longest, 1))
    stacked = jax.tree.map(lambda x: x[None, None], batch)  # one seed, one update
    index = which_cut(RaceFacmac(), LONG, stacked, jnp.arange(1))
    assert index.shape == (1, 1)
    short = cuts(RaceFacmac(), LONG)[int(index[0, 0])](batch)
    assert short.mask.shape == (3, kept) and short.mask.sum() == batch.mask.sum()


def test_each_seed_and_each_update_has_a_cut_of_its_own():
    batches = [[make_episodes(LONG, (1, n)) for n in seed] for seed in ((5, 40, 20), (30, 12, 11))]
    stack = lambda *trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)
    stacked = stack(*(stack(*seed) for seed in batches))
    found = which_cut(RaceFacmac(), LONG, stacked, jnp.arange(3))
    np.testing.assert_array_equal(found, [[0, 3, 1], [2, 1, 0]])


def test_transitions_and_short_episodes_are_not_cut():
    for algorithm, spec in ((Matd3(), LONG), (RaceFacmac(), dataclasses.replace(SPEC, horizon=31))):
        (same,) = cuts(algorithm, spec)
        batch = make_episodes(SPEC, (1, 6))
        assert same(batch) is batch
        stacked = jax.tree.map(lambda x: jnp.stack([x, x]), batch)
        np.testing.assert_array_equal(
            which_cut(algorithm, spec, stacked, jnp.arange(3)), np.zeros((2, 3))
        )
    assert len(cuts(RaceFacmac(), dataclasses.replace(SPEC, horizon=32))) == 4


@pytest.mark.parametrize(
    ("filled", "kept"), [(1, 2), (2, 2), (3, 3), (4, 4), (5, 6), (6, 6), (7, 8), (8, 8)]
)
def test_packed_episodes_are_cut_to_the_rows_that_they_fill(filled, kept):
    """A quarter, a third, a half, three quarters, or all of eight."""
    batch = make_episodes(LONG, (LONG.horizon,) * filled + (0,) * (8 - filled))
    index = which_cut(Qmix(), LONG, jax.tree.map(lambda x: x[None, None], batch), jnp.arange(1))
    short = cuts(Qmix(), LONG)[int(index[0, 0])](batch)
    assert short.mask.shape == (kept, LONG.horizon) and short.mask.sum() == batch.mask.sum()


def test_sizes_are_rounded_up_so_that_nothing_that_took_place_is_lost():
    assert [share_of(size, 1 / 3) for size in (1, 2, 3, 4)] == [1, 1, 1, 2]
    assert all(share_of(size, 1.0) == size for size in range(1, 50))
