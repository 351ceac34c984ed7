"""Evolution of teams: selection, crossover and mutation.

A team is a pytree: of linear policies whose leaves lead with `agents`, or of whole networks. The
teams of a population are one such pytree whose leaves lead with `teams`. Crossover is written for
two teams and mutation for one; `next_generation` maps them over a population.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from comarl.nn.mlp import Linear
from comarl.types import Index, Key, Metrics, tree_where

Cross = Callable[[PyTree, PyTree, Key], tuple[PyTree, PyTree]]
Mutate = Callable[[PyTree, Key], PyTree]
Crossover = Literal["agent", "copy", "parameter"]
Mutation = Literal["agent", "parameter"]
MutationCount = Literal["bernoulli", "floor"]


class Generation(NamedTuple):
    """A population after selection, crossover and mutation."""

    teams: PyTree  # leaves [teams, ...]
    elite: Int[Array, ""]  # the slot of the best team, which is unchanged
    selected: Bool[Array, " teams"]  # who won a tournament


def next_generation(
    teams: PyTree,
    fitness: Float[Array, " teams"],
    tournament_size: int,
    cross: Cross,
    mutate: Mutate,
    key: Key,
) -> Generation:
    """The next generation of `teams` (RACE, Sec. 3.3; the scheme is ERL's, Khadka & Tumer, 2018).

    The best team, the elite, stays as it is. Tournaments select others. Teams that are neither
    elite nor selected are replaced, in pairs, by the two offspring of the elite and a random
    selected team; a last one without a partner gets the first offspring of a pair of its own. Then
    every team but the elite may mutate. `cross` and `mutate` are for two teams and for one.

    >>> teams = jnp.array([[10.0], [20.0], [30.0]])  # three teams of one number
    >>> halves = lambda first, second, key: ((first + second) / 2, (first + second) / 2)
    >>> as_it_is = lambda team, key: team
    >>> fitness = jnp.array([5.0, 9.0, 1.0])
    >>> generation = next_generation(teams, fitness, 2, halves, as_it_is, jax.random.key(1))
    >>> generation.selected.tolist(), generation.teams[:, 0].tolist()
    ([True, True, False], [10.0, 20.0, 15.0])
    """
    size = fitness.shape[0]
    select_key, order_key, parent_key, cross_key, mutate_key = jax.random.split(key, 5)

    elite = jnp.argmax(fitness)
    is_elite = jnp.arange(size) == elite
    # One tournament for each place but the elite's. A team may win several, so fewer may stay.
    winners = tournaments(fitness, tournament_size, size - 1, select_key)
    selected = jnp.zeros(size, bool).at[winners].set(True)
    replaced = ~selected & ~is_elite

    # Two neighbours in a random order of those replaced are a pair: ranks 0 and 1, 2 and 3, ...
    rank = random_ranks(replaced, order_key)
    pair = rank // 2
    is_second = rank % 2 == 1
    # Both of a pair share parent and key, and so are the two offspring of one crossover.
    parent = draw_parents(selected, parent_key)[pair]
    pair_key = jax.random.split(cross_key, size)[pair]

    def offspring(parent: Int[Array, ""], is_second: Bool[Array, ""], key: Key) -> PyTree:
        first, second = cross(take_team(teams, elite), take_team(teams, parent), key)
        return tree_where(is_second, second, first)

    # Under vmap every slot computes offspring and mutant; only those of its own case are kept.
    children = jax.vmap(offspring)(parent, is_second, pair_key)
    teams = where_leading(replaced, children, teams)
    mutants = jax.vmap(mutate)(teams, jax.random.split(mutate_key, size))
    teams = where_leading(~is_elite, mutants, teams)
    return Generation(teams, elite, selected)


def tournaments(
    fitness: Float[Array, " teams"], tournament_size: int, num_tournaments: int, key: Key
) -> Int[Array, " tournaments"]:
    """The winner of each tournament: the best of `tournament_size` teams drawn with replacement.

    >>> tournaments(jnp.array([5.0, 9.0, 1.0]), 20, 4, jax.random.key(0)).tolist()
    [1, 1, 1, 1]
    """
    rivals = jax.random.randint(key, (num_tournaments, tournament_size), 0, fitness.shape[0])
    best_rival = jnp.argmax(fitness[rivals], axis=1)
    return jnp.take_along_axis(rivals, best_rival[:, None], axis=1)[:, 0]


def random_ranks(candidates: Bool[Array, " slots"], key: Key) -> Int[Array, " slots"]:
    """The place of each candidate, from 0, in a random order of them; all others come after.

    >>> ranks = random_ranks(jnp.array([False, True, True, False]), jax.random.key(0))
    >>> sorted(ranks.tolist()), sorted(ranks[1:3].tolist())
    ([0, 1, 2, 3], [0, 1])
    """
    random_scores = jax.random.uniform(key, candidates.shape)
    # Scores are below 1, so a score of 2 puts those who are no candidates behind all who are.
    return ranks(jnp.where(candidates, random_scores, 2.0))


def ranks(scores: Float[Array, "rows *columns"]) -> Int[Array, "rows *columns"]:
    """The rank of each score in its column, from 0 for the lowest.

    >>> ranks(jnp.array([0.5, 0.1, 0.9])).tolist()
    [1, 0, 2]
    """
    # The first sort tells which row has each rank; the inverse of that permutation, which is its
    # own argsort, tells which rank each row has.
    row_of_rank = jnp.argsort(scores, axis=0)
    return jnp.argsort(row_of_rank, axis=0)


def draw_parents(selected: Bool[Array, " teams"], key: Key) -> Int[Array, " pairs"]:
    """A random selected team for each of as many pairs as there are teams.

    All that were selected are as likely, however many tournaments they won.
    """
    size = selected.shape[0]
    random_scores = jax.random.uniform(key, (size, size))
    return jnp.argmax(jnp.where(selected, random_scores, -1.0), axis=1)


def take_team(teams: PyTree, index: Index) -> PyTree:
    """One team of several that are stacked."""
    return jax.tree.map(lambda w: w[index], teams)


def where_leading(condition: Bool[Array, " items"], new: PyTree, old: PyTree) -> PyTree:
    """`new` for those items of the leading axis for which `condition` holds, else `old`.

    >>> where_leading(jnp.array([True, False]), jnp.ones((2, 2)), jnp.zeros((2, 2))).tolist()
    [[1.0, 1.0], [0.0, 0.0]]
    """

    def one_leaf(n: Array, o: Array) -> Array:
        return jnp.where(condition.reshape(-1, *[1] * (n.ndim - 1)), n, o)

    return jax.tree.map(one_leaf, new, old)


def replacement_index(fitness: Float[Array, " teams"], elite: Int[Array, ""]) -> Int[Array, ""]:
    """Where an injected team goes: the slot of the worst team.

    If that is the elite's, as all are equal, it is the next one.

    >>> int(replacement_index(jnp.array([5.0, 9.0, 1.0]), jnp.int32(1)))
    2
    """
    worst = jnp.argmin(fitness)
    return jnp.where(worst == elite, (worst + 1) % fitness.shape[0], worst)


def injection_outcome(injected: Int[Array, ""], generation: Generation) -> Metrics:
    """Whether the team injected last became elite, was else selected, or discarded (RACE, Fig. 4).

    One of the three is 1. All are NaN before the first injection, as there is nothing to count.
    """
    is_elite = injected == generation.elite
    is_selected = generation.selected[injected] & ~is_elite
    outcomes = {
        "injected_elite": is_elite,
        "injected_selected": is_selected,
        "injected_discarded": ~is_elite & ~is_selected,
    }
    return {
        name: jnp.where(injected < 0, jnp.nan, holds.astype(jnp.float32))
        for name, holds in outcomes.items()
    }


# Teams of linear policies


def cross_heads(kind: Crossover, first: Linear, second: Linear, key: Key) -> tuple[Linear, Linear]:
    """The two offspring of two teams of linear policies, by the operator named `kind`."""
    if kind == "agent":
        return swap_agents(first, second, key)
    if kind == "copy":
        return copy_agents(first, second, key)
    return jax.vmap(swap_rows)(first, second, jax.random.split(key, first.bias.shape[0]))


def mutate_heads(
    kind: Mutation,
    team: Linear,
    fraction: float,
    count: MutationCount,
    probability: float,
    key: Key,
) -> Linear:
    """A team of which each agent's linear policy mutates or stays, on its own.

    Of "agent" the chance is `probability`; "parameter" draws a chance of its own from it
    (`mutate_weights`).
    """

    def one_agent(
        weight: Float[Array, "features action"], key: Key
    ) -> Float[Array, "features action"]:
        if kind == "parameter":
            return mutate_weights(weight, fraction, probability, key)
        gate_key, mutate_key = jax.random.split(key)
        mutant = mutate_agent(weight, fraction, count, mutate_key)
        return jnp.where(jax.random.bernoulli(gate_key, probability), mutant, weight)

    weight = jax.vmap(one_agent)(team.weight, jax.random.split(key, team.weight.shape[0]))
    return eqx.tree_at(lambda t: t.weight, team, weight)


def swap_agents(first: PyTree, second: PyTree, key: Key) -> tuple[PyTree, PyTree]:
    """Agent-level crossover (RACE, Sec. 3.3): two teams exchange the whole policies of a random
    subset of agents.

    >>> zeros, ones = jnp.zeros((4, 1)), jnp.ones((4, 1))  # two teams of four agents
    >>> one, other = swap_agents(zeros, ones, jax.random.key(1))
    >>> one[:, 0].tolist(), other[:, 0].tolist()
    ([1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 0.0])
    """
    num_agents = jax.tree.leaves(first)[0].shape[0]
    swap = jax.random.bernoulli(key, 0.5, (num_agents,))
    return where_leading(swap, second, first), where_leading(swap, first, second)


def copy_agents(first: PyTree, second: PyTree, key: Key) -> tuple[PyTree, PyTree]:
    """The crossover of RACE's released code: for each agent one of the two policies overwrites the
    other, so that both offspring are equal."""
    num_agents = jax.tree.leaves(first)[0].shape[0]
    from_first = jax.random.bernoulli(key, 0.5, (num_agents,))
    child = where_leading(from_first, first, second)
    return child, child


def swap_rows(first: Linear, second: Linear, key: Key) -> tuple[Linear, Linear]:
    """Parameter-level crossover, the operator of ERL that Fig. 6a compares with, for one agent of
    two teams.

    A random number of times, below twice the number of action rows, a random row of weights is
    copied from one policy to the other, in a random direction; then single biases, by draws of
    their own and half as often.
    """
    weight_key, bias_key = jax.random.split(key)
    rows = first.bias.shape[0]
    weights = copy_rows(first.weight.T, second.weight.T, 2 * rows, weight_key)
    biases = copy_rows(first.bias[:, None], second.bias[:, None], rows, bias_key)

    def build(weight: Float[Array, "action features"], bias: Float[Array, "action 1"]) -> Linear:
        return eqx.tree_at(lambda head: (head.weight, head.bias), first, (weight.T, bias[:, 0]))

    return build(weights[0], biases[0]), build(weights[1], biases[1])


def copy_rows(
    first: Float[Array, "rows width"], second: Float[Array, "rows width"], below: int, key: Key
) -> tuple[Float[Array, "rows width"], Float[Array, "rows width"]]:
    """Copies U{0 .. below - 1} random rows, one after the other, each in a random direction."""
    rows = first.shape[0]
    count_key, row_key, direction_key = jax.random.split(key, 3)
    count = jax.random.randint(count_key, (), 0, below)
    chosen = jax.random.randint(row_key, (below,), 0, rows)
    from_first = jax.random.bernoulli(direction_key, 0.5, (below,))

    def copy(i: Int[Array, ""], pair: tuple[Array, Array]) -> tuple[Array, Array]:
        a, b = pair
        row = chosen[i]
        source = jnp.where(from_first[i], a[row], b[row])
        return a.at[row].set(source), b.at[row].set(source)

    return jax.lax.fori_loop(0, count, copy, (first, second))


def perturb(
    weight: Float[Array, "*stack features action"],
    chosen: Bool[Array, "*stack features action"],
    kind: Float[Array, "*stack #features action"],
    key: Key,
) -> Float[Array, "*stack features action"]:
    """Changes the chosen weights by the kind drawn for them, uniform in [0, 1):

    - below 0.05 "super": adds N(0, (10 w)^2),
    - below 0.10 "reset": draws N(0, 1) anew,
    - else "normal":      adds N(0, (0.1 w)^2).

    The noise is relative to the weight (ERL; RACE, Sec. 3.3); weights stay within 1e6.

    >>> weight, kind = jnp.array([[2.0, 2.0]]), jnp.array([[0.5, 0.5]])
    >>> changed = perturb(weight, jnp.array([[False, True]]), kind, jax.random.key(0))
    >>> (changed != weight).tolist()
    [[False, True]]
    """
    noise = jax.random.normal(key, weight.shape)
    super_mutant = weight + 10.0 * weight * noise
    normal_mutant = weight + 0.1 * weight * noise
    reset_or_normal = jnp.where(kind < 0.10, noise, normal_mutant)
    mutant = jnp.where(kind < 0.05, super_mutant, reset_or_normal)
    return jnp.clip(jnp.where(chosen, mutant, weight), -1e6, 1e6)


def choose_weights(
    shape: tuple[int, int], fraction: float, count: MutationCount, key: Key
) -> Bool[Array, "features action"]:
    """Which weights a mutation touches: each with probability `fraction`, or floor(fraction *
    features) per column.

    >>> choose_weights((4, 3), 0.5, "floor", jax.random.key(0)).sum(axis=0).tolist()
    [2, 2, 2]
    """
    if count == "bernoulli":
        return jax.random.bernoulli(key, fraction, shape)
    random_scores = jax.random.uniform(key, shape)
    # The small number keeps what binary fractions would lose: 0.29 * 100 is 28.999999999999996.
    return ranks(random_scores) < int(fraction * shape[0] + 1e-9)


def mutate_agent(
    weight: Float[Array, "features action"], fraction: float, count: MutationCount, key: Key
) -> Float[Array, "features action"]:
    """Agent-level mutation (RACE, Sec. 3.3): for each action, a fraction of its input weights, all
    by one kind.

    Biases are never mutated.
    """
    chosen_key, kind_key, noise_key = jax.random.split(key, 3)
    features, actions = weight.shape
    chosen = choose_weights((features, actions), fraction, count, chosen_key)
    kind = jax.random.uniform(kind_key, (1, actions))
    return perturb(weight, chosen, kind, noise_key)


def mutate_weights(
    weight: Float[Array, "features action"], fraction: float, probability: float, key: Key
) -> Float[Array, "features action"]:
    """Parameter-level mutation, ERL's, that Fig. 6b compares with: fewer than ceil(fraction *
    weights) single weights, each by a kind of its own, and nothing at all with a probability that
    is itself drawn."""
    gate_key, rate_key, count_key, rank_key, kind_key, noise_key = jax.random.split(key, 6)
    mutates = jax.random.uniform(gate_key) < jax.random.uniform(rate_key, maxval=2.0) * probability
    ceiling = math.ceil(fraction * weight.size)
    count = jax.random.randint(count_key, (), 0, max(ceiling, 1))
    random_scores = jax.random.uniform(rank_key, (weight.size,))
    chosen = (ranks(random_scores) < count).reshape(weight.shape)
    kind = jax.random.uniform(kind_key, weight.shape)
    return perturb(weight, chosen & mutates, kind, noise_key)


# Teams of whole networks


def cross_networks(first: PyTree, second: PyTree, key: Key) -> tuple[PyTree, PyTree]:
    """ERL's crossover of whole networks (Khadka & Tumer, 2018): in every layer random rows of
    weights, those into one unit, are copied from one network to the other, each in a random
    direction; biases by draws of their own, half as often."""
    leaves, structure = jax.tree.flatten_with_path(first)
    keys = jax.random.split(key, len(leaves))
    crossed = [
        cross_leaves(path, a, b, leaf_key)
        for (path, a), b, leaf_key in zip(leaves, jax.tree.leaves(second), keys, strict=True)
    ]
    return structure.unflatten([a for a, _ in crossed]), structure.unflatten(
        [b for _, b in crossed]
    )


def cross_leaves(path: tuple, first: Array, second: Array, key: Key) -> tuple[Array, Array]:
    """The crossover of one leaf of two networks."""
    ours, theirs = as_rows(path, first), as_rows(path, second)
    below = ours.shape[0] * (2 if is_weight(path) else 1)  # as in ERL's code
    rows, other_rows = copy_rows(ours, theirs, below, key)
    return from_rows(path, rows, first), from_rows(path, other_rows, first)


def mutate_networks(team: PyTree, fraction: float, probability: float, key: Key) -> PyTree:
    """ERL's mutation of whole networks: with `probability` the team mutates; then each matrix of
    weights does at even odds that are drawn too, rand() < U(0, 2), in at most a `fraction` of its
    weights. Biases never change."""
    gate_key, leaves_key = jax.random.split(key)
    gate = jax.random.bernoulli(gate_key, probability)
    leaves, structure = jax.tree.flatten_with_path(team)

    def one_leaf(path: tuple, leaf: Array, key: Key) -> Array:
        if not is_weight(path):
            return leaf
        odds_key, rate_key, share_key, chosen_key, kind_key, noise_key = jax.random.split(key, 6)
        mutates = gate & (jax.random.uniform(odds_key) < jax.random.uniform(rate_key, maxval=2.0))
        share = jax.random.uniform(share_key, maxval=fraction)
        chosen = jax.random.bernoulli(chosen_key, share, leaf.shape) & mutates
        return perturb(leaf, chosen, jax.random.uniform(kind_key, leaf.shape), noise_key)

    keys = jax.random.split(leaves_key, len(leaves))
    mutated = [one_leaf(path, leaf, k) for (path, leaf), k in zip(leaves, keys, strict=True)]
    return structure.unflatten(mutated)


def is_weight(path: tuple) -> bool:
    """Whether a leaf is a layer's weights `[..., inputs, outputs]`; else it has one number per
    unit."""
    return getattr(path[-1], "name", "") == "weight"


def as_rows(path: tuple, leaf: Array) -> Float[Array, "units width"]:
    """One row per unit: the weights into it, or its one number."""
    if not is_weight(path):
        return leaf.reshape(-1, 1)
    return jnp.swapaxes(leaf, -1, -2).reshape(-1, leaf.shape[-2])


def from_rows(path: tuple, rows: Float[Array, "units width"], like: Array) -> Array:
    """The leaf, of the shape of `like`, of which `as_rows` made these rows."""
    if not is_weight(path):
        return rows.reshape(like.shape)
    *stack, inputs, outputs = like.shape
    return jnp.swapaxes(rows.reshape(*stack, outputs, inputs), -1, -2)
