"""One accelerator: updates per second of 1, 8 and 32 seeds, and steps per second of the jittable
tasks at 32, 1,024 and 16,384 copies.

It is for a bare machine with one GPU and needs nothing but Python, JAX with equinox, optax and
jaxtyping, and this checkout; where PyTorch is installed, its update of MATD3 and RACE is measured
beside. An update is the draw from a filled replay and one gradient step of each seed, with seeds as
array axes, as training makes it; batches are never cut, because all episodes have their full
length. Programs are compiled side by side before anything is timed. A figure is the median of
several turns.

    python bench/gpu.py --csv gpu.csv
"""

import argparse
import csv
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

# PyTorch wants a part of the memory, too.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import jax
import jax.numpy as jnp
import numpy as np

from comarl.algorithms import ALGORITHMS
from comarl.algorithms.lsf_sac import LsfSac
from comarl.algorithms.matd3 import Matd3
from comarl.algorithms.qmix import Qmix
from comarl.algorithms.race_facmac import RaceFacmac
from comarl.algorithms.race_matd3 import RaceMatd3
from comarl.algorithms.vm3_ac import Vm3Ac
from comarl.envs import find_task
from comarl.machine.placement import Placement
from comarl.play.rollout import play
from comarl.replay.episodes import EpisodeRing
from comarl.replay.transitions import Ring
from comarl.types import Clock, EnvSpec, Episode, Timestep

VMAPPED = Placement(vmapped=True)
MUJOCO = EnvSpec(
    num_agents=3, obs_size=7, state_size=11, action_size=1, discrete=False, horizon=1000
)
"""the sizes of Hopper-3x1 if agents see the torso, too"""
WAVES = EnvSpec(
    num_agents=4, obs_size=40, state_size=160, action_size=2, discrete=False, horizon=100
)
"""those of waves/4"""
STARCRAFT = EnvSpec(
    num_agents=3, obs_size=36, state_size=27, action_size=9, discrete=True, horizon=150
)
"""those of StarCraft's 3s_vs_3z"""
FILLED = 64  # episodes in a replay of episodes
UPDATES: dict[str, tuple[Any, EnvSpec, int]] = {  # algorithm, sizes, updates per compiled call
    "matd3": (Matd3(replay=Ring(20_000, 128)), MUJOCO, 64),
    "race-matd3": (RaceMatd3(replay=Ring(20_000, 128)), MUJOCO, 64),
    "vm3-ac": (Vm3Ac(replay=Ring(20_000, 128)), WAVES, 64),
    "qmix": (Qmix(replay=EpisodeRing(FILLED, 32)), STARCRAFT, 1),
    "race-facmac": (RaceFacmac(replay=EpisodeRing(FILLED, 32)), STARCRAFT, 1),
    "lsf-sac": (LsfSac(replay=EpisodeRing(2 * FILLED, 128)), STARCRAFT, 1),
}
STEPS = {  # task -> the algorithm whose new networks act
    "predator-prey/small": "qmix",
    "waves/4": "vm3-ac",
    "navigation/3": "matd3",
    "treasure/3": "matd3",
    "smax/3m": "qmix",
    "smax/2s3z": "qmix",
}


@dataclass(frozen=True)
class Row:
    """One measurement."""

    measure: str
    """ "updates/s" of all seeds, or "steps/s" of all copies"""
    name: str
    framework: str
    seeds: int
    copies: int
    rate: float
    times_one: float
    """the rate over that of one seed, or of the fewest copies"""
    compile_seconds: float
    device: str
    versions: str


Timed = Callable[[], int]  # does something, and says how much was done


def rate_of(timed: Timed, seconds: float, turns: int) -> float:
    """The median rate over some turns, each of at least so many seconds."""
    timed()
    rates = []
    for _ in range(turns):
        done, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < seconds:
            done += timed()
        rates.append(done / (time.perf_counter() - begin))
    return float(np.median(rates))


