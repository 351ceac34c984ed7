"""Where a command shows things, and what it says when the system refuses something."""

import contextlib
import errno
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console
from rich.text import Text

from comarl import escape

T = TypeVar("T")


class Terminal(Console):
    """Where a command shows things. An output that was closed is an error like others; Rich itself
    would end the process without a word."""

    def on_broken_pipe(self) -> None:
        """Called while the BrokenPipeError is handled."""
        raise

    def render_str(self, text: str, **how: Any) -> Text:
        """Makes what is shown of every text, cells of tables included: control characters are
        written out, as they may come from outside."""
        return super().render_str(escape.terminal(text), **how)


def make_console() -> Terminal:
    """Where results are shown. Text is never taken for markup, and off a terminal no line breaks,
    so that files and other programs get whole ones."""
    narrow = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Terminal(markup=False, emoji=False, highlight=False, width=None if narrow else 1000)


def open_streams() -> None:
    """Opens what the caller has closed of the standard input, output and error, so that what they
    get goes nowhere. Else the next file to be opened, such as a run's, would have their number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest number that is free
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def close_output() -> None:
    """Lets what is yet to be shown go nowhere, after the output could not be written."""
    # Else Python tries to write the rest when it ends, and fails again
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def going_on(show: Callable[[T], None]) -> Callable[[T], None]:
    """`show`, but an output that fails (a pipe whose reader has gone, a full disk) does not end
    what is shown, such as a run: that is said once on stderr, and the rest is shown nowhere."""

    def shown(event: T) -> None:
        try:
            show(event)
        except OSError as error:
            close_output()
            gone = isinstance(error, BrokenPipeError)
            cause = "whoever read the output has closed it" if gone else f"output: {error.strerror}"
            with contextlib.suppress(OSError):
                print(f"comarl: {cause}; the run goes on without it.", file=sys.stderr, flush=True)

    return shown


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Shows what is warned of in this block as a line on stderr. It is for who gave the command, so
    not with the line of our code that warned."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(
            f"comarl: {escape.terminal(str(message))}", file=sys.stderr
        )
        yield


def sentence(error: OSError) -> str:
    """What the operating system refused, and the remedy, on one line."""
    if isinstance(error, BrokenPipeError):
        close_output()
        return "whoever read the output has closed it."
    if error.errno is None:
        return str(error)
    remedies = {
        (errno.ENOSPC, errno.EDQUOT, errno.EFBIG): "free some space, or name another folder",
        (errno.EACCES, errno.EPERM, errno.EROFS): "name a folder that may be written",
        (
            errno.ENOTDIR,
            errno.EEXIST,
            errno.EISDIR,
        ): "a folder and a file are confused; name another",
        (errno.ENOENT,): "check the name",
    }
    remedy = next((text for codes, text in remedies.items() if error.errno in codes), None)
    where = f"{error.filename}: " if error.filename else ""
    hint = f": {remedy}" if remedy else ""
    return f"{where}{error.strerror}{hint}. What was saved before stays; the same command resumes."
