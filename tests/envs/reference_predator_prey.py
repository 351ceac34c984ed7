"""The rules of predator and prey in plain Python: dictionaries of (row, column), one rule at a
time.

Written from the rules alone (after Deep Coordination Graphs' `stag_hunt`), and shares nothing with
the library's code.
"""

DIRECTIONS = {0: (0, 1), 1: (1, 0), 2: (0, -1), 3: (-1, 0)}  # right, down, left, up
STAY, CATCH = 4, 5


def beside(place, direction):
    return place[0] + DIRECTIONS[direction][0], place[1] + DIRECTIONS[direction][1]


class ReferencePredatorPrey:
    """One episode. `agents` and `prey` map a number to a place; who left the grid is not in
    them."""

    def __init__(self, agents, prey, size, horizon, punishment):
        self.agents, self.prey = dict(enumerate(agents)), dict(enumerate(prey))
        self.num_agents, self.num_prey = len(agents), len(prey)
        self.size, self.horizon, self.punishment, self.time = size, horizon, punishment, 0

    def on_grid(self, place):
        return 0 <= place[0] < self.size and 0 <= place[1] < self.size

    def free(self, place):
        return (
            self.on_grid(place)
            and place not in self.agents.values()
            and place not in self.prey.values()
        )

    def neighbours(self, place):
        return [beside(place, direction) for direction in DIRECTIONS]

    def step(self, action, agent_order, prey_order, preference):
        """The draws are lists: two orders, and for each prey a preference for each direction."""
        for agent in agent_order:
            if agent in self.agents and action[agent] in DIRECTIONS:
                goal = beside(self.agents[agent], action[agent])
                if self.free(goal):
                    self.agents[agent] = goal
        reward = 0.0
        for prey in prey_order:
            if prey in self.prey:
                reward += self.turn_of(prey, action, preference[prey])
        self.time += 1
        terminated = not self.agents or not self.prey
        return reward, terminated, self.time >= self.horizon and not terminated

    def turn_of(self, prey, action, preference):
        place = self.prey[prey]
        catchers = [
            a
            for a, at in self.agents.items()
            if action[a] == CATCH and at in self.neighbours(place)
        ]
        if len(catchers) >= 2:
            del self.prey[prey]
            for agent in catchers:
                del self.agents[agent]
            return 10.0
        free = [direction for direction in DIRECTIONS if self.free(beside(place, direction))]
        if free:
            self.prey[prey] = beside(place, max(free, key=lambda direction: preference[direction]))
        return self.punishment if catchers else 0.0

    def holds(self, place):
        """Three bits: an agent, a prey, a hare."""
        return [float(place in self.agents.values()), float(place in self.prey.values()), 0.0]

    def state(self):
        return [
            bit
            for row in range(self.size)
            for column in range(self.size)
            for bit in self.holds((row, column))
        ]

    def obs(self, agent):
        if agent not in self.agents:
            return [0.0] * 75
        row, column = self.agents[agent]
        window = [(row + down, column + right) for down in range(-2, 3) for right in range(-2, 3)]
        return [bit for place in window for bit in self.holds(place)]

    def available(self, agent):
        if agent not in self.agents:
            return [False, False, False, False, True, False]
        around = self.neighbours(self.agents[agent])
        return [
            *map(self.on_grid, around),
            True,
            any(place in self.prey.values() for place in around),
        ]
