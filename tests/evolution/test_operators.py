import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.evolution import operators as evolution
from comarl.nn.mlp import LayerNorm, Linear
from comarl.nn.recurrent import GatedLinear


def team_of(number: int, agents: int = 4, features: int = 3, action: int = 2) -> dict:
    """Every number of it says which team, which agent and which leaf it is from."""
    agent = 100.0 * number + 10.0 * jnp.arange(agents, dtype=jnp.float32)
    return {
        "weight": jnp.broadcast_to(agent[:, None, None], (agents, features, action)) + 1.0,
        "bias": jnp.broadcast_to(agent[:, None], (agents, action)) + 2.0,
    }


@functools.cache
def swapped(num_keys: int = 200) -> tuple:
    keys = jax.random.split(jax.random.key(3), num_keys)
    return jax.jit(jax.vmap(lambda k: evolution.swap_agents(team_of(1), team_of(2), k)))(keys)


def test_swapping_agents_loses_no_agent_and_keeps_each_in_its_place():
    one, other = swapped()
    for name in ("weight", "bias"):
        both = np.sort(np.stack([one[name], other[name]]), axis=0)
        np.testing.assert_array_equal(both[0], np.broadcast_to(team_of(1)[name], both[0].shape))
        np.testing.assert_array_equal(both[1], np.broadcast_to(team_of(2)[name], both[1].shape))


