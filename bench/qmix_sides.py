"""What takes turns in `bench/qmix_smax.py`, each in a process of its own: comarl's training, and
JaxMARL's.

Neither is rewritten for this. JaxMARL's script reports every iteration to wandb, and comarl's
session calls `round`; both calls wait here until it is their turn.
"""

import importlib.util
import os
import sys
import tempfile
import time
import types
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import flashbax
import jax
import jax.numpy as jnp
import numpy as np
import yaml
from rich.console import Console

from comarl.algorithms.qmix import Qmix
from comarl.envs.smax import MAPS, Smax, silence
from comarl.machine.hardware import cpu_model, usable_cores
from comarl.ops.exploration import Epsilon
from comarl.ops.learner import Adam
from comarl.play.player import Player
from comarl.replay.episodes import EpisodeRing
from comarl.replay.pace import EpisodePace
from comarl.training.progress import Display
from comarl.training.run import Options, Session
from comarl.training.settings import Run
from comarl.training.train import Phase, Round, RunState

SCRIPT, CONFIG = (
    Path("baselines/QLearning/qmix_rnn.py"),
    Path("baselines/QLearning/config/alg/ql_rnn_smax.yaml"),
)
LONG = 2**30  # environment steps that nothing here reaches

Config = dict[str, Any]


class Ready(NamedTuple):
    """What a side says when all is compiled and it has begun to learn."""

    compile_seconds: float
    hidden: int
    steps_per_update: float
    hardware: str


class Turn(NamedTuple):
    """What one turn took and did, all seeds together; and how many environment steps a batch
    holds."""

    seconds: float
    cpu_seconds: float  # of all cores
    env_steps: int
    updates: int
    batch_steps: float


@dataclass
class Turns:
    """A child's end of the pipe: what it trains goes on only while it is its turn."""

    pipe: Connection
    config: Config
    seconds: float = 0.0  # how long this turn is to last; 0 before the first
    before: Turn = field(default_factory=lambda: Turn(0.0, 0.0, 0, 0, 0.0))
    compiling: float = 0.0

    def __post_init__(self):
        jax.monitoring.register_event_duration_secs_listener(self.heard)

    def heard(self, event: str, duration: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):  # tracing, lowering and compiling
            self.compiling += duration

    def wait(self, env_steps: int, updates: int, batch_steps: float, learnt: bool) -> None:
        """Called after each iteration, or round, which `learnt` or only played; returns when the
        next is to begin.

        Turns begin and end where something was learnt, so that they hold as many steps for each
        update as training.
        """
        now, before = (
            Turn(time.perf_counter(), time.process_time(), env_steps, updates, batch_steps),
            self.before,
        )
        if not learnt or now.seconds - before.seconds < self.seconds:
            return
        if self.seconds:
            report = Turn(*(a - b for a, b in zip(now[:-1], before[:-1], strict=True)), batch_steps)
        else:
            hardware = f"{cpu_model()}, {usable_cores()} cores"
            report = Ready(
                self.compiling, self.config["HIDDEN_SIZE"], steps_per_update(self.config), hardware
            )
        try:
            self.pipe.send(report)
            self.seconds = self.pipe.recv()
        except (BrokenPipeError, EOFError):  # the parent is gone
            os._exit(1)
        self.before = now._replace(seconds=time.perf_counter(), cpu_seconds=time.process_time())


def read_config(jaxmarl: Path, changes: Config, map_name: str) -> Config:
    """JaxMARL's released settings, but for `changes`, and for what concerns the map, the budget and
    tests."""
    config = yaml.safe_load((jaxmarl / CONFIG).read_text())
    unknown = set(changes) - set(config)
    if unknown:
        raise SystemExit(f"{CONFIG} has no {', '.join(sorted(unknown))}")
    config |= changes | dict(
        TOTAL_TIMESTEPS=1e7, MAP_NAME=map_name, TEST_DURING_TRAINING=False, LEARNING_STARTS=0
    )
    config["ENV_KWARGS"]["max_steps"] = MAPS[map_name].limit
    return config


def play_jaxmarl(turns: Turns, jaxmarl: Path, config: Config, seeds: int) -> None:
    """The training function of JaxMARL's script, mapped over seeds and compiled as there."""
    logged, batch_steps = 0, config["BUFFER_BATCH_SIZE"] * config["NUM_STEPS"]

    def log(metrics: dict[str, Any]) -> None:
        """Takes wandb's place. Each seed calls it after each iteration."""
        nonlocal logged
        logged += 1
        if logged % seeds == 0:
            env_steps, updates = int(metrics["env_step"]), int(metrics["grad_steps"])
            turns.wait(seeds * env_steps, seeds * updates, batch_steps, updates > 0)

    script = load_script(jaxmarl, log)
    config = config | dict(WANDB_MODE="online")  # to `log`
    env, _ = script.env_from_config(config)
    train = jax.jit(jax.vmap(script.make_train(config, env)))
    jax.block_until_ready(train(jax.random.split(jax.random.PRNGKey(0), seeds)))


