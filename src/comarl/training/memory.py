"""How much memory a run takes, told before it starts."""

import jax
import jax.numpy as jnp
import numpy as np
import psutil

from comarl.replay.episodes import EpisodeRing
from comarl.training.settings import Run
from comarl.training.train import start


class TooLittleMemory(Exception):
    """A run that cannot fit."""


def num_bytes(tree) -> int:
    """Bytes of the arrays of a pytree, or of the shapes of one."""
    size = lambda leaf: (
        8 if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else np.dtype(leaf.dtype).itemsize
    )
    return sum(size(leaf) * int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def available() -> int:
    """Bytes free on the device that trains: its own memory, or the machine's."""
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return psutil.virtual_memory().available


def check_memory(run: Run) -> str:
    """A sentence on what the replay and the networks take.

    Raises TooLittleMemory if that is more than there is, ValueError if the replay cannot hold what
    one round plays.
    """
    round_rows = run.algorithm.replay.rows(run.num_copies, run.spec)
    if run.algorithm.replay.capacity < round_rows:
        raise ValueError(
            f"algorithm.replay.capacity {run.algorithm.replay.capacity} is less than one round of {run.num_copies} "
            f"episode(s) may fill: it must be {round_rows} or more"
        )
    shapes = jax.eval_shape(lambda: start(run))
    replay, agent = num_bytes(shapes.replay), num_bytes(shapes.agent)
    free, capacity = available(), run.algorithm.replay.capacity
    # Networks are there twice while a round learns, and a tenth of what is free is left to
    # everything else.
    room = 0.9 * free - 2 * agent
    if replay > room:
        fits = max(int(capacity * room / replay), 0)
        remedy = (
            f"--algorithm.replay.capacity {_round_down(fits)} would fit"
            if fits >= max(round_rows, 2 * run.algorithm.replay.batch_size)
            else f"not even a small replay fits beside the networks of {run.seeds} seeds: run fewer with --seeds"
        )
        if isinstance(run.algorithm.replay, EpisodeRing) and run.algorithm.replay.storage == "full":
            remedy += ", and --algorithm.replay.storage half takes about half"
        raise TooLittleMemory(
            f"algorithm.replay.capacity {capacity}: the replay of {run.seeds} seed(s) takes {_giga(replay)} and the "
            f"networks {_giga(agent)}, but {_giga(free)} are free; {remedy}."
        )
    return f"replay {_giga(replay)}, networks {_giga(agent)} for {run.seeds} seed(s); {_giga(free)} free"


def _round_down(number: int) -> int:
    """To two significant digits, so that the suggestion reads well."""
    digits = 10 ** max(len(str(number)) - 2, 0)
    return number // digits * digits


def _giga(number: int | float) -> str:
    return f"{number / 2**30:.2f} GiB"
