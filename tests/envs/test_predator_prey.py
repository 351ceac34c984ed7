"""Predators and prey, held against reference rules in plain Python, step by step."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.envs import find_task
from comarl.envs.check import check, random_action
from comarl.envs.predator_prey import ACTIONS, GONE, PRESETS, SIGHT, Draws, Grid, PredatorPrey
from tests.envs.reference_predator_prey import ReferencePredatorPrey

RIGHT, DOWN, LEFT, UP, STAY, CATCH = range(6)
# One task for all scripts: compiled once
TRIO = PredatorPrey(agents=3, prey=2, size=5, horizon=12, punishment=-1.5)


def place_of(env, cell):
    """The row and column of a cell's number."""
    return int(cell) // env.width - SIGHT, int(cell) % env.width - SIGHT


def places(env, cells):
    return [place_of(env, cell) for cell in cells if cell != GONE]


def grid(env, agents, prey, time=0):
    """Everybody at a (row, column), or None off the grid."""
    number = lambda at: GONE if at is None else (at[0] + SIGHT) * env.width + at[1] + SIGHT
    cells = lambda who: jnp.array([number(at) for at in who], jnp.int32)
    return Grid(cells(agents), cells(prey), jnp.int32(time))


outcome = jax.jit(TRIO.outcome)


def step(
    agents,
    prey,
    action,
    agent_order=(0, 1, 2),
    prey_order=(0, 1),
    preference=((4, 3, 2, 1),) * 2,
    time=0,
):
    """One step of `TRIO` with its draws given; by default all prefer right, then down, left, up."""
    draws = Draws(
        jnp.array(agent_order, jnp.int32),
        jnp.array(prey_order, jnp.int32),
        jnp.array(preference, jnp.float32),
    )
    after, timestep, reward, terminated, truncated = outcome(
        grid(TRIO, agents, prey, time), jnp.array(action, jnp.int32), draws
    )
    return after, timestep, float(reward), bool(terminated), bool(truncated)


def random_episodes(env, episodes, seed=0):
    """All there is to know of episodes of random play, run to the horizon: [episodes, time,
    ...]."""

    def one_step(carry, key):
        env_state, timestep = carry
        action_key, step_key = jax.random.split(key)
        # Every other time by chance alone, also what is unavailable; else a catch wherever there is
        # something to catch.
        action = random_action(env.spec, timestep.available, action_key)
        greedy = jnp.where(timestep.available[:, CATCH], CATCH, action)
        wild = jax.random.randint(action_key, action.shape, 0, len(ACTIONS))
        action = jnp.where(
            env_state.time % 4 == 0, wild, jnp.where(env_state.time % 2 == 0, greedy, action)
        )
        after, later, *results = env.step(env_state, action, step_key)
        return (after, later), (timestep, after, later, action, env.draws(step_key), *results)

    def episode(key):
        reset_key, steps_key = jax.random.split(key)
        first = env.reset(reset_key)
        return first, jax.lax.scan(one_step, first, jax.random.split(steps_key, env.horizon))[1]

    return jax.tree.map(
        np.asarray, jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(seed), episodes))
    )


def assert_looks_like(reference, timestep):
    assert timestep.state.tolist() == reference.state()
    assert timestep.obs.tolist() == [reference.obs(agent) for agent in range(reference.num_agents)]
    assert timestep.available.tolist() == [
        reference.available(agent) for agent in range(reference.num_agents)
    ]


