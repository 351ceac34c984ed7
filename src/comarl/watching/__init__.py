"""A trained team on film: plays greedily and writes what happens as a GIF or an MP4, without a
display."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from comarl.envs.discrete_probes import DiscreteProbe
from comarl.envs.mamujoco import MultiAgentMujoco
from comarl.envs.matrix import MatrixGame
from comarl.envs.multiwalker import Multiwalker
from comarl.envs.navigation import Navigation
from comarl.envs.pettingzoo import PettingZoo
from comarl.envs.predator_prey import PredatorPrey
from comarl.envs.probes import Probe
from comarl.envs.smax import Smax
from comarl.envs.treasure import Treasure
from comarl.envs.waves import Waves
from comarl.types import Algorithm, Clock, Draws, Environment
from comarl.validation import is_whole, short
from comarl.watching import battle, grid, particles, pictures, robots, tables
from comarl.watching.canvas import Image, captioned, import_pillow
from comarl.watching.play import Played, Theatre, opened, play, returns
from comarl.watching.scene import Scene
from comarl.watching.write import check_out, write

Director = Callable[[Played, int], Scene]
"""an episode and the width of its pictures to what is shown"""

FAMILIES: dict[type, Callable[[Any, Played, int], Scene]] = {
    PredatorPrey: grid.scene,
    Navigation: particles.navigation,
    Treasure: particles.treasure,
    Waves: particles.waves,
    Probe: tables.probe,
    DiscreteProbe: tables.probe,
    Smax: battle.scene,
}
"""what draws a task from its states alone"""


def watch(
    algorithm: Algorithm,
    task: Any,
    agent: PyTree,
    clock: Clock,
    team: int,
    out: Path | str,
    episodes: int = 1,
    seed: int = 0,
    fps: float | int | None = None,
    size: int = 600,
    values: bool = True,
) -> Path:
    """Plays greedy episodes of one team of one seed's agent, and writes them all to `out`.

    There is a picture of the start and one after each step, `size` pixels wide. `agent` and `clock`
    are without an axis of seeds; equal seeds give equal films. `fps` is how many steps there are in
    a second, by default what suits the task. `values` shows what a team thinks its joint actions
    are worth, where it can: an exported team has no critic.

    Raises ValueError for what cannot be meant, FileExistsError for a file that is there,
    ImportError for a missing extra, `robots.CannotDraw`, a RuntimeError, where MuJoCo has nothing
    to draw with; each is one sentence with what would help. All but the last are raised before
    anything is played.
    """
    out = Path(out)
    import_pillow()
    check_out(out)
    for name, value, low, high in (("episodes", episodes, 1, 1000), ("size", size, 200, 2000)):
        if not is_whole(value) or not low <= value <= high:
            raise ValueError(f"{name}={short(value)} must be a whole number from {low} to {high}")
    if size % 2:
        raise ValueError(f"size={size} must be even, as videos want it")
    if fps is not None and not 0.1 <= fps <= 100:
        raise ValueError(f"fps={short(fps)} must be from 0.1 to 100")
    check_drawable(task)
    with opened(task) as theatre:
        direct = director(algorithm, task, agent, clock, theatre, values)
        played = (
            play(
                algorithm,
                task,
                theatre,
                agent,
                clock,
                team,
                jax.random.fold_in(jax.random.key(seed), number),
            )
            for number in range(episodes)
        )
        first = next(played)
        scene = direct(first, size)
        frames = film(first, scene, played, direct, size, episodes, task.spec.horizon)
        write(frames, out, float(fps or scene.fps))
    return out


def check_drawable(task: Any) -> None:
    """Raises ValueError for a task of which nothing is known that could be drawn."""
    known = (*FAMILIES, MatrixGame, MultiAgentMujoco, PettingZoo, Multiwalker, Draws)
    if isinstance(task, known):
        return
    name = type(task).__name__
    if isinstance(task, Environment):
        raise ValueError(
            f"nothing is known of how {name} looks; give it a method render(env_state) that "
            "returns a picture, uint8 [height, width, 3]"
        )
    raise ValueError(
        f"nothing is known of how {name} looks; outside JAX only Multi-Agent MuJoCo and "
        "environments of PettingZoo can be watched"
    )


def director(
    algorithm: Algorithm, task: Any, agent: PyTree, clock: Clock, theatre: Theatre, values: bool
) -> Director:
    """What makes scenes of a task's episodes. A task's own `render` comes before what is known of
    its family."""
    if isinstance(task, Draws):
        return functools.partial(pictures.own, task)
    if isinstance(task, MatrixGame):

        def game(played: Played, size: int) -> Scene:
            if not values:
                return tables.matrix(task, played, size)
            worth = tables.team_values(task, algorithm, agent, clock, played.states[0])
            return tables.matrix(task, played, size, worth)

        return game
    if isinstance(task, MultiAgentMujoco):
        copies: Any = theatre.env
        return functools.partial(
            robots.scene,
            model=copies.physics.model,
            agent_of_actuator=copies.agent_of_actuator,
            step_seconds=copies.physics.step_seconds,
        )
    if isinstance(task, PettingZoo | Multiwalker):
        return pictures.simulator
    family = next(family for family in FAMILIES if isinstance(task, family))
    return functools.partial(FAMILIES[family], task)


def film(
    first: Played,
    scene: Scene,
    rest: Iterator[Played],
    direct: Director,
    size: int,
    episodes: int,
    horizon: int,
) -> Iterator[Image]:
    """The pictures of all episodes, each with its caption; those after the first are played when
    their turn comes."""
    yield from frames_of(first, scene, 1, episodes, horizon)
    for number, played in enumerate(rest, start=2):
        yield from frames_of(played, direct(played, size), number, episodes, horizon)


def frames_of(
    played: Played, scene: Scene, number: int, episodes: int, horizon: int
) -> Iterator[Image]:
    """The pictures of one episode: steps + 1."""
    earned = returns(played)
    for time in range(played.steps + 1):
        left = f"step {time} of {horizon}"
        if episodes > 1:
            left = f"episode {number} of {episodes}, {left}"
        over = time == played.steps
        below = f"{outcome(played)} {scene.said(time)}" if over else scene.said(time)
        yield captioned(scene.picture(time), left, f"return {earned[time]:.4g}", below, strong=over)


def outcome(played: Played) -> str:
    """How an episode ended, in two words or three."""
    if "won" in played.metrics:
        return "WON:" if played.metrics["won"] else "NOT WON:"
    return "OVER:" if played.terminated else "TIME IS UP:"
