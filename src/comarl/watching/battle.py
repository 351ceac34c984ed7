"""Battles of SMAX: allies are blue discs, enemies vermillion squares; a letter says the type."""

import numpy as np

from comarl.envs.smax import UNITS, Smax, game_of
from comarl.validation import FEW
from comarl.watching.canvas import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PALE,
    PAPER,
    VERMILLION,
    Canvas,
    Image,
    square_around,
)
from comarl.watching.play import Played
from comarl.watching.scene import Scene

LETTERS = ("m", "M", "s", "Z", "z", "h")
"""of the types in `UNITS`, as JaxMARL has them"""
GROWTH = 1.3
"""how much larger than life units are drawn"""
STEP_SECONDS = 0.5
"""by which weapons cool down in a step"""


def scene(task: Smax, played: Played, size: int) -> Scene:
    """Each unit has a bar of its health, each of few allies a number; shots of the last step are
    lines to who was hit."""
    game = game_of(task)
    allies, radii = game.num_allies, np.asarray(game.unit_type_radiuses)
    full = np.asarray(game.unit_type_health)
    battles = [state.state for state in played.states]
    standing = np.concatenate([battle.unit_positions[battle.unit_alive] for battle in battles])
    low, high = square_around(standing, margin=1.2, least=8.0)
    side = lambda unit: BLUE if unit < allies else VERMILLION

    def picture(time: int) -> Image:
        canvas, battle = Canvas(size, low, high), battles[time]
        field = np.array([game.map_width, game.map_height])
        canvas.box((0, 0), field, None, GREY, 3)
        place = battle.unit_positions
        for unit in np.flatnonzero(~battle.unit_alive):
            canvas.cross(place[unit], 0.28, GREY)
        for unit, target in shots(battles, time, allies, game.num_movement_actions):
            way = place[target] - place[unit]
            tip = place[target] - 0.45 * way / max(float(np.linalg.norm(way)), 1e-6)
            canvas.line([place[unit], tip], side(unit), 2)
            canvas.disc(tip, 0.09, side(unit))
        for unit in np.flatnonzero(battle.unit_alive):
            kind, centre = int(battle.unit_types[unit]), place[unit]
            radius = GROWTH * radii[kind]
            if unit < allies:
                canvas.disc(centre, radius, BLUE, "#FFFFFF")
            else:
                corner = np.full(2, 0.9 * radius)
                canvas.box(centre - corner, centre + corner, VERMILLION, "#FFFFFF")
            number = str(unit) if unit < allies <= FEW else ""
            pixels = (0.9 if number else 1.1) * radius / canvas.unit
            canvas.text(centre, LETTERS[kind] + number, pixels, "#FFFFFF")
        for unit in np.flatnonzero(battle.unit_alive):
            kind, centre = int(battle.unit_types[unit]), place[unit]
            radius, share = GROWTH * radii[kind], float(battle.unit_health[unit] / full[kind])
            left, bottom = centre[0] - radius, centre[1] + radius + 0.14
            top = bottom + 0.16
            canvas.box((left, bottom), (left + 2 * radius, top), PALE)
            colour = GREEN if share > 0.5 else ORANGE
            canvas.box((left, bottom), (left + 2 * radius * share, top), colour)
        present = sorted({int(kind) for kind in battle.unit_types})
        legend = ", ".join(f"{LETTERS[kind]} {UNITS[kind]}" for kind in present)
        indent = 0.02 * size * canvas.unit
        corner = low[0] + indent, high[1] - 1.5 * indent
        canvas.box((low[0], high[1]), (high[0], high[1] - 3 * indent), PAPER)
        canvas.text(corner, legend, 0.03 * size, INK, "lm")
        return canvas.picture()

    def said(time: int) -> str:
        alive = battles[time].unit_alive
        count = lambda units: f"{int(units.sum())} of {len(units)}"
        return f"allies {count(alive[:allies])}, enemies {count(alive[allies:])}"

    return Scene(picture, said, fps=6)


def shots(battles: list, time: int, allies: int, moves: int) -> list[tuple[int, int]]:
    """Who shot whom in the step before `time`. A weapon that fired has not cooled down by the
    whole step."""
    if not time:
        return []
    before, now = battles[time - 1], battles[time]
    cooled = before.unit_weapon_cooldowns - STEP_SECONDS + 1e-3
    fired = before.unit_alive & (now.unit_weapon_cooldowns > cooled)
    found = []
    for unit in np.flatnonzero(fired):
        chosen = int(now.prev_attack_actions[unit]) - moves
        if chosen >= 0:
            # Enemies number their targets from the last ally
            found.append((int(unit), allies + chosen if unit < allies else allies - 1 - chosen))
    return found
