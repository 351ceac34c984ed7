"""Every algorithm of the table at a size that compiles soon, and teams of untrained networks."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from comarl.algorithms import ALGORITHMS
from comarl.training.settings import Run
from comarl.training.train import Trained
from comarl.types import Clock
from tests.training.tasks import Stroll, Wander

WIDTHS = {"hidden", "mixer_width", "hypernet", "message_width", "message_size", "embedding"}
WIDTHS |= {"critic_width", "joint_hidden", "unrestricted_width", "mine_width", "value_hidden"}
WIDTHS |= {"critic_hidden", "model_hidden", "predictor_hidden", "discriminator"}


def shrunk(settings: Any) -> Any:
    """The same algorithm with layers of a few units, and two teams that evolve, if any do."""
    changes = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name in WIDTHS and value:
            changes[field.name] = (4,) * len(value) if isinstance(value, tuple) else 4
        elif field.name == "population":
            changes[field.name] = 2
        elif field.name == "updates_per_step":
            changes[field.name] = 1.0
        elif field.name in ("base", "pace", "breeding", "messages"):
            changes[field.name] = shrunk(value)
    return dataclasses.replace(settings, **changes)


def families() -> dict[str, Any]:
    """One algorithm of each class and base, by the first name that it has in the table."""
    found = {}
    for name, entry in ALGORITHMS.items():
        algorithm = entry.algorithm
        found.setdefault(
            (type(algorithm), type(getattr(algorithm, "base", None))), (name, algorithm)
        )
    return {name: shrunk(algorithm) for name, algorithm in found.values()}


FAMILIES = families()
# What is drawn while a team acts greedily
FAMILIES["vm3-ac-shared"] = dataclasses.replace(FAMILIES["vm3-ac"], execution_latent="shared")
FAMILIES["vm3-ac-discrete-shared"] = dataclasses.replace(
    FAMILIES["vm3-ac-discrete"], execution_latent="shared"
)
FAMILIES["maven-learned"] = dataclasses.replace(FAMILIES["maven"], latent_policy="learned")


def run_of(name: str, seeds: int = 1, task: Any = None) -> Run:
    """A run of one of the families on a task of six or nine steps."""
    algorithm = FAMILIES[name]
    task = task or (Stroll() if "discrete" in algorithm.actions else Wander())
    return Run(algorithm, task, seeds=seeds, evaluation_episodes=2)


def config_of(run: Run) -> dict[str, Any]:
    """The names that a run goes by."""
    name = next(
        name for name, entry in ALGORITHMS.items() if type(entry.algorithm) is type(run.algorithm)
    )
    return {"algorithm_name": name, "task_name": "matrix/climbing"}


@functools.cache
def trained_of(run: Run, draw: int = 0) -> Trained:
    """Random numbers for networks, made without compiling anything."""
    random = np.random.default_rng(draw)
    zeros = jnp.zeros(run.seeds, jnp.int32)

    def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.zeros((run.seeds, *leaf.shape), leaf.dtype)
        return jnp.asarray(random.normal(size=(run.seeds, *leaf.shape)), leaf.dtype)

    agent = jax.eval_shape(lambda: run.algorithm.init(run.spec, jax.random.key(0)))
    return Trained(jax.tree.map(fill, agent), Clock(zeros, zeros, jnp.int32(0)))
