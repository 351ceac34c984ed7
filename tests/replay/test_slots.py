"""Which slots of a ring are written, and what is kept as zeros."""

import jax.numpy as jnp
import numpy as np
import pytest

from comarl.replay.slots import blank, latent_of, next_slots


@pytest.mark.parametrize("start", [0, 3, 9])
def test_wanted_items_take_slots_one_after_another_and_go_round(start):
    wanted = np.random.default_rng(start).random((3, 4)) < 0.6
    slots = next_slots(jnp.int32(start), jnp.asarray(wanted), 10)
    expected = (start + np.arange(wanted.sum())) % 10
    np.testing.assert_array_equal(slots[wanted.reshape(-1)], expected)
    assert (np.asarray(slots)[~wanted.reshape(-1)] == 10).all(), "out of bounds, so nothing is put"


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int32, bool])
def test_what_is_not_there_is_zero_of_the_same_type(dtype):
    x = jnp.ones((2, 3, 4), dtype)
    there = jnp.array([[True, False, True], [False, False, True]])
    kept = blank(x, there)
    assert kept.dtype == x.dtype
    np.testing.assert_array_equal(kept[..., 0], there.astype(dtype))


def test_what_was_no_number_is_zero_too():
    x = jnp.array([1.0, jnp.nan, jnp.inf])
    np.testing.assert_array_equal(blank(x, jnp.array([True, False, False])), [1.0, 0.0, 0.0])


def test_a_memory_without_a_vector_is_refused():
    with pytest.raises(ValueError, match=r"replay\.latent 3: it must be 0"):
        latent_of(3, jnp.zeros((2, 7)))
