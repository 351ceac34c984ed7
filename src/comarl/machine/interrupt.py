"""Ctrl-C as a request: a run stops where it can be saved."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console


@contextmanager
def stop_requests(console: Console) -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C into a request to stop after the round, so that it can be saved; the
    second interrupts."""
    requested = False

    def request(signum: int, frame: object) -> None:
        nonlocal requested
        if requested:
            raise KeyboardInterrupt
        requested = True
        console.print("Stopping at the end of this round, then saving. Ctrl-C again stops at once.")

    try:
        previous = signal.signal(signal.SIGINT, request)
    except ValueError:  # not the main thread: whoever runs us handles signals
        yield lambda: False
        return
    try:
        yield lambda: requested
    finally:
        signal.signal(signal.SIGINT, previous)
