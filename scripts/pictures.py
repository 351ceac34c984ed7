"""Makes the pictures of docs/watch.md: one of every family of tasks, as `comarl watch` draws it.

The team of the matrix game is trained; the others follow the rules below, so that all pictures take
a few minutes and are the same each time. docs/watch.md says which is which.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array
from PIL import Image, ImageSequence

from comarl.algorithms import find_algorithm
from comarl.envs import find_task
from comarl.runs.identity import identity
from comarl.training.run import Options, Session
from comarl.training.settings import Run
from comarl.types import Clock, Timestep
from comarl.watching import watch

FOLDER = Path(__file__).parents[1] / "docs" / "pictures"


@dataclass(frozen=True)
class Scripted:
    """A team that follows a rule: what all see, the steps that were played and a key, to
    actions."""

    rule: Callable[[Timestep, Array, Any], Array]

    def initial_memory(self, agent: Any, timestep: Timestep, key: Any) -> Array:
        """The number of steps."""
        return jnp.int32(0)

    def act(self, agent, team, memory, timestep, clock, key, *, explore):
        """By the rule."""
        return memory + 1, self.rule(timestep, memory, key)


def shoot(seen: Timestep, time: Array, key: Any) -> Array:
    """SMAX: the first enemy in range, else to the right."""
    assert seen.available is not None
    targets = seen.available[:, 5:]
    return jnp.where(targets.any(1), 5 + jnp.argmax(targets, axis=1), 1).astype(jnp.int32)


def catch(seen: Timestep, time: Array, key: Any) -> Array:
    """Predator-prey: catch what is near, else towards the middle of the prey in sight, or
    anywhere."""
    assert seen.available is not None
    prey = seen.obs.reshape(-1, 5, 5, 3)[..., 1]
    line = jnp.arange(-2.0, 3.0)
    down, right = (prey * line[:, None]).sum((1, 2)), (prey * line).sum((1, 2))
    wanted = jnp.stack([right, down, -right, -down], axis=1)
    scores = wanted + 0.1 * jax.random.uniform(key, wanted.shape)
    scores = jnp.where(seen.available[:, :4], scores, -jnp.inf)
    return jnp.where(seen.available[:, 5], 5, jnp.argmax(scores, axis=1)).astype(jnp.int32)


def cover(seen: Timestep, time: Array, key: Any) -> Array:
    """Navigation: each to the landmark of its number."""
    agents = jnp.arange(3)
    offset = seen.obs[:, 4:10].reshape(3, 3, 2)[agents, agents]
    return jnp.clip(2.0 * offset - 0.8 * seen.obs[:, :2], -1.0, 1.0)


def collect(seen: Timestep, time: Array, key: Any) -> Array:
    """Treasure collection for two collectors and one deposit: to the nearest treasure, and with one
    to the deposit, which waits."""
    obs = seen.obs[:2]
    others = obs[:, 5:17].reshape(2, 2, 6)  # offset, velocity, takes, holds
    deposit = (others[..., :2] * others[..., 4:5]).sum(1)
    goal = jnp.where(obs[:, 4:5] > 0, deposit, obs[:, 17:19])
    wanted = jnp.clip(4.0 * goal - 1.5 * obs[:, 2:4], -1.0, 1.0)
    return jnp.concatenate([wanted, -seen.obs[2:, 2:4]])


def hunt(seen: Timestep, time: Array, key: Any) -> Array:
    """Waves: each to the nearest prey that is there."""
    count = seen.obs.shape[0]
    prey = seen.obs[:, 2 * count :].reshape(count, -1, 2)
    nearest = jnp.argmin(jnp.square(prey).sum(-1), axis=1)
    return jnp.clip(20.0 * prey[jnp.arange(count), nearest], -1.0, 1.0)


def gallop(seen: Timestep, time: Array, key: Any) -> Array:
    """HalfCheetah: both legs swing in a rhythm."""
    phase = jnp.array([[0.0, 0.9, 1.8], [3.0, 3.9, 4.8]])
    return 0.4 * jnp.sin(0.75 * time + phase)


def stand(seen: Timestep, time: Array, key: Any) -> Array:
    """Multi-walker: knees give way a little."""
    return jnp.tile(jnp.array([0.2, 0.5, -0.2, 0.5]), (seen.obs.shape[0], 1))


def any_way(seen: Timestep, time: Array, key: Any) -> Array:
    """mpe2's simple spread: at random."""
    return jax.random.randint(key, (seen.obs.shape[0],), 0, 5)


SCENES: dict[str, tuple[str, Callable[[Timestep, Array, Any], Array], int, dict[str, Any]]] = {
    "smax": ("smax/3m", shoot, 8, {}),
    "predator-prey": ("predator-prey/small", catch, 4, {}),
    "navigation": ("navigation/3", cover, 12, {}),
    "treasure": ("treasure/3", collect, 30, {}),
    "waves": ("waves/2", hunt, 24, {}),
    "mamujoco": ("mamujoco/HalfCheetah-2x3", gallop, 40, {"horizon": 60}),
    "multiwalker": ("multiwalker/3", stand, 15, {"horizon": 30}),
    "pettingzoo": ("pettingzoo/mpe2.simple_spread_v3", any_way, 8, {}),
}
"""picture -> its task, who plays it, which frame, and what of the task is changed"""


def scripted(name: str, gif: Path) -> int:
    """A film of a team that follows a rule; which frame of it is shown."""
    task_name, rule, frame, changes = SCENES[name]
    task = find_task(task_name)
    clock = Clock(jnp.int32(0), jnp.int32(0), jnp.int32(0))
    algorithm: Any = Scripted(rule)
    watch(algorithm, replace(task, **changes), (), clock, 0, gif)
    return frame


def trained(gif: Path, steps: int = 4000) -> int:
    """A film of QPLEX on the matrix game of QTRAN after so many steps; the frame of its choice."""
    run = Run(find_algorithm("qplex").algorithm, find_task("matrix/qtran"), steps=steps, seeds=1)
    with tempfile.TemporaryDirectory() as folder:
        about = identity(run, "qplex", "matrix/qtran")
        state = Session.open(run, about, Path(folder) / "run", Options()).train()
    agent, env_steps, updates = jax.tree.map(
        lambda x: x[0], (state.agent, state.clock.env_steps, state.clock.updates)
    )
    clock = Clock(env_steps, updates, jnp.int32(0))
    watch(run.algorithm, run.task, agent, clock, 0, gif)
    return 1


def main() -> None:
    """Makes all pictures, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=["matrix", *SCENES])
    FOLDER.mkdir(exist_ok=True)
    for name in parser.parse_args().names:
        with tempfile.TemporaryDirectory() as folder:
            gif = Path(folder) / "film.gif"
            frame = trained(gif) if name == "matrix" else scripted(name, gif)
            with Image.open(gif) as film:
                frames = [one.convert("RGB") for one in ImageSequence.Iterator(film)]
            picture = frames[min(frame, len(frames) - 1)].quantize(64)
            picture.save(FOLDER / f"{name}.png", optimize=True)
            print(f"{name}.png: {(FOLDER / f'{name}.png').stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
