"""Trained networks that a new run begins with, in place of its own draw."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from comarl.ops.learner import networks, with_networks
from comarl.runs.checkpoint import arrays, describe, numbers
from comarl.training.load import NEWEST, imports_of, load_settings, load_trained
from comarl.training.settings import Run
from comarl.training.train import RunState, start
from comarl.validation import WrongSetting, counted


@dataclass(frozen=True)
class Networks:
    """What a run's seeds begin with: all that the seeds of another run have learnt, without
    optimisers, counters and replay memory."""

    values: PyTree
    """leaves lead with seeds, as in a state of the run that begins"""
    fingerprint: str
    """of all their numbers; it is part of a run's identity"""
    source: Path
    """the folder of the run that learnt them"""


def read_networks(folder: Path, run: Run, checkpoint: str = NEWEST) -> Networks:
    """The networks of the run in `folder` at its `newest` checkpoint, when it was `best` or after
    so many steps, for the seeds of `run`.

    As many seeds begin one with each; a single seed's networks go to all. Raises WrongSetting for
    another number of seeds and for networks of other shapes, with the first that differs; else as
    `comarl.training.load.load_trained`.
    """
    trained, config = load_settings(folder, imports_of(run.task))
    if trained.seeds not in (1, run.seeds):
        raise WrongSetting(
            f"{folder} has {counted(trained.seeds, 'seed')}, so a run that begins with its "
            f"networks must have as many, not {run.seeds}",
            "from",
        )
    found = networks(load_trained(folder, trained, config, checkpoint).agent)
    values = jax.tree.map(lambda x: jnp.broadcast_to(x, (run.seeds, *x.shape[1:])), found)
    wanted = jax.eval_shape(lambda: networks(start(run).agent))
    check_shapes(folder, describe(values), describe(wanted))
    # The structure is that of the run that begins: settings that are no numbers may differ.
    leaves = arrays(values)
    ours = [leaves[name] for name in arrays(wanted)]
    values = jax.tree.unflatten(jax.tree.structure(wanted), ours)
    return Networks(values, fingerprint(found), folder)


def check_shapes(folder: Path, theirs: dict[str, str], ours: dict[str, str]) -> None:
    """Raises WrongSetting for the first network whose shape differs."""
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        there, here = theirs.get(name, "missing"), ours.get(name, "missing")
        if there != here:
            raise WrongSetting(
                f"the network {name} of {folder} is {there}, and of this run {here}; algorithm, "
                "sizes of the task and of the networks must be alike",
                "from",
            )


def fingerprint(values: PyTree) -> str:
    """Sixteen hex digits of all numbers in a tree."""
    digest = hashlib.sha256()
    for name, leaf in arrays(values).items():
        digest.update(f"{name} {leaf.dtype} {leaf.shape} ".encode() + numbers(leaf).tobytes())
    return digest.hexdigest()[:16]


def begin_with(state: RunState, given: Networks) -> RunState:
    """A run's first state, with these networks in place of its own."""
    return state._replace(agent=with_networks(state.agent, given.values))
