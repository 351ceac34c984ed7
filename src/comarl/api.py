"""Training, evaluating, reporting and loading: what the command line calls, and a program or a
notebook, too.

    run = comarl.train("qmix", "smax/3m", seeds=3, steps=200_000)
    comarl.evaluate(run, episodes=32)
    comarl.report([run], out="report")
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard

import numpy as np
from jaxtyping import Float
from rich.console import Console

from comarl.algorithms import name_of_algorithm, tuned
from comarl.envs import check as checking
from comarl.envs import find_task, name_of_task
from comarl.envs.matrix import MatrixGame
from comarl.machine.placement import see_a_device_for_each
from comarl.runs.identity import called, folder_name, identity
from comarl.runs.lock import FolderInUse, locked
from comarl.runs.records import RETURN, extra_metrics, read, score_key
from comarl.teams.acting import Acting
from comarl.teams.cross_play import cross_play as play_across
from comarl.teams.export import SUFFIX
from comarl.teams.export import export as write_team
from comarl.teams.load import load as load_team
from comarl.teams.team import Team, Which, mixed, of_seed, seed_place, team_index
from comarl.terminal import going_on
from comarl.training.evaluate import record_once
from comarl.training.events import Listener, Note, broadcast, ignore
from comarl.training.load import (
    NEWEST,
    load_settings,
    load_state,
    load_trained,
    rebuild_task,
)
from comarl.training.networks import Networks, read_networks
from comarl.training.payoff import write as write_payoff
from comarl.training.progress import Display
from comarl.training.run import Options, Session, evaluate_once
from comarl.training.settings import Run, check_algorithm, check_task
from comarl.training.train import RunState
from comarl.types import SuitsActions
from comarl.validation import MOST_SEEDS, WrongSetting, counted, is_whole, short

Scores = dict[str, Float[np.ndarray, "seeds episodes"]]
"""returns of greedy episodes by team, `marl_team` and in a population `best_team`; what the task
counts besides stands beside them, such as `marl_team_won`"""


@dataclass(frozen=True)
class TrainedRun:
    """A run and what it has come to."""

    folder: Path
    settings: Run
    config: dict[str, Any]
    """the settings as config.json has them"""
    state: RunState
    """all of a checkpoint: networks, optimisers, replay, counters, keys; leaves lead with seeds"""

    @property
    def records(self) -> list[dict[str, Any]]:
        """A dict for each seed and evaluation, oldest first: the lines of `metrics.jsonl`."""
        return read(self.folder)

    @property
    def is_done(self) -> bool:
        """Whether every seed has had its steps."""
        return bool((np.asarray(self.state.clock.env_steps) >= self.settings.steps).all())

    def __repr__(self) -> str:
        # Short, because a notebook shows what a cell ends with, and the state is large
        steps = int(np.asarray(self.state.clock.env_steps).min())
        seeds = counted(self.settings.seeds, "seed")
        return (
            f"<TrainedRun of {called(self.config)}: {seeds}, {steps:,} steps each: {self.folder}>"
        )


@dataclass(frozen=True)
class Plan:
    """A run that may begin: what it is, and where."""

    settings: Run
    config: dict[str, Any]
    folder: Path
    options: Options
    networks: Networks | None

    def __str__(self) -> str:
        run, names = self.settings, called(self.config)
        return f"{names}, {counted(run.seeds, 'seed')}, {run.steps:,} steps each: {self.folder}"

    def session(self, tell: Listener = ignore) -> Session:
        """What trains it, telling its events. Raises as `Session.open`."""
        run, networks = self.settings, self.networks
        return Session.open(run, self.config, self.folder, self.options, tell, networks)

    def train(self, session: Session) -> TrainedRun:
        """Trains it in one of its sessions. Raises as `Session.train`."""
        return TrainedRun(self.folder, self.settings, self.config, session.train())


def train(
    algorithm: Any,
    task: Any,
    *,
    seeds: int = 1,
    first_seed: int = 0,
    steps: int = 1_000_000,
    evaluate_every: int = 10_000,
    evaluation_episodes: int | None = None,
    folder: Path | str | None = None,
    begin_from: TrainedRun | Path | str | None = None,
    from_checkpoint: str = NEWEST,
    keep: Sequence[str] = (),
    minutes: float | None = None,
    checkpoint_seconds: float = 120.0,
    overwrite: bool = False,
    continue_with_other_code: bool = False,
    vmapped_seeds: bool | None = None,
    show: bool = True,
    on_event: Listener = ignore,
) -> TrainedRun:
    """Trains an algorithm on a task, or resumes the run with these settings if it was begun.

    Args:
        algorithm: a name, as on the command line, with the settings that its paper tuned for the
            task; or a value, as it is: `comarl.Qmix(hidden=128)`, or one of your own.
        task: a name, or a value, such as `comarl.Waves(agents=3)`, or one of your own.
        seeds: how many seeds train side by side.
        first_seed: the first seed; the others count up from it.
        steps: environment steps of each seed, those of all its teams together.
        evaluate_every: environment steps between evaluations.
        evaluation_episodes: greedy episodes of each evaluation; by default 32 where actions are
            discrete, else 10.
        folder: where the run is kept; by default `runs/` and a name made of its settings.
        begin_from: a run, or its folder, whose trained networks this run begins with.
        from_checkpoint: which of its checkpoints: `newest`, `best`, or a number of steps it kept.
        keep: teams to keep for good besides the newest state: `best`, `every N` steps, or both.
        minutes: stop after so many, at the end of a round; the same call resumes the run.
        checkpoint_seconds: least time between checkpoints.
        overwrite: start anew in a folder that holds something but no checkpoint.
        continue_with_other_code: resume although code or packages have changed since.
        vmapped_seeds: all seeds on one device, as an array axis or one after another; by default an
            accelerator maps them, and a CPU has a device for each.
        show: print the progress, in a notebook, too.
        on_event: called with each event of `comarl.training.events` as it happens.

    Returns the run with its state at the end; it is saved in its folder, too.

    Raises ValueError for settings that cannot be meant, before anything is built or written;
    Diverged, TooLittleMemory, FolderInUse, DamagedCheckpoint and TaskDied as they say. The newest
    checkpoint stays good whatever happens.

    >>> import comarl, tempfile
    >>> folder = tempfile.mkdtemp() + "/run"
    >>> run = comarl.train("iql", "matrix/penalty", steps=20, evaluate_every=10, folder=folder,
    ...                    show=False)
    >>> [line["env_steps"] for line in run.records], run.is_done
    ([10, 20], True)
    """
    planned = plan(
        algorithm,
        task,
        seeds=seeds,
        first_seed=first_seed,
        steps=steps,
        evaluate_every=evaluate_every,
        evaluation_episodes=evaluation_episodes,
        folder=folder,
        begin_from=begin_from,
        from_checkpoint=from_checkpoint,
        options=Options(
            minutes=minutes,
            checkpoint_seconds=checkpoint_seconds,
            keep=(keep,) if isinstance(keep, str) else tuple(keep),
            overwrite=overwrite,
            continue_with_other_code=continue_with_other_code,
            vmapped_seeds=vmapped_seeds,
        ),
    )
    tell = broadcast(going_on(Display(Console())) if show else ignore, on_event)
    tell(Note(str(planned)))
    return planned.train(planned.session(tell))


def plan(
    algorithm: Any,
    task: Any,
    *,
    seeds: int = 1,
    first_seed: int = 0,
    steps: int = 1_000_000,
    evaluate_every: int = 10_000,
    evaluation_episodes: int | None = None,
    folder: Path | str | None = None,
    begin_from: TrainedRun | Path | str | None = None,
    from_checkpoint: str = NEWEST,
    algorithm_name: str | None = None,
    task_name: str | None = None,
    options: Options = Options(),
) -> Plan:
    """What `train` would do, without doing it; its arguments, and two more.

    `algorithm_name` and `task_name` are what the records call a value; by default a name is found
    by its class. Raises ValueError for settings that cannot be meant.
    """
    # Before all else, because some tasks make JAX count its devices as soon as they are imported
    if is_whole(seeds) and 0 < seeds <= MOST_SEEDS:
        see_a_device_for_each(seeds)
    if isinstance(task, str):
        task_name = task_name or task
        task = find_task(task)
    check_task(task)
    if isinstance(algorithm, str):
        algorithm_name = algorithm_name or algorithm
        algorithm = tuned(algorithm, task_name or name_of_task(task))[0]
    check_algorithm(algorithm)
    if isinstance(task, SuitsActions):
        task = task.suited_to(algorithm.actions)
    if evaluation_episodes is None:
        evaluation_episodes = 32 if task.spec.discrete else 10
    run = Run(algorithm, task, seeds, first_seed, steps, evaluate_every, evaluation_episodes)
    networks = None
    if begin_from is not None:
        networks = read_networks(_place(begin_from), run, from_checkpoint)
        run = dataclasses.replace(run, begun_from=networks.fingerprint)
    elif from_checkpoint != NEWEST:
        name = short(from_checkpoint)
        raise WrongSetting(f"{name} of which run? Name its folder by --from", "from_checkpoint")
    names = algorithm_name or name_of_algorithm(algorithm), task_name or name_of_task(task)
    config = identity(run, *names)
    place = Path("runs") / folder_name(config) if folder is None else Path(folder)
    return Plan(run, config, place, options, networks)


def evaluate(
    run: TrainedRun | Path | str,
    episodes: int = 32,
    *,
    checkpoint: str = NEWEST,
    algorithm: Any = None,
    task: Any = None,
    folder: Path | str | None = None,
    imports: Sequence[str] = (),
    on_event: Listener = ignore,
) -> Scores:
    """Plays greedy episodes of the teams that a run, or the run in a folder, has trained so far.

    Args:
        run: what `train` returned, or a folder.
        episodes: so many of each seed and team.
        checkpoint: `newest`, or what the run kept: `best`, or a number of steps.
        algorithm: the run's algorithm with other settings, as far as they change no network.
        task: the run's task with other settings, likewise.
        folder: a new folder to record the returns in, which `report` takes as a run's.
        imports: modules that the run may import, where its algorithm or task is a user's own.
        on_event: called with a Note where something was not written.

    Returns the undiscounted returns `[seeds, episodes]` by team, `marl_team` and in a population
    `best_team`; what the task counts besides stands beside them, such as `marl_team_won`.

    Raises FileNotFoundError for a folder without such a checkpoint, ValueError for settings that
    cannot be meant.
    """
    trained, config, source = _settings_of(run, imports)
    record = None if folder is None else Path(folder)
    if record is not None and record.exists():
        raise ValueError(
            f"folder {record}: it exists, and an evaluation is recorded in a new folder only"
        )
    played = _played(trained, algorithm, task, episodes)
    team = load_trained(source, played, config, checkpoint)
    scores = evaluate_once(played, team)
    if record is not None:
        names = config["algorithm_name"], config["task_name"]
        record_once(record, identity(played, *names), played, team.clock, scores)
    same = (played.algorithm, played.task) == (trained.algorithm, trained.task)
    as_trained = checkpoint == NEWEST and same
    if isinstance(played.task, MatrixGame) and (record is not None or as_trained):
        place = record or source
        try:
            with locked(place):
                write_payoff(place, played, team)
        except FolderInUse:
            pass  # who trains there writes it
        except OSError as error:
            if record is not None:
                raise
            # Somebody else's run can be evaluated without leaving anything in it
            on_event(Note(f"payoff.csv is not written: {error.strerror}"))
    return scores


def report(
    runs: Sequence[TrainedRun | Path | str] | TrainedRun | Path | str,
    out: Path | str = "report",
    *,
    metric: str | None = None,
    middle: Literal["mean", "median"] = "mean",
    training: Sequence[str] = (),
) -> list[Path]:
    """Draws learning curves and writes tables of runs, or of the runs in folders, into `out`.

    Args:
        runs: what `train` returned, or folders, one or several; seeds of equal settings are one
            curve.
        out: the folder for pictures, tables and the CSV.
        metric: what to compare by: `won`, `return`, or another metric of the tasks; by default
            `won` where the task has it.
        middle: the line of a curve: the seeds' mean with its interval, or their median with their
            range.
        training: training metrics to draw as well, such as `td_loss`.

    Returns the paths of what was written. Raises ValueError for a folder without records. Needs the
    extra `report`.
    """
    from comarl.reporting import report as write_report

    given = [runs] if isinstance(runs, TrainedRun | Path | str) else runs
    return write_report([_place(run) for run in given], Path(out), metric, middle, training)


def open_run(folder: Path | str, imports: Sequence[str] = ()) -> TrainedRun:
    """The run in a folder, with the state of its newest good checkpoint.

    `imports` are modules that it may import, where its algorithm or task is a user's own. Raises
    FileNotFoundError, DamagedCheckpoint, or ValueError for what cannot be read.
    """
    settings, config = load_settings(Path(folder), imports)
    state = load_state(Path(folder), settings, config)
    return TrainedRun(Path(folder), settings, config, state)


def load(
    source: TrainedRun | Path | str,
    seed: int | None = None,
    *,
    agents: Sequence[int] | None = None,
    checkpoint: str = NEWEST,
    which: Which | None = None,
    imports: Sequence[str] = (),
) -> Team:
    """A trained team, which acts: `team.reset().act(obs, available)`.

    Args:
        source: a run, its folder, or a file that `export` wrote.
        seed: whose team it is; by default the first seed's.
        agents: instead, the seed that each agent comes from: partners that never trained together.
        checkpoint: of a run: `newest`, or what it kept: `best`, or a number of steps.
        which: of a population: `marl_team`, which MARL trains, or `best_team`, the best in
            training; by default the first, and of a file the one that it has.
        imports: modules that may be imported, where the algorithm is a user's own.

    Raises FileNotFoundError, DamagedCheckpoint, or ValueError for what cannot be read or is not
    there.
    """
    team_of = lambda number: load_team(_place(source), number, which, checkpoint, imports)
    if agents is None:
        return team_of(seed)
    if seed is not None:
        raise ValueError("seed and agents were both given; agents has a seed for each agent")
    teams = {number: team_of(number) for number in dict.fromkeys(agents)}
    return mixed([teams[number] for number in agents])


def export(
    source: TrainedRun | Path | str,
    out: Path | str,
    seed: int | None = None,
    *,
    checkpoint: str = NEWEST,
    which: Which | None = None,
    stablehlo: bool = False,
    imports: Sequence[str] = (),
) -> Path:
    """Writes a trained team to `out`, a .safetensors file, with its description beside it.

    The file has the acting networks alone: `load` needs no run and no trainer to act by it. What
    the team scored in the evaluation at that time is in the description. Arguments are those of
    `load`; with `stablehlo`, one step of the team is written as a program, too. Returns the path.

    Raises as `load`, and ValueError for a path of another ending.
    """
    team = load(source, seed, checkpoint=checkpoint, which=which, imports=imports)
    if not _is_export(source):
        team = team.with_scores(_scores_of(team, _place(source)))
    return write_team(team, out, stablehlo=stablehlo)


def watch(
    source: TrainedRun | Path | str,
    out: Path | str = "team.gif",
    seed: int | None = None,
    *,
    episodes: int = 1,
    checkpoint: str = NEWEST,
    which: Which | None = None,
    start: int = 0,
    fps: float | None = None,
    size: int = 600,
    imports: Sequence[str] = (),
) -> Path:
    """Plays greedy episodes of a trained team, and writes what is seen to `out`, a .gif or an .mp4.

    Args:
        source: a run, its folder, or a file that `export` wrote.
        out: a new file.
        seed: of a run, whose team it is; by default the first seed's.
        episodes: so many, one after the other.
        checkpoint: of a run: `newest`, or what it kept: `best`, or a number of steps.
        which: of a population: `marl_team`, which MARL trains, or `best_team`; by default the
            first, and of a file the one that it has.
        start: a number that decides how the episodes begin.
        fps: steps shown in a second; by default what suits the task.
        size: width in pixels.
        imports: modules that may be imported, where the algorithm or the task is a user's own.

    Returns the path. Needs the extra `watch`. Raises ValueError, FileExistsError, ImportError and
    RuntimeError, each in one sentence, for what cannot be meant or drawn.
    """
    from comarl import watching

    how: dict[str, Any] = {"episodes": episodes, "seed": start, "fps": fps, "size": size}
    if _is_export(source):
        team = load(source, seed, checkpoint=checkpoint, which=which, imports=imports)
        task = rebuild_task(team.about.config, imports, "the team's")
        acting = team.acting
        assert isinstance(acting, Acting)  # as nothing else can be exported
        index = acting.form.team
        # Its critics were not exported, so that it has no values to show
        how["values"] = False
        return watching.watch(team.algorithm, task, acting.agent(), acting.clock, index, out, **how)
    run, config, folder = _settings_of(source, imports)
    trained = load_trained(folder, run, config, checkpoint)
    place = seed_place(run, run.first_seed if seed is None else seed)
    agent, clock = of_seed(trained, place)
    index = team_index(run.algorithm, agent, which or "marl_team")
    return watching.watch(run.algorithm, run.task, agent, clock, index, out, **how)


def cross_play(
    run: TrainedRun | Path | str,
    episodes: int = 32,
    *,
    checkpoint: str = NEWEST,
    algorithm: Any = None,
    task: Any = None,
    imports: Sequence[str] = (),
) -> Float[np.ndarray, "seeds seeds"]:
    """Mean returns of greedy episodes: (i, j) is of one agent of seed i in the team of seed j, each
    agent in turn; the diagonal is each seed's own team.

    Arguments are those of `evaluate`. Raises ValueError where agents communicate, else as
    `evaluate`.
    """
    trained, config, folder = _settings_of(run, imports)
    played = _played(trained, algorithm, task, episodes)
    team = load_trained(folder, played, config, checkpoint)
    return play_across(played, team, episodes)


def check(task: Any, steps: int = 1000, seed: int = 0) -> checking.Report:
    """Plays random actions on a task, by name or by value, for about so many steps, twice.

    Raises ContractViolation for the first thing that breaks the contract of a task.
    """
    task = find_task(task) if isinstance(task, str) else task
    check_task(task)
    return checking.check_strictly(task, steps, seed)


def _scores_of(team: Team, folder: Path) -> dict[str, float]:
    """The means of the evaluation that a team had when it was saved; nothing if it had none."""
    now = team.about.seed, team.env_steps
    lines = [line for line in read(folder) if (line["seed"], line["env_steps"]) == now]
    names = (RETURN, *extra_metrics(lines[0])) if lines else ()
    keys = {name: score_key(team.about.which, name) for name in names}
    return {name: float(np.mean(lines[0][key])) for name, key in keys.items() if lines[0].get(key)}


def _played(trained: Run, algorithm: Any, task: Any, episodes: int) -> Run:
    """A run that was trained, as it is to be played: with other settings where some are given."""
    return dataclasses.replace(
        trained,
        algorithm=algorithm or trained.algorithm,
        task=task or trained.task,
        evaluation_episodes=episodes,
    )


def _place(source: TrainedRun | Path | str) -> Path:
    """Where a run or an exported team is."""
    return source.folder if isinstance(source, TrainedRun) else Path(source)


def _is_export(source: TrainedRun | Path | str) -> TypeGuard[Path | str]:
    """Whether this is a file that `export` wrote, by its name."""
    return not isinstance(source, TrainedRun) and Path(source).suffix == SUFFIX


def _settings_of(
    run: TrainedRun | Path | str, imports: Sequence[str]
) -> tuple[Run, dict[str, Any], Path]:
    """The settings, configuration and folder of a run."""
    if isinstance(run, TrainedRun):
        return run.settings, run.config, run.folder
    settings, config = load_settings(Path(run), imports)
    return settings, config, Path(run)
