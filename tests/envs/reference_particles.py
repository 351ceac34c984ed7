"""The physics of particle environments in plain Python: one pair of discs at a time.

Written from the rules alone, and shares nothing with the library's code.
"""

import math


def minus(a, b):
    return [a[0] - b[0], a[1] - b[1]]


def push(place, radius, other_place, other_radius):
    """The force on a disc from another."""
    away = minus(place, other_place)
    distance = math.hypot(*away)
    deep = (radius + other_radius - distance) / 0.001
    force = 100.0 * 0.001 * (deep if deep > 30.0 else math.log1p(math.exp(deep)))
    return [force * away[0] / distance, force * away[1] / distance]


def next_velocity(velocity, acceleration, max_speed=None):
    velocity = [0.75 * v + 0.1 * a for v, a in zip(velocity, acceleration, strict=True)]
    speed = math.hypot(*velocity)
    if max_speed is not None and speed > max_speed:
        velocity = [v / speed * max_speed for v in velocity]
    return velocity


def next_place(place, velocity):
    return [x + 0.1 * v for x, v in zip(place, velocity, strict=True)]


def limited(action):
    return [min(1.0, max(-1.0, a)) for a in action]
