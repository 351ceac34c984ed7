"""Copies of a task in worker processes, side by side, and what happens when one of them dies.

A worker that is killed or that gives no answer in time is named in a line and replaced by a new
one. That one plays its episodes again from their seeds, action by action, and
continues. Where an episode follows from its seed and its actions, as it must, nothing else changes:
a run is the same, bit for bit, whatever the number of workers, and however often they die. What
dies in the same place again and again ends the run. What raises an error, or answers what no task
may, would do so again, and ends the run at once.

Workers are programs of their own, started anew rather than forked, so JAX's threads are nobody's
concern. They end when the pool is closed and also, by themselves, when the process that started
them is gone.
"""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from comarl.machine.hardware import usable_cores
from comarl.types import EnvSpec, HostTimestep, TaskDied
from comarl.validation import check_fields, check_range
from comarl.workers.output import Output
from comarl.workers.serve import Team, WorkerTimestep

TRIES = 4
"""workers that die in a row, none of which gets beyond the same step, before the task is given
up"""

START_TIMEOUT = 60.0
"""seconds that a worker has at least to load a task"""

LOOK = 0.2
"""seconds after which is looked, while an answer is awaited, at what the task prints"""

RestartCallback = Callable[[str], None]
PrintCallback = Callable[[str], None]


@dataclass(frozen=True)
class Workers:
    """The processes that step a task's copies. Results do not depend on them."""

    count: int | None = None
    """how many there are, by default one per core"""
    timeout: float = 60.0
    """seconds without an answer after which one is replaced"""

    def __post_init__(self):
        check_fields(self)
        if self.count is not None:
            check_range(self, 1, None, "count")
        if not self.timeout > 0:
            raise ValueError(f"timeout={self.timeout:g} of Workers must be more than 0 seconds")


