"""What a run keeps for good besides its newest checkpoints: what each seed had learnt when it was
best, or after so many steps.

    kept/best-seed0.npz     the team of seed 0 that did best in an evaluation
    kept/50000-seed0.npz    the team of seed 0 when it had passed 50,000 steps

Each file is a checkpoint of one seed without its replay memory: enough to evaluate a team, or to
begin another run with it, and small.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Array, Int, PyTree

from comarl.runs import checkpoint
from comarl.runs.checkpoint import DamagedCheckpoint
from comarl.validation import WrongSetting

KEPT = "kept"
BEST = "best"


class Snapshot(NamedTuple):
    """What one seed has learnt, and how much training that took."""

    agent: PyTree
    env_steps: Int[Array, ""]
    updates: Int[Array, ""]


@dataclass(frozen=True)
class Keep:
    """What a run is to keep.

    >>> Keep.parse(["best", "every", "50000"])
    Keep(best=True, every=50000)
    """

    best: bool = False
    every: int | None = None
    """environment steps of a seed"""

    @classmethod
    def parse(cls, words: Iterable[str]) -> "Keep":
        """What `best`, `every N` or both say. Raises WrongSetting for other words."""
        text = " ".join(words)
        found = re.fullmatch(r"(best)? ?(?:every (\d{1,10}))?|every (\d{1,10}) best", text)
        every = found and (found[2] or found[3])
        if not found or every == "0" * len(every or " "):
            raise WrongSetting(
                f"keep={text!r:.60} must be best, every N (environment steps, 1 or more), or both",
                "keep",
            )
        return cls(BEST in text, int(every) if every else None)

    def passed(self, before: int, after: int) -> int | None:
        """The last multiple of `every` that a seed passed between these steps.

        >>> Keep(every=100).passed(90, 230), Keep(every=100).passed(110, 190)
        (200, None)
        """
        if self.every is None or after // self.every == before // self.every:
            return None
        return after // self.every * self.every


@dataclass(frozen=True)
class Kept:
    """The teams that one run keeps."""

    folder: Path
    """of the run"""

    def path(self, name: str, seed: int) -> Path:
        """Where what a seed had learnt is: at its `best`, or after so many steps."""
        return self.folder / KEPT / f"{name}-seed{seed}.npz"

    def names(self) -> list[str]:
        """What can be asked for: `best`, if there is one, and numbers of steps."""
        files = (self.folder / KEPT).glob("*-seed*.npz")
        names = {path.name.partition("-seed")[0] for path in files}
        steps = sorted(int(name) for name in names if name.isdecimal())
        return [BEST] * (BEST in names) + [str(number) for number in steps]

    def save(self, name: str, seed: int, snapshot: Snapshot, header: dict[str, Any]) -> None:
        """Keeps what a seed has learnt; `header` has the run's `config`, and for the best its
        `score`."""
        path = self.path(name, seed)
        path.parent.mkdir(exist_ok=True)
        checkpoint.save(path, snapshot, header)

    def score(self, seed: int) -> float | None:
        """The score of a seed's best team so far; None if none was kept that can be read."""
        try:
            score = checkpoint.read_header(self.path(BEST, seed)).get("score")
        except (FileNotFoundError, DamagedCheckpoint):
            return None
        return score if isinstance(score, float) else None

    def load(
        self, name: str, seeds: Sequence[int], like: Snapshot, config: dict[str, Any]
    ) -> list[Snapshot]:
        """What each of the seeds had learnt.

        Raises FileNotFoundError for what was not kept, with what was; DamagedCheckpoint,
        OtherConfiguration if a file is of another run.
        """
        if name not in self.names():
            kept = ", ".join(self.names())
            raise FileNotFoundError(
                f"checkpoint {name!r:.40}: {self.folder} has newest"
                + (f", {kept}" if kept else "; other ones are kept with `train ... --keep`")
            )
        return [self._load(name, seed, like, config) for seed in seeds]

    def _load(self, name: str, seed: int, like: Snapshot, config: dict[str, Any]) -> Snapshot:
        path = self.path(name, seed)
        if not path.exists():
            raise FileNotFoundError(f"seed {seed} has no checkpoint {name!r} yet in {path.parent}")
        header = checkpoint.read_header(path)
        checkpoint.check_config(path, header, config)
        if header.get("seed") != seed:
            raise DamagedCheckpoint(f"{path} is of seed {header.get('seed')!r:.20}, not of {seed}")
        return checkpoint.load(path, like)[0]

    def forget_after(self, seed: int, env_steps: int) -> None:
        """Deletes what a seed had learnt after these steps, which it is about to play otherwise."""
        for name in self.names():
            path = self.path(name, seed)
            try:
                later = checkpoint.read_header(path).get("env_steps", 0) > env_steps
            except FileNotFoundError:
                continue
            except DamagedCheckpoint:
                later = True
            if later:
                path.unlink()
