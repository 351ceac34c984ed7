"""A run from its first step to its budget: train, evaluate, record, checkpoint; and the same again
after any stop."""

import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from comarl.machine.compile_time import compile_seconds
from comarl.machine.interrupt import stop_requests
from comarl.machine.placement import place
from comarl.play.player import Player, make_player
from comarl.runs.checkpoint import Checkpoints
from comarl.runs.records import CHECKPOINTS, Records, versions, write_about
from comarl.training.evaluate import due, evaluate, evaluation_line, num_evaluated_teams
from comarl.training.memory import check_memory
from comarl.training.progress import Display
from comarl.training.settings import Run
from comarl.training.train import (
    PER_SEED_STATE,
    Phase,
    Round,
    RunState,
    finish_round,
    learn,
    play_keys,
    start,
    store_and_evolve,
)
from comarl.types import Episode, Evolutionary, Metrics, Transition

CHUNKS = {Transition: 64, Episode: 1}
"""most updates per compiled call: short enough for a live display, long enough to hide the call.
Batches of a chunk are drawn at once; one of whole episodes is large, and its update long."""


class Diverged(Exception):
    """A loss that is no longer a number."""


@dataclass(frozen=True)
class Options:
    """How to run, as opposed to what: none of this changes a result, but for the rounding of
    `vmapped_seeds`."""

    minutes: float | None = None
    """stop after so many minutes, at the end of a round; the run can be continued"""
    checkpoint_seconds: float = 120.0
    """least time between checkpoints"""
    vmapped_seeds: bool | None = None
    """map seeds over array axes, or let them take turns; by default the first on accelerators, and
    on CPUs neither: there each seed has a device of its own, if JAX sees so many
    (`comarl.machine.placement.see_a_device_for_each`)"""


@dataclass
class Means:
    """Running sums and counts of each seed's training metrics since its last evaluation."""

    sums: list[dict[str, list[float]]] = field(
        default_factory=list
    )  # per seed: name -> [sum, count]

    def add(self, seed: int, name: str, total: float, count: int) -> None:
        cell = self.sums[seed].setdefault(name, [0.0, 0])
        cell[0] += total
        cell[1] += count

    def take(self, seed: int) -> dict[str, float]:
        means = {name: total / count for name, (total, count) in self.sums[seed].items() if count}
        self.sums[seed] = {}
        return means


