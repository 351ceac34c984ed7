"""Films of teams: what is in them, and what is answered where there can be none."""

import subprocess
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import imageio_ffmpeg
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageSequence

from comarl.envs import find_task
from comarl.envs.mamujoco import MultiAgentMujoco
from comarl.envs.matrix import GAMES
from comarl.envs.navigation import Navigation
from comarl.envs.predator_prey import CATCH, GONE, Grid, PredatorPrey
from comarl.envs.smax import game_of
from comarl.envs.treasure import Treasure
from comarl.envs.waves import Waves
from comarl.play.rollout import random_action
from comarl.replay.pace import StepPace
from comarl.replay.transitions import Ring
from comarl.types import Clock, EnvSpec, Timestep
from comarl.watching import battle, grid, outcome, robots, watch
from comarl.watching.play import Played

CLOCK = Clock(jnp.int32(0), jnp.int32(0), jnp.int32(0))


@dataclass(frozen=True)
class Anyhow:
    """A team that acts at random, and that nothing trains."""

    spec: EnvSpec
    actions = frozenset({"discrete", "continuous"})
    replay: ClassVar = Ring()
    pace: ClassVar = StepPace()

    def init(self, spec, key):
        return ()

    def update(self, state, batch, clock, key):
        raise AssertionError("nobody learns here")

    def initial_memory(self, agent, timestep, key):
        return ()

    def act(self, agent, team, memory, timestep, clock, key, *, explore):
        assert not explore
        return memory, random_action(self.spec, timestep, key)


def filmed(task: Any, out: Path, **options: Any) -> Path:
    algorithm: Any = Anyhow(task.spec)
    return watch(algorithm, task, (), CLOCK, 0, out, **{"size": 200, **options})


def pictures(path: Path) -> list[np.ndarray]:
    """The frames of a GIF."""
    with Image.open(path) as film:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(film)]


def shown(frame: np.ndarray) -> np.ndarray:
    """A frame without its caption, whose numbers change anyway."""
    return frame[: -round(0.13 * frame.shape[1])]


TASKS = {  # task, frames of one episode
    "predator-prey": (PredatorPrey(agents=2, prey=1, size=4, horizon=3), 4),
    "navigation": (Navigation(horizon=3), 4),
    "treasure": (Treasure(deposits=2, horizon=3), 4),
    "waves": (Waves(horizon=3), 4),
    "matrix": (GAMES["two-states"], 2),
    "probe": (find_task("probe/delayed"), 3),
    "discrete-probe": (find_task("probe/discrete-memory"), 3),
    "pettingzoo": (replace(find_task("pettingzoo/mpe2.simple_spread_v3"), horizon=3), 4),
    "multiwalker": (replace(find_task("multiwalker/3"), horizon=3), 4),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_film_shows_the_start_and_every_step_and_something_moves(name, tmp_path):
    task, count = TASKS[name]
    frames = pictures(filmed(task, tmp_path / "film.gif"))
    assert len(frames) == count
    assert {frame.shape for frame in frames} == {frames[0].shape}
    assert frames[0].shape[1] == 200 and frames[0].shape[0] % 2 == 0
    moves = [not np.array_equal(shown(a), shown(b)) for a, b in pairwise(frames)]
    assert any(moves)


def test_equal_seeds_give_equal_films_and_others_give_others(tmp_path):
    task = Waves(horizon=2)
    first, again, other = (
        filmed(task, tmp_path / f"{name}.gif", seed=seed).read_bytes()
        for name, seed in (("first", 3), ("again", 3), ("other", 4))
    )
    assert first == again != other


def test_episodes_follow_one_another_and_differ(tmp_path):
    frames = pictures(filmed(Waves(horizon=2), tmp_path / "film.gif", episodes=2))
    assert len(frames) == 2 * 3
    assert not np.array_equal(shown(frames[0]), shown(frames[3]))


def test_an_mp4_has_as_many_frames_in_the_size_that_was_asked_for(tmp_path):
    path = filmed(Waves(horizon=4), tmp_path / "film.mp4", size=202, fps=5)
    # The package's own readers fork, against which JAX warns
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path)]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True)
    frames = np.frombuffer(raw.stdout, np.uint8).reshape(-1, 228, 202, 3)
    assert len(frames) == 5 and b"5 fps" in raw.stderr
    assert not np.array_equal(shown(frames[0]), shown(frames[-1]))
    assert [file.name for file in tmp_path.iterdir()] == ["film.mp4"]


