"""What a run tells while it goes: events, for whoever listens.

A listener is any function of one event. The display of the command line is one; a program or a
notebook may bring another.

>>> from comarl.training.events import Note
>>> heard = []
>>> both = broadcast(heard.append, print)
>>> both(Note("The run is saved."))
Note(text='The run is saved.', warning=False)
>>> heard[0].text
'The run is saved.'
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Int
from numpy import ndarray


@dataclass(frozen=True)
class Started:
    """A run begins or is resumed: each seed's budget, how many seeds, when its time is over."""

    steps: int
    seeds: int
    deadline: float | None
    """of `time.monotonic()`, where the run has a time budget"""


@dataclass(frozen=True)
class Note:
    """A sentence for whoever runs this."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Progress:
    """How far a run has come: after every call that computes."""

    phase: str
    env_steps: Int[ndarray, " seeds"]
    """environment steps of each seed so far"""
    updates: int
    """gradient steps of all seeds so far"""


@dataclass(frozen=True)
class Evaluated:
    """One seed was evaluated: its line of the records."""

    line: dict[str, Any]


@dataclass(frozen=True)
class Ended:
    """Nothing more will be told, whatever the reason."""


Event = Started | Note | Progress | Evaluated | Ended
Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """A listener that does nothing."""


def broadcast(*listeners: Listener) -> Listener:
    """One listener that passes every event on to all of these, in this order."""

    def tell(event: Event) -> None:
        for listener in listeners:
            listener(event)

    return tell
