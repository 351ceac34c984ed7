"""A run from its first step to its budget: train, evaluate, record, checkpoint; and the same again
after any stop."""

import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int

from comarl.envs.check import check_signature
from comarl.machine.compile_time import compile_seconds
from comarl.machine.interrupt import stop_requests
from comarl.machine.placement import Placement, place
from comarl.ops.learner import Optimiser
from comarl.play.finite import check_finite
from comarl.play.player import Player, make_player
from comarl.play.rollout import Mode
from comarl.runs import beginning
from comarl.runs.checkpoint import Checkpoints
from comarl.runs.kept import Keep, Kept
from comarl.runs.lock import locked
from comarl.runs.records import CHECKPOINTS, CONFIG, Records, read_config, versions, write_about
from comarl.runs.revisions import users_revisions
from comarl.runs.sources import changes, fingerprints, places_outside
from comarl.training import payoff
from comarl.training.evaluate import due, evaluate, evaluation_line, num_evaluated_teams
from comarl.training.events import Ended, Evaluated, Listener, Note, Progress, Started, ignore
from comarl.training.keep import keep_teams
from comarl.training.log import Log, Means, check_header
from comarl.training.memory import check_memory
from comarl.training.networks import Networks, begin_with
from comarl.training.settings import Run
from comarl.training.train import (
    PER_SEED_STATE,
    Phase,
    Round,
    RunState,
    Trained,
    finish_round,
    learn,
    play_keys,
    start,
    store_and_evolve,
)
from comarl.types import Environment, Episode, Evolutionary, Metrics, TaskDied, Transition
from comarl.validation import check_fields, check_range

CHUNKS = {Transition: 64, Episode: 1}
"""most updates per compiled call, by what a batch is: short enough for a live display, long enough
to hide the call. Batches of a chunk are drawn at once; one of whole episodes is large, and its
update long."""


class Diverged(Exception):
    """A loss that is no longer a number."""


class OtherCode(ValueError):
    """A run that was begun with other code or other versions of packages."""


@dataclass(frozen=True)
class Options:
    """How to run, as opposed to what: none of this changes a result.

    The one exception is rounding, which depends on `vmapped_seeds`.
    """

    minutes: float | None = None
    """stop after so many minutes, at the end of a round; the run can be resumed"""
    checkpoint_seconds: float = 120.0
    """least time between checkpoints"""
    keep: tuple[str, ...] = ()
    """teams to keep for good besides the newest state: `best` (by evaluation: the win rate, or else
    the return), `every N` environment steps, or both"""
    overwrite: bool = False
    """start anew in a folder that holds something but no checkpoint; a run's files there are
    deleted"""
    continue_with_other_code: bool = False
    """resume although the code or the versions of packages have changed since the checkpoint"""
    vmapped_seeds: bool | None = None
    """map seeds over array axes, or compute them sequentially; by default the first on
    accelerators, and on CPUs neither: there each seed has a device of its own, if JAX sees so many
    (`comarl.machine.placement.see_a_device_for_each`)"""

    def __post_init__(self):
        check_fields(self)
        check_range(self, 0, None, "minutes", "checkpoint_seconds")
        Keep.parse(self.keep)


class Players(NamedTuple):
    """What plays episodes: a round's, and an evaluation's."""

    train: Player
    evaluate: Player


