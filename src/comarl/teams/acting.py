"""What of a trained agent acts, alone: pure functions over the few networks that a greedy team
needs.

An agent's state has critics, targets and optimisers besides, often a hundred times as much. Which
leaves acting depends on is not said by each algorithm but found in what JAX traces: a compiled
function keeps no argument that changes no result.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.export
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from comarl.evolution.population import Population
from comarl.types import (
    Algorithm,
    Clock,
    Communicates,
    CutsMessages,
    EnvSpec,
    HostTimestep,
    Index,
    Key,
    Timestep,
    tree_where,
)
from comarl.validation import short


@dataclass(frozen=True)
class Form:
    """All of one acting team but its numbers. Static and hashable."""

    algorithm: Algorithm
    spec: EnvSpec
    team: int
    """which team of a population acts"""
    task_in_jax: bool
    """whether its task is an `Environment`: where random keys come from depends on that"""
    structure: Any
    """of the agent's state"""
    whole: tuple[jax.ShapeDtypeStruct, ...]
    """each leaf of the agent's state"""
    kept: tuple[tuple[str, int, jax.ShapeDtypeStruct], ...]
    """path, place and form of each leaf that acting needs"""
    first_needs_state: bool
    """whether the first memory depends on the state of the task, as a latent may"""
    needs_state: bool
    """whether every action does, which no algorithm of comarl asks for"""

    @classmethod
    @functools.lru_cache(maxsize=64)
    def of(cls, algorithm: Algorithm, spec: EnvSpec, team: int, task_in_jax: bool) -> "Form":
        """The form of one team of an algorithm, found without computing anything."""
        whole = jax.eval_shape(lambda: algorithm.init(spec, jax.random.key(0)))
        named, structure = jax.tree_util.tree_flatten_with_path(whole)
        cut = jax.tree.leaves(jax.eval_shape(lambda agent: only_team(agent, team), whole))
        key, clock, seen = jax.eval_shape(lambda: (jax.random.key(0), clock_of(0, 0), unseen(spec)))

        def first(agent: PyTree, timestep: Timestep, key: Key) -> PyTree:
            return algorithm.initial_memory(agent, timestep, key)

        def step(agent: PyTree, timestep: Timestep, memory: PyTree, clock: Clock, key: Key) -> Any:
            return algorithm.act(agent, team, memory, timestep, clock, key, explore=False)

        memory = jax.eval_shape(first, whole, seen, key)
        first_uses = used(first, whole, seen, key)
        step_uses = used(step, whole, seen, memory, clock, key)
        needed = sorted(place for place in first_uses | step_uses if place < len(named))
        state = len(named) + 1  # of a timestep's leaves, the observations come before it
        return cls(
            algorithm,
            spec,
            team,
            task_in_jax,
            structure,
            tuple(leaf for _, leaf in named),
            tuple((jax.tree_util.keystr(named[i][0]), i, cut[i]) for i in needed),
            state in first_uses,
            state in step_uses,
        )


def used(function: Callable, *arguments: Any) -> set[int]:
    """Which of the leaves of its arguments, counted from 0, a function's results depend on.

    >>> sorted(used(lambda pair, other: pair[0] + other, (1.0, 2.0), 3.0))
    [0, 2]
    """
    return set(
        jax.export.export(jax.jit(function), platforms=("cpu",))(*arguments).module_kept_var_idx
    )


def only_team(agent: PyTree, team: int) -> PyTree:
    """An agent whose populations have one row: the team that acts, or any if that is no part of
    them. The others change nothing of what it does."""

    def cut(node: Any) -> Any:
        if not isinstance(node, Population) or not node.size:
            return node
        row = min(team, node.size - 1)
        return dataclasses.replace(node, teams=jax.tree.map(lambda x: x[row : row + 1], node.teams))

    return jax.tree.map(cut, agent, is_leaf=lambda node: isinstance(node, Population))


def unseen(spec: EnvSpec) -> Timestep:
    """A timestep of zeros, where every action is available."""
    shape = (spec.num_agents, spec.action_size)
    return Timestep(
        jnp.zeros((spec.num_agents, spec.obs_size)),
        jnp.zeros(spec.state_size),
        jnp.ones(shape, bool) if spec.discrete else None,
    )


def clock_of(env_steps: Any, updates: Any) -> Clock:
    """The clock of one seed between rounds."""
    return Clock(jnp.int32(env_steps), jnp.int32(updates), jnp.int32(0))


