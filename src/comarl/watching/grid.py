"""Predators and prey on their grid: predators are numbered discs, prey are triangles."""

import numpy as np

from comarl.envs.predator_prey import CATCH, GONE, SIGHT, PredatorPrey
from comarl.validation import counted
from comarl.watching.canvas import GREY, INK, PALE, Canvas, Image, agent_colour
from comarl.watching.play import Played
from comarl.watching.scene import Scene


def scene(task: PredatorPrey, played: Played, size: int) -> Scene:
    """Who chose to catch has a ring; what was caught, and who caught it, is a cross for a step."""
    cells = lambda numbers: np.stack(np.divmod(numbers, task.width), axis=1)[:, ::-1] - SIGHT + 0.5

    def picture(time: int) -> Image:
        canvas = Canvas(size, (0, 0), (task.size, task.size), down=True)
        for at in range(1, task.size):
            canvas.line([(at, 0), (at, task.size)], PALE, 1)
            canvas.line([(0, at), (task.size, at)], PALE, 1)
        now, before = played.states[time], played.states[max(0, time - 1)]
        words = 0.3 * size / task.size
        for kind in ("agents", "prey"):
            gone = (getattr(now, kind) == GONE) & (getattr(before, kind) != GONE)
            for cell in cells(getattr(before, kind)[gone]):
                canvas.cross(cell, 0.3, GREY)
        for cell in cells(now.prey[now.prey != GONE]):
            canvas.polygon(cell, 0.36, 3, INK)
        catching = played.action[time - 1] == CATCH if time else np.zeros(task.agents, bool)
        for agent, cell in enumerate(cells(now.agents)):
            if now.agents[agent] == GONE:
                continue
            canvas.disc(cell, 0.32, agent_colour(agent))
            if catching[agent]:
                canvas.disc(cell, 0.43, None, INK, 3)
            canvas.text(cell, str(agent), words, "#FFFFFF")
        return canvas.picture()

    def said(time: int) -> str:
        left = lambda at: int((played.states[at].prey != GONE).sum())
        known = f"{left(time)} of {task.prey} prey left"
        caught = left(time - 1) - left(time) if time else 0
        if caught:
            return f"{caught} caught; {known}"
        tried = int((played.action[time - 1] == CATCH).sum()) if time else 0
        return f"{counted(tried, 'predator')} tried to catch; {known}" if tried else known

    return Scene(picture, said, fps=4)
