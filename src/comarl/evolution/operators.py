"""Evolution of teams. A team is a pytree, of linear policies whose leaves lead with `agents` or of
whole networks; a population adds `teams` before.

Operators are written for one team, or one agent of a team; the algorithm maps them over the
population.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from comarl.nn.mlp import Linear
from comarl.types import Key, Metrics


class Generation(NamedTuple):
    """A population after selection, crossover and mutation."""

    teams: PyTree  # leaves [teams, agents, ...]
    elite: Int[Array, ""]  # the slot of the best team, which is unchanged
    selected: Bool[Array, " teams"]  # who won a tournament


Cross = Callable[[PyTree, PyTree, Key], tuple[PyTree, PyTree]]
Mutate = Callable[[PyTree, Key], PyTree]
Crossover = Literal["agent", "copy", "parameter"]
Mutation = Literal["agent", "parameter"]


def next_generation(
    population: PyTree,
    fitness: Float[Array, " teams"],
    tournament_size: int,
    cross: Cross,
    mutate: Mutate,
    key: Key,
) -> Generation:
    """The next generation (RACE, Sec. 3.3; the scheme is ERL's, Khadka & Tumer, 2018).

    The best team, the elite, stays as it is. Tournaments select parents. Teams that are neither
    elite nor selected are replaced in pairs, in random order, by the two offspring of the elite and
    a random selected team; a last one without partner gets the first offspring. Then every team but
    the elite may mutate. `cross` and `mutate` are for one pair of teams and one team.
    """
    size = fitness.shape[0]
    select_key, order_key, parent_key, cross_key, mutate_key = jax.random.split(key, 5)
    elite = jnp.argmax(fitness)
    winners = tournaments(fitness, tournament_size, size - 1, select_key)
    selected = jnp.zeros(size, bool).at[winners].set(True)
    replaced = ~selected & (jnp.arange(size) != elite)

    shuffled = jnp.argsort(jnp.where(replaced, jax.random.uniform(order_key, replaced.shape), 2.0))
    place = jnp.argsort(shuffled)  # of each slot among those replaced
    pair, is_second = place // 2, place % 2 == 1
    lots = jax.random.uniform(parent_key, (size, size))
    parent = jnp.argmax(jnp.where(selected, lots, -1.0), axis=1)[pair]
    best = jax.tree.map(lambda w: w[elite], population)

    def offspring(parent: Int[Array, ""], is_second: Bool[Array, ""], key: Key) -> PyTree:
        one, two = cross(best, jax.tree.map(lambda w: w[parent], population), key)
        return jax.tree.map(lambda a, b: jnp.where(is_second, b, a), one, two)

    children = jax.vmap(offspring)(parent, is_second, jax.random.split(cross_key, size)[pair])
    teams = choose_teams(replaced, children, population)
    mutants = jax.vmap(mutate)(teams, jax.random.split(mutate_key, size))
    teams = choose_teams(jnp.arange(size) != elite, mutants, teams)
    return Generation(teams, elite, selected)


def choose_teams(condition: Bool[Array, " teams"], new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(
        lambda n, o: jnp.where(condition.reshape(-1, *[1] * (n.ndim - 1)), n, o), new, old
    )


def replacement_index(fitness: Float[Array, " teams"], elite: Int[Array, ""]) -> Int[Array, ""]:
    """Where an injected team goes: the worst team's slot, or the next one if that is the elite's
    (all equal)."""
    worst = jnp.argmin(fitness)
    return jnp.where(worst == elite, (worst + 1) % fitness.shape[0], worst)


def injection_outcome(injected: Int[Array, ""], generation: Generation) -> Metrics:
    """Whether the team injected last became the elite, was otherwise selected, or was discarded
    (RACE, Fig. 4).

    NaN before the first injection, when there is nothing to count.
    """
    is_elite = injected == generation.elite
    is_selected = generation.selected[injected] & ~is_elite
    fates = {"elite": is_elite, "selected": is_selected, "discarded": ~is_elite & ~is_selected}
    number = lambda one: jnp.where(injected < 0, jnp.nan, one.astype(jnp.float32))
    return {f"injected_{name}": number(one) for name, one in fates.items()}


def tournaments(
    fitness: Float[Array, " teams"], size: int, rounds: int, key: Key
) -> Int[Array, " rounds"]:
    """The winner of each of `rounds` tournaments: the best of `size` teams drawn with
    replacement."""
    rivals = jax.random.randint(key, (rounds, size), 0, fitness.shape[0])
    return jnp.take_along_axis(rivals, jnp.argmax(fitness[rivals], axis=1, keepdims=True), axis=1)[
        :, 0
    ]


def cross(kind: Crossover, one: Linear, other: Linear, key: Key) -> tuple[Linear, Linear]:
    """The two offspring of two teams of linear policies."""
    if kind == "agent":
        return swap_agents(one, other, key)
    if kind == "copy":
        return copy_agents(one, other, key)
    return jax.vmap(swap_rows)(one, other, jax.random.split(key, one.bias.shape[0]))


def mutate(
    kind: Mutation, team: Linear, fraction: float, count: str, probability: float, key: Key
) -> Linear:
    """A team of which each agent's linear policy mutates or stays, on its own."""

    def one(weight: Float[Array, "features action"], k: Key) -> Float[Array, "features action"]:
        if kind == "parameter":
            return mutate_weights(weight, fraction, probability, k)
        gate_key, mutate_key = jax.random.split(k)
        mutant = mutate_agent(weight, fraction, count, mutate_key)
        return jnp.where(jax.random.bernoulli(gate_key, probability), mutant, weight)

    weight = jax.vmap(one)(team.weight, jax.random.split(key, team.weight.shape[0]))
    return eqx.tree_at(lambda t: t.weight, team, weight)


def swap_agents(one: PyTree, other: PyTree, key: Key) -> tuple[PyTree, PyTree]:
    """Agent-level crossover (RACE, Sec. 3.3): two teams exchange the whole policies of a random
    subset of agents."""
    num_agents = jax.tree.leaves(one)[0].shape[0]
    swap = jax.random.bernoulli(key, 0.5, (num_agents,))
    pick = lambda a, b: jnp.where(swap.reshape(-1, *[1] * (a.ndim - 1)), b, a)
    return jax.tree.map(pick, one, other), jax.tree.map(pick, other, one)


def copy_agents(one: PyTree, other: PyTree, key: Key) -> tuple[PyTree, PyTree]:
    """The crossover of RACE's released code: for each agent one of the two policies overwrites the
    other, so that both offspring are equal."""
    num_agents = jax.tree.leaves(one)[0].shape[0]
    first = jax.random.bernoulli(key, 0.5, (num_agents,))
    child = jax.tree.map(
        lambda a, b: jnp.where(first.reshape(-1, *[1] * (a.ndim - 1)), a, b), one, other
    )
    return child, child


def swap_rows(one: Linear, other: Linear, key: Key) -> tuple[Linear, Linear]:
    """Parameter-level crossover, the operator of ERL that Fig. 6a compares with, for one agent of
    two teams.

    A random number of times, below twice the number of action rows, a random row of weights is
    copied from one policy to the other, in a random direction; then the same, by draws of its own,
    for the biases.
    """
    weight_key, bias_key = jax.random.split(key)
    weights = copy_rows(one.weight.T, other.weight.T, weight_key)
    biases = copy_rows(one.bias[:, None], other.bias[:, None], bias_key)
    build = lambda w, b: eqx.tree_at(lambda head: (head.weight, head.bias), one, (w.T, b[:, 0]))
    return build(weights[0], biases[0]), build(weights[1], biases[1])


def copy_rows(
    one: Float[Array, "rows width"], other: Float[Array, "rows width"], key: Key
) -> tuple[Float[Array, "rows width"], Float[Array, "rows width"]]:
    """Copies U{0 .. 2 rows - 1} random rows, one after the other, each in a random direction."""
    rows = one.shape[0]
    count_key, row_key, direction_key = jax.random.split(key, 3)
    count = jax.random.randint(count_key, (), 0, 2 * rows)
    chosen = jax.random.randint(row_key, (2 * rows - 1,), 0, rows)
    forward = jax.random.bernoulli(direction_key, 0.5, (2 * rows - 1,))

    def copy(i: Int[Array, ""], pair: tuple[Array, Array]) -> tuple[Array, Array]:
        a, b = pair
        row = chosen[i]
        new_a = a.at[row].set(jnp.where(forward[i], a[row], b[row]))
        new_b = b.at[row].set(jnp.where(forward[i], a[row], b[row]))
        return new_a, new_b

    return jax.lax.fori_loop(0, count, copy, (one, other))


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
    """
    noise = jax.random.normal(key, weight.shape)
    changed = jnp.where(
        kind < 0.05,
        weight + 10.0 * weight * noise,
        jnp.where(kind < 0.10, noise, weight + 0.1 * weight * noise),
    )
    return jnp.clip(jnp.where(chosen, changed, weight), -1e6, 1e6)


def choose_weights(
    shape: tuple[int, int], fraction: float, count: str, key: Key
) -> Bool[Array, "features action"]:
    """Which weights a mutation touches: each with probability `fraction`, or floor(fraction *
    features) per column."""
    if count == "bernoulli":
        return jax.random.bernoulli(key, fraction, shape)
    rank = jnp.argsort(jnp.argsort(jax.random.uniform(key, shape), axis=0), axis=0)
    return rank < int(fraction * shape[0] + 1e-9)


def mutate_agent(
    weight: Float[Array, "features action"], fraction: float, count: str, key: Key
) -> Array:
    """Agent-level mutation (RACE, Sec. 3.3): for each action, a fraction of its input weights, all
    by one kind.

    Biases are never mutated.
    """
    chosen_key, kind_key, noise_key = jax.random.split(key, 3)
    chosen = choose_weights(weight.shape, fraction, count, chosen_key)  # type: ignore[arg-type]
    kind = jax.random.uniform(kind_key, (1, weight.shape[1]))
    return perturb(weight, chosen, kind, noise_key)


def mutate_weights(
    weight: Float[Array, "features action"], fraction: float, probability: float, key: Key
) -> Array:
    """Parameter-level mutation, ERL's, that Fig. 6b compares with: fewer than ceil(fraction *
    weights) single weights, each by a kind of its own, and nothing at all with a probability that
    is itself drawn."""
    gate_key, rate_key, count_key, rank_key, kind_key, noise_key = jax.random.split(key, 6)
    mutates = jax.random.uniform(gate_key) < jax.random.uniform(rate_key, maxval=2.0) * probability
    ceiling = math.ceil(fraction * weight.size)
    count = jax.random.randint(count_key, (), 0, max(ceiling, 1))
    rank = jnp.argsort(jnp.argsort(jax.random.uniform(rank_key, (weight.size,)))).reshape(
        weight.shape
    )
    kind = jax.random.uniform(kind_key, weight.shape)
    return perturb(weight, (rank < count) & mutates, kind, noise_key)


def cross_networks(one: PyTree, other: PyTree, key: Key) -> tuple[PyTree, PyTree]:
    """ERL's crossover of whole networks (Khadka & Tumer, 2018): in every layer random rows of
    weights, those into one unit, are copied from one network to the other, each in a random
    direction; biases by draws of their own."""
    paths, structure = jax.tree.flatten_with_path(one)
    keys = jax.random.split(key, len(paths))
    pairs = [
        copy_rows(as_rows(path, a), as_rows(path, b), k)
        for (path, a), b, k in zip(paths, jax.tree.leaves(other), keys, strict=True)
    ]
    build = lambda i: [
        from_rows(path, pair[i], a) for (path, a), pair in zip(paths, pairs, strict=True)
    ]
    return structure.unflatten(build(0)), structure.unflatten(build(1))


def mutate_networks(team: PyTree, fraction: float, probability: float, key: Key) -> PyTree:
    """ERL's mutation of whole networks: with `probability` the team mutates; then each matrix of
    weights does at even odds that are drawn too, rand() < U(0, 2), in at most a `fraction` of its
    weights. Biases never change."""
    gate_key, key = jax.random.split(key)
    gate = jax.random.bernoulli(gate_key, probability)
    paths, structure = jax.tree.flatten_with_path(team)

    def one(path: tuple, leaf: Array, key: Key) -> Array:
        if not is_weight(path):
            return leaf
        odds_key, rate_key, share_key, chosen_key, kind_key, noise_key = jax.random.split(key, 6)
        mutates = gate & (jax.random.uniform(odds_key) < jax.random.uniform(rate_key, maxval=2.0))
        share = jax.random.uniform(share_key, maxval=fraction)
        chosen = jax.random.bernoulli(chosen_key, share, leaf.shape) & mutates
        return perturb(leaf, chosen, jax.random.uniform(kind_key, leaf.shape), noise_key)

    keys = jax.random.split(key, len(paths))
    return structure.unflatten(
        [one(path, leaf, k) for (path, leaf), k in zip(paths, keys, strict=True)]
    )


def is_weight(path: tuple) -> bool:
    """Whether a leaf is a layer's weights `[..., inputs, outputs]`; else it has one number per
    unit."""
    return getattr(path[-1], "name", "") == "weight"


def as_rows(path: tuple, leaf: Array) -> Float[Array, "units width"]:
    """One row per unit: the weights into it, or its one number."""
    return (
        jnp.swapaxes(leaf, -1, -2).reshape(-1, leaf.shape[-2])
        if is_weight(path)
        else leaf.reshape(-1, 1)
    )


def from_rows(path: tuple, rows: Float[Array, "units width"], like: Array) -> Array:
    """What `as_rows` undid."""
    if not is_weight(path):
        return rows.reshape(like.shape)
    return jnp.swapaxes(rows.reshape(*like.shape[:-2], like.shape[-1], like.shape[-2]), -1, -2)