class Acting(eqx.Module):
    """The networks of one team that acts greedily, as a pytree: it may be an argument of `jax.jit`.

    `first_memory` and `step` are pure functions of it, with the keys that the algorithm itself
    gets.
    """

    leaves: tuple[Array, ...]
    clock: Clock
    form: Form = eqx.field(static=True)

    @classmethod
    def of(cls, form: Form, agent: PyTree, clock: Clock) -> "Acting":
        """What acts of an agent: the state of one seed."""
        leaves = jax.tree.leaves(only_team(agent, form.team))
        kept = tuple(leaves[place] for _, place, _ in form.kept)
        # While a run trains, each of its seeds may have a device of its own
        return jax.device_put(cls(kept, clock, form), jax.devices()[0])

    @property
    def spec(self) -> EnvSpec:
        """The sizes of the task."""
        return self.form.spec

    def agent(self) -> PyTree:
        """The agent's state, with zeros for all that acting does not depend on."""
        given = {place: x for (_, place, _), x in zip(self.form.kept, self.leaves, strict=True)}
        # A population has its one team in every row, so that any index finds it
        leaves = [
            jnp.broadcast_to(given[i], leaf.shape) if i in given else zeros_like(leaf)
            for i, leaf in enumerate(self.form.whole)
        ]
        return jax.tree.unflatten(self.form.structure, leaves)

    def first_memory(self, timestep: Timestep, key: Key) -> PyTree:
        """What the team carries into an episode that begins with this timestep."""
        return self.form.algorithm.initial_memory(self.agent(), timestep, key)

    def step(self, memory: PyTree, timestep: Timestep, key: Key) -> tuple[PyTree, Array]:
        """The memory for the next step, and the joint action `[agents]` or `[agents action]`."""
        return self.form.algorithm.act(
            self.agent(), self.form.team, memory, timestep, self.clock, key, explore=False
        )

    def alone(self, agent: int) -> "Acting":
        """The team as this one of its agents has it by itself: hearing nothing, where agents
        communicate.

        Raises ValueError where an algorithm does not say what that is.
        """
        del agent
        algorithm = self.form.algorithm
        if not isinstance(algorithm, Communicates):
            return self
        if not isinstance(algorithm, CutsMessages):
            raise ValueError(
                f"the agents of {short(algorithm)} communicate, so none acts by itself: give the "
                "algorithm a method without_messages, or let the whole team act"
            )
        return self.with_algorithm(algorithm.without_messages())

    def with_algorithm(self, algorithm: Algorithm) -> "Acting":
        """The same networks, acting by other settings of their algorithm.

        Raises ValueError where those need networks that are not here.
        """
        form = Form.of(algorithm, self.spec, self.form.team, self.form.task_in_jax)
        here = {place: x for (_, place, _), x in zip(self.form.kept, self.leaves, strict=True)}
        if missing := [name for name, place, _ in form.kept if place not in here]:
            raise ValueError(f"acting by {short(algorithm)} needs {missing[0]}, which is not here")
        return Acting(tuple(here[place] for _, place, _ in form.kept), self.clock, form)


def zeros_like(leaf: jax.ShapeDtypeStruct) -> Array:
    """Zeros of a leaf's form; a random key is the one of seed 0."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(0), leaf.shape)
    return jnp.zeros(leaf.shape, leaf.dtype)


class Mixed(eqx.Module):
    """A team whose agents come from several: each acts as it does in its own, on what it sees.

    All members have the same keys, so that what agents draw in common they still draw in common.
    """

    members: tuple[Acting, ...]
    places: tuple[int, ...] = eqx.field(static=True)
    """for each agent: the member that it comes from"""

    @property
    def spec(self) -> EnvSpec:
        """The sizes of the task."""
        return self.members[0].spec

    @property
    def form(self) -> Form:
        """The form of the first agent's own team."""
        return self.members[self.places[0]].form

    def first_memory(self, timestep: Timestep, key: Key) -> tuple[PyTree, ...]:
        """What each member carries into an episode."""
        return tuple(member.first_memory(timestep, key) for member in self.members)

    def step(
        self, memory: tuple[PyTree, ...], timestep: Timestep, key: Key
    ) -> tuple[tuple[PyTree, ...], Array]:
        """The memories for the next step, and the joint action."""
        steps = [m.step(own, timestep, key) for m, own in zip(self.members, memory, strict=True)]
        action = jnp.stack([steps[place][1][i] for i, place in enumerate(self.places)])
        return tuple(own for own, _ in steps), action

    def alone(self, agent: int) -> Acting:
        """The team that this agent comes from, as it has it by itself."""
        return self.members[self.places[agent]].alone(agent)


def first_key(key: Key) -> Key:
    """Of an episode's key, the one that its first memory is drawn by."""
    return jax.random.split(key, 3)[1]


def step_key(form: Form, key: Key, time: Index) -> Key:
    """Of an episode's key, the one that the action at a step is drawn by.

    It is the one of `comarl.play.rollout`, or outside JAX of `comarl.play.host_rollout`, so that a
    team acts as it does when it is evaluated. Steps beyond the task's horizon have keys, too.
    """
    steps = jax.random.split(key, 3)[2]
    folded = jax.random.fold_in(steps, time)
    if not form.task_in_jax:
        return folded
    horizon = form.spec.horizon
    within = jax.random.split(steps, horizon)[jnp.minimum(time, horizon - 1)]
    return tree_where(jnp.asarray(time < horizon), jax.random.split(within)[0], folded)


@jax.jit
def begin(acting: Acting | Mixed, seen: Timestep | HostTimestep, key: Key) -> PyTree:
    """The first memory of an episode with this key. What is seen may be NumPy's, of one copy."""
    return acting.first_memory(jax_timestep(seen), first_key(key))


@jax.jit
def advance(
    acting: Acting | Mixed,
    memory: PyTree,
    seen: Timestep | HostTimestep,
    key: Key,
    time: Index,
) -> tuple[PyTree, Array]:
    """A step of an episode with this key: the next memory, and the joint action."""
    return acting.step(memory, jax_timestep(seen), step_key(acting.form, key, time))


def jax_timestep(seen: Timestep | HostTimestep) -> Timestep:
    """The same timestep in JAX's arrays."""
    available = None if seen.available is None else jnp.asarray(seen.available)
    return Timestep(jnp.asarray(seen.obs), jnp.asarray(seen.state), available)
