"""What all tests share: strict dtypes, a small task, tiny algorithms, and networks written again in plain NumPy.

Rank promotion stays allowed: layers add a bias to any number of leading axes on purpose.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.algorithms.matd3 import Matd3
from comarl.algorithms.race_matd3 import RaceMatd3
from comarl.ops.learner import Adam, Learner
from comarl.training.replay import Ring
from comarl.types import Clock, EnvSpec, Timestep, Transition

jax.config.update("jax_numpy_dtype_promotion", "strict")


def apply_with_standard_promotion(learner, gradient, strict_apply=Learner.apply):
    """optax's Adam raises a float to an integer power, which strict promotion forbids; ours is not its fault."""
    with jax.numpy_dtype_promotion("standard"):
        return strict_apply(learner, gradient)


Learner.apply = apply_with_standard_promotion  # type: ignore[method-assign]

# One step of it moves a parameter by -0.1 g / (|g| + 1): smooth in g, so that a wrong gradient shows in the parameter.
SMOOTH = Adam(0.1, max_grad_norm=0.0, epsilon=1.0)


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
    return Matd3(hidden=(16, 8), replay=Ring(100, 16), actor_optimiser=SMOOTH, critic_optimiser=SMOOTH)


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
    """`make_batch(spec, size, seed)`: random transitions that the task could have made; some are terminated."""

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


def scramble(tree, seed: int, spread: float = 0.3):
    """Noise on every float leaf, so that no two networks are equal and no scale is 1 or offset 0."""
    random = np.random.default_rng(seed)
    noisy = lambda x: x + jnp.asarray(spread * random.normal(size=x.shape), x.dtype)
    return jax.tree.map(lambda x: noisy(x) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


@pytest.fixture(scope="session", name="scramble")
def scramble_fixture():
    return scramble


def bits(tree) -> list:
    """The bytes of every leaf: equal only if the trees are, bit for bit."""
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.fixture(scope="session", name="bits")
def bits_fixture():
    return bits


class Slow:
    """The networks' equations in float64 NumPy, agent by agent and column by column.

    They read the parameters of the library's modules, and call none of its functions.
    """

    @staticmethod
    def doubles(tree):
        """The same tree with float64 NumPy leaves."""
        return jax.tree.map(lambda x: np.array(x, np.float64), tree)

    @staticmethod
    def part(stack, index: int):
        return jax.tree.map(lambda x: x[index], stack)

    @staticmethod
    def leaky_relu(x):
        return np.where(x > 0, x, 0.01 * x)

    @staticmethod
    def layer_norm(norm, x):
        mean, std = x.mean(-1, keepdims=True), x.std(-1, ddof=1, keepdims=True)
        return norm.scale * (x - mean) / (std + 1e-6) + norm.offset

    @staticmethod
    def torso(torso, x, activation):
        for i, layer in enumerate(torso.layers):
            x = x @ layer.weight + layer.bias
            if torso.norms:
                x = Slow.layer_norm(torso.norms[i], x)
            x = activation(x)
        return x

    @staticmethod
    def mlp(mlp, x):
        """Leaky ReLU between layers, nothing after the last."""
        return Slow.torso(mlp.torso, x, Slow.leaky_relu) @ mlp.output.weight + mlp.output.bias

    @staticmethod
    def features(encoders, obs):
        """[agents][batch, features]"""
        agents = range(obs.shape[1])
        return [Slow.torso(Slow.part(encoders, i), np.float64(obs[:, i]), np.tanh) for i in agents]

    @staticmethod
    def actions(encoders, heads, obs, spec):
        result = np.zeros((obs.shape[0], spec.num_agents, spec.action_size))
        for i, z in enumerate(Slow.features(encoders, obs)):
            for a in range(spec.action_sizes[i]):
                result[:, i, a] = np.tanh(z @ heads.weight[i, :, a] + heads.bias[i, a])
        return result

    @staticmethod
    def critic(critic, state, action):
        """[critics, batch]"""
        x = np.concatenate([state, action.reshape(len(action), -1)], axis=1)
        num_critics = critic.members.output.bias.shape[0]
        return np.stack([Slow.mlp(Slow.part(critic.members, k), x)[:, 0] for k in range(num_critics)])

    @staticmethod
    def team_embedding(embedder, heads, spec):
        columns = [
            np.append(heads.weight[i, :, a], heads.bias[i, a])
            for i in range(spec.num_agents)
            for a in range(spec.action_sizes[i])
        ]
        return sum(Slow.mlp(embedder, column) for column in columns) / len(columns)

    @staticmethod
    def team_critic(critic, state, action, heads, spec):
        """[critics, batch]"""
        values = []
        for k in range(2):
            chi = Slow.team_embedding(Slow.part(critic.embedders, k), heads, spec)
            chis = np.tile(chi, (len(state), 1))
            x = np.concatenate([state, action.reshape(len(action), -1), chis], axis=1)
            values.append(Slow.mlp(Slow.part(critic.members, k), x)[:, 0])
        return np.stack(values)

    @staticmethod
    def gaps(scores):
        """The Jensen-Shannon gap of every row, term by term."""
        rows, log2 = len(scores), np.log(2.0)
        softplus = lambda x: np.log1p(np.exp(-abs(x))) + max(x, 0.0)
        result = np.zeros(rows)
        for m in range(rows):
            others = [softplus(scores[m, k]) - log2 for k in range(rows) if k != m]
            result[m] = sum(others) / len(others) - (log2 - softplus(-scores[m, m]))
        return result

    @staticmethod
    def assert_descends(before, after, loss, *, entries: int = 5, seed: int = 0, atol: float = 2e-5):
        """`after` is `before` after one step of `SMOOTH` down the gradient of `loss`, by central differences.

        `loss` takes the whole tree; `entries` random numbers of each leaf are checked.
        """
        expected, found = Slow.steps(before, after, loss, entries=entries, seed=seed)
        assert np.abs(found).max() > 1e-4, "nothing moved"
        np.testing.assert_allclose(found, expected, atol=atol, rtol=1e-3)

    @staticmethod
    def steps(before, after, loss, *, entries: int = 5, seed: int = 0):
        """Of random entries of each leaf: the step that `loss` asks for, and the step taken."""
        random = np.random.default_rng(seed)
        expected, found = [], []
        tree = Slow.doubles(before)
        for leaf, new in zip(jax.tree.leaves(tree), jax.tree.leaves(after), strict=True):
            flat = leaf.reshape(-1)  # a view: changing it changes the tree
            new = np.float64(new).reshape(-1)
            for i in random.choice(flat.size, min(entries, flat.size), replace=False):
                old, h = flat[i], 1e-5
                flat[i] = old + h
                high = loss(tree)
                flat[i] = old - h
                low = loss(tree)
                flat[i] = old
                gradient = (high - low) / (2 * h)
                expected.append(-0.1 * gradient / (abs(gradient) + 1.0))
                found.append(new[i] - old)
        return np.array(expected), np.array(found)


@pytest.fixture(scope="session")
def slow():
    return Slow
