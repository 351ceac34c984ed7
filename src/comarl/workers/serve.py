"""The loop of a worker process: copies of a task, which do what `comarl.workers.pool` asks and
never outlive it."""

import os
import pickle
import threading
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol

import numpy as np

from comarl.workers.answers import BrokenAnswer, described


class WorkerTimestep(NamedTuple):
    """What one team sees at one step: a `comarl.types.HostTimestep` of one copy."""

    obs: np.ndarray  # [agents, obs]
    state: np.ndarray  # [state]
    available: np.ndarray | None = None  # [agents, actions]


class Team(Protocol):
    """One copy of a task. Equal seeds give equal episodes: a worker that died is replaced by
    playing them again."""

    def reset(self, seed: int) -> WorkerTimestep:
        """Starts an episode."""
        ...

    def step(self, action: np.ndarray) -> tuple[WorkerTimestep, float, bool, bool]:
        """`(timestep, team reward, terminated, truncated)` after an action `[agents ...]`.

        The pool truncates episodes at the horizon by itself.
        """
        ...


def serve(descriptor: int) -> None:
    """Answers what comes over the connection of this file descriptor until its other end is gone.

    A message is a pickled `(method, asked)`: first `("make", (function, number of copies))`, then
    `("reset", {copy: seed})` or `("step", {copy: action})`. The answer is `(results, failure)`,
    of which one is None; a failure is a sentence.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    connection, teams = Connection(descriptor), []
    while True:
        try:
            message = connection.recv_bytes()
        except (EOFError, OSError):
            os._exit(0)
        answer, failure = None, None
        try:
            method, asked = pickle.loads(message)
            if method == "make":
                make, count = asked
                teams = [make() for _ in range(count)]
            else:
                answer = [
                    getattr(teams[copy], method)(argument) for copy, argument in asked.items()
                ]
        except BrokenAnswer as error:
            failure = f"reports: {error}"
        except (Exception, SystemExit) as error:
            failure = f"raised {described(error)}"
        _send(connection, (answer, failure))


def _send(connection: Connection, answer: Any) -> None:
    try:
        connection.send(answer)
    except OSError:
        os._exit(0)


def _end_with_parent() -> None:
    """Ends this process when the one that started it does, also while a step hangs: only then is
    stdin at its end."""
    os.read(0, 1)
    os._exit(0)
