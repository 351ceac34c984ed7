"""Matrix games: payoffs, observations, and what teams with and without each other's bit can
earn."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.envs import find_task
from comarl.envs.check import check
from comarl.envs.matrix import GAMES, MatrixGame

JOINT_ACTIONS = list(itertools.product(range(3), repeat=2))


@pytest.mark.parametrize("name", GAMES)
def test_every_game_keeps_the_contract(name):
    assert check(find_task(f"matrix/{name}"), steps=64).mean_length == 1.0


@pytest.mark.parametrize("name", GAMES)
def test_the_reward_is_the_table_at_row_and_column(name):
    game = GAMES[name]
    step = jax.jit(
        jax.vmap(lambda state, action: game.step(state, action, jax.random.key(0))[2:], (None, 0))
    )
    for bits in itertools.product((0, 1), repeat=2) if len(game.payoff) == 2 else [(1, 1)]:
        reward, terminated, truncated = step(
            jnp.array(bits, jnp.float32), jnp.array(JOINT_ACTIONS, jnp.int32)
        )
        table = game.payoff[(bits[0] + bits[1]) % len(game.payoff)]
        assert reward.tolist() == [table[i][j] for i, j in JOINT_ACTIONS]
        assert terminated.all() and not truncated.any()


@pytest.mark.parametrize(
    ("name", "best", "value"),
    [("qtran", {(0, 0)}, 8), ("climbing", {(0, 0)}, 11), ("penalty", {(0, 2), (2, 0)}, 10)],
)
def test_the_best_joint_actions_are_those_of_the_papers(name, best, value):
    table = np.asarray(GAMES[name].tables[0])
    assert {(int(i), int(j)) for i, j in np.argwhere(table == table.max())} == best
    assert table.max() == value


def test_a_game_of_one_table_looks_the_same_always():
    keys = jax.random.split(jax.random.key(0), 20)
    timesteps = jax.vmap(lambda key: GAMES["climbing"].reset(key)[1])(keys)
    assert (timesteps.obs == 1).all() and (timesteps.state == 1).all() and timesteps.available.all()


def test_in_two_states_each_agent_sees_its_own_bit_and_all_configurations_occur():
    timesteps = jax.vmap(lambda key: GAMES["two-states"].reset(key)[1])(
        jax.random.split(jax.random.key(0), 400)
    )
    np.testing.assert_array_equal(timesteps.obs[:, :, 0], timesteps.state)
    counts = np.bincount(
        np.asarray(timesteps.state @ jnp.array([2.0, 1.0])).astype(int), minlength=4
    )
    assert counts.sum() == 400 and (abs(counts - 100) < 4 * np.sqrt(400 * 0.25 * 0.75)).all(), (
        counts
    )


def test_two_states_is_worth_8_with_both_bits_and_0_with_ones_own():
    tables = np.array(GAMES["two-states"].payoff)
    assert tables.max((1, 2)).tolist() == [8, 8]
    # An action for each value of one's own bit
    policies = list(itertools.product(range(3), repeat=2))
    values = [
        np.mean([tables[a ^ b, first[a], second[b]] for a in (0, 1) for b in (0, 1)])
        for first in policies
        for second in policies
    ]
    assert max(values) == 0.0


def test_each_table_of_two_states_is_monotonic_but_in_opposite_orders():
    falling, rising = np.array(GAMES["two-states"].payoff)
    for axis in (0, 1):
        assert (np.diff(falling, axis=axis) <= 0).all() and (np.diff(rising, axis=axis) >= 0).all()
    np.testing.assert_array_equal(rising, falling[::-1, ::-1])


def test_payoffs_can_be_ones_own_and_only_one_or_two_tables():
    row = (1.0, 2.0, 3.0)
    table = (row, row, row)
    game = MatrixGame("mine", (table,))
    assert hash(game) == hash(MatrixGame("mine", (table,)))
    np.testing.assert_array_equal(game.tables, [table])
    with pytest.raises(
        ValueError, match="payoff of MatrixGame holds 3 tables; it must be one or two"
    ):
        MatrixGame("mine", (table, table, table))