@pytest.mark.parametrize(
    ("env", "episodes"),
    [
        (PredatorPrey(agents=5, prey=6, size=5, horizon=60, punishment=-1.5), 12),
        (PRESETS["full-punished"], 4),
    ],
)
def test_every_step_of_random_episodes_is_that_of_the_slow_rules(env, episodes):
    (starts, looks), steps = random_episodes(env, episodes)
    captures = lone = ended = 0
    for episode in range(episodes):
        start, look, rest = jax.tree.map(lambda x, e=episode: x[e], (starts, looks, steps))
        places_of = [places(env, cells) for cells in (start.agents, start.prey)]
        reference = ReferencePredatorPrey(*places_of, env.size, env.horizon, env.punishment)
        assert_looks_like(reference, look)
        for time in range(env.horizon):
            _, after, later, action, draws, reward, terminated, truncated = jax.tree.map(
                lambda x, t=time: x[t], rest
            )
            expected = reference.step(action.tolist(), *(x.tolist() for x in draws))
            assert (float(reward), bool(terminated), bool(truncated)) == expected
            assert places(env, after.agents) == list(reference.agents.values())
            assert places(env, after.prey) == list(reference.prey.values())
            assert_looks_like(reference, later)
            captures, lone = captures + (reward >= 8.0), lone + (reward < 0.0)
            if terminated:
                ended += 1
                break
    assert captures > 5 and lone > 5, "the comparison must see captures and lone catches"
    assert ended or env.size > 5


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_keeps_the_contract(name):
    check(find_task(f"predator-prey/{name}"), steps=200)
    spec = find_task(f"predator-prey/{name}").spec
    side = 10 if name.startswith("full") else 6
    assert (spec.obs_size, spec.state_size, spec.action_size) == (75, 3 * side * side, 6)
    assert (spec.num_agents, spec.horizon) == ((8, 200) if side == 10 else (4, 60))
    assert find_task(f"predator-prey/{name}").punishment == (
        -2.0 if name.endswith("punished") else 0.0
    )


def test_two_who_catch_get_ten_and_leave_the_grid_with_the_prey():
    after, timestep, reward, terminated, truncated = step(
        [(2, 1), (2, 3), (0, 0)], [(2, 2), (4, 4)], [CATCH, CATCH, STAY]
    )
    assert (reward, terminated, truncated) == (10.0, False, False)
    assert after.agents[:2].tolist() == [GONE, GONE] and after.prey[0] == GONE
    assert float(TRIO.metrics(after)["captures"]) == 1.0
    assert not timestep.obs[:2].any() and timestep.state.sum() == 2
    assert timestep.available[:2].tolist() == [[False, False, False, False, True, False]] * 2


def test_three_who_catch_one_prey_all_leave_and_so_the_team_is_gone():
    after, _, reward, terminated, truncated = step(
        [(2, 1), (2, 3), (1, 2)], [(2, 2), (4, 4)], [CATCH] * 3
    )
    assert (reward, terminated, truncated) == (10.0, True, False)
    assert after.agents.tolist() == [GONE] * 3


def test_who_catches_alone_is_punished_once_for_every_prey_beside_it():
    beside_both = [(2, 2), (0, 0), (4, 0)]
    after, _, reward, *_ = step(beside_both, [(2, 3), (1, 2)], [CATCH, STAY, STAY])
    assert reward == -3.0
    assert GONE not in after.agents and GONE not in after.prey
    assert step(beside_both, [(2, 3), (0, 4)], [CATCH, STAY, STAY])[2] == -1.5


def test_who_was_used_up_by_one_prey_counts_for_no_other():
    # Agents 0 and 1 stand beside both prey: the first in order takes them, the second is not even
    # tried for.
    agents, prey = [(1, 2), (2, 1), (4, 4)], [(1, 1), (2, 2)]
    for prey_order, caught in (((0, 1), 0), ((1, 0), 1)):
        after, _, reward, *_ = step(agents, prey, [CATCH, CATCH, STAY], prey_order=prey_order)
        assert reward == 10.0
        assert (after.prey == GONE).tolist() == [caught == 0, caught == 1]


def test_agents_move_in_turn_so_the_first_gets_the_cell_and_may_free_its_own():
    prey = [(4, 4), (4, 0)]
    towards_each_other = ([(2, 1), (2, 3), (0, 0)], prey, [RIGHT, LEFT, STAY])
    assert places(TRIO, step(*towards_each_other)[0].agents) == [(2, 2), (2, 3), (0, 0)]
    assert places(TRIO, step(*towards_each_other, agent_order=(1, 0, 2))[0].agents) == [
        (2, 1),
        (2, 2),
        (0, 0),
    ]
    in_a_row = ([(2, 1), (2, 2), (0, 0)], prey, [RIGHT, RIGHT, UP])
    assert places(TRIO, step(*in_a_row)[0].agents) == [(2, 1), (2, 3), (0, 0)]
    assert places(TRIO, step(*in_a_row, agent_order=(1, 0, 2))[0].agents) == [
        (2, 2),
        (2, 3),
        (0, 0),
    ]


