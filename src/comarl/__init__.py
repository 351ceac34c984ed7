"""comarl: cooperative multi-agent reinforcement learning in JAX."""

from comarl.types import (
    Algorithm as Algorithm,
    Clock as Clock,
    Environment as Environment,
    EnvSpec as EnvSpec,
    Episode as Episode,
    Evolutionary as Evolutionary,
    HostEnvironment as HostEnvironment,
    HostTimestep as HostTimestep,
    Task as Task,
    TaskDied as TaskDied,
    Timestep as Timestep,
    Transition as Transition,
)
