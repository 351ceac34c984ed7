"""Where a command shows things, and what it says when the system refuses something."""

import errno
import os
import sys
from typing import Any

from rich.console import Console
from rich.text import Text

from comarl import escape


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


def sentence(error: OSError) -> str:
    """What the operating system refused, and the remedy, on one line."""
    if isinstance(error, BrokenPipeError):
        # Else Python tries to write the rest when it ends, and fails again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
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
