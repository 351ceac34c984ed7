"""What takes turns in `bench/updates.py`: comarl, PyTorch, and the machine's own matrix product."""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch_matd3 import Replay, TorchMatd3, block, to_torch
from torch_race import TorchRace

from comarl.algorithms.matd3 import Matd3
from comarl.algorithms.race_matd3 import RaceMatd3
from comarl.machine.hardware import usable_cores
from comarl.machine.placement import Placement
from comarl.replay.transitions import RingState
from comarl.training.run import CHUNKS
from comarl.training.train import learn
from comarl.types import PER_SEED, Clock, EnvSpec, Episode, Timestep, Transition

ALGORITHMS = {"MATD3": (Matd3(), TorchMatd3), "RACE": (RaceMatd3(), TorchRace)}
EPISODES = 100  # of `horizon` steps each: what the replay holds
CHUNK = CHUNKS[Transition]  # updates of each compiled call, as in training

SPEC = EnvSpec(
    num_agents=3,
    obs_size=7,
    state_size=11,
    action_size=1,
    discrete=False,
    horizon=1000,
    obs_from_state=((2, 8, 0, 1, 5, 6, 7), (3, 9, 0, 1, 5, 6, 7), (4, 10, 0, 1, 5, 6, 7)),
)
"""those of mamujoco/Hopper-3x1 if agents see the torso, too"""


def device() -> str:
    """PyTorch's name of where JAX runs; the CPU where PyTorch cannot."""
    return "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"


def random_episodes() -> Episode:
    """As many as the replay is to hold, all of them at the time limit."""
    draw, steps = np.random.default_rng(0), (EPISODES, SPEC.horizon)
    state = draw.normal(size=(EPISODES, SPEC.horizon + 1, SPEC.state_size)).astype(np.float32)
    action = draw.uniform(-1, 1, (*steps, SPEC.num_agents, SPEC.action_size)).astype(np.float32)
    reward = draw.normal(size=steps).astype(np.float32)
    timesteps = Timestep(SPEC.observe(state), jnp.asarray(state))
    return Episode((), timesteps, action, reward, draw.random(steps) < 0.01, np.ones(steps, bool))


def torch_replay(episodes: Episode, batch_size: int) -> Replay:
    """The same transitions in tensors."""
    now, after = (
        jax.tree.map(lambda x, p=part: x[:, p], episodes.timesteps)
        for part in (slice(-1), slice(1, None))
    )
    transitions = Transition(now, episodes.action, episodes.reward, episodes.terminated, after)
    flat = jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), transitions)
    return Replay(to_torch(flat, device()), len(flat.reward), batch_size)


@functools.cache
def begin_with(name: str) -> Any:
    """An algorithm's state before training, for all sides: compiling this takes long."""
    algorithm = ALGORITHMS[name][0]
    return jax.jit(lambda key: algorithm.init(SPEC, key))(jax.random.key(0))


class Side:
    """Whatever is timed."""

    framework: str
    name: str
    mode = ""
    seeds = 1
    threads: int

    @property
    def title(self) -> str:
        return f"{self.name}, {self.mode}" if self.mode else self.name

    def play(self, seconds: float) -> float:
        """Takes a turn of at least so long: updates of all seeds per second."""
        raise NotImplementedError


class Comarl(Side):
    """Training's compiled chunk of updates, over filled replays."""

    framework = "comarl"

    def __init__(self, name: str, seeds: int, placement: Placement, replay: RingState):
        self.name, self.seeds, self.threads, self.begin = name, seeds, usable_cores(), 0
        if seeds > 1:
            on_one = "seeds vmapped" if placement.vmapped else "seeds sequential"
            self.mode = on_one if placement.mesh is None else "a device for each seed"
        algorithm, counts = ALGORITHMS[name][0], jnp.zeros(seeds, jnp.int32)
        agent = jax.tree.map(lambda x: jnp.repeat(x[None], seeds, axis=0), begin_with(name))
        keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
        clock = placement.scatter(Clock(counts, counts, jnp.int32(0)), PER_SEED)
        self.agent, replay, *rest = placement.scatter((agent, replay, keys, jnp.full(seeds, 2**30)))
        self.rest = (replay, clock, *rest)
        begin = time.perf_counter()
        self.learn = learn.lower(
            algorithm, SPEC, self.agent, *self.rest, np.int32(0), CHUNK, placement
        ).compile()
        self.compile_seconds = time.perf_counter() - begin

    def play(self, seconds: float) -> float:
        done, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < seconds:
            self.agent, sums = self.learn(self.agent, *self.rest, np.int32(self.begin))
            jax.device_get(sums)
            self.begin, done = self.begin + CHUNK, done + CHUNK * self.seeds
        return done / (time.perf_counter() - begin)


class Torch(Side):
    """The same update in PyTorch, one seed."""

    framework = "PyTorch"

    def __init__(self, name: str, learner: Any, replay: Replay, threads: int, mode: str):
        self.name, self.learner, self.replay, self.threads, self.mode = (
            name,
            learner,
            replay,
            threads,
            mode,
        )

    def play(self, seconds: float) -> float:
        torch.set_num_threads(self.threads)
        done, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < seconds:
            for _ in range(16):
                self.learner.step(self.replay)
            block()
            done += 16
        return done / (time.perf_counter() - begin)


class Product(Side):
    """The machine's own rate, in GFLOP/s: one large matrix product in float32, as JAX does it by
    default."""

    framework, name = "JAX", "matrix product, in GFLOP/s"

    def __init__(self):
        self.size, self.threads = 1536 if jax.default_backend() == "cpu" else 8192, usable_cores()
        self.matrix = jax.random.normal(jax.random.key(0), (self.size, self.size)) / self.size**0.5
        self.multiply = jax.jit(lambda m: m @ m)
        self.multiply(self.matrix).block_until_ready()

    def play(self, seconds: float) -> float:
        done, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < seconds:
            self.multiply(self.matrix).block_until_ready()
            done += 1
        return done * 2e-9 * self.size**3 / (time.perf_counter() - begin)