def random_episodes(spec: EnvSpec, count: int) -> Episode:
    """So many, all of them at the time limit."""
    draw = np.random.default_rng(0)
    steps = (count, spec.horizon)
    longer = (count, spec.horizon + 1)
    team = (spec.num_agents, spec.action_size)
    normal = lambda *shape: jnp.asarray(draw.normal(size=shape), jnp.float32)
    if spec.discrete:
        action = jnp.asarray(draw.integers(spec.action_size, size=(*steps, team[0])), jnp.int32)
        available = jnp.ones((*longer, *team), bool)
    else:
        action = jnp.asarray(draw.uniform(-1, 1, (*steps, *team)), jnp.float32)
        available = None
    obs = normal(*longer, spec.num_agents, spec.obs_size)
    timesteps = Timestep(obs, normal(*longer, spec.state_size), available)
    ended = jnp.zeros(steps, bool)
    return Episode((), timesteps, action, normal(*steps), ended, jnp.ones(steps, bool))


def repeat(tree: Any, count: int) -> Any:
    """The same for every seed, each with memory of its own."""
    return jax.tree.map(lambda x: jnp.repeat(x[None], count, axis=0), tree)


class Updates:
    """Updates of several seeds at once."""

    def __init__(self, name: str, seeds: int, start: Any, filled: Any):
        self.name, self.seeds, self.begin = name, seeds, 0
        algorithm, spec, self.chunk = UPDATES[name]

        def update(agent: Any, replay: Any, key: Any, index: Any) -> tuple[Any, Any]:
            sample_key, update_key = jax.random.split(jax.random.fold_in(key, index))
            batch = algorithm.replay.sample(replay, spec, sample_key)
            clock = Clock(index * spec.horizon, index, index)
            return algorithm.update(agent, batch, clock, update_key)

        def updates(agent: Any, replay: Any, key: Any, begin: Any) -> tuple[Any, Any]:
            indices = begin + jnp.arange(self.chunk)
            one = lambda agent, index: update(agent, replay, key, index)
            agent, metrics = jax.lax.scan(one, agent, indices)
            return agent, jax.tree.map(lambda m: m.sum(0), metrics)

        keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
        self.agent = repeat(start, seeds)
        self.rest = (repeat(filled, seeds), keys)
        all_seeds = jax.jit(jax.vmap(updates, (0, 0, 0, None)), donate_argnums=0)
        self.lowered = all_seeds.lower(self.agent, *self.rest, np.int32(0))

    def compile(self) -> float:
        """Compiles the program; how long it took."""
        begin = time.perf_counter()
        self.learn = self.lowered.compile()
        return time.perf_counter() - begin

    def __call__(self) -> int:
        self.agent, sums = self.learn(self.agent, *self.rest, np.int32(self.begin))
        jax.device_get(sums)
        self.begin += self.chunk
        return self.chunk * self.seeds


def begin_with(name: str) -> tuple[Any, Any]:
    """An algorithm's first state, and a filled replay."""
    algorithm, spec, _ = UPDATES[name]
    count = 2 * FILLED if isinstance(algorithm.replay, EpisodeRing) else 19
    ring = algorithm.replay
    episodes = random_episodes(spec, count)
    filled = jax.jit(ring.add, static_argnums=2)(ring.init(spec), episodes, spec)
    return jax.jit(partial(algorithm.init, spec))(jax.random.key(0)), filled


def measure_updates(names: list[str], seeds: list[int], seconds: float, turns: int):
    """Rows of updates: compiled side by side, timed one after the other."""
    with ThreadPoolExecutor() as pool:
        begun = dict(zip(names, pool.map(begin_with, names), strict=True))
        sides = [Updates(name, count, *begun[name]) for name in names for count in seeds]
        compiled = list(pool.map(Updates.compile, sides))
    for side, compile_seconds in zip(sides, compiled, strict=True):
        rate = rate_of(side, seconds, turns)
        yield dict(
            measure="updates/s",
            name=side.name,
            framework="comarl",
            seeds=side.seeds,
            copies=0,
            rate=rate,
            compile_seconds=compile_seconds,
        )


class Steps:
    """Whole episodes of many copies of a task, played by new networks that explore."""

    def __init__(self, task: str, copies: int):
        self.name, self.copies, self.env = task, copies, find_task(task)
        self.algorithm = ALGORITHMS[STEPS[task]].algorithm
        init = jax.jit(partial(self.algorithm.init, self.env.spec))
        self.agent = repeat(init(jax.random.key(0)), 1)
        one = jnp.zeros(1, jnp.int32)
        self.clock = Clock(one, one, jnp.int32(0))
        self.teams = jnp.zeros((1, copies), jnp.int32)
        self.rounds = 0
        self.sum = jax.jit(lambda episode: episode.mask.sum())

    def __call__(self) -> int:
        self.rounds += 1
        keys = jax.random.key(self.rounds)[None]
        playing = jnp.ones((1, self.copies), bool)
        episodes = play(
            self.algorithm,
            self.env,
            self.agent,
            self.clock,
            self.teams,
            playing,
            keys,
            "explore",
            VMAPPED,
        )
        return int(self.sum(episodes))


