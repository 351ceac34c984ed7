"""The command line: `comarl train | evaluate | report | check | list | doctor`."""

import dataclasses
import importlib.metadata
import operator
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import tyro
from rich.console import Console
from rich.table import Table

from comarl import escape
from comarl.machine.allocator import keep_freed_memory
from comarl.machine.interrupt import StoppedAtOnce
from comarl.options import (
    UsageError,
    check_names,
    parsed,
    seeds_in,
    values_of,
    with_option,
)
from comarl.terminal import going_on, make_console, open_streams, sentence, warnings_as_lines
from comarl.validation import WrongSetting, unknown

USAGE = """\
usage: comarl COMMAND ...

  train ALGORITHM TASK   train, or resume a run; --help after both names shows every option
  evaluate RUN           greedy episodes of a trained team; --help after the run shows every option
  export RUN             a trained team as a small file, which needs no run to act
  watch RUN              plays a trained team, or an exported one, into a .gif or .mp4
  report RUN...          learning curves, a table of final returns, and the CSV of every seed
  check TASK             plays random actions, and names what breaks the contract of a task
  list [WORD...]         algorithms and tasks, a line each: all, or those with these words
  doctor                 versions, devices, extras, rendering, disk and memory
  help COMMAND           the same as COMMAND --help;  --version  shows the version

For example:
  comarl train race-matd3 mamujoco/Hopper-3x1 --seeds 3 --steps 200000 --algorithm.beta 0
"""

AlgorithmT = TypeVar("AlgorithmT")
TaskT = TypeVar("TaskT")
Arguments = Sequence[str]
Imports = Annotated[
    tuple[str, ...], tyro.conf.arg(name="import", help_behavior_hint="(default: none)")
]
"""an option for modules that may be imported"""


@dataclass(frozen=True)
class TrainSettings(Generic[AlgorithmT, TaskT]):
    """Train an algorithm on a task, or resume the run with these settings if it was started."""

    algorithm: AlgorithmT
    task: TaskT
    seeds: int = 1
    """number of seeds, which train side by side"""
    first_seed: int = 0
    """the first seed; the others count up from it"""
    steps: int = 1_000_000
    """environment steps of each seed, those of all its teams together; the last round is
    completed"""
    evaluate_every: int = 10_000
    """environment steps between evaluations"""
    evaluation_episodes: int | None = None
    """greedy episodes of each evaluation; by default 32 where actions are discrete, and else 10"""
    minutes: float | None = None
    """stop after so many minutes, at the end of a round; the same command resumes the run"""
    folder: Path | None = None
    """where the run is kept; by default runs/ and a name made of its settings"""
    checkpoint_seconds: float = 120.0
    """minimum number of seconds between checkpoints"""
    keep: Annotated[
        tuple[str, ...],
        tyro.conf.arg(metavar="best|every N", help_behavior_hint="(default: none)"),
    ] = ()
    """teams to keep for good besides the newest, for `evaluate --checkpoint` and `--from`: the best
    by evaluation (win rate, or else return), one every N environment steps, or both"""
    from_: Annotated[Path | None, tyro.conf.arg(name="from", metavar="RUN")] = None
    """the folder of a run whose trained networks this run begins with; optimisers, counters and
    replay memory are new"""
    from_checkpoint: str = "newest"
    """which of its checkpoints --from takes: newest, best or a number of steps that it kept"""
    overwrite: bool = False
    """start anew in a folder that holds something but no checkpoint; a run's files there are
    deleted"""
    continue_with_other_code: bool = False
    """resume although code or versions of packages have changed since the checkpoint"""
    vmapped_seeds: bool | None = None
    """put all seeds on one device, as an array axis (vmap) or one after another; this changes the
    speed and the rounding. By default an accelerator vmaps them, and a CPU has a device for each
    seed"""
    dry_run: bool = False
    """show what would be done and how much memory it takes, and stop"""


@dataclass(frozen=True)
class EvaluateSettings(Generic[AlgorithmT, TaskT]):
    """Play greedy episodes of the teams that a run has trained so far, with its settings or with
    others."""

    algorithm: AlgorithmT
    task: TaskT
    episodes: int = 32
    """episodes per seed and team"""
    checkpoint: str = "newest"
    """which of the run's teams: newest, or what `train --keep` kept: best, or a number of steps"""
    cross_play: bool = False
    """show instead how each seed's team does with one agent of another seed"""
    folder: Path | None = None
    """a new folder to record the returns in, which `comarl report` takes as a run's; by default
    they are only shown"""
    import_: Imports = ()
    """modules that the run's algorithm and task may import; code that only its folder names is not
    imported"""