class Pool:
    """Copies of a task, as `comarl.types.HostEnvironment` says; their episodes start together.

    `make` makes one copy in a worker, so it must be something that pickles: a function or a class
    of a module, or a `functools.partial` of one. `on_restart` is called with a line whenever a
    worker was replaced, `on_print` with each line that the task prints.
    """

    def __init__(
        self,
        name: str,
        spec: EnvSpec,
        make: Callable[[], Team],
        num_copies: int,
        workers: Workers = Workers(),
    ):
        self.spec, self.num_copies = spec, num_copies
        self.on_restart: RestartCallback = log_to_stderr
        self.on_print: PrintCallback = log_to_stderr
        self._name = name
        count = min(workers.count or usable_cores(), num_copies)
        shares = np.array_split(np.arange(num_copies), count)
        self._workers = [
            Worker(
                f"worker {i} of {count} of {name}",
                make,
                copies=share.tolist(),
                timeout=workers.timeout,
                on_restart=lambda line: self.on_restart(line),
                on_print=lambda line: self.on_print(line),
            )
            for i, share in enumerate(shares, start=1)
        ]
        # Copies that never played are seen as zeros, and may do anything.
        self._obs = np.zeros((num_copies, spec.num_agents, spec.obs_size), np.float32)
        self._state = np.zeros((num_copies, spec.state_size), np.float32)
        self._available = (
            np.ones((num_copies, spec.num_agents, spec.action_size), bool)
            if spec.discrete
            else None
        )
        self._playing = np.zeros(num_copies, bool)
        try:
            for worker in self._workers:  # all of them load the task at the same time
                worker.answer()
        except BaseException:
            self.close()
            raise

    def reset(
        self, seeds: Int[np.ndarray, " copies"], playing: Bool[np.ndarray, " copies"]
    ) -> HostTimestep:
        """Starts an episode in the copies that play."""
        self._playing, self._elapsed = playing.copy(), 0
        for copy, timestep in self._ask("reset", [int(seed) for seed in seeds]):
            self._record(copy, timestep)
        return self._timestep()

    def step(self, action: np.ndarray) -> tuple[HostTimestep, np.ndarray, np.ndarray, np.ndarray]:
        """`(timestep, team rewards, terminated, truncated)` after an action `[copies agents ...]`.

        Raises:
            TaskDied: if a worker fails in this step, or an action or an answer is not finite.
        """
        self._elapsed += 1
        if not np.isfinite(action[self._playing]).all():
            raise TaskDied(
                f"{self._name}, step {self._elapsed} of the episode: an action is not finite"
            )
        reward = np.zeros(self.num_copies, np.float32)
        terminated, truncated = np.zeros((2, self.num_copies), bool)
        for copy, (timestep, *outcome) in self._ask("step", action):
            self._record(copy, timestep)
            if not abs(outcome[0]) <= np.finfo(np.float32).max:  # which NaN is not
                raise TaskDied(
                    f"{self._at(copy)}: the reward is {outcome[0]}; it must be finite as float32"
                )
            reward[copy], terminated[copy], truncated[copy] = outcome
        if self._elapsed >= self.spec.horizon:
            truncated |= self._playing & ~terminated
        self._playing &= ~(terminated | truncated)
        return self._timestep(), reward, terminated, truncated

    def close(self) -> None:
        """Ends all workers."""
        for worker in self._workers:
            worker.part()
        for worker in self._workers:
            worker.end(patience=1.0)
            worker.pass_on(last=True)

    def _ask(self, method: str, arguments: Any) -> Iterator[tuple[int, Any]]:
        """Has every copy that plays do something; `(copy, answer)` of each. Workers do it at the
        same time."""
        asked = []
        for worker in self._workers:
            mine = {
                i: arguments[copy] for i, copy in enumerate(worker.copies) if self._playing[copy]
            }
            if mine:
                worker.ask(method, mine)
                asked.append((worker, mine))
        for worker, mine in asked:
            yield from zip([worker.copies[i] for i in mine], worker.answer(), strict=True)
            worker.pass_on()

    def _at(self, copy: int) -> str:
        return f"{self._name}, copy {copy}, step {self._elapsed} of the episode"

    def _record(self, copy: int, timestep: WorkerTimestep) -> None:
        obs, state, available = timestep
        for name, array, kept in (("obs", obs, self._obs), ("state", state, self._state)):
            if array.shape != kept[copy].shape:
                shapes = f"shape {list(array.shape)}; it must have {list(kept[copy].shape)}"
                raise TaskDied(f"{self._at(copy)}: {name} has {shapes}")
            if not np.isfinite(array).all():
                entry = np.argwhere(~np.isfinite(array))[0].tolist()
                value = array[tuple(entry)]
                raise TaskDied(f"{self._at(copy)}: {name}{entry} is {value}; it must be finite")
            kept[copy] = array
        if self._available is not None:
            self._available[copy] = available

    def _timestep(self) -> HostTimestep:
        """What all copies show, in arrays of its own: those of the pool are written over."""
        available = None if self._available is None else self._available.copy()
        return HostTimestep(self._obs.copy(), self._state.copy(), available)


class WorkerFailed(Exception):
    """A worker that gave no answer: the message says what it did instead."""


