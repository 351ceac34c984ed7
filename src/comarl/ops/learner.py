"""A module together with its optimiser: the unit that a gradient step changes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import equinox as eqx
import jax
import optax
from jaxtyping import Array, Float, Int, PyTree

from comarl.types import tree_where
from comarl.validation import check_range

Module = TypeVar("Module")


@dataclass(frozen=True)
class Adam:
    """Adam with its gradient clipped to a global norm. Hashable, unlike the optax transformation that it makes."""

    learning_rate: float = 1e-3
    """step size"""
    max_grad_norm: float = 10.0
    """the whole gradient of one network is scaled down to this norm if longer; 0 turns clipping off"""
    epsilon: float = 1e-8
    """added to the root of the second moment"""

    def __post_init__(self):
        check_range(self, 0, None, "learning_rate", "max_grad_norm", "epsilon")

    @property
    def transform(self) -> optax.GradientTransformation:
        return clipped(self.max_grad_norm, optax.adam(self.learning_rate, eps=self.epsilon))


@dataclass(frozen=True)
class RmsProp:
    """RMSProp as PyTorch has it, with epsilon outside the root, which is what PyMARL was tuned with."""

    learning_rate: float = 5e-4
    """step size"""
    max_grad_norm: float = 10.0
    """the whole gradient of one network is scaled down to this norm if longer; 0 turns clipping off"""
    decay: float = 0.99
    """of the running second moment"""
    epsilon: float = 1e-5
    """added to the root of the second moment"""

    def __post_init__(self):
        check_range(self, 0, None, "learning_rate", "max_grad_norm", "epsilon")
        check_range(self, 0, 1, "decay")

    @property
    def transform(self) -> optax.GradientTransformation:
        rmsprop = optax.rmsprop(self.learning_rate, decay=self.decay, eps=self.epsilon, eps_in_sqrt=False)
        return clipped(self.max_grad_norm, rmsprop)


Optimiser = Adam | RmsProp


def clipped(max_grad_norm: float, transform: optax.GradientTransformation) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(max_grad_norm), transform) if max_grad_norm else transform


class Learner(eqx.Module, Generic[Module]):
    """Parameters and their optimiser's state. `value` is what forward passes use."""

    value: Module
    opt_state: optax.OptState
    optimiser: Optimiser = eqx.field(static=True)

    @classmethod
    def create(cls, value: Module, optimiser: Optimiser) -> "Learner[Module]":
        return cls(value, optimiser.transform.init(value), optimiser)  # type: ignore[arg-type]

    def descend(self, loss: Callable[[Module], Float[Array, ""]]) -> tuple["Learner[Module]", Float[Array, ""]]:
        """One step down the gradient of `loss(value)`, and the loss before it."""
        loss_value, gradient = jax.value_and_grad(loss)(self.value)
        return self.apply(gradient), loss_value

    def apply(self, gradient: Module) -> "Learner[Module]":
        """One step along a gradient computed elsewhere."""
        updates, opt_state = self.optimiser.transform.update(gradient, self.opt_state, self.value)  # type: ignore
        return Learner(optax.apply_updates(self.value, updates), opt_state, self.optimiser)  # type: ignore[arg-type]


def polyak(target: PyTree, online: PyTree, tau: float) -> PyTree:
    """Moves `target` a fraction `tau` of the way to `online`."""
    return jax.tree.map(lambda t, o: t + tau * (o - t), target, online)


def copy_every(period: int, updates: Int[Array, ""], target: PyTree, online: PyTree) -> PyTree:
    """`online` after every `period`-th update, else `target`. `updates` is how many there were before this one."""
    return tree_where((updates + 1) % period == 0, online, target)
