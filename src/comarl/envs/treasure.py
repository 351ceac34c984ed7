"""Treasure collection: collectors pick up treasures and bring each to the deposit of its kind.

From Iqbal and Sha, Actor-Attention-Critic for Multi-Agent Reinforcement Learning (MAAC, ICML 2019);
the rules are those of its maintained successor, `collect_treasure_v1` of mpe2 1.1. Collectors and
deposits are agents on an endless plane; there is a deposit for each kind of treasure. One step:

1. Agents accelerate as they chose, deposits, who are heavier, less; no one is faster than 1 or
   bumps into anyone.
2. In their order, each treasure that a free collector touches goes to the first such collector;
   each that was gone comes back at a random place, of a random kind.
3. Each collector with a treasure that touches its deposit delivers it.
4. Every agent gets 5 for each pick-up and each delivery of the team. A collector loses 5 for each
   collector that it overlaps, and a tenth of its distance: to the nearest treasure if it is free,
   else to its deposit. A deposit loses a tenth of its distance to the nearest collector with a
   treasure for it, else to the middle of all collectors. The team's reward is the mean of its
   agents'.

An agent observes its place and velocity; a collector also what it holds; then the others, nearest
first: offset, velocity, the kind that a deposit takes, the kind that a collector holds; then
treasures, nearest first: offset and kind, and zeros for those that are gone. The state is all
observations, one behind another. Nothing ends an episode but `horizon`.

`maac_compat` plays by MAAC's own code, instead:

1. Agents push each other apart, the heavier the less. All accelerate by 2.25, whatever their mass:
   the acceleration of 1.5 is applied twice. A step moves places by the velocity after it, not by
   the one before.
2. Reward and observations are those before pick-ups and deliveries. A reward of 5 is for each free
   collector on each treasure, so two on one are worth 10; what is picked up and delivered in the
   same step is paid once.
3. A treasure that is gone lies at (-999, -999) for a step: it is seen there, and a free collector
   is drawn there if no other is left.
4. An agent sees the nearest 7 others and 7 treasures, and a deposit is drawn to the nearest 7
   collectors.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from comarl.envs.particles import lengths, move, offsets, repulsion
from comarl.types import EnvSpec, Key, Timestep
from comarl.validation import check_fields, check_range

COLLECTOR, DEPOSIT, TREASURE = 0.05, 0.075, 0.025  # radii
COLLECTOR_MASS, DEPOSIT_MASS = 1.0, 2.25
ACCELERATION = 1.5
MAX_SPEED = 1.0
BOUND = 0.95  # of where treasures lie
GONE = -999.0  # where they are when they are not
NOTHING = -1  # the kind that a free collector holds
EVENT_REWARD = 5.0
OVERLAP_COST = 5.0
DISTANCE_COST = 0.1
VISIBLE = 7  # how many others, and treasures, MAAC shows


class Draws(NamedTuple):
    """Where each treasure lies next, and of what kind, should it come back in this step."""

    place: Float[Array, "treasures 2"]
    kind: Int[Array, " treasures"]


class World(NamedTuple):
    """Who is where with what. Collectors are the first agents; deposit k takes treasures of kind
    k."""

    agents: Float[Array, "agents 2"]
    velocity: Float[Array, "agents 2"]
    holding: Int[Array, " collectors"]  # a kind, or NOTHING
    treasures: Float[Array, "treasures 2"]
    kind: Int[Array, " treasures"]
    there: Bool[Array, " treasures"]
    deliveries: Int[Array, ""]
    time: Int[Array, ""]


Step = tuple[World, Timestep, Float[Array, ""], Bool[Array, ""], Bool[Array, ""]]


@dataclass(frozen=True)
class Treasure:
    """Settings of treasure collection."""

    collectors: int = 2
    """how many agents collect"""
    deposits: int = 1
    """how many agents are deposits, one for each kind of treasure"""
    treasures: int | None = None
    """how many treasures there are, by default as many as collectors"""
    horizon: int = 100
    """steps after which an episode is truncated"""
    maac_compat: bool = False
    """the rules of MAAC's own code, quirks included, rather than those of mpe2"""

    def __post_init__(self):
        check_fields(self)
        check_range(self, 1, None, "collectors", "deposits", "horizon")
        if self.treasures is not None:
            check_range(self, 1, None, "treasures")

    @property
    def summary(self) -> str:
        """What the task is, in a line."""
        counted = lambda count, what: f"{count} {what}{'s' * (count > 1)}"
        collectors = counted(self.collectors, "collector")
        return f"{collectors} bring treasures to {counted(self.deposits, 'deposit')}"

    @property
    def agents(self) -> int:
        """How many agents there are."""
        return self.collectors + self.deposits

    @property
    def num_treasures(self) -> int:
        """How many treasures there are."""
        return self.treasures or self.collectors

    @property
    def spec(self) -> EnvSpec:
        """Sizes; the state is all observations, a deposit's being shorter than a collector's."""
        others = self.seen(self.agents - 1)
        treasures = self.seen(self.num_treasures)
        deposit = 4 + others * (4 + 2 * self.deposits) + treasures * (2 + self.deposits)
        sizes = (deposit + self.deposits,) * self.collectors + (deposit,) * self.deposits
        ends = np.cumsum(sizes)
        parts = zip(sizes, ends.tolist(), strict=True)
        return EnvSpec(
            num_agents=self.agents,
            obs_size=max(sizes),
            state_size=sum(sizes),
            action_size=2,
            discrete=False,
            horizon=self.horizon,
            obs_sizes=sizes,
            obs_from_state=tuple(tuple(range(end - size, end)) for size, end in parts),
        )

    def seen(self, count: int) -> int:
        """How many of so many an agent sees."""
        return min(count, VISIBLE) if self.maac_compat else count

    def reset(self, key: Key) -> tuple[World, Timestep]:
        """Agents at rest with nothing and treasures, all at random places."""
        agents_key, treasures_key = jax.random.split(key)
        agents = jax.random.uniform(agents_key, (self.agents, 2), minval=-1.0, maxval=1.0)
        holding = jnp.full(self.collectors, NOTHING, jnp.int32)
        there = jnp.ones(self.num_treasures, bool)
        zero = jnp.int32(0)
        draws = self.draws(treasures_key)
        env_state = World(
            agents, jnp.zeros_like(agents), holding, draws.place, draws.kind, there, zero, zero
        )
        return env_state, self.observe(env_state)

    def step(self, env_state: World, action: Float[Array, "agents 2"], key: Key) -> Step:
        """`(env_state, timestep, team reward, terminated, truncated)`."""
        return self.outcome(env_state, action, self.draws(key))

    def outcome(self, env_state: World, action: Float[Array, "agents 2"], draws: Draws) -> Step:
        """A step without chance."""
        moved = self.motion(env_state, action)
        after, events = self.exchange(moved, draws)
        shown, events = (moved, self.contacts(moved)) if self.maac_compat else (after, events)
        reward = EVENT_REWARD * events.astype(jnp.float32) + self.own_rewards(shown).mean()
        return after, self.observe(shown), reward, jnp.bool_(False), after.time >= self.horizon

    def metrics(self, env_state: World) -> dict[str, Float[Array, ""]]:
        """`deliveries`: treasures that were delivered."""
        return {"deliveries": env_state.deliveries.astype(jnp.float32)}

    def draws(self, key: Key) -> Draws:
        """What chance decides in the step of this key."""
        place_key, kind_key = jax.random.split(key)
        place = jax.random.uniform(place_key, (self.num_treasures, 2), minval=-BOUND, maxval=BOUND)
        return Draws(place, jax.random.randint(kind_key, (self.num_treasures,), 0, self.deposits))

    def motion(self, env_state: World, action: Float[Array, "agents 2"]) -> World:
        """All in their next places."""
        mass = self.by_role(COLLECTOR_MASS, DEPOSIT_MASS)
        wanted = ACCELERATION * jnp.clip(action, -1.0, 1.0)
        if self.maac_compat:
            pushed = repulsion(env_state.agents, self.by_role(COLLECTOR, DEPOSIT))
            pushed = (pushed * (mass / mass[:, None])[..., None]).sum(1)
            acceleration = ACCELERATION * wanted + pushed / mass[:, None]
        else:
            acceleration = wanted / mass[:, None]
        agents, velocity = move(
            env_state.agents,
            env_state.velocity,
            acceleration,
            with_old_velocity=not self.maac_compat,
            max_speed=MAX_SPEED,
        )
        return env_state._replace(agents=agents, velocity=velocity, time=env_state.time + 1)

    def exchange(self, env_state: World, draws: Draws) -> tuple[World, Int[Array, ""]]:
        """After pick-ups, treasures that come back, and deliveries; how many pick-ups and
        deliveries there were."""
        touches = self.to_treasures(env_state) < COLLECTOR + TREASURE

        def turn(holding: Array, one: tuple) -> tuple[Array, Array]:
            touches, kind = one
            able = touches & (holding == NOTHING)
            taker = jnp.arange(self.collectors) == jnp.argmax(able)
            return jnp.where(taker & able, kind, holding), able.any()

        holding, taken = jax.lax.scan(turn, env_state.holding, (touches.T, env_state.kind))
        back = ~env_state.there
        delivered = self.at_deposit(env_state, holding)
        places = jnp.where(back[:, None], draws.place, env_state.treasures)
        after = env_state._replace(
            holding=jnp.where(delivered, NOTHING, holding),
            treasures=jnp.where(taken[:, None], GONE, places),
            kind=jnp.where(back, draws.kind, env_state.kind),
            there=~taken,
            deliveries=env_state.deliveries + delivered.sum().astype(jnp.int32),
        )
        return after, (taken.sum() + delivered.sum()).astype(jnp.int32)

    def contacts(self, env_state: World) -> Int[Array, ""]:
        """How many free collectors are on treasures, and loaded ones at their deposits."""
        free = env_state.holding == NOTHING
        on_treasures = (self.to_treasures(env_state) < COLLECTOR + TREASURE) & free[:, None]
        at_deposits = self.at_deposit(env_state, env_state.holding)
        return (on_treasures.sum() + at_deposits.sum()).astype(jnp.int32)

    def own_rewards(self, env_state: World) -> Float[Array, " agents"]:
        """What is each agent's alone: overlaps and distances."""
        collectors, deposits = jnp.split(env_state.agents, [self.collectors])
        touching = lengths(offsets(collectors, collectors)) < 2 * COLLECTOR
        overlaps = touching.sum(1) - 1  # not with itself
        counts = self.counts(env_state)
        nearest = jnp.where(counts, self.to_treasures(env_state), jnp.inf).min(1)
        nearest = jnp.where(counts.any(), nearest, 0.0)
        holding = env_state.holding
        goal = jnp.where(holding == NOTHING, nearest, self.to_deposit(env_state, holding))
        of_collectors = -OVERLAP_COST * overlaps.astype(jnp.float32) - DISTANCE_COST * goal

        apart = offsets(deposits, collectors)
        distance = lengths(apart)
        carriers = holding == jnp.arange(self.deposits)[:, None]
        middle = lengths(self.nearest_first(apart, apart).mean(1))
        nearest_carrier = jnp.where(carriers, distance, jnp.inf).min(1)
        goal = jnp.where(carriers.any(1), nearest_carrier, middle)
        return jnp.concatenate([of_collectors, -DISTANCE_COST * goal])

    def to_treasures(self, env_state: World) -> Float[Array, "collectors treasures"]:
        """How far each collector is from each treasure; treasures that are gone are far from
        all."""
        return lengths(offsets(env_state.agents[: self.collectors], env_state.treasures))

    def to_deposit(
        self, env_state: World, holding: Int[Array, " collectors"]
    ) -> Float[Array, " collectors"]:
        """How far each collector is from the deposit for what it holds; of no meaning for a free
        one."""
        collectors, deposits = jnp.split(env_state.agents, [self.collectors])
        return lengths(deposits[jnp.maximum(holding, 0)] - collectors)

    def at_deposit(
        self, env_state: World, holding: Int[Array, " collectors"]
    ) -> Bool[Array, " collectors"]:
        """Which collectors hold a treasure and touch its deposit."""
        return (holding != NOTHING) & (self.to_deposit(env_state, holding) < COLLECTOR + DEPOSIT)

    def observe(self, env_state: World) -> Timestep:
        """What each agent sees."""
        agents, velocity = env_state.agents, env_state.velocity
        kinds = jnp.arange(self.deposits)
        held = (env_state.holding[:, None] == kinds).astype(jnp.float32)
        takes = jnp.eye(self.agents, self.deposits, -self.collectors)
        holds = jnp.concatenate([held, jnp.zeros((self.deposits, self.deposits))])
        # What everyone sees of an agent, beside where it is
        features = jnp.concatenate([velocity, takes, holds], axis=1)

        apart = offsets(agents, agents)
        rows = beside(apart, features)
        others = ~np.eye(self.agents, dtype=bool)
        without_own = lambda x: x[others].reshape(self.agents, self.agents - 1, -1)
        others = self.nearest_first(without_own(apart), without_own(rows))

        apart = offsets(agents, env_state.treasures)
        kind = (env_state.kind[:, None] == kinds).astype(jnp.float32)
        rows = beside(apart, kind)
        treasures = self.nearest_first(apart, jnp.where(self.counts(env_state)[:, None], rows, 0.0))

        # A collector sees what it holds itself between what is its own and the others.
        flat = lambda x: x.reshape(self.agents, -1)
        before = jnp.concatenate([agents, velocity], axis=1)
        behind = jnp.concatenate([flat(others), flat(treasures)], axis=1)
        collectors = slice(self.collectors)
        deposits = slice(self.collectors, None)
        of_collectors = jnp.concatenate([before[collectors], held, behind[collectors]], axis=1)
        of_deposits = jnp.concatenate([before[deposits], behind[deposits]], axis=1)
        state = jnp.concatenate([of_collectors.reshape(-1), of_deposits.reshape(-1)])
        return Timestep(self.spec.observe(state), state)

    def counts(self, env_state: World) -> Bool[Array, " treasures"]:
        """Which treasures are seen, and draw collectors."""
        return jnp.ones_like(env_state.there) if self.maac_compat else env_state.there

    def nearest_first(
        self, apart: Float[Array, "points things 2"], rows: Float[Array, "points things row"]
    ) -> Float[Array, "points seen row"]:
        """For each point the rows of the things that it sees, by their distance."""
        order = jnp.argsort(lengths(apart), axis=1)[:, : self.seen(apart.shape[1])]
        return jnp.take_along_axis(rows, order[..., None], axis=1)

    def by_role(self, collector: float, deposit: float) -> Float[np.ndarray, " agents"]:
        """A number for each agent, by its role."""
        return np.array([collector] * self.collectors + [deposit] * self.deposits, np.float32)


def beside(
    apart: Float[Array, "points things 2"], features: Float[Array, "things features"]
) -> Float[Array, "points things row"]:
    """For each point the offset to each thing, and that thing's features behind it."""
    shape = (*apart.shape[:2], features.shape[1])
    return jnp.concatenate([apart, jnp.broadcast_to(features, shape)], axis=2)


PRESETS = {
    "3": Treasure(),
    "4": Treasure(deposits=2),
    "8": Treasure(collectors=6, deposits=2, horizon=25),
}
"""number of agents -> the settings; 8 is MAAC's team, with its limit"""
