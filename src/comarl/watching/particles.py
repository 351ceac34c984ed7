"""Tasks on a plane: navigation, treasure collection, and waves of prey."""

import numpy as np

from comarl.envs.navigation import COVERED, RADIUS, Navigation
from comarl.envs.treasure import COLLECTOR, DEPOSIT, NOTHING, TREASURE, Treasure
from comarl.envs.waves import Waves
from comarl.validation import counted
from comarl.watching.canvas import (
    GREEN,
    GREY,
    INK,
    PALE,
    TEAM,
    Canvas,
    Image,
    agent_colour,
    square_around,
)
from comarl.watching.play import Played
from comarl.watching.scene import Scene

TRAIL = 8
"""steps for which the way of an agent is seen"""


def trails(canvas: Canvas, places: np.ndarray, time: int) -> None:
    """The ways `[steps agents 2]` that agents came in the last steps."""
    recent = places[max(0, time - TRAIL) : time + 1]
    for agent in range(places.shape[1]):
        canvas.line(list(recent[:, agent]), agent_colour(agent), 1.5)


def navigation(task: Navigation, played: Played, size: int) -> Scene:
    """Agents are numbered discs; landmarks are crosses, green where an agent covers them."""
    agents = np.stack([state.agents for state in played.states])
    everything = np.concatenate([agents.reshape(-1, 2), played.states[0].landmarks])
    low, high = square_around(everything, margin=1.3 * RADIUS, least=2.0)

    def covered(time: int) -> np.ndarray:
        offsets = played.states[time].landmarks[:, None] - agents[time]
        return np.linalg.norm(offsets, axis=-1).min(1) < COVERED

    def picture(time: int) -> Image:
        canvas = Canvas(size, low, high)
        trails(canvas, agents, time)
        for agent, place in enumerate(agents[time]):
            canvas.disc(place, RADIUS, agent_colour(agent), "#FFFFFF")
            corner = place + 0.55 * RADIUS * np.array([-1.0, 1.0])
            canvas.text(corner, str(agent), 0.04 * size, "#FFFFFF")
        for place, is_covered in zip(played.states[time].landmarks, covered(time), strict=True):
            canvas.disc(place, 0.045, GREEN if is_covered else "#FFFFFF", INK)
            canvas.cross(place, 0.022, INK, 2)
        return canvas.picture()

    said = lambda time: f"{int(covered(time).sum())} of {task.agents} landmarks covered"
    return Scene(picture, said, fps=8)


def treasure(task: Treasure, played: Played, size: int) -> Scene:
    """Deposits are lettered squares, treasures diamonds in the colour of theirs; collectors are
    numbered discs, in the colour of what they hold."""
    agents = np.stack([state.agents for state in played.states])
    low, high = square_around(
        np.concatenate([agents.reshape(-1, 2), [[-1.0, -1.0], [1.0, 1.0]]]), 0.12, 2.0
    )
    of_kind = lambda kind: TEAM[int(kind) % len(TEAM)]

    def picture(time: int) -> Image:
        canvas, state = Canvas(size, low, high), played.states[time]
        for kind, place in enumerate(agents[time, task.collectors :]):
            corner = np.full(2, DEPOSIT)
            canvas.box(place - corner, place + corner, of_kind(kind), INK)
            canvas.text(place, chr(ord("A") + kind % 26), 0.034 * size, "#FFFFFF")
        for place, kind, there in zip(state.treasures, state.kind, state.there, strict=True):
            if there:
                canvas.polygon(place, 1.5 * TREASURE, 4, of_kind(kind), INK)
        for agent, place in enumerate(agents[time, : task.collectors]):
            way = agents[max(0, time - TRAIL) : time + 1, agent]
            canvas.line(list(way), GREY, 1.5)
            held = int(state.holding[agent])
            canvas.disc(place, COLLECTOR, PALE if held == NOTHING else of_kind(held), INK)
            colour = INK if held == NOTHING else "#FFFFFF"
            canvas.text(place, str(agent), 0.03 * size, colour)
        return canvas.picture()

    def said(time: int) -> str:
        now = played.states[time]
        carried = int((now.holding != NOTHING).sum())
        known = f"{carried} of {task.collectors} carry, {int(now.deliveries)} delivered"
        before = played.states[max(0, time - 1)]
        taken = int((before.there & ~now.there).sum())
        return f"{counted(taken, 'treasure')} picked up; {known}" if taken else known

    return Scene(picture, said, fps=8)


def waves(task: Waves, played: Played, size: int) -> Scene:
    """Predators are numbered discs; prey are dots, and rings once they are caught."""
    predators = np.stack([state.predators for state in played.states])

    def picture(time: int) -> Image:
        canvas = Canvas(size, (-0.05, -0.05), (1.05, 1.05))
        canvas.box((0, 0), (1, 1), edge=GREY)
        trails(canvas, predators, time)
        for place, alive in zip(task.lattice, played.states[time].alive, strict=True):
            fill, edge = (INK, INK) if alive else ("#FFFFFF", GREY)
            canvas.disc(place, max(0.25 * task.radius, 5 * canvas.unit), fill, edge)
        for agent, place in enumerate(predators[time]):
            canvas.disc(place, task.radius, None, agent_colour(agent), 4)
            # On its edge, each elsewhere, so that all are seen of several in one place
            turn = 2 * np.pi * agent / task.predators
            label = place + task.radius * np.array([np.cos(turn), np.sin(turn)])
            canvas.disc(label, 0.022 * size * canvas.unit, agent_colour(agent))
            canvas.text(label, str(agent), 0.033 * size, "#FFFFFF")
        return canvas.picture()

    def said(time: int) -> str:
        now, before = played.states[time], played.states[max(0, time - 1)]
        caught = int(now.captures - before.captures)
        known = f"wave {int(now.wave) + 1}, {int(now.alive.sum())} of {task.prey} prey left"
        return f"{caught} caught; {known}" if caught else known

    return Scene(picture, said, fps=10)
