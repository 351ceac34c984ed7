"""One PettingZoo parallel environment as arrays: a team whose agents are padded to equal sizes and
share one reward.

Only what `comarl.envs.pettingzoo` documents is decided here; sizes are read from the environment's
own spaces.
"""

import importlib
import pkgutil
import warnings
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Literal

import numpy as np

from comarl.validation import unknown
from comarl.workers.serve import WorkerTimestep

REMEDY = 'pip install "comarl[pettingzoo]"'
MASK = "action_mask"  # PettingZoo's name for legal actions, in an observation or in an info


class ParallelTeam:
    """A team in the environment that `parallel_env` of a module makes.

    Raises ValueError or ImportError, with what would be right, for what is no such environment.
    """

    def __init__(
        self,
        module: str,
        kwargs: Mapping[str, Any],
        reward: Literal["mean", "sum"] = "mean",
        state: Literal["environment", "observations"] = "environment",
    ):
        with warnings.catch_warnings(action="ignore"):  # of PettingZoo, on its own old and new ways
            self.env = make_env(module, kwargs)
            agents = getattr(self.env, "possible_agents", None)
            if not agents:
                raise ValueError(
                    f"module={module!r} has no possible_agents; a team needs a fixed list of its "
                    "agents"
                )
            self.agents = list(agents)
            self._encoders = [
                encoder(module, agent, self.env.observation_space(agent)) for agent in self.agents
            ]
            self._controls = [
                control(module, agent, self.env.action_space(agent)) for agent in self.agents
            ]
            kinds = {discrete for _, _, discrete in self._controls}
            if len(kinds) > 1:
                raise ValueError(
                    f"module={module!r} has discrete and continuous actions; a team must have one "
                    "kind"
                )
            self.discrete = kinds.pop()
            self.obs_sizes = tuple(size for size, _ in self._encoders)
            self.action_sizes = tuple(size for size, _, _ in self._controls)
            self.legal = np.arange(max(self.action_sizes)) < np.array(self.action_sizes)[:, None]
            self._share = 1.0 / len(self.agents) if reward == "mean" else 1.0
            self._state: np.ndarray | None = None
            observations, infos = self.env.reset(seed=0)
            if state == "environment":
                self._state = self._own_state()
            self.own_state = self._state is not None
            self.state_size = self._observe(observations, infos, {}).state.size

    @property
    def limit(self) -> int | None:
        """The environment's own time limit, as far as it says."""
        inner = self.env.unwrapped
        found = [
            getattr(holder, "max_cycles", None) for holder in (inner, getattr(inner, "env", None))
        ]
        return next((limit for limit in found if isinstance(limit, int)), None)

    def reset(self, seed: int) -> WorkerTimestep:
        """Starts an episode."""
        observations, infos = self.env.reset(seed=seed)
        return self._observe(observations, infos, {})

    def step(self, action: np.ndarray) -> tuple[WorkerTimestep, float, bool, bool]:
        """`(timestep, team reward, terminated, truncated)` after an action `[agents ...]`.

        The end counts as truncated if one of those that ended last was truncated.
        """
        acting = set(self.env.agents)
        chosen = {
            agent: convert(action[i])
            for i, (agent, (_, convert, _)) in enumerate(
                zip(self.agents, self._controls, strict=True)
            )
            if agent in acting
        }
        observations, rewards, terminations, truncations, infos = self.env.step(chosen)
        reward = self._share * sum(float(rewards.get(agent, 0.0)) for agent in self.agents)
        ended = lambda agent: terminations.get(agent, False) or truncations.get(agent, False)
        over = not self.env.agents or all(map(ended, chosen))
        ran_out = lambda agent: truncations.get(agent, False) and not terminations.get(agent, False)
        truncated = over and any(map(ran_out, chosen))
        timestep = self._observe(observations, infos, terminations)
        return timestep, reward, over and not truncated, truncated

    def _observe(
        self, observations: Mapping, infos: Mapping, terminations: Mapping
    ) -> WorkerTimestep:
        """What the environment gave each agent, as arrays; agents that are gone see zeros."""
        obs = np.zeros((len(self.agents), max(self.obs_sizes)), np.float32)
        available = self.legal.copy() if self.discrete else None
        for i, (agent, (size, encode)) in enumerate(zip(self.agents, self._encoders, strict=True)):
            if agent in observations:
                obs[i, :size] = encode(observations[agent])
            if available is None:
                continue
            if agent not in observations or terminations.get(agent, False):
                available[i] = np.arange(available.shape[1]) == 0
            else:
                available[i] &= self._mask(agent, observations[agent], infos.get(agent, {}))
        if self._state is None:
            rows = [row[:size] for row, size in zip(obs, self.obs_sizes, strict=True)]
            return WorkerTimestep(obs, np.concatenate(rows), available)
        try:
            self._state = self._own_state()
        except Exception:
            # Some environments have no state any more when all agents are gone. No value follows
            # there, so any will do.
            if self.env.agents:
                raise
        assert self._state is not None, "an environment that has a state keeps having one"
        return WorkerTimestep(obs, self._state, available)

    def _mask(self, agent: Any, observation: Any, info: Mapping) -> np.ndarray:
        given = observation.get(MASK) if isinstance(observation, Mapping) else None
        given = info.get(MASK) if given is None else given
        mask = np.ones(self.legal.shape[1], bool)
        if given is not None:
            mask[: len(given)] = np.asarray(given, bool)
            if not mask[: len(given)].any():
                raise ValueError(
                    f"{MASK} of agent {agent!r} allows no action; one at least must always be legal"
                )
        return mask

    def _own_state(self) -> np.ndarray | None:
        """What the environment says of itself; None if it has nothing to say, or a picture."""
        try:
            state = np.asarray(self.env.state())
        except (NotImplementedError, AttributeError):
            if self._state is not None:
                raise
            return None
        return None if is_picture(state) else state.astype(np.float32).reshape(-1)