@dataclass
class Session:
    """One stretch of a run, between its start or resumption and its end or interruption."""

    run: Run
    config: dict[str, Any]
    folder: Path
    options: Options
    tell: Listener
    placement: Placement
    checkpoints: Checkpoints
    records: Records
    log: Log
    networks: Networks | None = None
    """what a new run begins with, if not with its own draw"""

    @classmethod
    def open(
        cls,
        run: Run,
        config: dict[str, Any],
        folder: Path,
        options: Options = Options(),
        tell: Listener = ignore,
        networks: Networks | None = None,
    ) -> "Session":
        """A session of `run` in `folder`, which is made if need be.

        `config` is what the run stands for: `comarl.runs.identity.identity(run, algorithm, task)`.
        `networks` are those whose fingerprint is `run.begun_from`, for a new run. Raises ValueError
        for another `config`, TooLittleMemory before anything is written.
        """
        folder = Path(folder)
        if missing := sorted({"algorithm_name", "task_name"} - config.keys()):
            raise ValueError(
                f"config has no {' and no '.join(missing)}: make it with "
                "comarl.runs.identity.identity(run, algorithm_name, task_name)"
            )
        if isinstance(run.task, Environment):
            check_signature(run.task)
        tell(Note(check_memory(run)))
        return cls(
            run=run,
            config=config,
            folder=folder,
            options=options,
            tell=tell,
            placement=place(run.seeds, options.vmapped_seeds),
            checkpoints=Checkpoints(folder / CHECKPOINTS),
            records=Records(folder),
            log=Log(Means.of(run.seeds)),
            networks=networks,
        )

    def train(self) -> RunState:
        """Trains until the budget or the time is spent, and returns the state at the end.

        Raises Diverged, OtherConfiguration, OtherCode, FolderInUse, FolderNotEmpty,
        DamagedCheckpoint, or what a task raises when it dies; whatever happens, the newest
        checkpoint stays good.
        """
        say = lambda text: self.tell(Note(text))
        with locked(self.folder), stop_requests(say, self.log.stop):
            return self.train_alone()

    def train_alone(self) -> RunState:
        """`train`, with the folder locked and signals turned into requests to stop."""
        run, minutes = self.run, self.options.minutes
        state = self.resume() or self.begin()
        on_print = lambda line: self.tell(Note(line))
        make = functools.partial(make_player, run.algorithm, run.task, run.seeds, on_print=on_print)
        player, close_player = make(run.num_copies, self.restarted, self.placement)
        evaluator, close_evaluator = make(num_evaluated_teams(run), self.restarted, self.placement)
        deadline = None if minutes is None else self.log.began + 60 * minutes
        self.tell(Started(run.steps, run.seeds, deadline))
        try:
            state = self.rounds(state, Players(player, evaluator))
        finally:
            self.tell(Ended())
            close_player()
            close_evaluator()
        self.save(state)
        payoff.write(self.folder, run, state)
        return state

    def begin(self) -> RunState:
        """The state of a new run, whose settings are written.

        Raises ValueError where it is to begin with networks that are not given.
        """
        if self.run.begun_from != (self.networks and self.networks.fingerprint):
            raise ValueError(
                f"begun_from={self.run.begun_from!r}: the networks with this fingerprint are not "
                "given; comarl.training.networks.read_networks reads them from a run"
            )
        beginning.prepare(self.folder, self.config, self.options.overwrite)
        self.write_settings(self.run.steps)
        self.records.truncate(0)
        state = start(self.run, self.placement)
        if self.networks is None:
            return state
        self.tell(Note(f"It begins with the networks of {self.networks.source}."))
        return self.placement.scatter(begin_with(state, self.networks), PER_SEED_STATE)

    def resume(self) -> RunState | None:
        """The state of the newest good checkpoint, with the records cut to match; None if there is
        none."""
        shapes = jax.eval_shape(lambda: start(self.run))
        warn = lambda text: self.tell(Note(text, warning=True))
        found = self.checkpoints.newest(shapes, self.config, warn, check_header)
        if found is None:
            return None
        state, header = found
        has_other_code = self.has_other_code(header)
        self.records.truncate(header["records"])  # nothing has changed yet if they are damaged
        if has_other_code:
            for seed, steps in enumerate(state.clock.env_steps.tolist()):
                Kept(self.folder).forget_after(self.run.first_seed + seed, steps)
        self.log.round = header["round"]
        self.log.wall_time = header["wall_time"]
        self.log.worker_restarts = header.get("worker_restarts", 0)
        self.log.means = Means(header["means"])
        self.log.unevaluated = header.get("unevaluated")
        # A smaller budget than before is no reason to forget the larger one.
        known = read_config(self.folder) if (self.folder / CONFIG).exists() else {}
        self.write_settings(max(self.run.steps, known.get("steps", 0)))
        steps = int(state.clock.env_steps.min())
        self.tell(Note(f"Resumed after round {self.log.round}, {steps:,} steps."))
        return self.placement.scatter(jax.tree.map(jax.numpy.asarray, state), PER_SEED_STATE)

    def has_other_code(self, header: dict[str, Any]) -> bool:
        """Whether code or versions have changed since a checkpoint. Raises OtherCode then, unless
        told to go on."""
        if "code" not in header:
            self.tell(Note("The checkpoint does not say which code wrote it; the run goes on."))
            return False
        changed = changes(header["code"], self.code()) + changes(header["versions"], versions())
        if not changed:
            return False
        what = f"Since the checkpoint was written there changed: {', '.join(changed)}."
        if not self.options.continue_with_other_code:
            raise OtherCode(
                f"{what} One curve would mix both. Give this run another --folder, or resume it "
                "all the same with --continue-with-other-code."
            )
        self.tell(Note(what, warning=True))
        return True

    def code(self) -> dict[str, str]:
        """The fingerprints of the code that this run depends on, read once."""
        if not self.log.code:
            self.log.code = fingerprints(self.run.algorithm, self.run.task)
        return self.log.code

    def write_settings(self, steps: int) -> None:
        """Writes the run's settings, with the budget that it has."""
        write_about(self.folder, {**self.config, "steps": steps}, self.about())

    def about(self) -> dict[str, Any]:
        """What `environment.json` says of this stretch besides the machine."""
        source = {} if self.networks is None else {"begun_from": str(self.networks.source)}
        places = places_outside(self.run.algorithm, self.run.task)
        return {"code": self.code(), "repositories": users_revisions(places), **source}

    def rounds(self, state: RunState, players: Players) -> RunState:
        """Round after round, until the run is over or somebody asks to stop."""
        with compile_seconds() as compiled:
            if self.log.unevaluated is not None:
                self.evaluate_round(state, players.evaluate, np.array(self.log.unevaluated))
            while not self.is_over(state) and self.log.stop.signal is None:
                had_learnt = self.log.has_learnt
                state = self.round(state, players)
                if self.log.has_learnt and not had_learnt:
                    seconds = f"{compiled():.1f} s"
                    self.tell(Note(f"The first round that learns compiled for {seconds} in all."))
        return state

    def is_over(self, state: RunState) -> bool:
        """Whether every seed has had its steps, or the time is spent."""
        minutes = self.options.minutes
        if minutes is not None and time.monotonic() - self.log.began > 60 * minutes:
            return True
        return bool((np.asarray(state.clock.env_steps) >= self.run.steps).all())

    def restarted(self, line: str) -> None:
        """Counts and names a worker process of the task that died and was replaced."""
        self.log.worker_restarts += 1
        self.tell(Note(line, warning=True))

    def round(self, state: RunState, players: Players) -> RunState:
        """Play, breed, learn, inject; then evaluate, record and save what is due."""
        run, before = self.run, np.asarray(state.clock.env_steps)
        phase, active = self.phase(before)
        teams, playing = self.lineup(phase, active)
        mode: Mode = "random" if phase == "warm-up" else "explore"
        keys = play_keys(state.key)
        try:
            episodes = players.train(state.agent, state.clock, teams, playing, keys, mode)
            check_finite(episodes, self.config["task_name"], run.first_seed)
        except TaskDied:
            # Nothing of this round is kept: what came before it is good.
            if self.log.round:
                self.save(state)
            raise
        state, plan = store_and_evolve(
            run.algorithm, run.spec, state, episodes, active, phase, self.placement
        )
        if phase != "warm-up":
            state = self.learn(state, plan, phase)
        self.tell_progress("warm-up" if phase == "warm-up" else "training", state)
        self.log.round += 1
        self.evaluate_round(state, players.evaluate, before)
        return state

    def evaluate_round(
        self, state: RunState, evaluator: Player, before: Int[np.ndarray, " seeds"]
    ) -> None:
        """Evaluates, records, keeps and saves what is due after a round that began at `before`.

        If the task dies of it, the run resumes with this evaluation.
        """
        run = self.run
        self.log.unevaluated = before.tolist()
        try:
            lines = self.evaluate(state, evaluator, due(run, before, state.clock.env_steps))
        except TaskDied:
            self.save(state)
            raise
        self.log.unevaluated = None
        keep = Keep.parse(self.options.keep)
        keep_teams(keep, self.folder, run, self.config, state, before, lines)
        if time.monotonic() - self.log.saved > self.options.checkpoint_seconds:
            self.save(state)

    def phase(
        self, env_steps: Int[np.ndarray, " seeds"]
    ) -> tuple[Phase, Bool[np.ndarray, " seeds"]]:
        """What this round is, and which seeds take part: one phase ends for all seeds before the
        next begins."""
        algorithm, steps = self.run.algorithm, self.run.steps
        alone_until = algorithm.population_after if isinstance(algorithm, Evolutionary) else 0
        ends: dict[Phase, int] = {
            "warm-up": min(algorithm.pace.warmup_steps, steps),
            "alone": min(alone_until, steps),
        }
        for phase, end in ends.items():
            if (env_steps < end).any():
                return phase, env_steps < end
        return "training", env_steps < steps

    def lineup(
        self, phase: Phase, active: Bool[np.ndarray, " seeds"]
    ) -> tuple[Int[np.ndarray, "seeds copies"], Bool[np.ndarray, "seeds copies"]]:
        """Which team plays in each copy of the task, and whether that copy is played."""
        run = self.run
        teams = np.repeat(np.arange(run.num_teams), run.algorithm.pace.parallel_envs)
        playing = np.repeat(active[:, None], run.num_copies, axis=1)
        if phase != "training":
            # A population has nothing to add to random actions, nor to a team that is alone.
            playing[:, teams < run.num_teams - 1] = False
        return np.broadcast_to(teams, playing.shape), playing

    def learn(self, state: RunState, plan: Round, phase: Phase) -> RunState:
        """The round's updates, in compiled chunks.

        Raises Diverged at the first loss that is not a number.
        """
        run, counts = self.run, np.asarray(plan.num_updates)
        # What a chunk has beyond a round's updates is drawn for nothing and, where seeds are
        # vmapped, computed, too.
        chunk = min(CHUNKS[run.algorithm.replay.batch], run.most_updates) if counts.any() else 1
        agent, learnt = state.agent, 0
        for begin in range(0, int(counts.max()), chunk):
            if not self.log.has_learnt:
                self.tell_progress("compiling", state)
            agent, sums = learn(
                run.algorithm,
                run.spec,
                agent,
                state.replay,
                state.clock,
                plan.learn_key,
                plan.num_updates,
                np.int32(begin),
                chunk,
                self.placement,
            )
            due_now = np.clip(counts - begin, 0, chunk)
            self.add(sums, due_now)
            learnt += int(due_now.sum())
            self.log.has_learnt = True
            self.tell_progress("training", state, learnt)
        self.add_round(plan, phase)
        state = state._replace(agent=agent)
        return finish_round(
            run.algorithm, state, plan.num_updates, plan.active, phase, self.placement
        )

    def add(self, sums: Metrics, counts: Int[np.ndarray, " seeds"]) -> None:
        """Adds the metrics of a chunk's updates to the means."""
        found = jax.device_get(sums)
        # Losses first: one that is no number is the cause of a gradient that is none.
        for name in sorted(found, key=lambda name: (not name.endswith("loss"), name)):
            values = found[name]
            for seed, (value, count) in enumerate(zip(values, counts, strict=True)):
                if not np.isfinite(value):
                    raise Diverged(
                        f"{name} of seed {self.run.first_seed + seed} became {value} in round "
                        f"{self.log.round + 1}. {self.checkpoints.kept()} Try a smaller learning "
                        f"rate: {learning_rate_option(self.run.algorithm, name)}"
                    )
                self.log.means.add(seed, name, float(value), int(count))

    def add_round(self, plan: Round, phase: Phase) -> None:
        """Metrics that a round has once: training returns, and what became of the injected team."""
        metrics, returns = jax.device_get((plan.metrics, plan.returns))
        means = self.log.means
        for seed in np.flatnonzero(np.asarray(plan.active)).tolist():
            means.add(seed, "training_return", float(returns[seed, -1]), 1)
            if returns.shape[1] > 1 and phase == "training":
                means.add(seed, "best_training_return", float(returns[seed, :-1].max()), 1)
            for name, values in metrics.items():
                if np.isfinite(values[seed]):
                    means.add(seed, name, float(values[seed]), 1)

    def tell_progress(self, phase: str, state: RunState, learnt: int = 0) -> None:
        """Tells how far the run is, with what the current round has learnt so far."""
        env_steps = np.asarray(state.clock.env_steps)
        self.tell(Progress(phase, env_steps, total_updates(state) + learnt))

    def evaluate(
        self, state: RunState, evaluator: Player, seeds: Bool[np.ndarray, " seeds"]
    ) -> list[dict[str, Any]]:
        """Evaluates the seeds that are due, records what they did, and returns the records."""
        if not seeds.any():
            return []
        returns = evaluate(self.run, evaluator, state.agent, state.clock, seeds)
        lines = []
        for seed in np.flatnonzero(seeds).tolist():
            line = {
                **evaluation_line(self.run, state.clock, seed, returns),
                "round": self.log.round,
                "wall_time": round(self.log.elapsed(), 1),
            }
            if self.log.worker_restarts:
                line["worker_restarts"] = self.log.worker_restarts
            lines.append({**line, "training": self.log.means.take(seed)})
            self.tell(Evaluated(lines[-1]))
        self.records.append(lines)
        return lines

    def save(self, state: RunState) -> None:
        """Writes a checkpoint."""
        header = {
            "config": self.config,
            "versions": versions(),
            "code": self.code(),
            "round": self.log.round,
            "wall_time": self.log.elapsed(),
            "worker_restarts": self.log.worker_restarts,
            "records": self.records.position(),
            "means": self.log.means.sums,
        }
        if self.log.unevaluated is not None:
            header["unevaluated"] = self.log.unevaluated
        self.checkpoints.save(self.log.round, state, header)
        beginning.saved(self.folder)
        self.log.saved = time.monotonic()


