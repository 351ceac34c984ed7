"""The rules of treasure collection in plain Python, mpe2's and MAAC's: one agent, one treasure at a
time.

Written from the rules alone, and shares nothing with the library's code.
"""

import math

from tests.envs.reference_particles import limited, minus, next_place, next_velocity, push

AWAY = [-999.0, -999.0]


def mean(values):
    return sum(values) / len(values)


class ReferenceTreasure:
    """One episode. An agent is a dictionary; a collector's has `holding`, a deposit's has
    `takes`."""

    def __init__(self, collectors, deposits, treasures, kinds, maac):
        self.collectors = [
            {"at": at, "velocity": [0.0, 0.0], "holding": None, "radius": 0.05, "mass": 1.0}
            for at in collectors
        ]
        self.deposits = [
            {"at": at, "velocity": [0.0, 0.0], "takes": kind, "radius": 0.075, "mass": 2.25}
            for kind, at in enumerate(deposits)
        ]
        self.agents = self.collectors + self.deposits
        self.treasures = [
            {"at": at, "kind": kind, "there": True}
            for at, kind in zip(treasures, kinds, strict=True)
        ]
        self.maac, self.deliveries = maac, 0

    def step(self, action, places, kinds):
        """The draws are what each treasure is next, should it come back. Returns reward and
        observations."""
        accelerations = [
            self.acceleration(agent, limited(a))
            for agent, a in zip(self.agents, action, strict=True)
        ]
        for agent, acceleration in zip(self.agents, accelerations, strict=True):
            before = agent["velocity"]
            agent["velocity"] = next_velocity(before, acceleration, max_speed=1.0)
            agent["at"] = next_place(agent["at"], agent["velocity"] if self.maac else before)
        if self.maac:
            reward, seen = 5.0 * self.contacts(), None
            reward, seen = (
                reward + mean([self.own(agent) for agent in self.agents]),
                self.observations(),
            )
            self.exchange(places, kinds)
            return reward, seen
        events = self.exchange(places, kinds)
        return 5.0 * events + mean([self.own(agent) for agent in self.agents]), self.observations()

    def acceleration(self, agent, action):
        if not self.maac:
            return [1.5 * a / agent["mass"] for a in action]
        total = [1.5 * 1.5 * a for a in action]
        for other in self.agents:
            if other is not agent:
                force = push(agent["at"], agent["radius"], other["at"], other["radius"])
                weight = other["mass"] / agent["mass"] / agent["mass"]
                total = [total[0] + weight * force[0], total[1] + weight * force[1]]
        return total

    def on_treasure(self, collector, treasure):
        return math.dist(collector["at"], treasure["at"]) < 0.075

    def at_deposit(self, collector, deposit):
        return (
            collector["holding"] == deposit["takes"]
            and math.dist(collector["at"], deposit["at"]) < 0.125
        )

    def exchange(self, places, kinds):
        events = 0
        for treasure, place, kind in zip(self.treasures, places, kinds, strict=True):
            if not treasure["there"]:
                treasure.update(at=place, kind=kind, there=True)
                continue
            for collector in self.collectors:
                if collector["holding"] is None and self.on_treasure(collector, treasure):
                    collector["holding"] = treasure["kind"]
                    treasure.update(at=AWAY, there=False)
                    events += 1
                    break
        for collector in self.collectors:
            if any(self.at_deposit(collector, deposit) for deposit in self.deposits):
                collector["holding"] = None
                events, self.deliveries = events + 1, self.deliveries + 1
        return events

    def contacts(self):
        count = 0
        for collector in self.collectors:
            if collector["holding"] is None:
                count += sum(self.on_treasure(collector, treasure) for treasure in self.treasures)
            count += sum(self.at_deposit(collector, deposit) for deposit in self.deposits)
        return count

    def own(self, agent):
        if "takes" in agent:
            loaded = [c for c in self.collectors if c["holding"] == agent["takes"]]
            if loaded:
                return -0.1 * min(math.dist(c["at"], agent["at"]) for c in loaded)
            near = sorted(self.collectors, key=lambda c: math.dist(c["at"], agent["at"]))
            near = near[:7] if self.maac else near
            return -0.1 * math.dist(
                [mean([c["at"][axis] for c in near]) for axis in (0, 1)], agent["at"]
            )
        others = [c for c in self.collectors if c is not agent]
        cost = 5.0 * sum(math.dist(c["at"], agent["at"]) < 0.1 for c in others)
        if agent["holding"] is None:
            goals = [t["at"] for t in self.treasures if t["there"] or self.maac]
        else:
            goals = [d["at"] for d in self.deposits if d["takes"] == agent["holding"]]
        return -cost - 0.1 * min((math.dist(goal, agent["at"]) for goal in goals), default=0.0)

    def bits(self, kind):
        return [float(kind == number) for number in range(len(self.deposits))]

    def observations(self):
        return [self.obs(agent) for agent in self.agents]

    def obs(self, agent):
        seen = [*agent["at"], *agent["velocity"]]
        if "holding" in agent:
            seen += self.bits(agent["holding"])
        near = sorted(
            (a for a in self.agents if a is not agent),
            key=lambda a: math.dist(a["at"], agent["at"]),
        )
        for other in near[:7] if self.maac else near:
            seen += minus(other["at"], agent["at"]) + other["velocity"]
            seen += self.bits(other.get("takes")) + self.bits(other.get("holding"))
        near = sorted(self.treasures, key=lambda t: math.dist(t["at"], agent["at"]))
        for treasure in near[:7] if self.maac else near:
            if treasure["there"] or self.maac:
                seen += minus(treasure["at"], agent["at"]) + self.bits(treasure["kind"])
            else:
                seen += [0.0, 0.0, *self.bits(None)]
        return seen
