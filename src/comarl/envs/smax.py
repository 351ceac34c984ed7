"""SMAX: battles like StarCraft's, in JAX (Rutherford et al., JaxMARL, NeurIPS 2024), after the maps
of SMAC.

An agent is a unit. The enemies follow JaxMARL's script: they shoot the closest in range, else walk
towards one in sight, else across the map. What happens and what is seen is that of JaxMARL's
`HeuristicEnemySMAX`, bit for bit.

- Actions: 0 to 3 move up, right, down, left; 4 stops; 5 + j shoots enemy j. The dead can only stop.
  Walls kill.
- Reward, one for the team: 10 times the share of the enemies' health that is lost, summed over
  them and divided by their number, and 10 for the win. The most that an episode can return is 20,
  as in SMAC, for whose returns papers chose temperatures and weights of losses. JaxMARL's own
  scale, 2, is `reward_scale` 1. The other reward, `reward` "sparse", is that of the authors of
  VM3-AC (Kim et al., AAMAS 2023) as far as it is known: `SPARSE`, and nothing for damage.
- The end: a side without units terminates; both at once is a draw, which is not won. Time that runs
  out truncates after exactly `horizon` steps, and is not won either. (JaxMARL plays a step more,
  and counts it as an end like others.)
- Time limits are those of SMAC and SMACv2, map by map; JaxMARL has 100 for all.
- Observations are in [-1, 1], but for the own position of who stands past a wall, and so dies in
  the next step: pushed by neighbours, or, on smacv2 maps, from the start. So `EnvSpec.obs_range` is
  None.
- The state is JaxMARL's, scaled much as SMAC scales its own. As JaxMARL has it, positions go up to
  32, types to 5, a cooldown falls by 0.5 each step without end, although it matters only while
  positive: with such inputs QMIX's values began at 20 and grew to 60, where no return was above 2.
  `scaled_state` off leaves it as it is.

Win rates are not comparable with SMAC's: there is no terrain, no shield and no healing, and the
script is another one.
"""

import contextlib
import functools
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import tyro
from jaxtyping import Array, Bool, Float, Int, PyTree

from comarl.envs.known import MISSING
from comarl.types import EnvSpec, Key, Timestep
from comarl.validation import UnknownName, check_fields, check_range, unknown

UNITS = ("marine", "marauder", "stalker", "zealot", "zergling", "hydralisk")
"""the types that SMAX has, in the order of its numbers"""

Army = dict[str, int]


class Map(NamedTuple):
    """A battle, and the steps after which SMAC truncates it."""

    limit: int
    allies: Army
    enemies: Army


MAPS = {
    "2m_vs_1z": Map(150, {"marine": 2}, {"zealot": 1}),
    "3m": Map(60, {"marine": 3}, {"marine": 3}),
    "8m": Map(120, {"marine": 8}, {"marine": 8}),
    "25m": Map(150, {"marine": 25}, {"marine": 25}),
    "5m_vs_6m": Map(70, {"marine": 5}, {"marine": 6}),
    "8m_vs_9m": Map(120, {"marine": 8}, {"marine": 9}),
    "10m_vs_11m": Map(150, {"marine": 10}, {"marine": 11}),
    "27m_vs_30m": Map(180, {"marine": 27}, {"marine": 30}),
    "2s3z": Map(120, {"stalker": 2, "zealot": 3}, {"stalker": 2, "zealot": 3}),
    "3s5z": Map(150, {"stalker": 3, "zealot": 5}, {"stalker": 3, "zealot": 5}),
    "3s5z_vs_3s6z": Map(170, {"stalker": 3, "zealot": 5}, {"stalker": 3, "zealot": 6}),
    "3s_vs_3z": Map(150, {"stalker": 3}, {"zealot": 3}),
    "3s_vs_4z": Map(200, {"stalker": 3}, {"zealot": 4}),
    "3s_vs_5z": Map(250, {"stalker": 3}, {"zealot": 5}),
    "6h_vs_8z": Map(150, {"hydralisk": 6}, {"zealot": 8}),
    "corridor": Map(400, {"zealot": 6}, {"zergling": 24}),
    "smacv2_5_units": Map(200, {"random unit": 5}, {"random unit": 5}),
    "smacv2_10_units": Map(200, {"random unit": 10}, {"random unit": 10}),
    "smacv2_20_units": Map(200, {"random unit": 20}, {"random unit": 20}),
}
"""limits from `smac_maps.py` of oxwhirl/smac and oxwhirl/smacv2; random units also start at random
places"""


