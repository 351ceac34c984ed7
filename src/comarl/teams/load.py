"""A team from wherever it is: the folder of a run, or a file that was exported."""

from collections.abc import Sequence
from pathlib import Path

from comarl.teams.export import read
from comarl.teams.team import Team, Which
from comarl.training.load import NEWEST, load_settings, load_trained


def load(
    source: Path | str,
    seed: int | None = None,
    which: Which | None = None,
    checkpoint: str = NEWEST,
    imports: Sequence[str] = (),
) -> Team:
    """The team that one seed of a run has trained, by default the first, or the team in a file.

    `which` is, by default, `marl_team` of a run's population, and of a file the team that it has.
    `checkpoint` is `newest`, or what the run kept: `best`, or a number of steps. `imports` are
    modules that a run or file may import, where it is of code of your own. Raises ValueError for
    what a run or a file has not; else as `comarl.training.load` and `comarl.teams.export.read`.
    """
    path = Path(source)
    if path.is_dir():
        run, config = load_settings(path, imports)
        trained = load_trained(path, run, config, checkpoint)
        number = run.first_seed if seed is None else seed
        return Team.of_run(run, config, trained, number, which or "marl_team")
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is neither a run's folder nor a file of a team")
    team = read(path, imports)
    if seed is not None and seed != team.about.seed:
        raise ValueError(f"{path} has the team of seed {team.about.seed} alone, not of {seed}")
    if which not in (None, team.about.which):
        raise ValueError(f"{path} has the {team.about.which} alone, not the {which}")
    if checkpoint != NEWEST:
        raise ValueError(f"{path} is one team without checkpoints: leave out {checkpoint!r}")
    return team