def test_a_prey_in_a_corner_between_agents_stays_and_is_not_caught_by_that():
    after, _, reward, *_ = step([(0, 1), (1, 0), (4, 0)], [(0, 0), (4, 4)], [STAY] * 3)
    assert reward == 0.0 and place_of(TRIO, after.prey[0]) == (0, 0)


def test_a_prey_goes_to_each_free_neighbour_equally_often():
    env, start = TRIO, grid(TRIO, [(2, 1), (0, 0), (4, 4)], [(2, 2), (0, 4)])
    move = lambda key: env.step(start, jnp.full(3, STAY, jnp.int32), key)[0].prey[0]
    cells = np.asarray(jax.jit(jax.vmap(move))(jax.random.split(jax.random.key(0), 3000)))
    counts = {place_of(env, cell): int((cells == cell).sum()) for cell in set(cells.tolist())}
    assert set(counts) == {(2, 3), (1, 2), (3, 2)}
    assert all(abs(count - 1000) < 4 * np.sqrt(3000 * 2 / 9) for count in counts.values()), counts


def test_the_orders_are_permutations_and_each_is_as_likely_as_another():
    draws = jax.jit(jax.vmap(TRIO.draws))(jax.random.split(jax.random.key(0), 3000))
    assert (np.sort(draws.prey_order, axis=1) == np.arange(2)).all()
    orders = [tuple(order) for order in draws.agent_order.tolist()]
    for order in itertools.permutations(range(3)):
        assert abs(orders.count(order) - 500) < 4 * np.sqrt(3000 * 5 / 36), order


def test_the_end_is_a_termination_if_all_prey_are_caught_and_else_time_truncates():
    last_prey = ([(2, 1), (2, 3), (0, 0)], [(2, 2), None], [CATCH, CATCH, STAY])
    assert step(*last_prey)[3:] == (True, False)
    assert step(*last_prey, time=TRIO.horizon - 1)[3:] == (True, False)
    idle = ([(2, 1), (2, 3), (0, 0)], [(2, 2), (4, 4)], [STAY] * 3)
    assert step(*idle, time=TRIO.horizon - 1)[3:] == (False, True)
    assert step(*idle, time=TRIO.horizon - 2)[3:] == (False, False)


def test_the_full_task_is_worth_forty_at_most():
    """Four pairs around four prey catch them in one step; nobody is left to catch the other
    four."""
    env = PRESETS["full"]
    prey = [(1, 1), (1, 5), (5, 1), (5, 5), (8, 0), (8, 3), (8, 6), (8, 9)]
    agents = [(row, column + side) for row, column in prey[:4] for side in (-1, 1)]
    after, _, reward, terminated, truncated = jax.jit(env.step)(
        grid(env, agents, prey), jnp.full(8, CATCH, jnp.int32), jax.random.key(0)
    )
    assert (float(reward), bool(terminated), bool(truncated)) == (40.0, True, False)
    assert (after.agents == GONE).all() and float(env.metrics(after)["captures"]) == 4.0


def test_starts_are_distinct_cells_and_every_cell_is_as_likely():
    env, starts = TRIO, 3000
    env_state = jax.jit(jax.vmap(lambda key: env.reset(key)[0]))(
        jax.random.split(jax.random.key(0), starts)
    )
    cells = np.concatenate([env_state.agents, env_state.prey], axis=1)
    assert all(len(set(row)) == 5 for row in cells.tolist())
    counts = np.array([(env_state.agents == cell).sum() for cell in env.cells])
    expected = starts * 3 / 25
    assert counts.sum() == 3 * starts and (abs(counts - expected) < 5 * np.sqrt(expected)).all(), (
        counts
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"agents": 9, "prey": 8, "size": 4}, "agents=9 and prey=8 must fit on 4x4 cells"),
        ({"punishment": 1.0}, "punishment=1.0 of PredatorPrey must be 0 or less"),
        ({"prey": 0}, "prey=0 of PredatorPrey must be 1 or more"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PredatorPrey(**settings)
