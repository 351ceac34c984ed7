"""comarl: cooperative multi-agent reinforcement learning in JAX."""

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