def total_updates(state: RunState) -> int:
    """Gradient steps of all seeds so far."""
    return int(np.asarray(state.clock.updates).sum())


def learning_rate_option(algorithm: Any, loss: str) -> str:
    """The option for the learning rate of what has this loss, by their common name, with a third of
    its value."""
    found = dict(optimisers(algorithm))
    # V is learnt by the optimiser of the critics.
    name = loss.replace("value_", "critic_", 1) if loss.startswith("value_") else loss
    options = (
        option
        for option in found
        if name.startswith(option.rpartition(".")[2].removesuffix("optimiser"))
    )
    option = next(options, next(iter(found)))
    return f"{option.replace('_', '-')}.learning-rate {found[option].learning_rate / 3:.0e}"


def optimisers(settings: Any, prefix: str = "--algorithm") -> Iterator[tuple[str, Optimiser]]:
    """Every optimiser that an algorithm has, and then those of its base, by the option that sets
    it."""
    values = vars(settings)
    for name, value in values.items():
        if isinstance(value, Optimiser):
            yield f"{prefix}.{name}", value
    if "base" in values:
        yield from optimisers(values["base"], f"{prefix}.base")


def evaluate_once(run: Run, state: RunState | Trained) -> dict[str, np.ndarray]:
    """Greedy returns of a state's teams, `[seeds episodes]` by team, outside any training."""
    player, close = make_player(run.algorithm, run.task, run.seeds, num_evaluated_teams(run))
    try:
        return evaluate(run, player, state.agent, state.clock, np.ones(run.seeds, bool))
    finally:
        close()