def load_script(jaxmarl: Path, log: Any) -> Any:
    """`qmix_rnn.py` as a module, with stubs of what it only starts and logs with.

    Its replay is ready with the first windows, rather than with 32 of each environment, whose play
    would take minutes.
    """
    make_buffer = flashbax.make_trajectory_buffer
    flashbax.make_trajectory_buffer = lambda **given: make_buffer(
        **given | dict(min_length_time_axis=1)
    )
    decorate = lambda **_: lambda f: f
    stubs = dict(wandb=dict(log=log), hydra=dict(main=decorate), omegaconf=dict(OmegaConf=None))
    for name, contents in stubs.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(contents)
    spec = importlib.util.spec_from_file_location("qmix_rnn", jaxmarl / SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    with silence():
        spec.loader.exec_module(module)
    return module


def algorithm(config: Config, episodes: int) -> Qmix:
    """QMIX at the sizes of JaxMARL's."""
    iterations = int(config["TOTAL_TIMESTEPS"]) // config["NUM_STEPS"] // config["NUM_ENVS"]
    return Qmix(
        hidden=config["HIDDEN_SIZE"],
        mixer_width=config["MIXER_EMBEDDING_DIM"],
        hypernet=config["MIXER_HYPERNET_HIDDEN_DIM"],
        gamma=config["GAMMA"],
        epsilon=Epsilon(
            config["EPS_START"],
            config["EPS_FINISH"],
            int(config["EPS_DECAY"] * iterations) * config["NUM_STEPS"] * config["NUM_ENVS"],
        ),
        target_period=config["TARGET_UPDATE_INTERVAL"] * config["NUM_EPOCHS"],
        optimiser=Adam(config["LR"], config["MAX_GRAD_NORM"]),
        replay=EpisodeRing(config["BUFFER_SIZE"], episodes),
        pace=EpisodePace(parallel_envs=config["NUM_ENVS"]),
    )


def steps_per_update(config: Config) -> float:
    return config["NUM_STEPS"] * config["NUM_ENVS"] / config["NUM_EPOCHS"]


class Paced(Session):
    """A session that goes on only in its turn, and learns once for so many environment steps.

    `updates_per_episode` would have to know how long episodes are.
    """

    turns: Turns
    steps_per_update: float

    def round(
        self, state: RunState, player: Player, evaluator: Player, display: Display
    ) -> RunState:
        before = self.updates(state)
        state = super().round(state, player, evaluator, display)
        updates, env_steps = self.updates(state), int(np.asarray(state.clock.env_steps).sum())
        length = env_steps / (self.number * self.run.num_copies * self.run.seeds)
        batch_steps = length * self.run.algorithm.replay.batch_size
        self.turns.wait(env_steps, updates, batch_steps, updates > before)
        return state

    def learn(self, state: RunState, plan: Round, phase: Phase, display: Display) -> RunState:
        if np.asarray(plan.num_updates).all():  # the replay holds enough, in all seeds
            env_steps = np.asarray(state.clock.env_steps)
            if not hasattr(self, "learnt_at"):
                self.learnt_at = env_steps - self.steps_per_update
            due = (env_steps - self.learnt_at) // self.steps_per_update
            self.learnt_at = self.learnt_at + due * self.steps_per_update
        else:
            due = np.zeros(self.run.seeds)
        return super().learn(
            state, plan._replace(num_updates=jnp.asarray(due, jnp.int32)), phase, display
        )


def play_comarl(turns: Turns, config: Config, episodes: int, seeds: int, together: bool) -> None:
    """comarl's training, as the command line runs it."""
    run = Run(
        algorithm(config, episodes),
        Smax(config["MAP_NAME"], reward_scale=1.0),
        seeds,
        steps=LONG,
        evaluate_every=LONG,
    )
    options = Options(checkpoint_seconds=float("inf"), vmapped_seeds=together)
    with tempfile.TemporaryDirectory() as folder:
        session = Paced(run, {}, Path(folder), options, Console(quiet=True))
        session.turns, session.steps_per_update = turns, steps_per_update(config)
        session.train()