SMAC_SCALE = 10.0
"""rewards of SMAC over those of JaxMARL: 20, the most that an episode returns, over 2"""


class Sparse(NamedTuple):
    """What the sparse reward gives for each enemy that dies, each ally that dies, each step, and
    the win."""

    kill: float = 10.0
    loss: float = -1.0
    step: float = -0.1
    win: float = 200.0


SPARSE = Sparse()
"""of StarCraft in the code of Kim and Sung, ADER (ICML 2023); VM3-AC's paper describes it without
numbers"""


def summary(map_name: str) -> str:
    """The map in a line, such as "3 stalkers against 5 zealots"."""
    listed = lambda army: " and ".join(
        f"{count} {unit}{'s' * (count > 1)}" for unit, count in army.items()
    )
    return f"{listed(MAPS[map_name].allies)} against {listed(MAPS[map_name].enemies)}"


Step = tuple[PyTree, Timestep, Float[Array, ""], Bool[Array, ""], Bool[Array, ""]]


@dataclass(frozen=True)
class Smax:
    """One battle, by its map."""

    map_name: tyro.conf.Suppress[str] = "3m"
    """which map of SMAC, or smacv2_<5, 10 or 20>_units"""
    horizon: int | None = None
    """steps after which an episode is truncated, by default the map's limit in SMAC"""
    scaled_state: bool = True
    """entries of the state in about [0, 1], rather than in JaxMARL's units"""
    reward: Literal["dense", "sparse"] = "dense"
    """for damage and the win, or for deaths, time and the win"""
    reward_scale: float | None = None
    """what every reward is multiplied by; by default 10 if dense, so that an episode returns at
    most 20, as SMAC's do (1 is JaxMARL's scale, at most 2), and 1 if sparse"""

    def __post_init__(self):
        check_fields(self)
        if self.map_name in MISSING:
            raise UnknownName(
                f"map {self.map_name!r} needs a unit that SMAX does not have, "
                f"the {MISSING[self.map_name]}; it will be possible only with a StarCraft-like "
                "task of comarl's own"
            )
        if self.map_name not in MAPS:
            raise unknown("map", self.map_name, MAPS, "`comarl list` shows all.")
        check_range(self, 1, None, "horizon")
        check_range(self, 0, None, "reward_scale")

    @property
    def spec(self) -> EnvSpec:
        """Sizes as JaxMARL has them. This is what imports JaxMARL, if nothing has yet."""
        game = game_of(self)
        return EnvSpec(
            num_agents=game.num_allies,
            obs_size=game.obs_size,
            state_size=game.state_size,
            action_size=game.num_ally_actions,
            discrete=True,
            horizon=game.max_steps,
        )

    def reset(self, key: Key) -> tuple[PyTree, Timestep]:
        """Both armies at their places, which are random on smacv2 maps."""
        with jax.numpy_dtype_promotion("standard"):  # JaxMARL relies on it
            obs, env_state = game_of(self).reset(key)
            # Some of its types are weak here and firm after a step, for which all around it would
            # be traced twice.
            env_state = jax.tree.map(lambda x: x.astype(x.dtype), env_state)
            return env_state, self.observe(env_state, obs)

    def step(self, env_state: PyTree, action: Int[Array, " agents"], key: Key) -> Step:
        """A shot at who is out of range is lost, unless they come near within the step."""
        game = game_of(self)
        with jax.numpy_dtype_promotion("standard"):
            by_agent = dict(zip(game.agents, action, strict=True))
            obs, after, reward, _, _ = game.step_env(key, env_state, by_agent)
            timestep = self.observe(after, obs)
        allies, enemies = self.survivors(after)
        terminated = ~allies | ~enemies
        truncated = (after.state.step >= game.max_steps) & ~terminated
        if self.reward == "dense":
            earned = reward[game.agents[0]]  # the same for all
        else:
            earned = self.sparse_reward(env_state, after)
        return after, timestep, self.scale * earned, terminated, truncated

    @property
    def scale(self) -> float:
        """What rewards are multiplied by."""
        by_default = SMAC_SCALE if self.reward == "dense" else 1.0
        return by_default if self.reward_scale is None else self.reward_scale

    def sparse_reward(self, before: PyTree, after: PyTree) -> Float[Array, ""]:
        """Of one step, by who was alive before it and is no longer."""
        died = (before.state.unit_alive & ~after.state.unit_alive).astype(jnp.float32)
        losses, kills = jnp.split(died, [game_of(self).num_allies])
        deaths = SPARSE.kill * kills.sum() + SPARSE.loss * losses.sum()
        return SPARSE.step + deaths + SPARSE.win * self.metrics(after)["won"]

    def metrics(self, env_state: PyTree) -> dict[str, Float[Array, ""]]:
        """`won`: 1 if every enemy is dead and an ally lives. A draw and a truncated battle
        are 0."""
        allies, enemies = self.survivors(env_state)
        return {"won": (allies & ~enemies).astype(jnp.float32)}

    def survivors(self, env_state: PyTree) -> tuple[Bool[Array, ""], Bool[Array, ""]]:
        """Whether an ally is alive, and whether an enemy is."""
        alive, allies = env_state.state.unit_alive, game_of(self).num_allies
        return alive[:allies].any(), alive[allies:].any()

    def observe(self, env_state: PyTree, obs: dict[str, Array]) -> Timestep:
        """What JaxMARL gives agent by agent, as arrays."""
        game = game_of(self)
        stack = lambda by_agent: jnp.stack([by_agent[agent] for agent in game.agents])
        state = scaled(game, obs["world_state"]) if self.scaled_state else obs["world_state"]
        return Timestep(stack(obs), state, stack(game.get_avail_actions(env_state)) != 0)