def test_swapping_moves_whole_agents_with_weights_and_bias_together():
    one, _ = swapped()
    source = np.asarray(one["bias"])[:, :, 0] // 100  # [keys, agents]
    np.testing.assert_array_equal(
        np.asarray(one["weight"]) // 100, source[:, :, None, None] * np.ones((3, 2))
    )
    np.testing.assert_array_equal(np.asarray(one["bias"]) // 100, source[:, :, None] * np.ones(2))


def test_each_agent_is_swapped_half_of_the_time_on_its_own():
    one, _ = swapped()
    moved = np.asarray(one["bias"])[:, :, 0] // 100 == 2
    assert np.all(np.abs(moved.mean(0) - 0.5) < 0.15)  # 4 standard deviations of 200 coins
    assert len({tuple(row) for row in moved}) == 16  # all subsets of 4 agents come up


def linear(weight, bias) -> Linear:
    blank = jax.eval_shape(
        lambda k: Linear(weight.shape[0], weight.shape[1], key=k), jax.random.key(0)
    )
    return jax.tree.unflatten(jax.tree.structure(blank), [jnp.asarray(weight), jnp.asarray(bias)])


@functools.cache
def rows_swapped(num_keys: int = 300) -> tuple:
    """Agents of 3 action rows of 4 weights: weights 10 * team + row, biases 100 * team + row."""
    make = lambda team: linear(
        np.tile(10.0 * team + np.arange(3.0), (4, 1)).astype(np.float32),
        (100.0 * team + np.arange(3.0)).astype(np.float32),
    )
    keys = jax.random.split(jax.random.key(4), num_keys)
    swap = lambda k: evolution.swap_rows(make(1), make(2), k)
    return tuple((np.asarray(t.weight), np.asarray(t.bias)) for t in jax.jit(jax.vmap(swap))(keys))


def test_swapping_rows_copies_whole_rows_to_the_same_row():
    for weight, bias in rows_swapped():
        assert np.all(weight == weight[:, :1, :])  # a row has one source
        assert set(np.unique(weight % 10)) == {0, 1, 2} and np.all(weight % 10 == np.arange(3))
        assert set(np.unique(weight // 10)) == {1, 2}
        assert np.all(bias % 100 == np.arange(3)) and set(np.unique(bias // 100)) == {1, 2}


def test_swapping_rows_overwrites_and_does_not_exchange():
    """Where one policy took the other's row, the other still has it or was overwritten earlier:
    never a swap by one copy. A row that was copied once is the same in both."""
    (one, _), (other, _) = rows_swapped()
    changed = (one[:, 0] // 10 != 1) | (other[:, 0] // 10 != 2)
    assert np.all(one[:, 0][changed] == other[:, 0][changed])
    assert 0.2 < changed.mean() < 0.8


def test_rows_of_weights_and_biases_are_drawn_apart():
    (weight, bias), _ = rows_swapped()
    assert np.any((weight[:, 0] // 10 == 2) != (bias // 100 == 2))


@pytest.mark.parametrize(
    ("rows", "of_weights", "of_biases"), [(3, 0.544, 0.296), (9, 0.560, 0.346)]
)
def test_over_half_of_the_rows_of_weights_are_copied_and_a_third_of_the_biases(
    rows, of_weights, of_biases
):
    """Of U{0 .. 2n-1} draws among n rows (1 + q^2n) / 2 are met, of U{0 .. n-1} q^n; q = 1 - 1/n.
    ERL's code copies half as many biases."""
    make = lambda team: linear(np.full((2, rows), team), np.full(rows, team))
    keys = jax.random.split(jax.random.key(3), 4000)
    one, other = jax.jit(jax.vmap(lambda k: evolution.swap_rows(make(1.0), make(2.0), k)))(keys)
    assert float((one.weight == other.weight).mean()) == pytest.approx(of_weights, abs=0.01)
    assert float((one.bias == other.bias).mean()) == pytest.approx(of_biases, abs=0.01)


@pytest.mark.parametrize("rows", [1, 3])
def test_rows_are_copied_fewer_than_twice_their_number_of_times(rows):
    """With U{0 .. 2 rows - 1} copies a given row stays as it was in both with probability
    mean over c of (1 - 1/rows)^c; and each direction is as likely."""
    keys = jax.random.split(jax.random.key(5), 2000)
    zeros, ones = jnp.zeros((rows, 2)), jnp.ones((rows, 2))
    one, other = jax.jit(jax.vmap(lambda k: evolution.copy_rows(zeros, ones, 2 * rows, k)))(keys)
    one, other = np.asarray(one)[:, :, 0], np.asarray(other)[:, :, 0]
    untouched = np.mean((one == 0) & (other == 1))
    assert abs(untouched - np.mean([(1 - 1 / rows) ** c for c in range(2 * rows)])) < 0.04
    to_one, to_other = np.mean((one == 1) & (other == 1)), np.mean((one == 0) & (other == 0))
    assert abs(to_one - to_other) < 0.05
    # No copy at all: one chance in 2 * rows; a single row is copied then or never.
    none = np.mean(np.all((one == 0) & (other == 1), axis=1))
    assert abs(none - 1 / (2 * rows)) < 0.04
    # Every row was touched: needs at least `rows` copies.
    if rows > 1:
        all_touched = np.mean(np.all(one == other, axis=1))
        exact = np.mean([_all_rows_hit(rows, c) for c in range(2 * rows)])
        assert abs(all_touched - exact) < 0.04


def _all_rows_hit(rows: int, draws: int) -> float:
    """The chance that `draws` uniform draws hit each of three rows (inclusion and exclusion)."""
    assert rows == 3
    return 1 - 3 * (2 / 3) ** draws + 3 * (1 / 3) ** draws if draws else 0.0


def test_tournaments_favour_the_better_rank():
    """Best of 3 of 5 with replacement: rank r wins with ((6 - r)^3 - (5 - r)^3) / 5^3."""
    fitness = jnp.array([20.0, -5.0, 50.0, 30.0, 0.0])  # ranks 3, 5, 1, 2, 4
    winners = jax.jit(lambda k: evolution.tournaments(fitness, 3, 20_000, k))(jax.random.key(6))
    frequency = np.bincount(winners, minlength=5)[[2, 3, 0, 4, 1]] / 20_000
    np.testing.assert_allclose(frequency, [0.488, 0.296, 0.152, 0.056, 0.008], atol=0.014)
    assert frequency[4] < 0.012


def test_a_tournament_of_one_is_a_uniform_draw():
    fitness = jnp.array([1.0, 2.0, 3.0])
    winners = evolution.tournaments(fitness, 1, 3000, jax.random.key(7))
    np.testing.assert_allclose(np.bincount(winners, minlength=3) / 3000, 1 / 3, atol=0.04)


@functools.cache
def selections(tournament_size: int, num_keys: int = 3000) -> np.ndarray:
    """[generations, teams]: who was selected of five teams, from the worst to the best."""
    teams, as_it_is = jnp.zeros((5, 1)), lambda team, key: team
    pair = lambda first, second, key: (first, second)
    fitness = jnp.array([-5.0, 0.0, 20.0, 30.0, 50.0])
    breed = lambda k: (
        evolution.next_generation(teams, fitness, tournament_size, pair, as_it_is, k).selected
    )
    return np.asarray(jax.jit(jax.vmap(breed))(jax.random.split(jax.random.key(15), num_keys)))


def test_a_generation_has_one_tournament_for_each_place_but_the_elites():
    """Four for five teams. Tournaments of one are uniform draws, and so all four may have winners
    that differ, but no fifth team can be selected: with a fifth tournament it would be in 5! / 5^5
    of the generations, 115 of these 3000."""
    number = selections(tournament_size=1).sum(axis=1)
    assert number.max() == 4 and number.min() >= 1
    assert abs((number == 4).mean() - 120 / 625) < 0.03  # 5 * 4 * 3 * 2 of 5^4


def test_a_team_is_selected_if_any_of_four_tournaments_picks_it():
    """1 - (1 - p)^4, where p is the chance of its rank: best of 3 of 5 with replacement."""
    p = np.array([0.008, 0.056, 0.152, 0.296, 0.488])
    share = selections(tournament_size=3).mean(axis=0)
    np.testing.assert_allclose(share, 1 - (1 - p) ** 4, atol=0.03)
    assert abs(share[2] - (1 - (1 - p[2]) ** 5)) > 0.04  # five would show


def test_ranks_count_from_the_lowest_score_of_each_column():
    scores = np.random.default_rng(0).normal(size=(7, 3))
    expected = (scores[:, None, :] > scores[None, :, :]).sum(axis=1)
    np.testing.assert_array_equal(evolution.ranks(jnp.asarray(scores, jnp.float32)), expected)


def test_random_ranks_order_the_candidates_at_random_and_put_the_others_behind():
    candidates = jnp.array([True, False, True, True, False])
    keys = jax.random.split(jax.random.key(16), 600)
    found = np.asarray(jax.vmap(lambda k: evolution.random_ranks(candidates, k))(keys))
    assert np.all(np.sort(found[:, [0, 2, 3]], axis=1) == np.arange(3))
    assert np.all(np.sort(found[:, [1, 4]], axis=1) == [3, 4])
    orders, counts = np.unique(found[:, [0, 2, 3]], axis=0, return_counts=True)
    assert len(orders) == 6 and np.all(np.abs(counts / 600 - 1 / 6) < 0.06)


def test_parents_are_drawn_from_all_that_were_selected_alike():
    selected = jnp.array([False, True, False, True, True])
    keys = jax.random.split(jax.random.key(17), 600)
    parents = np.asarray(jax.vmap(lambda k: evolution.draw_parents(selected, k))(keys))
    share = np.bincount(parents.reshape(-1), minlength=5) / parents.size
    np.testing.assert_allclose(share, [0, 1 / 3, 0, 1 / 3, 1 / 3], atol=0.04)


FEATURES, ACTIONS = 40, 4000


@functools.cache
def mutated(
    fraction: float = 0.5, count: evolution.MutationCount = "bernoulli", value: float = 1000.0
) -> np.ndarray:
    """Many actions of one agent, whose weights were all `value`."""
    weight = jnp.full((FEATURES, ACTIONS), value)
    return np.asarray(
        jax.jit(lambda w, k: evolution.mutate_agent(w, fraction, count, k))(
            weight, jax.random.key(8)
        )
    )


def kinds(new: np.ndarray) -> dict[str, np.ndarray]:
    """Which actions mutated by which kind, told from all weights 1000: reset leaves nothing of the
    1000; normal stays near it."""
    chosen = new != 1000.0
    size = np.where(chosen, np.abs(new), np.nan)
    shift = np.where(chosen, np.abs(new / 1000 - 1), np.nan)
    reset = np.nanmedian(size, axis=0) < 10
    normal = ~reset & (np.nanmedian(shift, axis=0) < 0.5)
    return {"super": ~reset & ~normal, "reset": reset, "normal": normal}


def test_a_mutation_touches_each_weight_with_probability_alpha():
    touched = mutated() != 1000.0
    assert abs(touched.mean() - 0.5) < 0.01
    counts = touched.sum(0)
    assert abs(counts.var() - FEATURES * 0.25) < 1.5  # binomial, not a fixed count


def test_kinds_of_mutation_come_5_5_and_90_times_in_100():
    frequency = {name: chosen.mean() for name, chosen in kinds(mutated()).items()}
    assert abs(frequency["super"] - 0.05) < 0.015
    assert abs(frequency["reset"] - 0.05) < 0.015
    assert abs(frequency["normal"] - 0.90) < 0.02


def test_kinds_of_mutation_have_their_spreads():
    new = mutated()
    kind = kinds(new)
    shift = lambda which: (new[:, kind[which]] - 1000.0)[new[:, kind[which]] != 1000.0]
    reset = new[:, kind["reset"]][new[:, kind["reset"]] != 1000.0]
    assert abs(shift("super").std() / 1000 - 10) < 0.6 and abs(shift("super").mean() / 1000) < 0.7
    assert (
        abs(shift("normal").std() / 1000 - 0.1) < 0.003
        and abs(shift("normal").mean() / 1000) < 0.002
    )
    assert abs(reset.std() - 1) < 0.06 and abs(reset.mean()) < 0.07


def test_all_chosen_weights_of_an_action_mutate_by_one_kind():
    new = mutated()
    kind, chosen = kinds(new), new != 1000.0
    assert np.abs(new[:, kind["reset"]][chosen[:, kind["reset"]]]).max() < 10
    assert np.abs(new[:, kind["normal"]] / 1000 - 1).max() < 0.8
    near = np.abs(new[:, kind["super"]] / 1000 - 1)[chosen[:, kind["super"]]] < 0.5
    assert near.mean() < 0.08  # a normal deviate is within 0.05 of 0 in 4 of 100 draws


def test_noise_of_a_mutation_is_drawn_for_each_weight():
    new = mutated()
    column = new[:, kinds(new)["normal"]][:, 0]
    assert len(np.unique(column[column != 1000.0])) == np.sum(column != 1000.0)


def test_mutated_weights_stay_within_a_million():
    new = mutated(fraction=1.0, value=5e5)
    assert np.abs(new).max() == 1e6
    assert new.min() == -1e6


@pytest.mark.parametrize(
    ("fraction", "count"), [(0.7, 28), (0.2, 8), (1.0, 40), (0.024, 0), (0.025, 1), (0.999, 39)]
)
def test_floor_chooses_exactly_so_many_weights_of_every_action(fraction, count):
    choose = jax.jit(lambda k: evolution.choose_weights((FEATURES, 30), fraction, "floor", k))
    chosen = np.asarray(choose(jax.random.key(9)))
    assert np.all(chosen.sum(0) == count)
    if 0 < count < FEATURES:
        assert not np.all(chosen == chosen[:, :1])  # drawn for each action on its own


def test_floor_counts_in_hundredths_are_those_of_exact_arithmetic():
    """300 features, alpha 0.01 .. 1.00: 3 * hundredths; binary fractions may not lose one."""
    for hundredths in range(1, 101):
        choose = lambda alpha=hundredths / 100: evolution.choose_weights(
            (300, 1), alpha, "floor", jax.random.key(0)
        )
        fixed = int(hundredths / 100 * 300 + 1e-9)
        assert fixed == 3 * hundredths
    assert choose().sum() == 300


def test_no_mutation_at_a_small_alpha_with_floor():
    np.testing.assert_array_equal(mutated(fraction=0.01, count="floor"), 1000.0)


def test_zero_weights_stay_zero_unless_reset():
    new = mutated(fraction=1.0, value=0.0)
    alive = np.any(new != 0, axis=0)
    assert abs(alive.mean() - 0.05) < 0.015
    assert np.all(new[:, alive] != 0) and abs(new[:, alive].std() - 1) < 0.05


@functools.cache
def mutated_weights(fraction: float, probability: float = 0.9, num_keys: int = 2000) -> np.ndarray:
    weight = jnp.full((6, 5), 1000.0)
    keys = jax.random.split(jax.random.key(10), num_keys)
    mutate = lambda k: evolution.mutate_weights(weight, fraction, probability, k)
    return np.asarray(jax.jit(jax.vmap(mutate))(keys)).reshape(num_keys, -1)


@pytest.mark.parametrize(("fraction", "ceiling"), [(0.31, 10), (0.3, 9), (0.01, 1)])
def test_single_weights_mutate_fewer_than_alpha_of_all(fraction, ceiling):
    counts = (mutated_weights(fraction) != 1000.0).sum(1)
    assert counts.max() == ceiling - 1


def test_single_weights_mutate_with_a_probability_that_is_drawn_too():
    """u < v * 0.9 with u in [0, 1) and v in [0, 2): 13/18; then one count in 10 is 0, and the
    others are as likely."""
    counts = (mutated_weights(0.31) != 1000.0).sum(1)
    frequency = np.bincount(counts, minlength=10) / len(counts)
    gate = 13 / 18
    np.testing.assert_allclose(frequency, [1 - 0.9 * gate, *[gate / 10] * 9], atol=0.045)


def test_single_weights_mutate_anywhere_each_by_its_own_kind():
    new = mutated_weights(0.31)
    touched = new != 1000.0
    share = touched.mean(0)
    assert np.all(np.abs(share / share.mean() - 1) < 0.3)
    reset = (np.abs(new) < 6) & touched
    assert abs(reset.sum() / touched.sum() - 0.05) < 0.015
    assert np.any(reset.any(1) & (touched & ~reset).any(1))  # two kinds in one mutation


def test_single_weights_never_mutate_with_probability_0():
    np.testing.assert_array_equal(mutated_weights(0.5, probability=0.0, num_keys=50), 1000.0)


@pytest.mark.parametrize(
    ("injected", "outcome"),
    [
        (1, "injected_elite"),
        (3, "injected_selected"),
        (2, "injected_discarded"),
        (4, "injected_discarded"),
    ],
)
def test_the_outcome_of_the_injected_team_is_one_of_three(injected, outcome):
    selected = jnp.array([True, True, False, True, False])  # the elite, slot 1, was selected, too
    metrics = evolution.injection_outcome(
        jnp.int32(injected), evolution.Generation((), jnp.int32(1), selected)
    )
    names = ("injected_elite", "injected_selected", "injected_discarded")
    assert {name: float(value) for name, value in metrics.items()} == {
        name: float(name == outcome) for name in names
    }


def test_an_elite_that_won_no_tournament_still_counts_as_elite():
    generation = evolution.Generation((), jnp.int32(1), jnp.array([True, False, True]))
    metrics = evolution.injection_outcome(jnp.int32(1), generation)
    assert metrics["injected_elite"] == 1 and metrics["injected_discarded"] == 0


def test_before_the_first_injection_there_is_no_outcome():
    metrics = evolution.injection_outcome(
        jnp.int32(-1), evolution.Generation((), jnp.int32(1), jnp.array([True, False, True]))
    )
    assert len(metrics) == 3 and all(np.isnan(value) for value in metrics.values())


@pytest.mark.parametrize(
    ("fitness", "slot"),
    [
        ((3.0, 50.0, -4.0, 20.0, 7.0), 2),
        ((-3.0, -50.0, -4.0, -2.0, -7.0), 1),
        ((5.0, 5.0, 5.0, 5.0, 4.0), 4),
        ((5.0, 5.0, 9.0, 5.0, 5.0), 0),
        ((5.0, 5.0, 5.0, 5.0, 5.0), 1),  # all equal: next to the elite
    ],
)
def test_the_worst_slot_is_never_the_elites(fitness, slot):
    elite = jnp.argmax(jnp.array(fitness))
    assert int(evolution.replacement_index(jnp.array(fitness), elite)) == slot != int(elite)


def test_copying_agents_overwrites_one_way_so_that_both_offspring_are_equal():
    keys = jax.random.split(jax.random.key(3), 200)
    one, other = jax.jit(jax.vmap(lambda k: evolution.copy_agents(team_of(1), team_of(2), k)))(keys)
    source = np.asarray(one["bias"])[:, :, 0] // 100  # [keys, agents]
    for name in ("weight", "bias"):
        np.testing.assert_array_equal(one[name], other[name])
        whole = np.stack([team_of(1)[name], team_of(2)[name]])
        # Weights and bias together, each agent in its place
        picked = whole[source.astype(int) - 1, np.arange(4)]
        np.testing.assert_array_equal(one[name], picked)
    assert (
        np.all(np.abs((source == 2).mean(0) - 0.5) < 0.15)
        and len({tuple(row) for row in source}) == 16
    )


def test_each_name_of_a_crossover_is_its_operator():
    one, other, key = make_linear(1), make_linear(2), jax.random.key(11)
    names: dict[evolution.Crossover, evolution.Cross] = {
        "agent": evolution.swap_agents,
        "copy": evolution.copy_agents,
    }
    for kind, operator in names.items():
        found, expected = evolution.cross_heads(kind, one, other, key), operator(one, other, key)
        for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            np.testing.assert_array_equal(a, b)


def make_linear(number: int) -> Linear:
    team = team_of(number)
    return jax.vmap(linear)(team["weight"], team["bias"])


# Whole networks


class Net(eqx.Module):
    """Layers like those of real teams: plain, stacked by agents, stacked by gates; and numbers that
    are no weights."""

    plain: Linear
    stacked: Linear
    gates: GatedLinear
    norm: LayerNorm


SHAPES = Net(
    plain=linear(np.zeros((3, 4)), np.zeros(4)),
    stacked=eqx.tree_at(
        lambda m: (m.weight, m.bias),
        linear(np.zeros((3, 4)), np.zeros(4)),
        (jnp.zeros((2, 5, 2)), jnp.zeros((2, 2))),
    ),
    gates=GatedLinear(3, 4, key=jax.random.key(0)),
    norm=LayerNorm(4),
)


def net_of(number: float) -> Net:
    return jax.tree.map(lambda x: jnp.full(x.shape, number, jnp.float32), SHAPES)


@functools.cache
def networks_crossed() -> tuple[Net, Net]:
    keys = jax.random.split(jax.random.key(12), 300)
    cross = lambda k: evolution.cross_networks(net_of(1.0), net_of(2.0), k)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(cross))(keys))


def weights_of(net: Net) -> list:
    return [net.plain.weight, net.stacked.weight, net.gates.weight]


def test_crossing_networks_copies_all_weights_into_a_unit_as_one():
    one, _ = networks_crossed()
    for weight, like in zip(weights_of(one), weights_of(SHAPES), strict=True):
        assert weight.shape[1:] == like.shape and set(np.unique(weight)) == {1.0, 2.0}
        np.testing.assert_array_equal(weight, np.broadcast_to(weight[..., :1, :], weight.shape))
        units = weight[..., 0, :].reshape(300, -1)
        assert np.all((units == 2).mean(0) > 0.1) and np.any(
            (units == 2).any(1) & (units == 1).any(1)
        )


def test_crossing_networks_overwrites_one_way_and_draws_weights_and_biases_apart():
    one, other = networks_crossed()
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        changed = (a != 1.0) | (b != 2.0)
        np.testing.assert_array_equal(a[changed], b[changed])
        assert set(np.unique(a)) == {1.0, 2.0} and 0.2 < changed.mean() < 0.8
    layers = (
        (one.plain.weight[:, 0], one.plain.bias),
        (one.stacked.weight[:, :, 0], one.stacked.bias),
    )
    for units, biases in layers:
        assert np.any(units != biases)


@functools.cache
def networks_mutated() -> Net:
    keys = jax.random.split(jax.random.key(13), 2000)
    mutate = lambda k: evolution.mutate_networks(net_of(1000.0), 0.5, 0.9, k)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(mutate))(keys))


def test_biases_and_what_normalises_never_mutate():
    net = networks_mutated()
    for leaf in (net.plain.bias, net.stacked.bias, net.gates.bias, net.norm.scale, net.norm.offset):
        np.testing.assert_array_equal(leaf, 1000.0)
    assert all((weight != 1000.0).any() for weight in weights_of(net))


def test_a_network_mutates_at_its_probability_and_each_matrix_at_odds_that_are_drawn():
    """rand < U(0, 2) holds 3 times in 4. Then of a matrix's weights a share U(0, 0.5) changes: 1/4
    on average."""
    touched = np.stack(
        [(w != 1000.0).reshape(2000, -1).mean(1) for w in weights_of(networks_mutated())]
    )
    np.testing.assert_allclose(touched.mean(1), 0.9 * 0.75 / 4, atol=0.015)
    size = [np.prod(w.shape) for w in weights_of(SHAPES)]
    none = [np.mean([(1 - p) ** n for p in np.linspace(0, 0.5, 1001)]) for n in size]
    expected = [0.9 * 0.75 * (1 - p) for p in none]
    np.testing.assert_allclose((touched > 0).mean(1), expected, atol=0.04)
    # The gate is one for the whole network: matrices stay untouched together more often than on
    # their own.
    alone, together = (touched == 0).mean(1).prod(), (touched == 0).all(0).mean()
    assert together > alone + 0.04


def test_weights_of_a_network_mutate_each_by_its_own_kind():
    new = networks_mutated().gates.weight
    chosen = new != 1000.0
    assert abs((np.abs(new[chosen]) < 6).mean() - 0.05) < 0.01  # reset
    near = np.abs(new[chosen] / 1000 - 1) < 0.45
    assert abs(near.mean() - (0.90 + 0.05 * 0.036)) < 0.01  # normal, and a few that are super
    assert np.abs(new).max() <= 1e6


def test_breeding_networks_keeps_the_elite_bit_for_bit_and_mutates_every_other_team_once():
    population = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 2)), jnp.float32)
    teams = jax.vmap(linear)(population, jnp.zeros((4, 2)))
    add_1 = lambda team, k: eqx.tree_at(lambda t: t.bias, team, team.bias + 1.0)
    breed = lambda k: evolution.next_generation(
        teams, jnp.array([1.0, 5.0, 2.0, 3.0]), 3, evolution.cross_networks, add_1, k
    )
    after = jax.jit(jax.vmap(breed))(jax.random.split(jax.random.key(14), 50))
    assert (np.asarray(after.elite) == 1).all()
    np.testing.assert_array_equal(
        after.teams.bias, np.tile(np.array([1, 0, 1, 1])[:, None], (50, 1, 2))
    )
    weight, selected = np.asarray(after.teams.weight), np.asarray(after.selected)
    np.testing.assert_array_equal(weight[:, 1], np.broadcast_to(population[1], (50, 3, 2)))
    generation, team = np.nonzero(selected)
    np.testing.assert_array_equal(weight[generation, team], np.asarray(population)[team])
    # Every unit of whoever is replaced comes from a team as a whole.
    # [.., team, unit, of]
    from_teams = np.stack([(weight == np.asarray(one)).all(-2) for one in population], axis=-1)
    assert from_teams.any(-1).all()
