"""The command line: `comarl train | evaluate | report | list | doctor`."""

import argparse
import dataclasses
import operator
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import tyro
from rich.console import Console
from rich.table import Table

from comarl.machine.allocator import keep_freed_memory

USAGE = """\
usage: comarl COMMAND ...

  train ALGORITHM TASK   train, or continue a run that was started; --help after both names shows every option
  evaluate RUN           greedy episodes of a trained team; --help after the run shows every option
  report RUN...          learning curves, a table of final returns, and the CSV of every seed
  list                   algorithms and tasks, a line each
  doctor                 versions, devices, extras, rendering, disk and memory

For example: comarl train race-matd3 mamujoco/Hopper-3x1 --seeds 3 --steps 200000 --algorithm.beta 0
"""

AlgorithmT = TypeVar("AlgorithmT")
TaskT = TypeVar("TaskT")
Arguments = Sequence[str]


class UsageError(ValueError):
    """A command line that cannot be meant."""


@dataclass(frozen=True)
class TrainSettings(Generic[AlgorithmT, TaskT]):
    """Train an algorithm on a task, or continue the run with these settings if it was started."""

    algorithm: AlgorithmT
    task: TaskT
    seeds: int = 1
    """how many seeds train together"""
    first_seed: int = 0
    """the first seed; the others count up from it"""
    steps: int = 1_000_000
    """environment steps of each seed, those of all its teams together; a round begun is finished"""
    evaluate_every: int = 10_000
    """environment steps between evaluations"""
    evaluation_episodes: int = 10
    """greedy episodes of each evaluation"""
    minutes: float | None = None
    """stop after so many minutes, at the end of a round; the same command continues"""
    folder: Path | None = None
    """where the run is kept; by default runs/ and a name made of its settings"""
    checkpoint_seconds: float = 120.0
    """least time between checkpoints"""
    vmapped_seeds: bool | None = None
    """whether seeds are array axes or take turns: speed only; by default the first on accelerators;
    on a CPU each seed has a device of its own, and the cores share them out"""
    dry_run: bool = False
    """say what would be done and how much memory it takes, and stop"""


@dataclass(frozen=True)
class EvaluateSettings(Generic[AlgorithmT, TaskT]):
    """Play greedy episodes of the teams that a run has trained so far, as they were trained or
    otherwise."""

    algorithm: AlgorithmT
    task: TaskT
    episodes: int = 32
    """episodes per seed and team"""
    folder: Path | None = None
    """a new folder to record the returns in, which `comarl report` takes as a run's; by default
    they are only shown"""


@dataclass(frozen=True)
class ReportSettings:
    """Draw learning curves and tables of one or more runs."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """the runs' folders"""
    out: Path = Path("report")
    """the folder for pictures, tables and the CSV"""
    metric: str | None = None
    """what to compare by: won, return, captures, or what else the tasks count; by default won where
    there is one"""
    middle: Literal["mean", "median"] = "mean"
    """the line of a curve: the seeds' mean with its interval, or their median with their range"""
    training: tuple[str, ...] = ()
    """what was measured in training to draw as well, such as critic_loss; the pages of the
    algorithms name it"""


