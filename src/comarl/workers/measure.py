"""What an environment of PettingZoo is like, found in a worker process: whatever its code does,
only that process ends of it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from comarl.workers.team import ParallelTeam

LIMIT = "max_cycles"  # what most environments call their time limit


class Measures(NamedTuple):
    """The sizes of a team, which its `EnvSpec` is made of."""

    obs_sizes: tuple[int, ...]
    action_sizes: tuple[int, ...]
    state_size: int
    discrete: bool
    own_state: bool
    """whether the environment has a state of its own"""
    horizon: int
    takes_limit: bool
    """whether the time limit is an argument of parallel_env"""


def measure(module: str, kwargs: Mapping[str, Any], state: Any, horizon: int | None) -> Measures:
    """The sizes, read from one environment that is never played.

    Raises ValueError, or as `ParallelTeam` does.
    """
    team = ParallelTeam(module, kwargs, state=state)
    horizon = horizon or team.limit
    if horizon is None:
        raise ValueError(
            f"horizon: {module} does not say when its time runs out; give --task.horizon"
        )
    takes_limit = team.limit is not None
    if takes_limit:
        try:
            ParallelTeam(module, {**kwargs, LIMIT: horizon + 1}, state=state)
        except ValueError:
            takes_limit = False
    return Measures(
        team.obs_sizes,
        team.action_sizes,
        team.state_size,
        team.discrete,
        team.own_state,
        horizon,
        takes_limit,
    )


class Measured:
    """Stands in a worker for a team that is only measured: `reset` gives what was found, or the
    error that was raised."""

    def __init__(self, *settings: Any):
        try:
            self._found = measure(*settings)
        except (ValueError, ImportError) as error:
            # Of a kind that pickles, whatever the error has besides its sentence
            kind = ImportError if isinstance(error, ImportError) else ValueError
            self._found = kind(str(error))

    def reset(self, seed: int) -> Measures | Exception:
        """What was found."""
        return self._found
