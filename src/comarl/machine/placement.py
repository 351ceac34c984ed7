"""Where the seeds of a run are computed. It changes no result, but for rounding.

A processor has many cores, and the networks of one seed are too small to keep them busy. So JAX is
told to see one device for each seed, which the cores share out among themselves. An accelerator is
one device, on which seeds are array axes.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

SEEDS = "seeds"


@dataclass(frozen=True)
class Placement:
    """How the seeds of a run share a machine."""

    mesh: Mesh | None = None
    """a device for each seed; `None`: all are on one device"""
    vmapped: bool = False
    """whether the seeds of a device learn as array axes, or else one after another, which keeps a
    CPU's caches warm"""

    def map(self, function: Callable, in_axes: Any = 0, out_axes: Any = 0) -> Callable:
        """`jax.vmap` of a function of one seed."""
        return self.split(jax.vmap(function, in_axes, out_axes), in_axes, out_axes)

    def split(self, function: Callable, in_axes: Any = 0, out_axes: Any = 0) -> Callable:
        """A function of some seeds, called on each device with its own; what has axis `None` goes
        to all."""
        if self.mesh is None:
            return function
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=_specs(in_axes),
            out_specs=_specs(out_axes),
            check_vma=False,
        )

    def scatter(self, tree: PyTree, axes: Any = 0) -> PyTree:
        """Brings every seed's part to its device. Leaves lead with seeds, but for those of axis
        `None`."""
        if (mesh := self.mesh) is None:
            return tree
        # PartitionSpecs are leaves: each becomes the sharding of a part of the tree.
        is_spec = lambda spec: isinstance(spec, PartitionSpec)
        places = jax.tree.map(lambda spec: NamedSharding(mesh, spec), _specs(axes), is_leaf=is_spec)
        return jax.device_put(tree, places)

    def gather(self, tree: PyTree) -> PyTree:
        """Brings all seeds to the first device."""
        return tree if self.mesh is None else jax.device_put(tree, self.mesh.devices.flat[0])


ONE_DEVICE = Placement()
"""all seeds on one device, one after another"""


def _specs(axes: Any) -> Any:
    """Where each part of a tree goes: split over seeds, or to all devices if its axis is `None`."""
    spec = lambda axis: PartitionSpec() if axis is None else PartitionSpec(SEEDS)
    return jax.tree.map(spec, axes, is_leaf=lambda axis: axis is None)


def see_a_device_for_each(seeds: int) -> None:
    """Tells JAX to see as many devices in a CPU. Without effect once JAX has computed anything."""
    with contextlib.suppress(RuntimeError):  # too late
        jax.config.update("jax_num_cpu_devices", seeds)


def place(seeds: int, vmapped: bool | None) -> Placement:
    """The placement that suits the machine, or with `vmapped` given, the one on a single device
    that it says."""
    on_cpu = jax.default_backend() == "cpu"
    if vmapped is not None or not on_cpu:
        return Placement(vmapped=not on_cpu if vmapped is None else vmapped)
    if seeds == 1 or len(jax.devices()) < seeds:
        return Placement()
    return Placement(Mesh(np.array(jax.devices()[:seeds]), (SEEDS,)))