@dataclass(frozen=True)
class ExportSettings:
    """Write a trained team as a file: its acting networks alone, with a description beside it."""

    out: Path = Path("team.safetensors")
    """the file; the description is beside it, as .json"""
    seed: int | None = None
    """whose team; by default the first seed's"""
    checkpoint: str = "newest"
    """which of the run's teams: newest, or what `train --keep` kept: best, or a number of steps"""
    which: Literal["marl_team", "best_team"] | None = None
    """of a population: the team that MARL trains, or the one that did best in training; by default
    the first, and of a file the one that it has"""
    stablehlo: bool = False
    """write one step of the team as a program, too, with its networks inside"""
    import_: Imports = ()
    """modules that the run may import"""


@dataclass(frozen=True)
class WatchSettings:
    """Play a trained team, or an exported one, and write what is seen as a film."""

    out: Path = Path("team.gif")
    """the film: a .gif, or an .mp4; it must not exist yet"""
    episodes: int = 1
    """episodes, one after the other"""
    seed: int | None = None
    """of a run, whose team; by default the first seed's"""
    checkpoint: str = "newest"
    """which of the run's teams: newest, or what `train --keep` kept: best, or a number of steps"""
    which: Literal["marl_team", "best_team"] | None = None
    """of a population: the team that MARL trains, or the one that did best in training; by default
    the first, and of a file the one that it has"""
    start: int = 0
    """number that decides how the episodes begin"""
    fps: float | None = None
    """steps shown in a second; by default what suits the task"""
    size: int = 600
    """width of the film in pixels"""
    import_: Imports = ()
    """modules that the run or the file may import"""


@dataclass(frozen=True)
class CheckSettings(Generic[TaskT]):
    """Play random actions on a task, twice, and name the first thing that breaks its contract."""

    task: TaskT
    steps: int = 1000
    """about so many steps are played"""
    seed: int = 0
    """of the actions and the task"""


@dataclass(frozen=True)
class ReportSettings:
    """Draw learning curves and tables of one or more runs."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(help_behavior_hint="")]
    """the runs' folders"""
    out: Path = Path("report")
    """the folder for pictures, tables and the CSV"""
    metric: str | None = None
    """what to compare by: won, return, captures, or another metric of the tasks; by default won
    where the task has it"""
    middle: Literal["mean", "median"] = "mean"
    """the line of a curve: the seeds' mean with its interval, or their median with their range"""
    training: Annotated[tuple[str, ...], tyro.conf.arg(help_behavior_hint="(default: none)")] = ()
    """training metrics to draw as well, such as td_loss; docs/metrics.md lists them"""


