"""Ctrl-C as a request: a run stops where it can be saved."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stop_requests(tell: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C into a request to stop after the round, so that it can be saved.

    The second interrupts. Yields a function that says whether a stop was asked for; `tell` gets a
    sentence when it is. Outside the main thread nothing changes: whoever runs us handles signals.
    """
    requested = False

    def request(signum: int, frame: object) -> None:
        nonlocal requested
        if requested:
            raise KeyboardInterrupt
        requested = True
        tell("Stopping at the end of this round, then saving. Ctrl-C again stops at once.")

    try:
        previous = signal.signal(signal.SIGINT, request)
    except ValueError:  # not the main thread
        yield lambda: False
        return
    try:
        yield lambda: requested
    finally:
        signal.signal(signal.SIGINT, previous)