def measure_steps(tasks: list[str], copies: list[int], seconds: float, turns: int):
    """Rows of steps that took place; steps after an episode's end are computed and not counted."""
    for task in tasks:
        for count in copies:
            begin = time.perf_counter()
            side = Steps(task, count)
            side()
            compile_seconds = time.perf_counter() - begin
            rate = rate_of(side, seconds, turns)
            yield dict(
                measure="steps/s",
                name=task,
                framework="comarl",
                seeds=1,
                copies=count,
                rate=rate,
                compile_seconds=compile_seconds,
            )


def measure_torch(seconds: float, turns: int):
    """Rows of the same updates in PyTorch, with fused Adam, one seed."""
    import torch
    from sides import ALGORITHMS as PAIRS
    from sides import begin_with as first_state
    from sides import device, random_episodes, torch_replay
    from torch_matd3 import block

    torch.set_float32_matmul_precision("high")  # TF32, as JAX does it
    for name, (algorithm, twin) in PAIRS.items():
        learner = twin(algorithm, first_state(name), device(), kind="fused", compile=False)
        replay = torch_replay(random_episodes(), algorithm.replay.batch_size)

        def timed(learner: Any = learner, replay: Any = replay) -> int:
            for _ in range(16):
                learner.step(replay)
            block()
            return 16

        rate = rate_of(timed, seconds, turns)
        yield dict(
            measure="updates/s",
            name={"MATD3": "matd3", "RACE": "race-matd3"}[name],
            framework=f"PyTorch {torch.__version__}",
            seeds=1,
            copies=0,
            rate=rate,
            compile_seconds=0.0,
        )


def rows_of(settings: argparse.Namespace) -> Iterator[Row]:
    """Every measurement, as it is made."""
    device = f"{jax.devices()[0].device_kind} ({jax.default_backend()})"
    versions = f"python {sys.version.split()[0]}, jax {jax.__version__}"
    kinds = {
        "updates": lambda: measure_updates(
            settings.algorithms, settings.seeds, settings.seconds, settings.turns
        ),
        "steps": lambda: measure_steps(
            settings.tasks, settings.copies, settings.seconds, settings.turns
        ),
        "torch": lambda: measure_torch(settings.seconds, settings.turns),
    }
    first: dict[tuple[str, str, str], float] = {}
    for kind in settings.kinds:
        if kind == "torch" and importlib.util.find_spec("torch") is None:
            print("PyTorch is not installed: its updates are not measured")
            continue
        for found in kinds[kind]():
            what = (found["measure"], found["name"], found["framework"])
            one = first.setdefault(what, found["rate"])
            yield Row(**found, times_one=found["rate"] / one, device=device, versions=versions)


def main() -> None:
    """Measures, prints each row as it comes, and writes all of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", default=["updates", "steps", "torch"])
    parser.add_argument("--algorithms", nargs="+", default=list(UPDATES))
    parser.add_argument("--tasks", nargs="+", default=list(STEPS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--copies", nargs="+", type=int, default=[32, 1024, 16384])
    parser.add_argument("--seconds", type=float, default=2.0, help="least time of a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--csv", type=Path)
    settings = parser.parse_args()
    rows = []
    for row in rows_of(settings):
        rows.append(row)
        count = f"{row.seeds} seed(s)" if row.measure == "updates/s" else f"{row.copies} copies"
        print(
            f"{row.name:20} {row.framework:18} {count:>13} {row.rate:14,.1f} {row.measure}"
            f"  {row.times_one:8.2f} times one  ({row.compile_seconds:.0f} s to compile)",
            flush=True,
        )
        if settings.csv:
            with settings.csv.open("w", newline="") as file:
                writer = csv.DictWriter(file, [field.name for field in fields(Row)])
                writer.writeheader()
                writer.writerows(asdict(row) for row in rows)


if __name__ == "__main__":
    main()