def main(arguments: Arguments | None = None) -> int:
    """Runs one command; returns the exit status: 0 done, 1 failed, 2 misused."""
    open_streams()
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    keep_freed_memory(seeds_in(arguments))
    if not {"", os.getcwd()} & set(sys.path):
        # The installed script, unlike `python -m`, does not look for modules where the user is.
        sys.path.append(os.getcwd())
    commands: dict[str, Callable[[Arguments, Console], int]] = {
        "train": train,
        "evaluate": evaluate,
        "export": export,
        "watch": watch,
        "report": report,
        "check": check_task,
        "list": list_all,
        "doctor": doctor,
    }
    console = make_console()
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:2], "--help"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"comarl {importlib.metadata.version('comarl')}")
        return 0
    try:
        if arguments[0] not in commands:
            raise unknown("command", arguments[0], commands, "`comarl help` shows all.")
        status = commands[arguments[0]](arguments[1:], console)
        sys.stdout.flush()  # here, where an output that was closed is answered
        return status
    except StoppedAtOnce as stop:
        print(f"comarl: stopped at once by {stop}.", file=sys.stderr)
        return stop.exit_status
    except KeyboardInterrupt:
        print("comarl: interrupted.", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"comarl: {escape.terminal(sentence(error))}", file=sys.stderr)
        return 1
    except Exception as error:
        if not is_user_error(error):
            raise
        told = with_option(error, arguments) if isinstance(error, WrongSetting) else str(error)
        print(f"comarl: {escape.terminal(told)}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


def is_user_error(error: Exception) -> bool:
    """Whether the message of an error is for the user, so that one line is enough; all other errors
    keep their traceback."""
    from comarl.runs.checkpoint import DamagedCheckpoint, OtherConfiguration
    from comarl.training.memory import TooLittleMemory
    from comarl.training.run import Diverged
    from comarl.types import TaskDied

    told = (ValueError, ImportError, FileNotFoundError, DamagedCheckpoint, OtherConfiguration)
    return isinstance(error, (*told, TooLittleMemory, Diverged, TaskDied))


def train(arguments: Arguments, console: Console) -> int:
    """`comarl train`: trains, or resumes a run."""
    complaint = "train needs the names of an algorithm and a task, in this order, before any option"
    check_names(arguments, "train ALGORITHM TASK", complaint, TrainSettings)
    from comarl.algorithms import tuned
    from comarl.envs import FIXED, find_task
    from comarl.machine.placement import see_a_device_for_each

    # Before all else, because some tasks make JAX count its devices as soon as they are imported.
    see_a_device_for_each(seeds_in(arguments))
    algorithm_name, task_name = arguments[:2]
    algorithm, changes = tuned(algorithm_name, task_name)
    task = find_task(task_name)
    usual = TrainSettings(algorithm, task)
    prog = f"comarl train {algorithm_name} {task_name}"
    kind = TrainSettings[type(algorithm), type(task)]  # type: ignore[misc]
    settings = parsed(kind, usual, arguments[2:], prog, FIXED)
    report_tuned(changes, settings.algorithm, console)
    return run_training(settings, algorithm_name, task_name, console)


def report_tuned(changes: dict[str, Any], algorithm: Any, console: Console) -> None:
    """Says which of the paper's settings for this task apply, and which were overridden."""
    for field, value in changes.items():
        used = operator.attrgetter(field)(algorithm)
        how = (
            "the paper's setting for this task"
            if used == value
            else f"overridden; the paper's is {value}"
        )
        console.print(f"{field} = {used} ({how})", highlight=False)


def run_training(
    settings: TrainSettings, algorithm_name: str, task_name: str, console: Console
) -> int:
    """Trains what the settings say, and shows the end."""
    from comarl import api
    from comarl.training.memory import check_memory
    from comarl.training.progress import Display
    from comarl.training.run import Options

    given = vars(settings)
    options = Options(**{f.name: given[f.name] for f in dataclasses.fields(Options)})
    own = {"algorithm", "task", "from_", "dry_run", *vars(options)}
    planned = api.plan(
        settings.algorithm,
        settings.task,
        algorithm_name=algorithm_name,
        task_name=task_name,
        begin_from=settings.from_,
        options=options,
        **{name: value for name, value in given.items() if name not in own},
    )
    console.print(str(planned), highlight=False, soft_wrap=True, markup=False)
    if settings.dry_run:
        console.print(check_memory(planned.settings), highlight=False)
        return 0
    session = planned.session(going_on(Display(console)))
    try:
        run = planned.train(session)
    except KeyboardInterrupt:
        console.print(session.checkpoints.kept(), highlight=False, soft_wrap=True)
        raise
    summarise(run, console)
    return session.log.stop.exit_status


def summarise(run: Any, console: Console) -> None:
    """Shows the last evaluation of every seed, draws the curve, and says how to resume."""
    from comarl.training.summary import last_evaluations, restarts

    records = run.records
    console.print(last_evaluations(records))
    if died := restarts(records):
        console.print(died)
    if records:
        try:
            from comarl.reporting import single_run_curve

            curve = single_run_curve(run.folder)
            console.print(f"curve: {curve}", highlight=False, soft_wrap=True)
        except ImportError as missing:
            console.print(f"no curve was drawn: {missing}", highlight=False)
    console.print(
        "The run is done." if run.is_done else "The run is saved; the same command resumes it."
    )


def is_alone(command: str, arguments: Arguments, help_line: str) -> bool:
    """Whether a command that takes no arguments has none; False after its help was shown. Raises
    UsageError for any other argument."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(f"usage: comarl {command}\n\n{help_line}")
        return False
    if arguments:
        raise UsageError(f"{command} takes no arguments, not {arguments[0]!r}")
    return True


def evaluate(arguments: Arguments, console: Console) -> int:
    """`comarl evaluate`: greedy episodes of a trained team."""
    complaint = "evaluate needs the folder of a run, before any option"
    check_names(arguments, "evaluate RUN", complaint, EvaluateSettings)
    from comarl import api
    from comarl.envs import FIXED
    from comarl.runs.identity import called
    from comarl.teams.cross_play import cross_play_rows
    from comarl.training.load import load_settings
    from comarl.training.progress import Display
    from comarl.training.summary import scores_table

    folder, prog = Path(arguments[0]), f"comarl evaluate {arguments[0]}"
    imports = values_of(arguments[1:], "--import")
    trained, config = load_settings(folder, imports)
    usual = EvaluateSettings(trained.algorithm, trained.task)
    kind = EvaluateSettings[type(trained.algorithm), type(trained.task)]  # type: ignore[misc]
    settings = parsed(kind, usual, arguments[1:], prog, FIXED)
    names = f"{called(config)}: {folder}"
    if settings.cross_play:
        if settings.folder is not None:
            raise UsageError("--folder records returns of whole teams; leave out --cross-play")
        returns = api.cross_play(
            folder,
            settings.episodes,
            checkpoint=settings.checkpoint,
            algorithm=settings.algorithm,
            task=settings.task,
            imports=imports,
        )
        console.print(names, highlight=False, markup=False)
        heads, *rows = cross_play_rows(trained, returns)
        table = Table(*heads, title="Cross-play: mean returns")
        for row in rows:
            table.add_row(*row)
        console.print(table)
        return 0
    with warnings_as_lines():
        scores = api.evaluate(
            folder,
            settings.episodes,
            checkpoint=settings.checkpoint,
            algorithm=settings.algorithm,
            task=settings.task,
            folder=settings.folder,
            imports=imports,
            on_event=Display(console),
        )
    console.print(names, highlight=False, markup=False)
    console.print(scores_table(scores, trained.first_seed))
    return 0


def chosen(command: str, kind: type, arguments: Arguments) -> dict[str, Any]:
    """What the options after the name of a run or file set, as arguments of the function in Python
    that does the same."""
    settings = dict(vars(parsed(kind, kind(), arguments[1:], f"comarl {command} {arguments[0]}")))
    return {"imports": settings.pop("import_"), **settings}


def export(arguments: Arguments, console: Console) -> int:
    """`comarl export`: a trained team as a file."""
    complaint = "export needs the folder of a run, before any option"
    check_names(arguments, "export RUN", complaint, ExportSettings)
    from comarl import api
    from comarl.training.memory import size_text

    settings = chosen("export", ExportSettings, arguments)
    path = api.export(arguments[0], **settings)
    written = [path, path.with_suffix(".json")]
    if settings["stablehlo"]:
        written.append(path.with_suffix(".stablehlo"))
    for file in written:
        size = size_text(file.stat().st_size)
        console.print(f"{file}, {size}", highlight=False, soft_wrap=True, markup=False)
    return 0


def watch(arguments: Arguments, console: Console) -> int:
    """`comarl watch`: a film of a trained team."""
    complaint = "watch needs the folder of a run or a file, before any option"
    check_names(arguments, "watch RUN", complaint, WatchSettings)
    from comarl import api

    path = api.watch(arguments[0], **chosen("watch", WatchSettings, arguments))
    console.print(str(path), highlight=False, soft_wrap=True, markup=False)
    return 0


def report(arguments: Arguments, console: Console) -> int:
    """`comarl report`: curves and tables of runs."""
    settings = parsed(ReportSettings, ReportSettings(()), arguments, "comarl report")
    from comarl import api

    with warnings_as_lines():
        written = api.report(
            settings.runs,
            settings.out,
            metric=settings.metric,
            middle=settings.middle,
            training=settings.training,
        )
    for path in written:
        console.print(str(path), highlight=False, soft_wrap=True)
    return 0


def check_task(arguments: Arguments, console: Console) -> int:
    """`comarl check`: the contract of a task."""
    complaint = "check needs the name of a task, before any option"
    check_names(arguments, "check TASK", complaint, CheckSettings)
    from comarl import api
    from comarl.envs import FIXED, find_task
    from comarl.envs.check import ContractViolation, report_text

    name = arguments[0]
    task = find_task(name)
    kind = CheckSettings[type(task)]  # type: ignore[misc]
    settings = parsed(kind, CheckSettings(task), arguments[1:], f"comarl check {name}", FIXED)
    try:
        found = api.check(settings.task, settings.steps, settings.seed)
    except ContractViolation as violation:
        print(f"comarl: {name}: {escape.terminal(str(violation))}", file=sys.stderr)
        return 1
    console.print(report_text(name, found), soft_wrap=True)
    return 0


def list_all(arguments: Arguments, console: Console) -> int:
    """`comarl list`: algorithms and tasks, a line each."""
    from comarl.listing import show

    show(console, arguments)
    return 0


def doctor(arguments: Arguments, console: Console) -> int:
    """`comarl doctor`: what this machine lacks."""
    if not is_alone("doctor", arguments, "Shows what this machine lacks, and what to do about it."):
        return 0
    from comarl.doctor import main as diagnose

    return diagnose()
