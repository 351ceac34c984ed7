"""Which trained teams a run keeps for good, and when."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from comarl.runs.kept import BEST, Keep, Kept
from comarl.runs.records import WON, score_key
from comarl.training.settings import Run
from comarl.training.train import RunState, snapshot


def score(line: dict[str, Any]) -> float:
    """What an evaluation is judged by: the win rate where the task has one, else the mean return,
    of the team that stands for the algorithm.

    >>> score({"marl_team": [3.0, 5.0]}), score({"marl_team": [3.0], "marl_team_won": [1.0]})
    (4.0, 1.0)
    """
    return float(np.mean(line.get(score_key("marl_team", WON), line["marl_team"])))


def keep_teams(
    keep: Keep,
    folder: Path,
    run: Run,
    config: dict[str, Any],
    state: RunState,
    before: Int[np.ndarray, " seeds"],
    evaluated: Sequence[dict[str, Any]],
) -> None:
    """Keeps what `keep` asks for after a round that began at `before` steps of each seed, and in
    which the seeds of the lines `evaluated` were evaluated.

    Of equal evaluations the first is the best, so that a round which is played again changes
    nothing.
    """
    kept, whole = Kept(folder), None
    wanted: list[tuple[str, int, dict[str, Any]]] = []
    for seed, (begin, end) in enumerate(zip(before, state.clock.env_steps.tolist(), strict=True)):
        if (passed := keep.passed(int(begin), end)) is not None:
            wanted.append((str(passed), seed, {}))
    for line in evaluated if keep.best else ():
        best = kept.score(line["seed"])
        if best is None or score(line) > best:
            wanted.append((BEST, line["seed"] - run.first_seed, {"score": score(line)}))
    for name, seed, about in wanted:
        whole = whole or jax.device_get(state._replace(replay=()))
        number, taken = run.first_seed + seed, snapshot(whole, seed)
        header = {"config": config, "seed": number, "env_steps": int(taken.env_steps), **about}
        kept.save(name, number, taken, header)
