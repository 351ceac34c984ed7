"""What a user hands to a team at a step, checked and padded as networks have it.

What is wrong is a ValueError that says what was given and what would be right.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from comarl.types import EnvSpec, HostTimestep
from comarl.validation import is_whole, short

Field = Literal["obs", "available"]


def sizes_of(spec: EnvSpec, field: Field) -> tuple[tuple[int, ...], int]:
    """How many entries of `obs` or `available` each agent really has, and how many with padding."""
    if field == "obs":
        sizes, padded = spec.obs_sizes, spec.obs_size
    else:
        sizes, padded = spec.action_sizes, spec.action_size
    return sizes or (padded,) * spec.num_agents, padded


def right(spec: EnvSpec, field: Field) -> str:
    """What a whole team's `obs` or `available` should be, in words.

    >>> right(EnvSpec(2, 5, 9, 3, discrete=True, horizon=1, obs_sizes=(5, 4)), "obs")
    'it must be [2, 5], a row for each agent, or a list of rows of sizes 5, 4'
    """
    sizes, padded = sizes_of(spec, field)
    unequal = f", or a list of rows of sizes {', '.join(map(str, sizes))}"
    return f"it must be [{spec.num_agents}, {padded}], a row for each agent" + (
        unequal if set(sizes) != {padded} else ""
    )


def shape_of(value: Any) -> str:
    """The shape of what was given, for an error.

    >>> shape_of(np.zeros((2, 3))), shape_of([[1.0], [1.0, 2.0]])
    ('has shape [2, 3]', 'has rows of sizes 1, 2')
    """
    try:
        return f"has shape {list(np.shape(value))}"
    except ValueError:
        return f"has rows of sizes {', '.join(str(np.size(row)) for row in value)}"


def read_rows(spec: EnvSpec, field: Field, value: Any) -> np.ndarray:
    """All agents' `obs` or `available` as `[agents, padded]`, from such an array or from a list of
    rows without padding."""
    if value is None:
        raise ValueError(f"{field} is missing; {right(spec, field)}")
    if not isinstance(value, np.ndarray | Sequence) and not hasattr(value, "__array__"):
        raise ValueError(f"{field} is a {type(value).__name__}; {right(spec, field)}")
    if isinstance(value, str) or np.ndim(value[0] if len(value) else 0) != 1:
        raise ValueError(f"{field} {shape_of(value)}; {right(spec, field)}")
    if len(value) != spec.num_agents:
        raise ValueError(f"{field} {shape_of(value)}; {right(spec, field)}")
    return np.stack([read_row(spec, field, i, row) for i, row in enumerate(value)])


def read_row(spec: EnvSpec, field: Field, agent: int, value: Any) -> np.ndarray:
    """One agent's `obs` or `available` with padding."""
    sizes, padded = sizes_of(spec, field)
    own = f"[{sizes[agent]}]" + (f", or with padding [{padded}]" if sizes[agent] != padded else "")
    if value is None:
        raise ValueError(f"{field} of agent {agent} is missing; it must be {own}")
    row = np.asarray(value)
    if row.shape not in ((sizes[agent],), (padded,)):
        raise ValueError(f"{field} of agent {agent} {shape_of(value)}; it must be {own}")
    if row.dtype.kind not in "biuf":
        raise ValueError(f"{field} of agent {agent} must be numbers, not {row.dtype}")
    if field == "available" and not row.any():
        raise ValueError(f"available allows agent {agent} no action; it must allow one at least")
    whole = np.zeros(padded, np.float32 if field == "obs" else bool)
    whole[: len(row)] = row
    return whole


def check_available(spec: EnvSpec, available: Any) -> None:
    """Raises ValueError for `available` where actions are continuous."""
    if not spec.discrete and available is not None:
        raise ValueError("available must be left out: the task's actions are continuous")


def read_state(spec: EnvSpec, state: Any, needed: bool) -> np.ndarray:
    """The state of the task `[state]`; zeros where it is left out and not `needed`."""
    if state is None:
        if needed:
            raise ValueError(
                "state is missing; a team of this algorithm draws its latent from the first state "
                f"of an episode, so the first act needs state=, of shape [{spec.state_size}]"
            )
        return np.zeros(spec.state_size, np.float32)
    whole = np.asarray(state)
    if whole.shape != (spec.state_size,):
        raise ValueError(f"state {shape_of(state)}; it must be [{spec.state_size}]")
    return whole.astype(np.float32)


def read_timestep(spec: EnvSpec, obs: Any, available: Any, state: np.ndarray) -> HostTimestep:
    """What a whole team sees, without an axis of copies."""
    check_available(spec, available)
    seen = read_rows(spec, "obs", obs)
    allowed = read_rows(spec, "available", available) if spec.discrete else None
    return HostTimestep(seen, state, allowed)


def read_own(
    spec: EnvSpec, agent: int, obs: Any, available: Any, state: np.ndarray
) -> HostTimestep:
    """What one agent sees: of the others all is zero, and every action is available."""
    check_available(spec, available)
    seen = np.zeros((spec.num_agents, spec.obs_size), np.float32)
    seen[agent] = read_row(spec, "obs", agent, obs)
    allowed = None
    if spec.discrete:
        allowed = np.ones((spec.num_agents, spec.action_size), bool)
        allowed[agent] = read_row(spec, "available", agent, available)
    return HostTimestep(seen, state, allowed)


def check_agent(spec: EnvSpec, agent: Any) -> int:
    """The number of an agent. Raises ValueError for one that the team has not."""
    if not is_whole(agent) or not 0 <= agent < spec.num_agents:
        raise ValueError(f"agent {short(agent)} must be between 0 and {spec.num_agents - 1}")
    return int(agent)
