import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.ops.distributions import straight_through_gumbel, straight_through_steps

DRAWS = 20_000
LOGITS = jnp.array([[0.5, 2.0, -1.0, 1.0], [0.0, 0.3, -2.0, -1.0], [40.0, 0.0, 0.0, 0.0]])
AVAILABLE = jnp.array(
    [[True, False, True, True], [True, True, True, True], [False, True, True, False]]
)
KEYS = jax.random.split(jax.random.key(0), DRAWS)
draw_all = jax.jit(
    lambda available: jax.vmap(lambda key: straight_through_gumbel(LOGITS, available, key))(KEYS)
)


@pytest.fixture(scope="module")
def draws():
    return np.asarray(draw_all(AVAILABLE))


def chances(available):
    weights = np.where(available, np.exp(np.float64(LOGITS)), 0.0)
    return weights / weights.sum(-1, keepdims=True)


def test_every_draw_is_exactly_one_hot_and_available(draws):
    assert set(np.unique(draws)) == {0.0, 1.0}
    np.testing.assert_array_equal(draws.sum(-1), 1.0)
    assert not draws[:, ~np.asarray(AVAILABLE)].any()


def test_actions_are_drawn_as_often_as_their_softmax_says(draws):
    for found, expected in (
        (draws.mean(0), chances(np.asarray(AVAILABLE))),
        (np.asarray(draw_all(None)).mean(0), chances(np.ones((3, 4), bool))),
    ):
        error = np.sqrt(expected * (1 - expected) / DRAWS)
        assert (np.abs(found - expected) <= 4 * error + 1e-6).all(), (found, expected)


def test_the_gradient_is_that_of_the_relaxed_draw():
    """Of softmax(logits + noise) over what is available: r_k (w_k - sum_j r_j w_j)."""
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
    loss = lambda logits, key: (weights * straight_through_gumbel(logits, AVAILABLE, key)).sum()
    for key in KEYS[:5]:
        found = jax.grad(loss)(LOGITS, key)
        noisy = np.float64(LOGITS) + np.float64(jax.random.gumbel(key, LOGITS.shape))
        e = np.where(AVAILABLE, np.exp(noisy - noisy.max(-1, keepdims=True)), 0.0)
        r = e / e.sum(-1, keepdims=True)
        w = np.float64(weights)
        np.testing.assert_allclose(found, r * (w - (r * w).sum(-1, keepdims=True)), atol=1e-5)
        assert not np.asarray(found)[~np.asarray(AVAILABLE)].any()
        assert np.abs(found).max() > 1e-3


def test_the_draws_of_an_episodes_steps_do_not_depend_on_what_follows():
    logits = jnp.asarray(np.random.default_rng(5).normal(size=(3, 6, 2, 4)), jnp.float32)
    available = (
        jnp.asarray(np.random.default_rng(6).random((3, 6, 2, 4)) < 0.7).at[..., 0].set(True)
    )
    draw = lambda t: np.asarray(
        straight_through_steps(logits[:, :t], available[:, :t], jax.random.key(0))
    )
    whole, short = draw(6), draw(4)
    np.testing.assert_array_equal(whole[:, :4], short)
    assert (
        np.isin(whole, (0.0, 1.0)).all()
        and (whole.sum(-1) == 1).all()
        and not (whole * ~np.asarray(available)).any()
    )
    # Steps, episodes and agents draw on their own.
    same = straight_through_steps(
        jnp.zeros((30, 20, 2, 4)), jnp.ones((30, 20, 2, 4), bool), jax.random.key(1)
    )
    chosen = np.asarray(same).argmax(-1)
    for one, two in (
        (chosen[1:], chosen[:-1]),
        (chosen[:, 1:], chosen[:, :-1]),
        (chosen[..., 0], chosen[..., 1]),
    ):
        assert abs((one == two).mean() - 0.25) < 0.08
