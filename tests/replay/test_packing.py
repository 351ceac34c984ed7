"""Episodes that share rows are the same episodes."""

import dataclasses

import jax
import numpy as np
import pytest

from comarl.algorithms.matd3 import Matd3
from comarl.algorithms.qmix import Qmix
from comarl.algorithms.race_facmac import RaceFacmac
from comarl.replay.packing import MIN_STEPS, pack, packs
from comarl.types import EnvSpec
from tests.data import make_episodes

SPEC = EnvSpec(2, 3, 4, 3, discrete=True, horizon=10)


def episodes_in(row):
    """Each episode of one row, as (timesteps, actions, rewards, terminated) of the steps that took
    place."""
    starts, mask = np.asarray(row.starts), np.asarray(row.mask)
    found = []
    for begin in np.flatnonzero(starts[:-1] & mask):
        length = int(np.argmin(np.append(mask[begin:], False)))
        steps = slice(begin, begin + length)
        shown = slice(begin, begin + length + 1)
        seen = jax.tree.map(lambda x, shown=shown: x[shown], row.timesteps)
        taken = (row.action[steps], row.reward[steps], row.terminated[steps])
        parts = (*jax.tree.leaves(seen), *taken)
        found.append(tuple(np.asarray(x).tobytes() for x in parts))
    return found


def all_in(batch):
    rows = [jax.tree.map(lambda x, i=i: x[i], batch) for i in range(len(batch.reward))]
    return sorted(episode for row in rows for episode in episodes_in(row))


LENGTHS = [(1, 1, 1), (10, 10, 3), (4, 5, 9, 1, 2, 3, 10), (1, 2, 3, 4, 5, 6, 7, 8), (5, 5, 4, 4)]


@pytest.mark.parametrize("lengths", LENGTHS)
def test_every_episode_is_there_once_with_every_step_and_what_followed_it(lengths):
    batch = make_episodes(SPEC, lengths, terminated=(0, 2), garbage=9.0, seed=len(lengths))
    packed = jax.jit(pack)(batch)
    assert all_in(packed) == all_in(batch) and len(all_in(batch)) == len(lengths)
    assert packed.mask.shape == batch.mask.shape
    idle = ~np.asarray(packed.mask)
    assert not packed.reward[idle].any(), "what did not take place earns nothing"
    assert not packed.terminated[idle].any(), "and ends nothing"


@pytest.mark.parametrize(("lengths", "rows"), list(zip(LENGTHS, [1, 3, 4, 4, 2], strict=True)))
def test_the_longest_take_the_first_row_that_has_room(lengths, rows):
    """By hand: an episode takes one slot more than it has steps, of 11. So 8 and 1, 7 and 2 ...
    fill a row each."""
    packed = jax.jit(pack)(make_episodes(SPEC, lengths))
    filled = np.asarray(packed.mask).any(axis=1)
    assert filled.sum() == rows and filled[:rows].all()


def test_an_episode_as_long_as_the_horizon_has_a_row_of_its_own_and_is_unchanged(bits):
    batch = make_episodes(SPEC, (10, 10))
    assert bits(jax.jit(pack)(batch)) == bits(batch)


def test_only_algorithms_that_say_so_and_only_long_horizons_are_packed():
    long = dataclasses.replace(SPEC, horizon=MIN_STEPS)
    assert packs(Qmix(), long) and not packs(Qmix(), SPEC)
    assert not packs(RaceFacmac(), long), "it cannot tell episodes in one row apart"
    assert not packs(Matd3(), long), "it learns from transitions"
