"""What RACE is on either base (Li et al., ICML 2023): its state, and what its ablations leave.

`race_matd3.py` and `race_facmac.py` have the losses, beside the paper's equations.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Generic, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import equinox as eqx

from comarl.evolution.population import Population
from comarl.nn.mine import Mine
from comarl.nn.mlp import MLP, Linear
from comarl.ops.learner import Learner, Tracked
from comarl.types import EnvSpec, Index

Encoder = TypeVar("Encoder")
Critic = TypeVar("Critic")
TeamCritic = TypeVar("TeamCritic")
EncoderLearnsFrom = Literal["both", "marl", "teams", "neither"]


class RaceState(eqx.Module, Generic[Encoder, Critic, TeamCritic]):
    """What changes while RACE learns. A team's leaves lead with `agents`, the population's with
    `teams` before."""

    encoder: Tracked[Encoder]  # Z_phi, one for each agent or one for all
    head: Tracked[Linear]  # W_marl
    population: Population  # of teams of linear policies, W_1 .. W_n; empty without evolution
    critic: Tracked[Critic]  # Q_psi(s, u)
    team_critic: Tracked[TeamCritic]  # Q_theta(s, u, W)
    value: Learner[MLP]  # V_zeta(s)
    mine: Learner[Mine]  # T_omega(s, z), one for each agent or one for all
    spec: EnvSpec = eqx.field(static=True)

    def own_team(self) -> Linear:
        """W_marl as a team like the others."""
        return self.head.value

    def team(self, index: Index) -> Linear:
        """W_j; the last team is the MARL team."""
        return self.population.team(index, self.own_team())


AnyState = TypeVar("AnyState", bound=RaceState)


def move_targets(state: AnyState, move: Callable[[Tracked], Tracked]) -> AnyState:
    """The state after `move` of everything that has a target."""
    return replace(
        state,
        encoder=move(state.encoder),
        head=move(state.head),
        critic=move(state.critic),
        team_critic=move(state.team_critic),
    )


@runtime_checkable
class Switches(Protocol):
    """The fields of either RACE that take parts out."""

    @property
    def evolution(self) -> bool:
        """Whether other teams exist."""
        ...

    @property
    def encoder_learns_from(self) -> EncoderLearnsFrom:
        """Whose values shape the encoder."""
        ...

    @property
    def beta(self) -> float:
        """Weight of the mutual information."""
        ...

    @property
    def value_weights(self) -> bool:
        """Whether good states count more in it."""
        ...


class Parts(NamedTuple):
    """Which parts of RACE an update has: all, but for what an ablation takes out (Figs. 5, 8).

    >>> from comarl.algorithms.race_matd3 import RaceMatd3
    >>> Parts.of(RaceMatd3(encoder_learns_from="marl", value_weights=False))
    Parts(marl=True, teams=False, information=True, value=False, team_critic=False)
    """

    marl: bool
    """Q_psi shapes the encoder (Eq. 2)"""
    teams: bool
    """Q_theta shapes the encoder (Eq. 2)"""
    information: bool
    """L_VMM shapes the encoder, and T learns (Eqs. 5, 6)"""
    value: bool
    """V learns (Eq. 4), for the weights in L_VMM"""
    team_critic: bool
    """Q_theta learns (Eq. 1), for the encoder or for the target of V"""

    @classmethod
    def of(cls, algorithm: Switches) -> "Parts":
        """The parts that an algorithm's switches leave."""
        teams = algorithm.evolution and algorithm.encoder_learns_from in ("both", "teams")
        information = algorithm.beta > 0
        value = information and algorithm.value_weights
        return cls(
            marl=algorithm.encoder_learns_from in ("both", "marl"),
            teams=teams,
            information=information,
            value=value,
            team_critic=teams or (algorithm.evolution and value),
        )