@dataclass
class Session:
    """One stretch of a run, between its start or resumption and its end or interruption."""

    run: Run
    config: dict[str, Any]
    folder: Path
    options: Options
    console: Console
    told_compile_time: bool = False

    def train(self) -> RunState:
        """Trains until the budget or the time is spent, and returns the state at the end.

        Raises Diverged, TooLittleMemory, OtherConfiguration, DamagedCheckpoint, or what a task
        raises when it dies; whatever happens, the newest checkpoint stays good.
        """
        run = self.run
        self.console.print(check_memory(run), highlight=False)
        self.checkpoints, self.records = (
            Checkpoints(self.folder / CHECKPOINTS),
            Records(self.folder),
        )
        self.means = Means([{} for _ in range(run.seeds)])
        self.number, self.restarts, self.wall_time, self.began = 0, 0, 0.0, time.monotonic()
        self.saved_at = self.began
        self.placement = place(run.seeds, self.options.vmapped_seeds)
        state = self.resume() or self.begin()
        make = functools.partial(make_player, run.algorithm, run.task, run.seeds)
        player, close_player = make(run.num_copies, self.restarted, self.placement)
        evaluator, close_evaluator = make(num_evaluated_teams(run), self.restarted, self.placement)
        minutes = self.options.minutes
        display = Display(
            self.console,
            run.steps,
            run.seeds,
            None if minutes is None else self.began + 60 * minutes,
        )
        try:
            with (
                display,
                stop_requests(self.console) as stop_requested,
                compile_seconds() as compiled,
            ):
                while not self.is_over(state) and not stop_requested():
                    updates = self.updates(state)
                    state = self.round(state, player, evaluator, display)
                    if not self.told_compile_time and self.updates(state) > updates:
                        self.console.print(
                            f"The first round that learns compiled for {compiled():.1f} s in all."
                        )
                        self.told_compile_time = True
        finally:
            close_player()
            close_evaluator()
        self.save(state)
        return state

    def begin(self) -> RunState:
        write_about(self.folder, {**self.config, "steps": self.run.steps})
        self.records.truncate(0)
        return start(self.run, self.placement)

    def resume(self) -> RunState | None:
        """The state of the newest good checkpoint, with the records cut to match; None if there is
        none."""
        shapes = jax.eval_shape(lambda: start(self.run))
        found = self.checkpoints.newest(
            shapes, self.config, tell=lambda text: self.console.print(f"Warning: {text}")
        )
        if found is None:
            return None
        state, header = found
        self.number, self.wall_time = header["round"], header["wall_time"]
        self.restarts = header.get("worker_restarts", 0)
        self.means.sums = header["means"]
        self.records.truncate(header["records"])
        write_about(self.folder, {**self.config, "steps": self.run.steps})
        self.console.print(
            f"Continuing after round {self.number}, {int(state.clock.env_steps.min()):,} steps."
        )
        return self.placement.scatter(jax.tree.map(jax.numpy.asarray, state), PER_SEED_STATE)

    def is_over(self, state: RunState) -> bool:
        minutes = self.options.minutes
        if minutes is not None and time.monotonic() - self.began > 60 * minutes:
            return True
        return bool((np.asarray(state.clock.env_steps) >= self.run.steps).all())

    def elapsed(self) -> float:
        return self.wall_time + time.monotonic() - self.began

    def restarted(self, line: str) -> None:
        """Counts and names a worker process of the task that died and was replaced."""
        self.restarts += 1
        self.console.print(f"Warning: {line}", highlight=False, soft_wrap=True)

    def round(
        self, state: RunState, player: Player, evaluator: Player, display: Display
    ) -> RunState:
        """Play, breed, learn, inject; then evaluate, record and save what is due."""
        run, before = self.run, np.asarray(state.clock.env_steps)
        phase, active = self.phase(before)
        playing = np.broadcast_to(active[:, None], (run.seeds, run.num_copies)).copy()
        teams = np.repeat(np.arange(run.num_teams), run.num_copies // run.num_teams)
        if (
            phase != "training"
        ):  # a population has nothing to add to random actions, nor to a team that is alone
            playing[:, teams < run.num_teams - 1] = False
        mode = "random" if phase == "warm-up" else "explore"
        teams = np.broadcast_to(teams, playing.shape)
        episodes = player(state.agent, state.clock, teams, playing, play_keys(state.key), mode)
        state, plan = store_and_evolve(
            run.algorithm, run.spec, state, episodes, active, phase, self.placement
        )
        if phase != "warm-up":
            state = self.learn(state, plan, phase, display)
        shown = "warm-up" if phase == "warm-up" else "training"
        display.update(shown, np.asarray(state.clock.env_steps), self.updates(state))
        self.number += 1
        self.evaluate(state, evaluator, due(run, before, state.clock.env_steps), display)
        if time.monotonic() - self.saved_at > self.options.checkpoint_seconds:
            self.save(state)
        return state

    def phase(self, env_steps: np.ndarray) -> tuple[Phase, np.ndarray]:
        """What this round is, and which seeds take part: one phase ends for all seeds before the
        next begins."""
        algorithm, steps = self.run.algorithm, self.run.steps
        ends: dict[Phase, int] = {
            "warm-up": min(algorithm.pace.warmup_steps, steps),
            "alone": min(algorithm.population_after, steps)
            if isinstance(algorithm, Evolutionary)
            else 0,
        }
        for phase, end in ends.items():
            if (env_steps < end).any():
                return phase, env_steps < end
        return "training", env_steps < steps

    def learn(self, state: RunState, plan: Round, phase: Phase, display: Display) -> RunState:
        """The round's updates, in compiled chunks. Raises Diverged at the first loss that is not a
        number."""
        counts, agent = np.asarray(plan.num_updates), state.agent
        env_steps, updates = np.asarray(state.clock.env_steps), self.updates(state)
        if display.phase != "training":
            display.update("compiling", env_steps, updates)
        # What a chunk has beyond a round's updates is drawn for nothing and, where seeds learn
        # together, computed, too.
        chunk = min(CHUNKS[self.run.algorithm.replay.batch], self.run.most_updates)
        for begin in range(0, int(counts.max()), chunk):
            agent, sums = learn(
                self.run.algorithm,
                self.run.spec,
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
            updates += int(due_now.sum())
            display.update("training", env_steps, updates)
        self.add_round(plan, phase)
        state = state._replace(agent=agent)
        return finish_round(
            self.run.algorithm, state, plan.num_updates, plan.active, phase, self.placement
        )

    def add(self, sums: Metrics, counts: np.ndarray) -> None:
        for name, values in jax.device_get(sums).items():
            for seed, (value, count) in enumerate(zip(values, counts, strict=True)):
                if not np.isfinite(value):
                    raise Diverged(
                        f"{name} of seed {self.run.first_seed + seed} became {value} in round {self.number + 1}. "
                        f"The last good checkpoint is kept in {self.checkpoints.folder}; try a smaller learning rate: "
                        f"{learning_rate_option(self.run.algorithm, name)}"
                    )
                self.means.add(seed, name, float(value), int(count))

    def add_round(self, plan: Round, phase: Phase) -> None:
        """Metrics that a round has once: training returns, and what became of the injected team."""
        metrics, returns = jax.device_get((plan.metrics, plan.returns))
        for seed in np.flatnonzero(np.asarray(plan.active)).tolist():
            self.means.add(seed, "training_return", float(returns[seed, -1]), 1)
            if returns.shape[1] > 1 and phase == "training":
                self.means.add(seed, "best_training_return", float(returns[seed, :-1].max()), 1)
            for name, values in metrics.items():
                if np.isfinite(values[seed]):
                    self.means.add(seed, name, float(values[seed]), 1)

    def updates(self, state: RunState) -> int:
        return int(np.asarray(state.clock.updates).sum())

    def evaluate(
        self, state: RunState, evaluator: Player, seeds: np.ndarray, display: Display
    ) -> None:
        if not seeds.any():
            return
        returns = evaluate(self.run, evaluator, state.agent, state.clock, seeds)
        lines = []
        for seed in np.flatnonzero(seeds).tolist():
            lines.append(
                {
                    **evaluation_line(self.run, state.clock, seed, returns),
                    "round": self.number,
                    "wall_time": round(self.elapsed(), 1),
                    **({"worker_restarts": self.restarts} if self.restarts else {}),
                    "training": self.means.take(seed),
                }
            )
            display.evaluated(lines[-1])
        self.records.append(lines)

    def save(self, state: RunState) -> None:
        header = {
            "config": self.config,
            "versions": versions(),
            "round": self.number,
            "wall_time": self.elapsed(),
            "worker_restarts": self.restarts,
            "records": self.records.position(),
            "means": self.means.sums,
        }
        self.checkpoints.save(self.number, state, header)
        self.saved_at = time.monotonic()


def learning_rate_option(algorithm: Any, loss: str) -> str:
    """The option for the learning rate of what has this loss, by their common name, with a third of
    its value."""
    found = dict(optimisers(algorithm))
    # V is learnt by the optimiser of the critics.
    name = loss.replace("value_", "critic_", 1) if loss.startswith("value_") else loss
    of_loss = (
        option
        for option in found
        if name.startswith(option.rpartition(".")[2].removesuffix("optimiser"))
    )
    option = next(of_loss, next(iter(found)))
    return f"{option.replace('_', '-')}.learning-rate {found[option].learning_rate / 3:.0e}"


def optimisers(algorithm: Any, prefix: str = "--algorithm") -> Iterator[tuple[str, Any]]:
    """Every optimiser that an algorithm has, and then those of its base, by the option that sets
    it."""
    values = {field.name: getattr(algorithm, field.name) for field in fields(algorithm)}
    yield from (
        (f"{prefix}.{name}", value)
        for name, value in values.items()
        if hasattr(value, "learning_rate")
    )
    if "base" in values:
        yield from optimisers(values["base"], f"{prefix}.base")


def evaluate_once(run: Run, state: RunState) -> dict[str, np.ndarray]:
    """Greedy returns of a state's teams, `[seeds episodes]` by team, outside any training."""
    player, close = make_player(run.algorithm, run.task, run.seeds, num_evaluated_teams(run))
    try:
        return evaluate(run, player, state.agent, state.clock, np.ones(run.seeds, bool))
    finally:
        close()
