"""The three sets of rules of cooperative navigation in plain Python: one agent at a time.

Written from the rules alone, and shares nothing with the library's code.
"""

import math

from tests.envs.reference_particles import limited, minus, next_place, next_velocity, push


class ReferenceNavigation:
    """One episode."""

    def __init__(self, agents, landmarks, rules):
        self.agents, self.landmarks, self.rules = list(agents), list(landmarks), rules
        self.velocity = [[0.0, 0.0] for _ in agents]
        self.time = 0

    def others(self, agent):
        return [other for other in range(len(self.agents)) if other != agent]

    def step(self, action):
        forces = []
        for agent, place in enumerate(self.agents):
            force = [5.0 * a for a in limited(action[agent])]
            for other in self.others(agent):
                pushed = push(place, 0.15, self.agents[other], 0.15)
                force = [force[0] + pushed[0], force[1] + pushed[1]]
            forces.append(force)
        before = self.velocity
        self.velocity = [next_velocity(v, f) for v, f in zip(before, forces, strict=True)]
        moving = self.velocity if self.rules == "openai" else before
        self.agents = [next_place(place, v) for place, v in zip(self.agents, moving, strict=True)]
        self.time += 1
        rewards = [self.reward(agent) for agent in range(len(self.agents))]
        shared = sum(rewards) if self.rules == "openai" else sum(rewards) / len(rewards)
        return shared, self.time >= (26 if self.rules == "jaxmarl" else 25)

    def reward(self, agent):
        team = -sum(
            min(math.dist(place, landmark) for place in self.agents) for landmark in self.landmarks
        )
        if self.rules == "openai":
            met = range(len(self.agents))  # itself, too
            return team - sum(
                math.dist(self.agents[agent], self.agents[other]) < 0.3 for other in met
            )
        met = sum(
            math.dist(self.agents[agent], self.agents[other]) < 0.3 for other in self.others(agent)
        )
        return 0.5 * team - 0.5 * met

    def obs(self, agent):
        seen = [*self.velocity[agent], *self.agents[agent]]
        for landmark in self.landmarks:
            seen += minus(landmark, self.agents[agent])
        for other in self.others(agent):
            seen += minus(self.agents[other], self.agents[agent])
        return seen + [0.0, 0.0] * len(self.others(agent))
