"""A part of an algorithm replaced: RACE whose mutation adds a little noise to every weight.

comarl train gentle_race:GENTLE_RACE mamujoco/Hopper-3x1 --algorithm.breeding.std 0.05
"""

from dataclasses import dataclass

import jax

from comarl import RaceMatd3
from comarl.evolution.population import HeadBreeding


@dataclass(frozen=True)
class GentleBreeding(HeadBreeding):
    """Breeding with another mutation."""

    std: float = 0.1
    """standard deviation of the noise"""

    def mutate(self, team, key):
        noise = jax.random.normal(key, team.weight.shape)
        return jax.tree.map(lambda w: w + self.std * noise if w is team.weight else w, team)


GENTLE_RACE = RaceMatd3(breeding=GentleBreeding())
