"""Whole runs as `comarl train` makes them, without its display."""

from collections import Counter
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np

from comarl.runs.identity import identity
from comarl.training.run import Options, Session


def session(run, folder, **options):
    """A session of a run that is called by no name, and tells nobody."""
    return Session.open(run, identity(run, "test", "test"), folder, Options(**options))


LOOP = ("play", "act", "store_and_evolve", "learn", "finish_round")


@contextmanager
def compilations():
    """How often XLA compiles each part of the loop within this context."""
    counts = Counter()

    def listen(event: str, duration_secs: float, **about: str | int) -> None:
        name = str(about.get("fun_name", "")).removeprefix("jit(").removesuffix(")")
        if event.endswith("backend_compile_duration") and name in LOOP:
            counts[name] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield counts
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def raw(tree):
    """The same with NumPy leaves, random keys as their data."""
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda x: np.asarray(jax.random.key_data(x) if is_key(x) else x), tree)
