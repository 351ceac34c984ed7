"""Any cooperative parallel environment of PettingZoo, by the name under which it is imported.

`comarl train vm3-ac pettingzoo/mpe2.simple_spread_v3` plays what `parallel_env` of the module
`mpe2.simple_spread_v3` makes (Terry et al., PettingZoo: Gym for Multi-Agent Reinforcement Learning,
NeurIPS 2021), in worker processes.

1. The team's reward is the mean of its agents' rewards, or their sum. Agents that are gone count,
   with 0: else losing a costly agent would pay.
2. Actions are Discrete, or a bounded Box, whose range is what comarl's [-1, 1] stands for. Legal
   actions are read from `action_mask` in an observation or in an info, as PettingZoo has it.
3. Observations are flattened as Gymnasium flattens them: dictionaries and tuples part by part,
   whole numbers one-hot. Pictures are refused. Agents of unequal size are padded.
4. The state is the environment's own, `state()`, where it has one that is no picture; else all
   observations.
5. Agents may come, go and return, as long as `possible_agents` names them. One that is not in
   `agents` sees zeros, can only choose action 0, and does nothing. Its last observation is seen
   once. What is paid for it all the same counts.
6. The episode is over when `agents` is empty. It was truncated if any of those that acted last was
   truncated rather than terminated, and then values follow its last observations; else it
   terminated. What ended one agent before the others does not matter to the team.
7. Time runs out at `horizon`, by default the environment's own `max_cycles`, and that is a
   truncation. Some environments call it a termination, so where `max_cycles` is an argument they
   get one step more than `horizon`.
"""

import ast
import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import tyro

from comarl.types import EnvSpec, TaskDied
from comarl.validation import WrongSetting, check_fields, check_range, short
from comarl.workers.measure import LIMIT, Measured, Measures
from comarl.workers.pool import Pool, Worker, Workers, log_to_stderr
from comarl.workers.team import ParallelTeam


@dataclass(frozen=True)
class PettingZoo:
    """Settings of a parallel environment of PettingZoo, and of how it is made a team's task."""

    module: tyro.conf.Suppress[str]
    """the module that has the environment's parallel_env"""
    kwargs: tuple[str, ...] = ()
    """arguments of parallel_env, each as name=value with the value as Python writes it"""
    reward: Literal["mean", "sum"] = "mean"
    """what the team gets of its agents' rewards"""
    state: Literal["environment", "observations"] = "environment"
    """what critics see: the environment's own state if it has one, or all observations"""
    horizon: int | None = None
    """steps after which an episode is truncated; by default the environment's own max_cycles"""
    strict: bool = field(default=False, compare=False)
    """refuse observations outside their spaces, too, as `comarl check` does"""
    workers: Workers = field(default=Workers(), compare=False)
    """the processes that step the copies"""

    def __post_init__(self):
        check_fields(self)
        if not all(part.isidentifier() for part in self.module.split(".")):
            raise WrongSetting(
                f"module={short(self.module)} of PettingZoo must be the name under which Python "
                "imports it, such as 'mpe2.simple_spread_v3'",
                "module",
            )
        if self.horizon is not None:
            check_range(self, 1, None, "horizon")
        if LIMIT in self.arguments:
            raise ValueError(
                f"kwargs {LIMIT}={self.arguments[LIMIT]}: time limits are comarl's; "
                "give --task.horizon"
            )

    def __str__(self) -> str:
        return f"pettingzoo/{self.module}"

    @functools.cached_property
    def arguments(self) -> dict[str, Any]:
        """What `kwargs` says."""
        return dict(argument(text) for text in self.kwargs)

    @property
    def _measures(self) -> Measures:
        return measures(self.module, self.kwargs, self.state, self.horizon, self.workers.timeout)

    @functools.cached_property
    def spec(self) -> EnvSpec:
        """The sizes, which a worker finds out.

        Raises ImportError or ValueError for what is no environment for a team, with what would be
        right; TaskDied for one that ends or hangs its process.
        """
        found = self._measures
        ends = list(itertools.accumulate(found.obs_sizes))
        rows = [
            tuple(range(end - size, end)) for end, size in zip(ends, found.obs_sizes, strict=True)
        ]
        unequal = lambda sizes: sizes if len(set(sizes)) > 1 else None
        return EnvSpec(
            num_agents=len(found.obs_sizes),
            obs_size=max(found.obs_sizes),
            state_size=found.state_size,
            action_size=max(found.action_sizes),
            discrete=found.discrete,
            horizon=found.horizon,
            obs_sizes=unequal(found.obs_sizes),
            action_sizes=unequal(found.action_sizes),
            obs_from_state=None if found.own_state else tuple(rows),
        )

    def make(self, num_copies: int) -> Pool:
        """`num_copies` environments in worker processes."""
        return Pool(str(self), self.spec, self.maker(), num_copies, self.workers)

    def maker(self, **more: Any) -> Callable[[], ParallelTeam]:
        """What makes one environment in a worker, with `more` arguments of parallel_env."""
        limit = {LIMIT: self.spec.horizon + 1} if self._measures.takes_limit else {}
        return functools.partial(
            ParallelTeam,
            self.module,
            {**self.arguments, **limit, **more},
            reward=self.reward,
            state=self.state,
            strict=self.strict,
        )

    def suited_to(self, actions: frozenset[str]) -> "PettingZoo":
        """The same task with actions of these kinds, where the environment lets one choose as those
        of mpe2 do."""
        kind = "discrete" if self.spec.discrete else "continuous"
        if kind in actions or "continuous_actions" in self.arguments:
            return self
        other = replace(self, kwargs=(*self.kwargs, f"continuous_actions={self.spec.discrete}"))
        try:
            return self if other.spec.discrete == self.spec.discrete else other
        except (ValueError, TaskDied):
            return self


@functools.cache
def measures(
    module: str, kwargs: tuple[str, ...], state: str, horizon: int | None, timeout: float
) -> Measures:
    """The sizes of an environment, which a worker finds once for each of its settings.

    Raises what `comarl.workers.measure.measure` raises; TaskDied if the worker ends or hangs.
    """
    make: Any = functools.partial(Measured, module, dict(map(argument, kwargs)), state, horizon)
    name = f"pettingzoo/{module}, made to find its sizes,"
    worker = Worker(name, make, [0], timeout, log_to_stderr, log_to_stderr)
    try:
        worker.answer(tries=1)
        worker.ask("reset", {0: 0})
        (found,) = worker.answer(tries=1)
    finally:
        worker.end(patience=1.0)
        worker.pass_on(last=True)
    if isinstance(found, Exception):
        raise found
    return found


def argument(text: str) -> tuple[str, Any]:
    """`("N", 4)` of "N=4"; a value that is no Python is the text itself."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"kwargs {text!r}: it must be name=value, such as N=4")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
