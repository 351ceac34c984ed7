"""comarl: cooperative multi-agent reinforcement learning in JAX."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from comarl.types import (
        Algorithm,
        Clock,
        Environment,
        EnvSpec,
        Episode,
        Evolutionary,
        HostEnvironment,
        HostTimestep,
        Task,
        TaskDied,
        Timestep,
        Transition,
    )

__all__ = [
    "Algorithm",
    "Clock",
    "EnvSpec",
    "Environment",
    "Episode",
    "Evolutionary",
    "HostEnvironment",
    "HostTimestep",
    "Task",
    "TaskDied",
    "Timestep",
    "Transition",
]


def __getattr__(name: str) -> Any:
    """Loads the types when they are asked for: JAX comes with them, and worker processes do
    without."""
    if name in __all__:
        from comarl import types

        return getattr(types, name)
    raise AttributeError(f"module 'comarl' has no attribute {name!r}")
