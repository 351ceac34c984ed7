"""Whole runs as `comarl train` makes them, without its display."""

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from comarl.training.records import identity
from comarl.training.run import Options, Session


def session(run, folder, **options):
    return Session(run, identity(run, "test", "test"), folder, Options(**options), Console(quiet=True))


def raw(tree):
    """The same with NumPy leaves, random keys as their data."""
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda x: np.asarray(jax.random.key_data(x) if is_key(x) else x), tree)