def main(arguments: Arguments | None = None) -> int:
    """Runs one command; returns the exit status: 0 done, 1 failed, 2 misused."""
    arguments = sys.argv[1:] if arguments is None else arguments
    keep_freed_memory(seeds_in(arguments))
    commands: dict[str, Callable[[Arguments, Console], int]] = {
        "train": train,
        "evaluate": evaluate,
        "report": report,
        "list": list_all,
        "doctor": doctor,
    }
    console = Console()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    try:
        if arguments[0] not in commands:
            from comarl.validation import unknown

            raise unknown("command", arguments[0], commands, "`comarl --help` shows all.")
        return commands[arguments[0]](arguments[1:], console)
    except KeyboardInterrupt:
        print("Interrupted. The same command continues from the last checkpoint.", file=sys.stderr)
        return 130
    except Exception as error:
        if not is_user_error(error):
            raise
        print(f"comarl: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


def seeds_in(arguments: Arguments) -> int:
    """How many seeds are asked for: needed before anything is loaded that could tell the other
    options."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--seeds", nargs="?", default="1", const="1")
    given = parser.parse_known_args(arguments)[0].seeds
    # What is no number is refused with the other options
    return max(1, int(given)) if given.isdigit() else 1


def is_user_error(error: Exception) -> bool:
    """Whether an error speaks to the user, so that one line is enough; all others keep their
    traceback."""
    from comarl.runs.checkpoint import DamagedCheckpoint, OtherConfiguration
    from comarl.training.memory import TooLittleMemory
    from comarl.training.run import Diverged
    from comarl.types import TaskDied

    told = (ValueError, ImportError, FileNotFoundError, DamagedCheckpoint, OtherConfiguration)
    return isinstance(error, (*told, TooLittleMemory, Diverged, TaskDied))


def train(arguments: Arguments, console: Console) -> int:
    if len(arguments) < 2 or arguments[0].startswith("-") or arguments[1].startswith("-"):
        print(USAGE, end="")
        if not arguments or arguments[0] in ("-h", "--help"):
            return 0
        raise UsageError(
            "train needs the names of an algorithm and a task, in this order, before any option"
        )
    from comarl.algorithms import tuned
    from comarl.envs import find_task
    from comarl.machine.placement import see_a_device_for_each

    # Before all else, because some tasks make JAX count its devices as soon as they are imported.
    see_a_device_for_each(seeds_in(arguments))
    algorithm_name, task_name = arguments[:2]
    algorithm, changes = tuned(algorithm_name, task_name)
    task = find_task(task_name)
    if suited_to := getattr(task, "suited_to", None):  # a task that has both kinds of actions
        task = suited_to(algorithm.actions)
    settings = tyro.cli(
        TrainSettings[type(algorithm), type(task)],  # type: ignore[misc]
        prog=f"comarl train {algorithm_name} {task_name}",
        args=list(arguments[2:]),
        default=TrainSettings(
            algorithm, task, evaluation_episodes=32 if task.spec.discrete else 10
        ),
        config=(
            tyro.conf.AvoidSubcommands,
        ),  # a field of several kinds, such as an optimiser, keeps its kind
    )
    check_pair(algorithm_name, settings.algorithm, task_name, settings.task)
    report_tuned(changes, settings.algorithm, console)
    return run_training(settings, algorithm_name, task_name, console)


def check_pair(algorithm_name: str, algorithm: Any, task_name: str, task: Any) -> None:
    """Raises UsageError where the algorithm cannot choose the task's kind of actions, or the task
    is another's."""
    kind = "discrete" if task.spec.discrete else "continuous"
    if kind not in algorithm.actions:
        from comarl.algorithms import ALGORITHMS

        able = [name for name, entry in ALGORITHMS.items() if kind in entry.algorithm.actions]
        raise UsageError(
            f"{algorithm_name} chooses {' or '.join(sorted(algorithm.actions))} actions and {task_name} has {kind} "
            f"ones; algorithms for it are {', '.join(able)}."
        )
    from comarl.envs import find_task

    named = find_task(task_name)
    for field in ("robot", "partition", "module", "name"):
        given, right = getattr(task, field, None), getattr(named, field, None)
        if given != right:
            raise UsageError(
                f"--task.{field} {given!r}: the task's name already says {right!r}; give another name"
            )


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
    from comarl.runs.identity import folder_name, identity
    from comarl.training.memory import check_memory
    from comarl.training.progress import Display
    from comarl.training.run import Options, Session
    from comarl.training.settings import Run

    names = [field.name for field in dataclasses.fields(Run)]
    run = Run(**{name: getattr(settings, name) for name in names})
    config = identity(run, algorithm_name, task_name)
    folder = settings.folder or Path("runs") / folder_name(config)
    what = f"{algorithm_name} on {task_name}, {run.seeds} seed(s), {run.steps:,} steps each"
    console.print(f"{what}: {folder}", highlight=False, soft_wrap=True)
    if settings.dry_run:
        console.print(check_memory(run), highlight=False)
        return 0
    options = Options(settings.minutes, settings.checkpoint_seconds, settings.vmapped_seeds)
    state = Session.open(run, config, folder, options, Display(console)).train()
    summarise(run, state, folder, console)
    return 0


def summarise(run: Any, state: Any, folder: Path, console: Console) -> None:
    """The last evaluation of every seed, where the curve is, and how to go on."""
    from comarl.runs.records import RETURN, extra_metrics, metric_label, read
    from comarl.training.progress import mean_text

    last = {line["seed"]: line for line in read(folder)}
    metrics = [
        RETURN,
        *dict.fromkeys(name for line in last.values() for name in extra_metrics(line)),
    ]
    teams = {"MARL team": "marl_team", "best team": "best_team"}
    heads = (f"{team} {metric_label(name)}" for team in teams for name in metrics)
    table = Table(
        "seed", "steps", "updates", *heads, title="Last evaluation: means of greedy episodes"
    )
    for seed, line in sorted(last.items()):
        keys = (
            (team if name == RETURN else f"{team}_{name}", name)
            for team in teams.values()
            for name in metrics
        )
        means = (mean_text(line.get(key), name) for key, name in keys)
        table.add_row(str(seed), f"{line['env_steps']:,}", f"{line['updates']:,}", *means)
    console.print(table)
    if restarts := max((line.get("worker_restarts", 0) for line in last.values()), default=0):
        console.print(
            f"{restarts} worker process(es) died and were replaced; their episodes were played again."
        )
    if last:
        try:
            from comarl.report import single_run_curve

            console.print(f"curve: {single_run_curve(folder)}", highlight=False, soft_wrap=True)
        except ImportError as missing:
            console.print(f"no curve was drawn: {missing}", highlight=False)
    done = bool((state.clock.env_steps >= run.steps).all())
    console.print(
        "The run is done." if done else "The run is saved; the same command continues it."
    )


def evaluate(arguments: Arguments, console: Console) -> int:
    if not arguments or arguments[0].startswith("-"):
        print(USAGE, end="")
        if arguments and arguments[0] in ("-h", "--help"):
            return 0
        raise UsageError("evaluate needs the folder of a run, before any option")
    from comarl.runs.identity import identity
    from comarl.runs.records import extra_metrics, metric_label
    from comarl.training.evaluate import record_once
    from comarl.training.load import load_settings, load_state
    from comarl.training.progress import mean_text, number_text
    from comarl.training.run import evaluate_once

    folder = Path(arguments[0])
    trained, config = load_settings(folder)
    settings = tyro.cli(
        EvaluateSettings[type(trained.algorithm), type(trained.task)],  # type: ignore[misc]
        prog=f"comarl evaluate {folder}",
        args=list(arguments[1:]),
        default=EvaluateSettings(trained.algorithm, trained.task),
        config=(tyro.conf.AvoidSubcommands,),
    )
    algorithm_name, task_name = config["algorithm_name"], config["task_name"]
    check_pair(algorithm_name, settings.algorithm, task_name, settings.task)
    if settings.folder is not None and settings.folder.exists():
        raise UsageError(
            f"--folder {settings.folder}: it exists, and an evaluation is recorded in a new folder only"
        )
    chosen = {
        "algorithm": settings.algorithm,
        "task": settings.task,
        "evaluation_episodes": settings.episodes,
    }
    run = dataclasses.replace(trained, **chosen)
    state = load_state(folder, run, config)
    scores = evaluate_once(run, state)
    if settings.folder is not None:
        record_once(
            settings.folder, identity(run, algorithm_name, task_name), run, state.clock, scores
        )
    metrics = extra_metrics(scores)
    heads = ("seed", "team", "mean", "least", "greatest", *map(metric_label, metrics))
    table = Table(*heads, title=f"{settings.episodes} greedy episodes: return")
    for team in (name for name in ("marl_team", "best_team") if name in scores):
        for seed, row in enumerate(scores[team]):
            numbers = (number_text(float(x)) for x in (row.mean(), row.min(), row.max()))
            besides = (mean_text(scores[f"{team}_{name}"][seed].tolist(), name) for name in metrics)
            table.add_row(str(run.first_seed + seed), team.replace("_", " "), *numbers, *besides)
    console.print(f"{algorithm_name} on {task_name}: {folder}", highlight=False)
    console.print(table)
    return 0


def report(arguments: Arguments, console: Console) -> int:
    settings = tyro.cli(ReportSettings, prog="comarl report", args=list(arguments))
    from comarl.report import report as write_report

    with warnings.catch_warnings():
        # What is warned of is for who reads the report, so not with the line of our code that
        # warned.
        warnings.showwarning = lambda message, *_, **__: print(
            f"comarl: {message}", file=sys.stderr
        )
        written = write_report(
            list(settings.runs), settings.out, settings.metric, settings.middle, settings.training
        )
    for path in written:
        console.print(str(path), highlight=False, soft_wrap=True)
    return 0


def list_all(arguments: Arguments, console: Console) -> int:
    if arguments:
        raise UsageError(f"list takes no arguments, not {arguments[0]!r}")
    from comarl.algorithms import ALGORITHMS
    from comarl.envs import TASKS

    rows = {
        "Algorithms": {name: entry.summary for name, entry in ALGORITHMS.items()},
        "Tasks": TASKS,
    }
    for title, lines in rows.items():
        table = Table(
            "name", "what it is", title=title, title_justify="left", box=None, pad_edge=False
        )
        for name, summary in lines.items():
            table.add_row(name, summary)
        console.print(table, highlight=False)
        console.print()
    return 0


def doctor(arguments: Arguments, console: Console) -> int:
    if arguments:
        raise UsageError(f"doctor takes no arguments, not {arguments[0]!r}")
    from comarl.doctor import main as diagnose

    return diagnose()