def test_a_robot_is_drawn_without_a_screen_or_it_is_said_what_is_missing(tmp_path):
    """Where neither EGL nor OSMesa is installed there is nothing to look at but the sentence."""
    out = tmp_path / "film.gif"
    try:
        robots.make_context(64, 64)
    except robots.CannotDraw:
        with pytest.raises(robots.CannotDraw, match=r"cannot draw .*apt-get install"):
            filmed(MultiAgentMujoco("HalfCheetah", "2x3", horizon=3), out)
        assert not out.exists()
        return
    frames = pictures(filmed(MultiAgentMujoco("HalfCheetah", "2x3", horizon=3), out))
    assert len(frames) == 4
    assert not np.array_equal(shown(frames[0]), shown(frames[-1]))
    red, green, blue = np.moveaxis(shown(frames[0]).astype(int), 2, 0)
    assert ((blue > red + 60) & (blue > green)).any(), "the first agent's leg is blue"
    assert ((red > blue + 60) & (red > green)).any(), "the second agent's leg is vermillion"


def test_without_a_renderer_a_sentence_says_what_would_help(monkeypatch):
    def broken(*size: int) -> Any:
        raise AttributeError("no library\nat all")

    monkeypatch.delenv("MUJOCO_GL", raising=False)
    module = SimpleNamespace(GLContext=broken)
    monkeypatch.setattr(robots.importlib, "import_module", lambda name: module)
    with pytest.raises(robots.CannotDraw) as raised:
        robots.make_context(64, 64)
    said = str(raised.value)
    assert "egl: no library at all; osmesa: no library at all" in said
    assert "libosmesa6" in said and "\n" not in said


@dataclass(frozen=True)
class Counting:
    """A task of one's own, which counts."""

    drawn: bool = True
    spec = EnvSpec(2, 1, 1, 3, discrete=True, horizon=3)

    def seen(self, env_state):
        one = jnp.zeros((2, 1)), jnp.zeros(1), jnp.ones((2, 3), bool)
        return env_state, Timestep(*one)

    def reset(self, key):
        return self.seen(jnp.int32(0))

    def step(self, env_state, action, key):
        after = env_state + 1
        return *self.seen(after), jnp.float32(1.0), jnp.bool_(False), after >= 3

    def metrics(self, env_state):
        return {}


class Shown(Counting):
    """The same with pictures of its own."""

    def render(self, env_state):
        return np.full((8, 16, 3), 60 * int(env_state), np.uint8)


class Misshown(Counting):
    """The same with what is no picture."""

    def render(self, env_state):
        return np.zeros((8, 16))


def test_a_task_of_ones_own_draws_itself(tmp_path):
    frames = pictures(filmed(Shown(), tmp_path / "film.gif"))
    assert [int(frame[10, 10, 0]) for frame in frames] == [0, 60, 120, 180]
    assert frames[0].shape == (100 + 24, 200, 3), "wide pictures stay wide"


@pytest.mark.parametrize(
    ("task", "name", "options", "error", "said"),
    [
        (Counting(), "a.gif", {}, ValueError, r"Counting looks; give it a method render"),
        (Misshown(), "a.gif", {}, ValueError, r"float64 \[8, 16\]; it must be uint8"),
        (Shown(), "a.avi", {}, ValueError, r"a\.avi' must end in \.gif or \.mp4"),
        (Shown(), "there.gif", {}, FileExistsError, r"there\.gif exists; remove it"),
        (Shown(), "none/a.gif", {}, FileNotFoundError, r"there is no folder .*none"),
        (Shown(), "a.gif", {"size": 201}, ValueError, r"size=201 must be even"),
        (Shown(), "a.gif", {"size": 20}, ValueError, r"size=20 must be .* from 200 to 2000"),
        (Shown(), "a.gif", {"episodes": 0}, ValueError, r"episodes=0 must be .* from 1"),
        (Shown(), "a.gif", {"fps": 0}, ValueError, r"fps=0 must be from 0\.1 to 100"),
    ],
)
def test_what_cannot_be_watched_is_answered_in_one_sentence(
    task, name, options, error, said, tmp_path
):
    (tmp_path / "there.gif").write_text("mine")
    with pytest.raises(error, match=said) as raised:
        filmed(task, tmp_path / name, **options)
    assert "\n" not in str(raised.value)
    assert (tmp_path / "there.gif").read_text() == "mine"
    assert [file.name for file in tmp_path.iterdir()] == ["there.gif"], "nothing is left behind"


