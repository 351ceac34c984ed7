"""What all tests share: strict dtypes, a small task and tiny algorithms.

Rank promotion stays allowed: layers add a bias to any number of leading axes on purpose.
"""

import gc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.algorithms.matd3 import Matd3
from comarl.algorithms.race_matd3 import RaceMatd3
from comarl.machine.placement import see_a_device_for_each
from comarl.ops.learner import Learner
from comarl.replay.transitions import Ring
from comarl.types import Clock, EnvSpec, Timestep, Transition
from tests.data import SMOOTH, bits, scramble
from tests.oracles import Reference

jax.config.update("jax_numpy_dtype_promotion", "strict")
# So that runs of up to four seeds are placed as the command line places them
see_a_device_for_each(4)


def apply_with_standard_promotion(learner, *gradient_and_norm, strict_apply=Learner.apply):
    """optax's Adam raises a float to an integer power, which strict promotion forbids; ours is not
    its fault."""
    with jax.numpy_dtype_promotion("standard"):
        return strict_apply(learner, *gradient_and_norm)


Learner.apply = apply_with_standard_promotion  # type: ignore[method-assign]

MAPS = Path("/proc/self/maps")  # of memory, where the system lists them


@pytest.fixture(autouse=True)
def few_programs():
    """Forgets compiled programs in time: each maps memory of its own, and Linux allows a process
    65,530 maps.

    The compiler dies of a segmentation fault beyond. Only tests compile so many programs in one
    process.
    """
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def key():
    return jax.random.key(0)


@pytest.fixture(scope="session")
def spec() -> EnvSpec:
    """Three agents of unequal size, whose observations are parts of the state."""
    return EnvSpec(
        num_agents=3,
        obs_size=5,
        state_size=11,
        action_size=2,
        discrete=False,
        horizon=10,
        obs_sizes=(4, 2, 5),
        action_sizes=(2, 1, 2),
        obs_from_state=((0, 1, 2, 3), (4, 0), (6, 7, 8, 9, 10)),
    )


@pytest.fixture(scope="session")
def matd3() -> Matd3:
    return Matd3(
        hidden=(16, 8), replay=Ring(100, 16), actor_optimiser=SMOOTH, critic_optimiser=SMOOTH
    )


@pytest.fixture(scope="session")
def race() -> RaceMatd3:
    return RaceMatd3(
        hidden=(16, 8),
        embedding=4,
        mine_width=8,
        replay=Ring(100, 16),
        beta=0.5,
        encoder_optimiser=SMOOTH,
        head_optimiser=SMOOTH,
        critic_optimiser=SMOOTH,
        mine_optimiser=SMOOTH,
    )


@pytest.fixture(scope="session")
def make_batch():
    """`make_batch(spec, size, seed)`: random transitions that the task could have made; some are
    terminated."""

    def make(spec: EnvSpec, size: int = 16, seed: int = 0) -> Transition:
        random = np.random.default_rng(seed)
        shape = (size, spec.num_agents, spec.action_size)

        def timestep() -> Timestep:
            state = jnp.asarray(random.normal(size=(size, spec.state_size)), jnp.float32)
            return Timestep(spec.observe(state), state)

        return Transition(
            now=timestep(),
            action=jnp.asarray(random.uniform(-1, 1, shape) * spec.action_mask, jnp.float32),
            reward=jnp.asarray(random.normal(size=size), jnp.float32),
            terminated=jnp.asarray(np.arange(size) % 3 == 0),
            next=timestep(),
        )

    return make


@pytest.fixture(scope="session")
def clock_at():
    """`clock_at(i)`: the clock at update `i` of a round."""
    return lambda update: Clock(jnp.int32(1000), jnp.int32(500 + update), jnp.int32(update))


@pytest.fixture(scope="session", name="scramble")
def scramble_fixture():
    return scramble


@pytest.fixture(scope="session", name="bits")
def bits_fixture():
    return bits


@pytest.fixture(scope="session")
def reference():
    return Reference
