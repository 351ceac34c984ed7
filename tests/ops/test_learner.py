import jax
import jax.numpy as jnp
import numpy as np

from comarl.ops.learner import (
    Adam,
    Learner,
    RmsProp,
    Tracked,
    descend_jointly,
    grad_norms,
    polyak,
)


def adam_in_numpy(gradients, learning_rate, epsilon):
    """The sum of Adam's steps (Kingma & Ba, 2015, Algorithm 1)."""
    m = v = step = 0.0
    for t, g in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        step = step - learning_rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + epsilon)
    return step


def test_descending_takes_the_steps_of_adam():
    learner = Learner.create(jnp.array([1.0, -2.0]), Adam(0.1, max_grad_norm=0.0, epsilon=1e-3))
    descend = jax.jit(lambda learner, w: learner.descend(lambda x: (w * x).sum()))
    gradients = [np.array([3.0, -0.5]), np.array([1.0, 2.0])]
    for gradient in gradients:
        learner, loss = descend(learner, jnp.asarray(gradient, jnp.float32))
    expected = np.array([1.0, -2.0]) + adam_in_numpy(gradients, 0.1, 1e-3)
    np.testing.assert_allclose(learner.value, expected, rtol=1e-5)
    second = np.array([1.0, -2.0]) + adam_in_numpy(gradients[:1], 0.1, 1e-3)
    # The loss before the step
    np.testing.assert_allclose(loss, (gradients[1] * second).sum(), rtol=1e-5)


def test_rmsprop_takes_the_steps_of_pytorchs():
    """The second moment starts at 0 and is not corrected for that; epsilon is added outside the
    root."""
    learner = Learner.create(
        jnp.array([1.0, -2.0]), RmsProp(0.1, max_grad_norm=0.0, decay=0.9, epsilon=1e-2)
    )
    descend = jax.jit(lambda learner, w: learner.descend(lambda x: (w * x).sum()))
    expected, v = np.array([1.0, -2.0]), 0.0
    for gradient in (np.array([3.0, -0.005]), np.array([1.0, 0.02])):
        learner, _ = descend(learner, jnp.asarray(gradient, jnp.float32))
        v = 0.9 * v + 0.1 * gradient**2
        expected = expected - 0.1 * gradient / (np.sqrt(v) + 1e-2)
        np.testing.assert_allclose(learner.value, expected, rtol=1e-5)


def test_a_long_gradient_is_scaled_down_to_the_largest_norm():
    """With a large epsilon Adam's step shows the gradient: (30, 40) becomes (0.6, 0.8), as a
    whole."""
    for gradient, seen in (((30.0, 40.0), (0.6, 0.8)), ((0.3, 0.4), (0.3, 0.4))):
        tree = {"a": jnp.array(gradient[0]), "b": jnp.array(gradient[1])}
        optimiser = Adam(1.0, max_grad_norm=1.0, epsilon=1.0)
        learner = Learner.create(jax.tree.map(jnp.zeros_like, tree), optimiser).apply(tree)
        for value, g in zip(learner.value.values(), seen, strict=True):
            np.testing.assert_allclose(value, -g / (g + 1.0), rtol=1e-5)


def test_a_part_of_a_larger_gradient_is_scaled_down_by_the_norm_of_that():
    """(3, 4) of a gradient of length 10 becomes (0.3, 0.4); its own norm is what is recorded."""
    gradient = jnp.array([3.0, 4.0])
    learner = Learner.create(jnp.zeros(2), Adam(1.0, max_grad_norm=1.0, epsilon=1.0))
    after = learner.apply(gradient, jnp.float32(10.0))
    np.testing.assert_allclose(after.value, [-0.3 / 1.3, -0.4 / 1.4], rtol=1e-5)
    np.testing.assert_allclose(after.grad_norm, 5.0)


def test_each_learner_of_a_stack_has_steps_and_norms_of_its_own():
    """As if each were alone, while another's gradient is long."""
    gradients = jnp.array([[30.0, 40.0], [0.3, 0.4]])
    optimiser = Adam(1.0, max_grad_norm=1.0, epsilon=1.0)
    stack = Tracked.create_each(jnp.zeros((2, 2)), optimiser).apply(gradients)
    for i, gradient in enumerate(gradients):
        alone = Learner.create(jnp.zeros(2), optimiser).apply(gradient)
        np.testing.assert_allclose(stack.value[i], alone.value, rtol=1e-6)
    np.testing.assert_allclose(stack.learner.grad_norm, [50.0, 0.5], rtol=1e-6)


def test_polyak_moves_the_target_a_fraction_of_the_way():
    moved = polyak({"w": jnp.array([0.0, 10.0])}, {"w": jnp.array([1.0, 20.0])}, 0.25)
    np.testing.assert_allclose(moved["w"], [0.25, 12.5])


def test_the_norm_of_a_gradient_is_the_one_before_clipping():
    tree = {"a": jnp.array([3.0, 0.0]), "b": jnp.array(4.0)}
    learner = Learner.create(tree, Adam(1.0, max_grad_norm=1.0))
    assert float(learner.grad_norm) == 0.0
    np.testing.assert_allclose(learner.apply(tree).grad_norm, 5.0, rtol=1e-6)


def test_every_learner_of_a_state_has_its_norm_under_the_name_of_its_part():
    still = Learner.create(jnp.float32(1.0), Adam())
    moved = Tracked.create(jnp.float32(1.0), Adam()).apply(jnp.float32(-2.0))
    assert {name: float(x) for name, x in grad_norms({"learner": moved}).items()} == {
        "grad_norm": 2.0
    }
    parts = {"base": {"actor": still}, "critic": moved, "target": jnp.zeros(3)}
    found = {name: float(x) for name, x in grad_norms(parts).items()}
    assert found == {"actor_grad_norm": 0.0, "critic_grad_norm": 2.0}
    fit = lambda x: Tracked.create(x, Adam()).apply(x)
    stacked = grad_norms({"critics": jax.vmap(fit)(jnp.array([1.0, 2.0]))})
    np.testing.assert_allclose(stacked["grad_norm"], 1.5)


def test_a_tracked_module_keeps_its_target_until_it_is_moved():
    critic = Tracked.create(jnp.float32(1.0), Adam(0.5, max_grad_norm=0.0))
    critic, loss = critic.descend(lambda x: 3.0 * x)
    # Adam's first step has the length of its learning rate.
    np.testing.assert_allclose([loss, critic.value, critic.target], [3.0, 0.5, 1.0], rtol=1e-5)
    np.testing.assert_allclose(critic.polyak(0.1).target, 0.95, rtol=1e-5)
    copied = [float(critic.copy_every(3, jnp.int32(updates)).target) for updates in range(4)]
    np.testing.assert_allclose(copied, [1.0, 1.0, 0.5, 1.0], rtol=1e-5)


def test_learners_of_one_loss_take_the_steps_that_each_would_take():
    one = Learner.create(jnp.float32(1.0), Adam(0.1))
    two = Tracked.create(jnp.float32(2.0), Adam(0.2))
    learners, (loss, beside) = descend_jointly((one, two), lambda v: (v[0] * v[1], v[0] + v[1]))
    assert (float(loss), float(beside)) == (2.0, 3.0)
    assert isinstance(learners[1], Tracked)
    np.testing.assert_allclose(learners[0].value, one.apply(jnp.float32(2.0)).value)
    np.testing.assert_allclose(learners[1].value, two.apply(jnp.float32(1.0)).value)
