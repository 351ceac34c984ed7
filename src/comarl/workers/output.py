"""What a task prints in a worker process: a few lines of it for whoever runs this, in their order,
each with the worker's name."""

import threading
import time
from collections import deque
from typing import IO

LINES = 20
"""lines of one worker that are passed on in each `WINDOW`"""

WINDOW = 10.0
"""seconds"""

WIDTH = 500
"""bytes of a line"""


class Output:
    """Reads what a process prints, in a thread of its own, so that no pipe is ever full.

    Lines are kept until somebody takes them: `take()` may be called from the main thread only, and
    so a listener is never called from two.
    """

    def __init__(self, name: str, stream: IO[bytes]):
        self._name, self._lines, self._left_out = name, deque(), 0
        self._lock = threading.Lock()
        self._began, self._passed = time.monotonic(), 0
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def take(self, last: bool = False) -> list[str]:
        """The lines since the last call, and how many were left out; `last` waits for the process's
        end."""
        if last:
            self._thread.join(1.0)
        with self._lock:
            lines = [f"{self._name} prints: {line}" for line in self._lines]
            self._lines.clear()
            over = last or time.monotonic() - self._began > WINDOW
            if self._left_out and over:
                lines.append(f"{self._name} prints {self._left_out} more lines, left out.")
                self._left_out = 0
        return lines

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            while line := stream.readline(WIDTH):
                text = line.decode(errors="replace").strip()
                if text:
                    self._keep(text)

    def _keep(self, text: str) -> None:
        with self._lock:
            now = time.monotonic()
            if now - self._began > WINDOW and not self._left_out:
                self._began, self._passed = now, 0
            self._passed += 1
            if self._passed <= LINES:
                self._lines.append(text)
            else:
                self._left_out += 1