def test_who_is_caught_is_told_with_what_is_left():
    task = PredatorPrey(agents=2, prey=2, size=4, horizon=3)
    cell = lambda row, column: task.width * (row + 2) + column + 2
    prey = np.array([cell(0, 1), cell(3, 3)])
    here: Any = Grid  # whose fields are NumPy's when it is drawn
    before = here(np.array([cell(0, 0), cell(0, 2)]), prey, np.int32(0))
    after = here(np.array([GONE, GONE]), np.array([GONE, cell(3, 3)]), np.int32(1))
    action = np.full((1, 2), CATCH)
    scene = grid.scene(task, Played([before, after], action, np.array([10.0]), True, {}), 200)
    assert scene.said(0) == "2 of 2 prey left"
    assert scene.said(1) == "1 caught; 1 of 2 prey left"


def test_a_battle_shows_who_stands_how_healthy_they_are_and_who_shoots_whom():
    """Without playing, whose compilation takes long."""
    task = find_task("smax/3m")
    game = game_of(task)
    start = SimpleNamespace(
        unit_positions=np.array([[12, 16], [12, 15], [12, 17], [15, 16], [15, 15], [15, 17.0]]),
        unit_alive=np.ones(6, bool),
        unit_health=np.full(6, 45.0),
        unit_types=np.zeros(6, int),
        unit_weapon_cooldowns=np.zeros(6),
        prev_attack_actions=np.zeros(6, int),
    )
    hit = {**vars(start), "unit_health": np.array([45, 45, 45, 36, 45, 45.0])}
    shot = {
        **hit,
        "unit_weapon_cooldowns": np.array([0.3, *[-0.5] * 5]),
        "prev_attack_actions": np.array([game.num_movement_actions, *[0] * 5]),
    }
    dead = {**hit, "unit_alive": np.array([1, 1, 1, 0, 1, 1], bool)}
    battles = [start, *(SimpleNamespace(**after) for after in (hit, shot, dead))]
    states = [SimpleNamespace(state=state) for state in battles]
    played = Played(states, np.zeros((3, 3), int), np.zeros(3), False, {"won": 0.0})
    scene = battle.scene(task, played, 200)
    frames = [np.asarray(scene.picture(time)).astype(int) for time in range(4)]
    changed = [(abs(after - frames[0]) > 20).any(axis=2).sum() for after in frames[1:]]
    assert 0 < changed[0] < changed[1], "a shorter bar of health; besides, the line of a shot"
    assert changed[2] > changed[0], "a cross for who fell"
    assert scene.said(0) == "allies 3 of 3, enemies 3 of 3"
    assert scene.said(3) == "allies 3 of 3, enemies 2 of 3"
    assert outcome(played) == "NOT WON:"


def test_shots_go_from_those_who_fired_to_whom_they_aimed_at():
    """Two allies against two enemies, who count their targets from the last ally."""
    state = lambda cooldown, attack: SimpleNamespace(
        unit_weapon_cooldowns=np.array(cooldown),
        unit_alive=np.ones(4, bool),
        prev_attack_actions=np.array(attack),
    )
    before = state([0.0, 0.0, 0.0, 0.0], [0, 0, 0, 0])
    # The second ally aims at an enemy out of range, so its weapon cools down; the last stands still
    after = state([0.4, -0.5, 0.4, -0.5], [6, 5, 5, 4])
    assert battle.shots([before, after], 1, allies=2, moves=5) == [(0, 3), (2, 1)]
    assert battle.shots([before, after], 0, allies=2, moves=5) == []