class Worker:
    """One process with some of the copies, and all that it was asked since the episodes began."""

    def __init__(
        self,
        name: str,
        make: Callable[[], Team],
        copies: list[int],
        timeout: float,
        on_restart: RestartCallback,
        on_print: PrintCallback,
    ):
        self.name, self.copies, self._timeout = name, copies, timeout
        self._on_restart, self._on_print = on_restart, on_print
        self._latest: Any = None
        self._history: list[bytes] = []
        self._start()
        self.ask("make", (make, len(copies)))

    def ask(self, method: str, asked: Any) -> None:
        """Sends what is to be done. A worker that is gone is found out when its answer is
        awaited."""
        if method == "reset":
            del self._history[1:]  # what was played before need not be played again
        self._history.append(pickle.dumps((method, asked)))
        self._send(self._history[-1])

    def answer(self, tries: int = TRIES) -> Any:
        """What came of it, from this process or one that replaces it.

        Raises TaskDied if so many fail, and at once for an error of the task."""
        failure = None
        for _ in range(tries):
            try:
                self._latest = self._replace(failure) if failure else self._receive()
                return self._latest
            except WorkerFailed as error:
                failure = error
        assert failure is not None
        times = f", {tries} times in a row" if tries > 1 else ""
        raise TaskDied(f"{self.name} {failure} {self._where()}{times}.")

    def pass_on(self, last: bool = False) -> None:
        """Tells what the task printed; `last` when its process has ended."""
        for line in self._output.take(last):
            self._on_print(line)

    def part(self) -> None:
        """Lets the process end when it has done what it does."""
        self._connection.close()
        if self._process.stdin:
            self._process.stdin.close()

    def end(self, patience: float) -> None:
        """Ends the process, by force if it does not end in so many seconds."""
        self.part()
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _start(self) -> None:
        self._connection, theirs = Pipe()
        descriptor = theirs.fileno()
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            f"from comarl.workers.serve import serve; serve({descriptor})"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            # Never written to: its end tells the worker that this process is gone
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[descriptor],
            # The workers are the threads; what the task prints comes at once
            start_new_session=True,  # Ctrl-C is for this process, which then closes the pool
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        )
        theirs.close()
        assert self._process.stdout is not None, "it is a pipe"
        self._output = Output(self.name, self._process.stdout)

    def _send(self, message: bytes) -> None:
        with suppress(OSError):
            self._connection.send_bytes(message)

    def _receive(self, starting: bool = False) -> Any:
        patience = self._timeout
        if starting or len(self._history) == 1:  # loading a task takes longer than a step
            patience = max(patience, START_TIMEOUT)
        try:
            self._wait(patience)
            answer, failure = self._connection.recv()
        except (EOFError, OSError):
            raise WorkerFailed(self._exit_reason()) from None
        if failure:
            raise TaskDied(f"{self.name}, {self._where()}, {failure}")
        return answer

    def _wait(self, patience: float) -> None:
        """Waits for an answer, and meanwhile tells what is printed, so that a task which hangs can
        say why. Raises WorkerFailed if there is no answer in so many seconds."""
        end = time.monotonic() + patience
        while not self._connection.poll(min(LOOK, max(0.0, end - time.monotonic()))):
            self.pass_on()
            if time.monotonic() >= end:
                raise WorkerFailed(f"gave no answer for {patience:g} s")

    def _replace(self, failure: WorkerFailed) -> Any:
        """A new process does all over again what the old one was asked since the episodes began;
        its last answer."""
        old = self._process.pid
        self._process.kill()
        self.end(patience=10.0)
        self.pass_on(last=True)
        self._start()
        line = (
            f"{self.name} (process {old}) {failure} {self._where()}. "
            f"Process {self._process.pid} replaces it and plays "
            f"the {len(self.copies)} episode(s) again from their seeds."
        )
        before = answer = None
        try:
            for i, message in enumerate(self._history):
                self._send(message)
                before, answer = answer, self._receive(starting=i == 0)
            if len(self._history) > 2 and pickle.dumps(before) != pickle.dumps(self._latest):
                line += (
                    " What was played again came out differently, so one step joins two "
                    "episodes: the task depends on more than its seed; "
                    "`comarl check` finds out."
                )
        finally:
            self._on_restart(line)  # once for each, because they are counted
        return answer

    def _where(self) -> str:
        steps = len(self._history) - 2  # the first two messages make and reset the teams
        if steps < 0:
            return "at its start"
        return f"in step {steps} of the episode" if steps else "in a reset"

    def _exit_reason(self) -> str:
        try:
            status = self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            return "closed its connection"
        if status < 0:  # of a process that a signal ended
            return f"was killed by {signal.Signals(-status).name}"
        return f"ended with exit status {status}"


def log_to_stderr(line: str) -> None:
    """Prints a line on the standard error, for callers who have no better place for it."""
    print(line, file=sys.stderr)
