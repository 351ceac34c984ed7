"""How long XLA has compiled: time that a run pays once, and that speeds should not be judged by."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jax import monitoring

EVENTS = ("jaxpr_to_mlir_module_duration", "backend_compile_duration")


@contextmanager
def compile_seconds() -> Iterator[Callable[[], float]]:
    """A function that tells the seconds spent on lowering and compiling since the start of this
    context."""
    total = 0.0

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        nonlocal total
        if event.endswith(EVENTS):
            total += duration_secs

    monitoring.register_event_duration_secs_listener(listen)
    try:
        yield lambda: total
    finally:
        monitoring.unregister_event_duration_listener(listen)
