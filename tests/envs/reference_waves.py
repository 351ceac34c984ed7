"""The rules of predators and waves of prey in plain Python: one predator, one prey at a time.

Written from the rules alone, and shares nothing with the library's code.
"""

import math


class ReferenceWaves:
    """One episode. `prey` maps a number to a place; who was caught is not in it."""

    def __init__(self, predators, side, catchers, radius, speed, capture_reward, growth, horizon):
        self.predators = [list(place) for place in predators]
        self.places = [
            (0.1 + 0.8 * i / (side - 1), 0.1 + 0.8 * j / (side - 1))
            for i in range(side)
            for j in range(side)
        ]
        self.prey = dict(enumerate(self.places))
        self.catchers, self.radius, self.speed = catchers, radius, speed
        self.capture_reward, self.growth, self.horizon = capture_reward, growth, horizon
        self.worth, self.captures, self.time = 1, 0, 0

    def step(self, action):
        for predator, direction in zip(self.predators, action, strict=True):
            for axis in (0, 1):
                predator[axis] = min(
                    1.0,
                    max(0.0, predator[axis] + self.speed * min(1.0, max(-1.0, direction[axis]))),
                )
        caught = [
            number for number, place in self.prey.items() if self.touching(place) >= self.catchers
        ]
        reward = sum(self.capture_reward * self.worth for _ in caught)
        for number in caught:
            del self.prey[number]
        self.captures += len(caught)
        if not self.prey:
            self.prey = dict(enumerate(self.places))
            if self.growth == "linear":
                self.worth += 1
            elif self.growth == "double":
                self.worth *= 2
        self.time += 1
        return reward, self.time >= self.horizon

    def touching(self, place):
        return sum(
            math.dist(predator, place) <= self.radius + self.radius / 4
            for predator in self.predators
        )

    def obs(self, agent):
        x, y = self.predators[agent]
        seen = []
        for number, (other_x, other_y) in enumerate(self.predators):
            seen += [x, y] if number == agent else [other_x - x, other_y - y]
        for number, (prey_x, prey_y) in enumerate(self.places):
            seen += [prey_x - x, prey_y - y] if number in self.prey else [3.0, 3.0]
        return seen
