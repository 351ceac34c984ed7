"""Ctrl-C and SIGTERM as requests: a run stops where it can be saved."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


@dataclass
class StopRequest:
    """Whether somebody has asked to stop."""

    signal: int | None = None
    """the signal that asked first"""

    @property
    def exit_status(self) -> int:
        """What a shell expects of a process that a signal ended; 0 if none has."""
        return 0 if self.signal is None else 128 + self.signal


class StoppedAtOnce(KeyboardInterrupt):
    """A second signal has come before the first was obeyed."""

    def __init__(self, signum: int):
        super().__init__(NAMES[signal.Signals(signum)])
        self.exit_status = 128 + signum


@contextmanager
def stop_requests(tell: Callable[[str], None], request: StopRequest) -> Iterator[StopRequest]:
    """Turns the first Ctrl-C or SIGTERM into a request to stop after the round, so that it can be
    saved.

    The second raises StoppedAtOnce. Yields `request`, which is filled in when a stop is asked for;
    `tell` gets a sentence then. Outside the main thread nothing changes: whoever runs us handles
    signals.
    """

    def ask(signum: int, frame: object) -> None:
        if request.signal is not None:
            raise StoppedAtOnce(signum)
        request.signal = signum
        name = NAMES[signal.Signals(signum)]
        tell(f"Stopping at the end of this round, then saving. {name} again stops at once.")

    previous = {}
    try:
        for signum in NAMES:
            previous[signum] = signal.signal(signum, ask)
    except ValueError:  # not the main thread
        yield request
        return
    try:
        yield request
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
