"""Matrix games: two agents choose one of three actions once, and a table says what the team gets.

- `qtran`: Son et al., QTRAN (ICML 2019), which LSF-SAC (arXiv 2201.01247) uses as Table I. The best
  joint action stands among the worst, so that a mixing that is monotonic in each agent's utility
  settles on 0 instead of 8.
- `climbing`, `penalty`: Claus and Boutilier, The dynamics of reinforcement learning in cooperative
  multiagent systems (AAAI 1998). The penalty of the second game is k = -100.
- `two-states`: the multi-state example at the end of LSF-SAC's section VI.A, where what the other
  agent sees tells the state. The paper gives neither payoffs nor observations. Chosen here: each
  agent sees a bit of its own, both bits are fair coins, and their parity picks the table, so one
  bit alone says nothing and both say all. The payoffs are Table I's numbers put in a monotonic
  order, a joint action being worth its worse half: A 8, B 0, C -12; the second table reverses the
  actions. Hence a monotonic mixing fits both tables if the utilities know both bits, and none does
  if each knows its own bit only. A team that acts on both bits earns 8, one whose agents act on
  their own bits earns 0.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import tyro
from jaxtyping import Array, Bool, Float, Int

from comarl.types import EnvSpec, Key, Timestep
from comarl.validation import check_fields

Row = tuple[float, float, float]
Table = tuple[Row, Row, Row]
Signals = Float[Array, " 2"]  # what each agent sees
Step = tuple[Signals, Timestep, Float[Array, ""], Bool[Array, ""], Bool[Array, ""]]


@dataclass(frozen=True)
class MatrixGame:
    """One game. The state is what the two agents see: two ones, or with two tables two random bits.

    The name of a game says all; `Suppress` hides its fields from the help of the command line.
    """

    summary: tyro.conf.Suppress[str]
    """what the game is, in a line"""
    payoff: tyro.conf.Suppress[tuple[Table, ...]]
    """one or two tables of the team's reward, a row for each action of the first agent; the bits'
    parity picks one"""

    def __post_init__(self):
        check_fields(self)
        if len(self.payoff) not in (1, 2):
            raise ValueError(
                f"payoff of MatrixGame holds {len(self.payoff)} tables; it must be one or two"
            )

    @property
    def spec(self) -> EnvSpec:
        """Sizes; each agent sees one number of the state's two."""
        return EnvSpec(
            num_agents=2,
            obs_size=1,
            state_size=2,
            action_size=3,
            discrete=True,
            horizon=1,
            obs_from_state=((0,), (1,)),
            obs_range=(0.0, 1.0),
        )

    @property
    def tables(self) -> Float[Array, "tables 3 3"]:
        """The payoff as an array: [table, action of the first agent, action of the second]."""
        return jnp.array(self.payoff, jnp.float32)

    def table_of(self, state: Signals) -> Int[Array, ""]:
        """Which table is played."""
        return state.sum().astype(jnp.int32) % len(self.payoff)

    def reset(self, key: Key) -> tuple[Signals, Timestep]:
        """Two random bits where there are two tables, else two ones."""
        bits = jax.random.bernoulli(key, shape=(2,)).astype(jnp.float32)
        state = bits if len(self.payoff) == 2 else jnp.ones(2)
        return state, self.observe(state)

    def step(self, env_state: Signals, action: Int[Array, " 2"], key: Key) -> Step:
        """`(env_state, timestep, team reward, terminated, truncated)`: it always terminates."""
        reward = self.tables[self.table_of(env_state), action[0], action[1]]
        return env_state, self.observe(env_state), reward, jnp.bool_(True), jnp.bool_(False)

    def metrics(self, env_state: Signals) -> dict[str, Float[Array, ""]]:
        """Nothing counts besides the return."""
        return {}

    def observe(self, state: Signals) -> Timestep:
        """Each agent sees its own number; every action is available."""
        return Timestep(self.spec.observe(state), state, available=jnp.ones((2, 3), bool))


GAMES = {
    "qtran": MatrixGame(
        "one step, the best joint action earns 8, but -12 if one agent deviates from it; 0 is safe",
        payoff=(((8.0, -12.0, -12.0), (-12.0, 0.0, 0.0), (-12.0, 0.0, 0.0)),),
    ),
    "climbing": MatrixGame(
        "one step, worth 11 at best, and -30 where one agent alone leaves that for the next best",
        payoff=(((11.0, -30.0, 0.0), (-30.0, 7.0, 6.0), (0.0, 0.0, 5.0)),),
    ),
    "penalty": MatrixGame(
        "one step, two best joint actions worth 10, and -100 for agents who aim at different ones",
        payoff=(((-100.0, 0.0, 10.0), (0.0, 2.0, 0.0), (10.0, 0.0, -100.0)),),
    ),
    "two-states": MatrixGame(
        "one step, each agent sees a bit, and only both bits together say which of two tables is "
        "played",
        payoff=(
            ((8.0, 0.0, -12.0), (0.0, 0.0, -12.0), (-12.0, -12.0, -12.0)),
            ((-12.0, -12.0, -12.0), (-12.0, 0.0, 0.0), (-12.0, 0.0, 8.0)),
        ),
    ),
}
