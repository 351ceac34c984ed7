"""One PettingZoo parallel environment as arrays: a team whose agents are padded to equal sizes and
share one reward.

Only what `comarl.envs.pettingzoo` documents is decided here; sizes are read from the environment's
own spaces.
"""

import importlib
import pkgutil
import warnings
from collections.abc import Callable, Mapping, Set
from types import ModuleType
from typing import Any, Literal

import numpy as np

from comarl.validation import unknown
from comarl.workers import answers
from comarl.workers.serve import WorkerTimestep

REMEDY = 'pip install "comarl[pettingzoo]"'
MASK = "action_mask"  # PettingZoo's name for legal actions, in an observation or in an info
STEP_PARTS = ("observations", "rewards", "terminations", "truncations", "infos")


class ParallelTeam:
    """A team in the environment that `parallel_env` of a module makes.

    `strict` refuses observations outside their spaces, too. Raises ValueError or ImportError, with
    what would be right, for what is no such environment; BrokenAnswer, a ValueError, for the first
    answer that PettingZoo does not allow.
    """

    def __init__(
        self,
        module: str,
        kwargs: Mapping[str, Any],
        reward: Literal["mean", "sum"] = "mean",
        state: Literal["environment", "observations"] = "environment",
        strict: bool = False,
    ):
        with warnings.catch_warnings(action="ignore"):  # of PettingZoo, on its own old and new ways
            self.env, self._module, self._strict = make_env(module, kwargs), module, strict
            self.agents = possible_agents(module, self.env)
            self._spaces = [
                self._call("observation_space", "a space", self.env.observation_space, agent)
                for agent in self.agents
            ]
            self._encoders = [
                encoder(module, agent, space)
                for agent, space in zip(self.agents, self._spaces, strict=True)
            ]
            self._controls = [
                control(
                    module,
                    agent,
                    self._call("action_space", "a space", self.env.action_space, agent),
                )
                for agent in self.agents
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
            self.own_state = False
            self.state_size = sum(self.obs_sizes)
            self._state = np.zeros(self.state_size, np.float32)
            self.reset(seed=0)
            if state == "environment" and (own := self._first_state()) is not None:
                self.own_state, self.state_size, self._state = True, own.size, own

    @property
    def limit(self) -> int | None:
        """The environment's own time limit, as far as it says."""
        inner = getattr(self.env, "unwrapped", self.env)
        found = [
            getattr(holder, "max_cycles", None) for holder in (inner, getattr(inner, "env", None))
        ]
        return next((limit for limit in found if type(limit) is int and limit > 0), None)

    def reset(self, seed: int) -> WorkerTimestep:
        """Starts an episode."""
        answer = self._call("reset", answers.RESET, self.env.reset, seed=seed)
        where = self._where("reset")
        observations, infos = answers.split(where, answers.RESET, answer, ("observations", "infos"))
        self._living = self._agents_now("reset")
        if not self._living:
            raise answers.BrokenAnswer(
                f"{where} left agents empty; PettingZoo wants those there that act first"
            )
        return self._observe("reset", observations, infos, set(self._living), set(self._living))

    def step(self, action: np.ndarray) -> tuple[WorkerTimestep, float, bool, bool]:
        """`(timestep, team reward, terminated, truncated)` after an action `[agents ...]`.

        The episode is over when no agent is left. That counts as truncated if one of those that
        ended last was truncated.
        """
        acting = self._living
        chosen = {
            agent: convert(action[i])
            for i, (agent, (_, convert, _)) in enumerate(
                zip(self.agents, self._controls, strict=True)
            )
            if agent in acting
        }
        answer = self._call("step", answers.STEP, self.env.step, chosen)
        where = self._where("step")
        parts = answers.split(where, answers.STEP, answer, STEP_PARTS)
        for name, part in zip(STEP_PARTS[:-1], parts, strict=False):
            answers.check_names(where, name, part, self.agents)
        observations, rewards, terminations, truncations, infos = parts
        for agent in acting:
            answers.of_agent(where, "rewards", rewards, agent)
        paid = [
            answers.number(where, f"a reward of agent {agent!r},", rewards[agent])
            for agent in self.agents
            if agent in rewards
        ]
        flagged = lambda name, part: {
            agent
            for agent in acting
            if answers.flag(
                where, f"{name} of agent {agent!r},", answers.of_agent(where, name, part, agent)
            )
        }
        terminated = flagged("terminations", terminations)
        truncated = flagged("truncations", truncations) - terminated
        self._living = self._agents_now("step")
        for agent in self._living:
            if agent in terminated | truncated:
                raise answers.BrokenAnswer(
                    f"{where} ended agent {agent!r} and left it in agents; PettingZoo wants agents "
                    "that ended to leave them"
                )
        over = not self._living
        choosing = truncated if over else set(self._living)
        timestep = self._observe(
            "step", observations, infos, {*acting, *self._living}, choosing, choosing
        )
        ran_out = over and bool(truncated)
        return timestep, self._share * sum(paid), over and not ran_out, ran_out

    def picture(self) -> np.ndarray:
        """How the environment draws itself now, uint8 `[height, width, 3]`; it must have been made
        with `render_mode="rgb_array"`."""
        wants = "a picture, uint8 [height, width, 3]"
        said = self._call("render", wants, self.env.render)
        if getattr(said, "dtype", None) != np.uint8 or said.shape[2:] != (3,):
            raise answers.BrokenAnswer(
                f"{self._where('render')} returned {answers.shown(said)}; it must be {wants}"
            )
        return said

    def _where(self, method: str) -> str:
        return f"module={self._module!r}: {method}"

    def _call(self, method: str, wants: str, function: Callable, *args: Any, **kwargs: Any) -> Any:
        return answers.called(self._where(method), wants, function, *args, **kwargs)

    def _agents_now(self, method: str) -> list[Any]:
        """Those that act next, as the environment says after one of its methods."""
        where = self._where(method)
        wants = "agents, a list of those that act next"
        found = self._call("agents", wants, lambda: list(self.env.agents))
        answers.check_names(where, "agents", found, self.agents)
        return found

    def _observe(
        self,
        method: str,
        observations: Mapping,
        infos: Mapping,
        seeing: Set,
        choosing: Set,
        needed: Set | None = None,
    ) -> WorkerTimestep:
        """What the environment gave each agent, as arrays.

        Agents that neither acted nor act next see zeros, and only those `choosing` can do more than
        action 0, which does nothing.
        """
        where = self._where(method)
        answers.check_names(where, "observations", observations, self.agents)
        obs = np.zeros((len(self.agents), max(self.obs_sizes)), np.float32)
        available = self.legal.copy() if self.discrete else None
        for i, agent in enumerate(self.agents):
            if agent in (choosing if needed is None else needed):
                answers.of_agent(where, "observations", observations, agent)
            if agent in seeing and agent in observations:
                obs[i, : self.obs_sizes[i]] = self._encode(where, i, observations[agent])
            if available is None:
                continue
            if agent in choosing:
                available[i] &= self._mask(where, i, observations[agent], infos.get(agent))
            else:
                available[i] = np.arange(available.shape[1]) == 0
        if not self.own_state:
            rows = [row[:size] for row, size in zip(obs, self.obs_sizes, strict=True)]
            return WorkerTimestep(obs, np.concatenate(rows), available)
        try:
            said = self._call("state", "state() that returns an array", self.env.state)
        except answers.BrokenAnswer:
            # Some environments have no state any more when all agents are gone. No value follows
            # a termination, so any will do.
            if self._living:
                raise
        else:
            self._state = answers.vector(self._where("state"), "a state", said, self.state_size)
        return WorkerTimestep(obs, self._state, available)

    def _encode(self, where: str, i: int, observation: Any) -> np.ndarray:
        """One agent's observation as a vector of the size that its space says."""
        name, (size, encode) = f"an observation of agent {self.agents[i]!r},", self._encoders[i]
        answers.check_observation(where, name, self._spaces[i], observation)
        if self._strict and not self._spaces[i].contains(observation):
            raise answers.BrokenAnswer(
                f"{where} returned {name} {answers.shown(observation)} outside its space "
                f"{answers.shown(self._spaces[i])}"
            )
        encoded = answers.called(where, name, encode, observation)
        return answers.vector(where, name, encoded, size)

    def _mask(self, where: str, i: int, observation: Any, info: Any) -> np.ndarray:
        agent, size = self.agents[i], self.action_sizes[i]
        if info is not None and not isinstance(info, Mapping):
            raise answers.BrokenAnswer(
                f"{where} returned an info of agent {agent!r}, {answers.shown(info)}; PettingZoo "
                "wants a dictionary"
            )
        given = observation.get(MASK) if isinstance(observation, Mapping) else None
        given = (info or {}).get(MASK) if given is None else given
        mask = np.ones(self.legal.shape[1], bool)
        if given is None:
            return mask
        array = answers.called(where, f"an array as {MASK}", np.asarray, given)
        if array.shape != (size,) or array.dtype.kind not in "biuf":
            raise answers.BrokenAnswer(
                f"{where} returned {MASK} of agent {agent!r}, {answers.shown(given)}; it must have "
                f"one entry for each of its {size} actions"
            )
        mask[:size] = array.astype(bool)
        if not mask[:size].any():
            raise answers.BrokenAnswer(
                f"{where}: {MASK} of agent {agent!r} allows no action; one at least must always be "
                "legal"
            )
        return mask

    def _first_state(self) -> np.ndarray | None:
        """What the environment says of itself; None if it has nothing to say, or a picture."""
        if not callable(getattr(self.env, "state", None)):
            return None
        try:
            said = self._call("state", "state() that returns an array", self.env.state)
        except answers.BrokenAnswer as error:
            if isinstance(error.__cause__, NotImplementedError | AttributeError):
                return None
            raise
        if is_picture(said):
            return None
        return answers.vector(self._where("state"), "a state", said)


def possible_agents(module: str, env: Any) -> list[Any]:
    """The agents that there can ever be."""
    found = getattr(env, "possible_agents", None)
    if not isinstance(found, list | tuple) or not found:
        raise ValueError(
            f"module={module!r} has no possible_agents; a team needs a fixed list of its agents"
        )
    agents = list(found)
    if len(set(map(repr, agents))) < len(agents):
        raise ValueError(f"module={module!r} names an agent twice in possible_agents {agents}")
    return agents


def make_env(module: str, kwargs: Mapping[str, Any]) -> Any:
    """The environment of a module. Raises ImportError or ValueError with the cause and what would
    be right."""
    imported = load(module)
    make = getattr(imported, "parallel_env", None)
    if make is None:
        turns = hasattr(imported, "env") or hasattr(imported, "raw_env")
        found = ", but env alone, whose agents act in turns" if turns else ""
        raise ValueError(
            f"module={module!r} has no parallel_env{found}; agents of a team act at once. Name a "
            "module with a function or class parallel_env; one of your own may make it with "
            "pettingzoo.utils.aec_to_parallel"
        )
    try:
        return make(**kwargs)
    except ImportError:
        raise
    except (Exception, SystemExit) as error:
        given = " ".join(f"{name}={value!r}" for name, value in kwargs.items()) or "nothing"
        raise ValueError(
            f"kwargs {given}: parallel_env of {module} answers {answers.described(error)}"
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
                f"{remedy(module, missing)}"
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
    except (Exception, SystemExit) as error:
        raise ImportError(
            f"module={module!r} cannot be imported: {answers.described(error)}"
        ) from error


def remedy(module: str, missing: str) -> str:
    """What brings a package that a module needs."""
    package, _, family = module.partition(".")
    family = family.partition(".")[0]
    if package == "pettingzoo" and family != "sisl":
        return f'pip install "pettingzoo[{family}]"'
    return (
        REMEDY
        if package in ("pettingzoo", "mpe2") or missing in ("pettingzoo", "gymnasium")
        else f"install it, or the extra of {package} that brings it"
    )


def is_picture(like: Any) -> bool:
    """Whether a space or an array is one of pixels: whole numbers of 8 bits on two axes or more."""
    return getattr(like, "dtype", None) == np.uint8 and len(like.shape) >= 2


def encoder(module: str, agent: Any, space: Any) -> tuple[int, Callable[[Any], np.ndarray]]:
    """The length of an agent's observations as a vector, and what makes it."""
    from gymnasium import spaces

    check_space(module, agent, "observation", space)
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


def check_space(module: str, agent: Any, kind: str, space: Any) -> None:
    """Raises ValueError for what is no space of Gymnasium."""
    from gymnasium import spaces

    if not isinstance(space, spaces.Space):
        raise ValueError(
            f"module={module!r}: the {kind} space of agent {agent!r} is {answers.shown(space)}; it "
            "must be a space of gymnasium.spaces"
        )


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

    check_space(module, agent, "action", space)
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
