"""Whatever a task prints, a few whole lines of it are passed on, each with the worker's name."""

import io
import os
import random

import pytest
from rich.console import Console

from comarl.training.events import Note
from comarl.training.progress import Display
from comarl.workers.output import LINES, WIDTH, Output

PIECES = (
    b"a",
    b" ",
    b"\n",
    b"\r",
    b"\r\n",
    b"\x00",
    b"\x1b[2J",
    b"\x1b]0;t\x07",
    b"\xff\xfe",
    b"[/x]",
)
LONG = (b"[red]", b"\xe2\x80", b"\xe2\x80\xae", b"x" * 3000, b"\n" * 50, b":warning:")


def fuzz_prints(variants):
    """How many lines were passed on of so many outputs."""
    chance, passed = random.Random(0), 0
    for _ in range(variants):
        printed = b"".join(chance.choices(PIECES + LONG, k=chance.randrange(60)))
        reading, writing = os.pipe()
        output = Output("worker 1 of 2 of [x]", os.fdopen(reading, "rb"))
        with os.fdopen(writing, "wb") as stream:
            stream.write(printed)
        lines = output.take(last=True)
        said = [line for line in lines if ", left out." not in line]
        assert len(said) <= LINES and len(lines) <= LINES + 1
        assert all(line.startswith("worker 1 of 2 of [x] prints") for line in lines)
        assert all("\n" not in line and len(line) < WIDTH + 40 for line in lines)
        assert bool(lines) == bool(printed.decode(errors="replace").strip())
        check_shown(lines[:3])
        passed += len(lines)
    return passed


def check_shown(lines):
    """Nothing in a line is markup, and no control character reaches the terminal."""
    file = io.StringIO()
    display = Display(Console(file=file, width=3 * WIDTH, force_terminal=False))
    for line in lines:
        display(Note(line))
    shown = file.getvalue()
    assert shown.count("worker 1 of 2 of [x] prints") == len(lines)
    assert not set(shown) & {"\x1b", "\x07", "\x00", "\u202e"}


def test_random_prints_are_passed_on_as_lines():
    assert fuzz_prints(60) > 300


@pytest.mark.fuzz
def test_random_prints_are_passed_on_as_lines_at_length():
    assert fuzz_prints(5_000) > 20_000