def make_env(module: str, kwargs: Mapping[str, Any]) -> Any:
    """The environment of a module. Raises ImportError or ValueError with the cause and what would
    be right."""
    imported = load(module)
    make = getattr(imported, "parallel_env", None)
    if make is None:
        turns = hasattr(imported, "env") or hasattr(imported, "raw_env")
        found = "env alone, whose agents act in turns" if turns else "neither that nor env"
        raise ValueError(
            f"module={module!r} has no parallel_env, but {found}; agents of a team act at once. "
            "Name a module with a "
            "parallel_env; one of your own may make it with pettingzoo.utils.aec_to_parallel"
        )
    try:
        return make(**kwargs)
    except ImportError:
        raise
    except Exception as error:
        given = " ".join(f"{name}={value!r}" for name, value in kwargs.items()) or "nothing"
        raise ValueError(
            f"kwargs {given}: parallel_env of {module} answers {type(error).__name__}: {error}"
        ) from error


def load(module: str) -> ModuleType:
    """Imports a module by its name."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        if missing != module and not module.startswith(f"{missing}."):
            raise ImportError(
                f"module={module!r} needs the package {missing!r}, which is not installed: "
                f"{remedy(module)}"
            ) from error
        parent, _, name = missing.rpartition(".")
        if parent:
            if not hasattr(whole := load(parent), "__path__"):
                raise ImportError(
                    f"module={module!r}: {parent} is a module itself; leave out .{name}"
                ) from error
            names = [
                found.name for found in pkgutil.iter_modules(whole.__path__) if found.name[0] != "_"
            ]
            raise unknown(
                "module", name, names, f"It is to be a module of {parent} with a parallel_env."
            ) from error
        raise ImportError(
            f"module={module!r}: the package {missing!r} is not installed. PettingZoo and mpe2 "
            f"come with {REMEDY}; "
            "install others by the name under which they are published"
        ) from error
    except ImportError as error:
        raise ImportError(f"module={module!r} cannot be imported: {error}") from error


def remedy(module: str) -> str:
    """What brings the packages that a module needs."""
    package, _, family = module.partition(".")
    family = family.partition(".")[0]
    if package == "pettingzoo" and family != "sisl":
        return f'pip install "pettingzoo[{family}]"'
    return (
        REMEDY
        if package in ("pettingzoo", "mpe2")
        else f"install it, or the extra of {package} that brings it"
    )


def is_picture(like: Any) -> bool:
    """Whether a space or an array is one of pixels: whole numbers of 8 bits on two axes or more."""
    return getattr(like, "dtype", None) == np.uint8 and len(like.shape) >= 2


def encoder(module: str, agent: Any, space: Any) -> tuple[int, Callable[[Any], np.ndarray]]:
    """The length of an agent's observations as a vector, and what makes it."""
    from gymnasium import spaces

    if isinstance(space, spaces.Dict) and MASK in space.spaces:
        rest = {name: part for name, part in space.spaces.items() if name != MASK}
        size, encode = encoder(module, agent, spaces.Dict(rest))
        return size, lambda observation: encode({name: observation[name] for name in rest})
    found = f"module={module!r}: the observation space of agent {agent!r} "
    if any(is_picture(part) for part in leaves(space)):
        raise ValueError(
            f"{found}has pictures, {space}, and comarl's networks take vectors. Ask the "
            "environment for vectors, if it "
            "has an argument for that, or write a module whose parallel_env encodes them into a "
            "Box of one axis"
        )
    if not space.is_np_flattenable:
        raise ValueError(
            f"{found}is {space}, which has no fixed length; it must be one that gymnasium can "
            "flatten"
        )
    return spaces.flatdim(space), lambda observation: np.asarray(spaces.flatten(space, observation))


def leaves(space: Any) -> list[Any]:
    """A space's parts, and theirs."""
    parts = getattr(space, "spaces", None)
    if parts is None:
        return [space]
    return [
        leaf
        for part in (parts.values() if isinstance(parts, Mapping) else parts)
        for leaf in leaves(part)
    ]


def control(module: str, agent: Any, space: Any) -> tuple[int, Callable[[Any], Any], bool]:
    """The size of an agent's action, what makes the environment's out of comarl's, and whether it
    is discrete."""
    from gymnasium import spaces

    found = f"module={module!r}: the action space of agent {agent!r} is {space}; it must be "
    if isinstance(space, spaces.Discrete):
        return int(space.n), lambda action: int(space.start) + int(action), True
    if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        raise ValueError(f"{found}Discrete, or a Box of floating-point numbers")
    if not space.is_bounded():
        raise ValueError(
            f"{found}bounded: comarl's actions are in [-1, 1] and stand for the range from low to "
            "high"
        )
    low = space.low.astype(np.float64).reshape(-1)
    high = space.high.astype(np.float64).reshape(-1)

    def convert(action: np.ndarray) -> np.ndarray:
        scaled = (low + high) / 2 + (high - low) / 2 * action[: low.size]
        return np.clip(scaled, low, high).astype(space.dtype).reshape(space.shape)

    return low.size, convert, False
