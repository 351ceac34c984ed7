"""One step of a team as a program with its networks inside, for other languages and runtimes."""

from typing import Any

import jax
import jax.export
import jax.numpy as jnp
from jaxtyping import Array

from comarl.teams.acting import Acting, Form, advance, begin, unseen
from comarl.types import Timestep, tree_where


def program(acting: Acting) -> jax.export.Exported:
    """One step of a team as a program for a CPU, with its networks inside.

    Its arguments and results are those of `interface`, in that order. `key` is the episode's, as
    `jax.random.key_data` has it. What is remembered goes in as it came out; at time 0 it is
    ignored.
    """
    form = acting.form
    structure = jax.tree.structure(first_memory(acting))

    def step(key: Array, time: Array, *rest: Array) -> tuple[Array, ...]:
        given = list(rest)
        obs = given.pop(0)
        available = given.pop(0) if form.spec.discrete else None
        state = given.pop(0) if needs_state(form) else jnp.zeros(form.spec.state_size)
        timestep = Timestep(obs, state, available)
        episode = jax.random.wrap_key_data(key)
        first = begin(acting, timestep, episode)
        memory = tree_where(time == 0, first, jax.tree.unflatten(structure, given))
        memory, action = advance(acting, memory, timestep, episode, time)
        return action, *jax.tree.leaves(memory)

    arguments = [
        jax.ShapeDtypeStruct(tuple(entry["shape"]), entry["dtype"])
        for entry in interface(acting)["arguments"]
    ]
    return jax.export.export(jax.jit(step), platforms=("cpu",))(*arguments)


def interface(acting: Acting) -> dict[str, list[dict[str, Any]]]:
    """Name, shape and type of each argument and result of `program`, as JSON data."""
    form, memory = acting.form, first_memory(acting)
    seen = jax.eval_shape(lambda: unseen(form.spec))
    remembered = [
        entry(f"memory{jax.tree_util.keystr(path)}", leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(memory)[0]
    ]
    arguments = [
        {"name": "key", "shape": [2], "dtype": "uint32"},
        {"name": "time", "shape": [], "dtype": "int32"},
        entry("obs", seen.obs),
        *([entry("available", seen.available)] if form.spec.discrete else []),
        *([entry("state", seen.state)] if needs_state(form) else []),
        *remembered,
    ]
    key = jax.eval_shape(lambda: jax.random.key(0))
    action = jax.eval_shape(advance, acting, memory, seen, key, 0)[1]
    return {"arguments": arguments, "results": [entry("action", action), *remembered]}


def entry(name: str, leaf: Any) -> dict[str, Any]:
    """Name, shape and type of an array."""
    return {"name": name, "shape": list(leaf.shape), "dtype": str(leaf.dtype)}


def needs_state(form: Form) -> bool:
    """Whether a team needs the task's state, be it at the first step alone."""
    return form.first_needs_state or form.needs_state


def first_memory(acting: Acting) -> Any:
    """The form of what a team remembers."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(begin, acting, jax.eval_shape(lambda: unseen(acting.spec)), key)


def serialise(exported: jax.export.Exported) -> bytes:
    """A program as bytes, for `jax.export.deserialize`."""
    try:
        return bytes(exported.serialize())
    except ImportError:
        raise ModuleNotFoundError(
            'writing a .stablehlo is an extra: pip install "comarl[stablehlo]"'
        ) from None