def scaled(game: Any, state: Float[Array, " state"]) -> Float[Array, " state"]:
    """Positions in widths of the field, cooldowns while they last in the longest there is, types by
    their number."""
    count, features = game.num_allies + game.num_enemies, len(game.own_features)
    units, teams, types = jnp.split(state, [features * count, (features + 1) * count])
    health, x, y, cooldown, kind = jnp.split(units.reshape(count, features), [1, 2, 3, 4], axis=1)
    cooldown = jnp.maximum(cooldown, 0.0) / game.unit_type_weapon_cooldowns.max()
    x, y = x / game.map_width, y / game.map_height
    units = jnp.concatenate([health, x, y, cooldown, kind], axis=1)
    return jnp.concatenate([units.reshape(-1), teams, types / (len(UNITS) - 1.0)])


@functools.cache
def game_of(task: Smax) -> Any:
    """JaxMARL's environment: made once, and never inside a trace, whose tracers it would keep."""
    battle = MAPS[task.map_name]
    allies = sum(battle.allies.values())
    enemies = sum(battle.enemies.values())
    units = [
        unit
        for army in (battle.allies, battle.enemies)
        for unit, count in army.items()
        for _ in range(count)
    ]
    random = "random unit" in units
    types = [0 if random else UNITS.index(unit) for unit in units]
    with jax.ensure_compile_time_eval():
        smax = _import_smax()
        scenario = smax.Scenario(jnp.array(types, jnp.uint8), allies, enemies, random, random)
        return smax.HeuristicEnemySMAX(scenario=scenario, max_steps=task.horizon or battle.limit)


def _import_smax() -> Any:
    try:
        with silence():
            from jaxmarl.environments import smax
    except ImportError as error:
        raise ImportError('SMAX is an extra: pip install "comarl[smax]"') from error
    return smax


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Nothing is printed, not even by JaxMARL's import, which undoes redirections: it puts
    `sys.__stdout__` back."""
    streams = sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__
    sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = io.StringIO()
    try:
        yield
    finally:
        sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__ = streams
