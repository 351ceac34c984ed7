"""Tasks of a step or two: matrix games as tables of joint actions, probes as lines of actions."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from comarl.envs.discrete_probes import DiscreteProbe
from comarl.envs.matrix import MatrixGame
from comarl.envs.probes import Probe
from comarl.runs.payoff import ACTIONS
from comarl.training.payoff import judge
from comarl.types import Algorithm, Clock, ValuesTeams
from comarl.watching.canvas import BLUE, GREY, INK, Canvas, Image, agent_colour
from comarl.watching.play import Played
from comarl.watching.scene import Scene

GOOD, BAD = (160, 205, 235), (250, 205, 175)
"""the paper of the best payoff, and of the worst"""


def team_values(
    game: MatrixGame, algorithm: Algorithm, agent: PyTree, clock: Clock, state: np.ndarray
) -> Float[np.ndarray, "3 3"] | None:
    """The team's value of every joint action in one state, where the algorithm has such values."""
    if not isinstance(algorithm, ValuesTeams):
        return None
    stacked = jax.tree.map(lambda x: jnp.asarray(x)[None], (agent, clock.env_steps, clock.updates))
    agents, env_steps, updates = stacked
    clocks = Clock(env_steps, updates, jnp.asarray(clock.update_in_round))
    values, _ = judge(game, algorithm, agents, clocks, jnp.asarray(state)[None])
    return np.asarray(values)[0, 0]


def matrix(
    task: MatrixGame, played: Played, size: int, values: Float[np.ndarray, "3 3"] | None = None
) -> Scene:
    """A row for each action of the first agent, a column for each of the second; the chosen joint
    action has a frame."""
    state = played.states[0]
    payoff = np.asarray(task.payoff[int(state.sum()) % len(task.payoff)])
    spread = max(float(np.ptp(payoff)), 1e-9)

    def paper(value: float) -> str:
        share = (value - payoff.min()) / spread
        mixed = [round(bad + share * (good - bad)) for bad, good in zip(BAD, GOOD, strict=True)]
        return "#{:02X}{:02X}{:02X}".format(*mixed)

    def picture(time: int) -> Image:
        canvas = Canvas(size, (-1.0, -0.8), (3.2, 3.4), down=True)
        canvas.text((1.5, -0.55), "agent 1", 0.04 * size, agent_colour(1))
        canvas.text((-0.66, 1.5), "agent 0", 0.04 * size, agent_colour(0))
        for i, name in enumerate(ACTIONS):
            canvas.text((i + 0.5, -0.2), name, 0.045 * size)
            canvas.text((-0.25, i + 0.5), name, 0.045 * size)
            for j in range(3):
                canvas.box((j, i), (j + 1, i + 1), paper(payoff[i, j]), "#FFFFFF", 3)
                at = i + (0.5 if values is None else 0.38)
                canvas.text((j + 0.5, at), f"{payoff[i, j]:g}", 0.062 * size)
                if values is not None:
                    worth = f"value {values[i, j]:.2f}"
                    canvas.text((j + 0.5, i + 0.74), worth, 0.03 * size, "#444444")
        if time:
            row, column = played.action[0].tolist()
            canvas.box((column, row), (column + 1, row + 1), None, INK, 7)
        return canvas.picture()

    def said(time: int) -> str:
        if not time:
            if len(task.payoff) == 1:
                return "they have not chosen yet"
            return f"they see {state[0]:g} and {state[1]:g}, and have not chosen yet"
        row, column = played.action[0].tolist()
        missed = float(payoff.max()) - float(played.reward[0])
        worth = "the best" if missed < 1e-6 else f"{missed:g} less than the best"
        return f"they chose {ACTIONS[row]} and {ACTIONS[column]}, {worth}"

    return Scene(picture, said, fps=1)


def probe(task: Probe | DiscreteProbe, played: Played, size: int) -> Scene:
    """A line for each agent, from -1 to 1 or over actions 0 to 2, with what it chose last."""
    discrete = isinstance(task, DiscreteProbe)
    low, high = (0.0, 2.0) if discrete else (-1.0, 1.0)
    ticks = (0, 1, 2) if discrete else (-1, -0.5, 0, 0.5, 1)
    place = lambda value: 0.2 + 0.6 * (float(value) - low) / (high - low)

    def picture(time: int) -> Image:
        canvas = Canvas(size, (0, 0), (1, 0.6), down=True)
        signal = float(played.states[time].signal)
        canvas.text((0.5, 0.08), f"signal {signal:g}", 0.045 * size, BLUE if signal else GREY)
        for agent in range(2):
            y = 0.24 + 0.2 * agent
            canvas.text((0.04, y), str(agent), 0.05 * size, agent_colour(agent), "lm")
            canvas.line([(place(low), y), (place(high), y)], GREY, 3)
            for tick in ticks:
                canvas.line([(place(tick), y - 0.015), (place(tick), y + 0.015)], GREY)
                canvas.text((place(tick), y + 0.06), f"{tick:g}", 0.032 * size, "#555555")
            if time:
                chosen = float(np.reshape(played.action[time - 1][agent], -1)[0])
                at = min(max(place(chosen), 0.1), 0.9)
                canvas.disc((at, y), 0.028, agent_colour(agent), "#FFFFFF")
        return canvas.picture()

    def said(time: int) -> str:
        return f"reward {played.reward[time - 1]:.3g}" if time else task.summary

    return Scene(picture, said, fps=1)
