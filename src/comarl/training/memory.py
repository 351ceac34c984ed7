"""How much memory a run takes, told before it starts."""

import jax
import jax.numpy as jnp
import numpy as np
import psutil

from comarl.replay.episodes import EpisodeRing
from comarl.training.settings import Run
from comarl.training.train import start
from comarl.validation import counted


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
    ring = run.algorithm.replay
    round_rows = ring.rows(run.num_copies, run.spec)
    if ring.capacity < round_rows:
        raise ValueError(
            f"algorithm.replay.capacity {ring.capacity} is less than one round of "
            f"{counted(run.num_copies, 'episode')} may fill: it must be {round_rows} or more"
        )
    shapes = jax.eval_shape(lambda: start(run))
    replay = num_bytes(shapes.replay)
    agent = num_bytes(shapes.agent)
    free, seeds = available(), counted(run.seeds, "seed")
    # Networks are there twice while a round learns, and a tenth of what is free is left to
    # everything else.
    room = 0.9 * free - 2 * agent
    if replay > room:
        fits = max(int(ring.capacity * room / replay), 0)
        if fits >= max(round_rows, 2 * ring.batch_size):
            remedy = f"--algorithm.replay.capacity {_round_down(fits)} would fit"
        else:
            remedy = (
                f"not even a small replay fits beside the networks of {seeds}: run fewer "
                "with --seeds"
            )
        if isinstance(ring, EpisodeRing) and ring.storage == "full":
            remedy += ", and --algorithm.replay.storage half takes about half"
        taken = (
            f"the replay of {seeds} takes {size_text(replay)} and the networks {size_text(agent)}"
        )
        raise TooLittleMemory(
            f"algorithm.replay.capacity {ring.capacity}: {taken}, but {size_text(free)} are free; "
            f"{remedy}."
        )
    needed = f"replay {size_text(replay)}, networks {size_text(agent)} for {seeds}"
    return f"{needed}; {size_text(free)} free"


def _round_down(number: int) -> int:
    """To two significant digits, so that the suggestion reads well."""
    digits = 10 ** max(len(str(number)) - 2, 0)
    return number // digits * digits


def size_text(number: int | float) -> str:
    """Bytes as a person reads them.

    >>> size_text(3 * 2**30), size_text(2.5 * 2**20), size_text(2000)
    ('3.00 GiB', '2.5 MiB', '2.0 KiB')
    """
    giga, mega = number / 2**30, number / 2**20
    if giga >= 0.1:
        return f"{giga:.2f} GiB"
    return f"{mega:.1f} MiB" if mega >= 0.1 else f"{number / 2**10:.1f} KiB"
