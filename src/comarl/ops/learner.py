"""A module together with its optimiser: the unit that a gradient step changes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, overload

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from comarl.types import tree_where
from comarl.validation import check_fields, check_range

Module = TypeVar("Module")
Aux = TypeVar("Aux")


@dataclass(frozen=True)
class Adam:
    """Adam, and the global norm to which gradients are clipped before. Hashable, unlike the optax
    transformation that it makes."""

    learning_rate: float = 1e-3
    """step size"""
    max_grad_norm: float = 10.0
    """the whole gradient of one network is scaled down to this norm if longer; 0 turns clipping
    off"""
    epsilon: float = 1e-8
    """added to the root of the second moment"""

    def __post_init__(self):
        check_fields(self)
        check_range(self, 0, 1000, "learning_rate")
        check_range(self, 0, None, "max_grad_norm", "epsilon")

    @property
    def transform(self) -> optax.GradientTransformation:
        """The transformation of optax that these settings stand for, of clipped gradients."""
        return optax.adam(self.learning_rate, eps=self.epsilon)


@dataclass(frozen=True)
class RmsProp:
    """RMSProp as PyTorch has it, with epsilon outside the root, which is what PyMARL was tuned
    with."""

    learning_rate: float = 5e-4
    """step size"""
    max_grad_norm: float = 10.0
    """the whole gradient of one network is scaled down to this norm if longer; 0 turns clipping
    off"""
    decay: float = 0.99
    """decay rate of the moving average of squared gradients"""
    epsilon: float = 1e-5
    """added to the root of the second moment"""

    def __post_init__(self):
        check_fields(self)
        check_range(self, 0, 1000, "learning_rate")
        check_range(self, 0, None, "max_grad_norm", "epsilon")
        check_range(self, 0, 1, "decay")

    @property
    def transform(self) -> optax.GradientTransformation:
        """The transformation of optax that these settings stand for, of clipped gradients."""
        return optax.rmsprop(
            self.learning_rate, decay=self.decay, eps=self.epsilon, eps_in_sqrt=False
        )


Optimiser = Adam | RmsProp


def clipped(gradient: Module, norm: Float[Array, ""], max_norm: float) -> Module:
    """The gradient of this norm scaled down to `max_norm` if it is longer; 0 does not clip."""
    if not max_norm:
        return gradient
    return jax.tree.map(lambda g: jnp.where(norm < max_norm, g, g / norm * max_norm), gradient)


class Learner(eqx.Module, Generic[Module]):
    """Parameters and their optimiser's state. `value` is what forward passes use.

    >>> import jax.numpy as jnp
    >>> learner = Learner.create(jnp.float32(3.0), Adam(learning_rate=0.5))
    >>> learner, loss = learner.descend(lambda x: x**2)
    >>> float(loss), round(float(learner.value), 3)
    (9.0, 2.5)
    """

    value: Module
    opt_state: optax.OptState
    grad_norm: Float[Array, "*stack"]  # of the latest gradient, before it was clipped
    optimiser: Optimiser = eqx.field(static=True)

    @classmethod
    def create(cls, value: Module, optimiser: Optimiser) -> "Learner[Module]":
        """A module that has not learnt yet."""
        opt_state = optimiser.transform.init(value)  # type: ignore[arg-type]
        return cls(value, opt_state, jnp.float32(0.0), optimiser)

    @classmethod
    def create_each(cls, stack: Module, optimiser: Optimiser) -> "Learner[Module]":
        """A learner for each module of a stack, whose leaves lead with one axis.

        Each has an optimiser of its own, which clips its gradient by its own norm.

        >>> two = Learner.create_each(jnp.zeros((2, 3)), Adam())
        >>> two.apply(jnp.ones((2, 3))).grad_norm.shape
        (2,)
        """
        return jax.vmap(lambda value: cls.create(value, optimiser))(stack)

    @overload
    def descend(
        self, loss: Callable[[Module], Float[Array, ""]]
    ) -> tuple["Learner[Module]", Float[Array, ""]]: ...

    @overload
    def descend(
        self, loss: Callable[[Module], tuple[Float[Array, ""], Aux]], *, has_aux: Literal[True]
    ) -> tuple["Learner[Module]", tuple[Float[Array, ""], Aux]]: ...

    def descend(self, loss: Callable, *, has_aux: bool = False) -> tuple["Learner[Module]", Any]:
        """One step down the gradient of `loss(value)`, and the loss before it.

        With `has_aux`, `loss` returns a pair, of which the first is descended; both come back.
        """
        found, gradient = jax.value_and_grad(loss, has_aux=has_aux)(self.value)
        return self.apply(gradient), found

    def apply(
        self, gradient: Module, clipping_norm: Float[Array, ""] | None = None
    ) -> "Learner[Module]":
        """One step along a gradient computed elsewhere; of a stack of learners, one of each.

        `clipping_norm` is that of a larger gradient of which this is a part and with which it is
        clipped; by default its own.
        """
        if self.grad_norm.ndim:
            return jax.vmap(Learner.apply)(self, gradient)
        norm = optax.tree.norm(gradient)
        by = norm if clipping_norm is None else clipping_norm
        transform: Any = self.optimiser.transform  # optax knows no modules
        updates, opt_state = transform.update(
            clipped(gradient, by, self.optimiser.max_grad_norm), self.opt_state, self.value
        )
        value: Any = optax.apply_updates(self.value, updates)  # type: ignore[arg-type]
        return Learner(value, opt_state, norm, self.optimiser)


class Tracked(eqx.Module, Generic[Module]):
    """A learner and its slow copy, `target`: the critic Q and the target critic Q' of a paper.

    >>> import jax.numpy as jnp
    >>> critic = Tracked.create(jnp.float32(3.0), Adam(learning_rate=0.5))
    >>> critic, loss = critic.descend(lambda x: x**2)
    >>> critic = critic.polyak(0.1)
    >>> round(float(critic.value), 3), round(float(critic.target), 3)
    (2.5, 2.95)
    """

    learner: Learner[Module]
    target: Module

    @classmethod
    def create(cls, value: Module, optimiser: Optimiser) -> "Tracked[Module]":
        """The copy begins as the original."""
        return cls(Learner.create(value, optimiser), value)

    @classmethod
    def create_each(cls, stack: Module, optimiser: Optimiser) -> "Tracked[Module]":
        """As `Learner.create_each`; the copy of each begins as the original."""
        return cls(Learner.create_each(stack, optimiser), stack)

    @property
    def value(self) -> Module:
        """What the optimiser changes."""
        return self.learner.value

    @overload
    def descend(
        self, loss: Callable[[Module], Float[Array, ""]]
    ) -> tuple["Tracked[Module]", Float[Array, ""]]: ...

    @overload
    def descend(
        self, loss: Callable[[Module], tuple[Float[Array, ""], Aux]], *, has_aux: Literal[True]
    ) -> tuple["Tracked[Module]", tuple[Float[Array, ""], Aux]]: ...

    def descend(self, loss: Callable, *, has_aux: bool = False) -> tuple["Tracked[Module]", Any]:
        """As `Learner.descend`; the target stays."""
        learner, found = self.learner.descend(loss, has_aux=has_aux)  # type: ignore[call-overload]
        return Tracked(learner, self.target), found

    def apply(
        self, gradient: Module, clipping_norm: Float[Array, ""] | None = None
    ) -> "Tracked[Module]":
        """As `Learner.apply`; the target stays."""
        return Tracked(self.learner.apply(gradient, clipping_norm), self.target)

    def polyak(self, tau: float) -> "Tracked[Module]":
        """The target moves a fraction `tau` of the way to the learner."""
        return Tracked(self.learner, polyak(self.target, self.value, tau))

    def copy_every(self, period: int, updates: Int[Array, ""]) -> "Tracked[Module]":
        """The target becomes the learner after every `period`-th update of a run."""
        return Tracked(self.learner, copy_every(period, updates, self.target, self.value))


def grad_norms(state: PyTree) -> dict[str, Float[Array, ""]]:
    """The norm of the latest gradient of every learner in a state, as metrics.

    `grad_norm` where there is one learner, else named after the part of the state. Of stacked
    learners, such as FOP's critics, it is the mean.

    >>> import jax.numpy as jnp
    >>> learner, _ = Learner.create(jnp.float32(3.0), Adam()).descend(lambda x: x**2)
    >>> {name: float(norm) for name, norm in grad_norms({"critic": learner}).items()}
    {'grad_norm': 6.0}
    >>> both = {"critic": learner, "actor": learner}
    >>> sorted(grad_norms(both))
    ['actor_grad_norm', 'critic_grad_norm']
    """
    is_learner = lambda node: isinstance(node, Learner)
    nodes = jax.tree_util.tree_flatten_with_path(state, is_leaf=is_learner)[0]
    learners = [(path, node) for path, node in nodes if is_learner(node)]
    if len(learners) == 1:
        return {"grad_norm": learners[0][1].grad_norm.mean()}
    return {f"{_name(path)}_grad_norm": learner.grad_norm.mean() for path, learner in learners}


def networks(state: PyTree) -> PyTree:
    """A state without what only its optimisers need: for each learner its value.

    >>> import jax.numpy as jnp
    >>> networks({"critic": Learner.create(jnp.float32(3.0), Adam())})
    {'critic': Array(3., dtype=float32)}
    """
    bare = lambda node: node.value if isinstance(node, Learner) else node
    return jax.tree.map(bare, state, is_leaf=lambda node: isinstance(node, Learner))


def with_networks(state: PyTree, given: PyTree) -> PyTree:
    """A state with these `networks` in place of its own; its optimisers stay as they are.

    >>> import jax.numpy as jnp
    >>> state = {"critic": Learner.create(jnp.float32(3.0), Adam())}
    >>> networks(with_networks(state, {"critic": jnp.float32(5.0)}))
    {'critic': Array(5., dtype=float32)}
    """

    def replaced(ours: Any, theirs: Any) -> Any:
        if not isinstance(ours, Learner):
            return theirs
        return eqx.tree_at(lambda learner: learner.value, ours, theirs)

    return jax.tree.map(replaced, state, given, is_leaf=lambda node: isinstance(node, Learner))


def _name(path: tuple) -> str:
    """The name of a part of a state, without the steps that only lead to it."""
    parts = jax.tree_util.keystr(path, simple=True, separator=".").split(".")
    return "_".join(part for part in parts if part not in ("base", "learner"))


def descend_jointly(
    learners: tuple[Learner | Tracked, ...],
    loss: Callable[[tuple], tuple[Float[Array, ""], Aux]],
) -> tuple[tuple, tuple[Float[Array, ""], Aux]]:
    """One step of each of several learners down one loss of all their values, `loss(values)`.

    `loss` returns what is descended and something beside it; both come back after the learners.
    """
    values = tuple(learner.value for learner in learners)
    found, gradients = jax.value_and_grad(loss, has_aux=True)(values)
    pairs = zip(learners, gradients, strict=True)
    return tuple(learner.apply(gradient) for learner, gradient in pairs), found


def polyak(target: PyTree, online: PyTree, tau: float) -> PyTree:
    """Moves `target` a fraction `tau` of the way to `online`."""
    return jax.tree.map(lambda t, o: t + tau * (o - t), target, online)


def copy_every(period: int, updates: Int[Array, ""], target: PyTree, online: PyTree) -> PyTree:
    """`online` after every `period`-th update, else `target`. `updates` is how many there were
    before this one."""
    return tree_where((updates + 1) % period == 0, online, target)
