"""Critics of each agent against their equations, agent by agent in float64, and what attention
promises."""

import dataclasses
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.algorithms.vm3_ac import Vm3Ac
from comarl.nn.values import CriticInputs, actions_by_agent, make_values, observe
from comarl.types import EnvSpec

HIDDEN, HEADS = (6, 5), 2
# Which are shared
FORMS = (("mlp", False), ("mlp", True), ("split", False), ("split", True), ("attention", False))


@jax.jit
def call(values, *inputs):
    return values(*inputs)


@pytest.fixture(scope="module")
def ends(make_batch, spec):
    """What is seen, what is done, and what each agent might do instead; padding is garbage at
    first."""
    batch, other = make_batch(spec, 4), make_batch(spec, 4, seed=1)
    garbage = dataclasses.replace(
        batch.now, obs=jnp.where(batch.now.obs == 0.0, 7.0, batch.now.obs)
    )
    action = jnp.where(spec.action_mask > 0, batch.action, 7.0)
    alternative = actions_by_agent(other.action, spec)
    return observe(garbage, spec), actions_by_agent(action, spec), alternative


class Written:
    def __init__(self, spec, reference, share):
        self.spec, self.reference, self.share = spec, reference, share

    def net(self, stack, i, x):
        if self.share:
            return self.reference.mlp(
                self.reference.part(stack.networks, 0), x, self.reference.relu
            )
        return self.reference.mlp(self.reference.part(stack.networks, i), x, self.reference.relu)

    def with_number(self, i, x):
        return np.hstack([x, np.tile(np.eye(3)[i], (len(x), 1))]) if self.share else x

    def mlp(self, values, i, obs, action):
        real = [np.float64(obs[j])[:, : self.spec.obs_sizes[j]] for j in range(3)]
        if action is not None:
            real += [action[j][:, : self.spec.action_sizes[j]] for j in range(3)]
        return self.net(values.networks, i, self.with_number(i, np.hstack(real)))[:, 0]

    def units(self, obs, action):
        return (
            obs if action is None else [np.hstack([o, a]) for o, a in zip(obs, action, strict=True)]
        )

    def split(self, values, i, obs, action):
        units = self.units(obs, action)
        others = np.hstack([units[j] for j in range(3) if j != i])
        first = [
            self.net(values.own, i, self.with_number(i, units[i])),
            self.net(values.others, i, others),
        ]
        return self.net(values.networks, i, np.maximum(np.hstack(first), 0.0))[:, 0]

    def attention(self, values, i, obs, action):
        leaky, torso = self.reference.leaky_relu, self.reference.torso
        e = [torso(values.encoder, unit, leaky) for unit in self.units(obs, action)]
        query, attended, width = (
            torso(values.obs_encoder, obs[i], leaky) @ values.queries,
            [],
            HIDDEN[0] // HEADS,
        )
        for b, h in itertools.product(range(len(obs[i])), range(HEADS)):
            part, others = slice(h * width, (h + 1) * width), [j for j in range(3) if j != i]
            scores = [
                np.exp(query[b, part] @ (e[j][b] @ values.keys)[part] / width**0.5) for j in others
            ]
            values_of_others = [torso(values.values, e[j][b], leaky)[part] for j in others]
            attended.append(
                sum(s * v for s, v in zip(scores, values_of_others, strict=True)) / sum(scores)
            )
        together = np.hstack([e[i], np.reshape(attended, (len(obs[i]), -1))])
        return self.reference.mlp(values.head, together, leaky)[:, 0]


@pytest.mark.parametrize("acts", [False, True])
@pytest.mark.parametrize(("form", "share"), FORMS)
def test_each_form_equals_its_equations(form, acts, share, spec, reference, ends, scramble):
    seen, action, own = ends
    make = lambda k: make_values(form, spec, HIDDEN, acts=acts, heads=HEADS, share=share, key=k)
    values = scramble(make(jax.random.key(0)), 0, 0.4)
    doubles, obs = reference.doubles(values), np.float64(seen.obs)
    done, instead = ([np.float64(a) for a in x] if acts else None for x in (action, own))
    written = getattr(Written(spec, reference, share), form)
    cases: list[tuple[tuple, Callable]] = [((action,) if acts else (), lambda i: done)]
    if acts:
        cases.append(
            ((action, own), lambda i: [instead[j] if j == i else done[j] for j in range(3)])
        )
    for given, joint in cases:
        expected = [written(doubles, i, obs, joint(i)) for i in range(3)]
        np.testing.assert_allclose(call(values, seen, *given), expected, atol=2e-5)


def test_attention_has_no_order_of_agents_and_a_size_that_does_not_grow(scramble):
    """Shuffled agents have the same values in their new places; an agent alone moved keeps its
    own."""
    sizes = lambda n: EnvSpec(n, 3, 5, 2, discrete=False, horizon=1)
    make = lambda n: make_values(
        "attention", sizes(n), HIDDEN, acts=True, heads=HEADS, key=jax.random.key(0)
    )
    shapes = [[leaf.shape for leaf in jax.tree.leaves(make(n))] for n in (2, 9)]
    assert shapes[0] == shapes[1]
    values, random = scramble(make(5), 0, 0.4), np.random.default_rng(0)
    draw = lambda size: jnp.asarray(random.normal(size=(5, 4, size)), jnp.float32)
    obs, action, known, order = draw(3), draw(2), jnp.zeros((4, 15)), jnp.array([0, 3, 1, 4, 2])
    before = call(values, CriticInputs(obs, known), action)
    after = call(values, CriticInputs(obs[order], known), action[order])
    np.testing.assert_allclose(after, before[order], atol=1e-6)
    moved = call(values, CriticInputs(obs, known), action.at[4].add(1.0))
    assert np.all(moved != before)  # all attend to it


def test_one_agent_alone_needs_no_attention():
    spec = EnvSpec(1, 3, 3, 2, discrete=False, horizon=1)
    for form in ("split", "attention"):
        values = make_values(form, spec, HIDDEN, acts=True, heads=HEADS, key=jax.random.key(0))
        assert np.isfinite(
            call(values, CriticInputs(jnp.ones((1, 4, 3)), jnp.ones((4, 3))), jnp.ones((1, 4, 2)))
        ).all()


@pytest.mark.parametrize("form", ["mlp", "split", "attention"])
def test_through_own_actions_alone_gradients_pass_to_who_does_them(form, spec, ends, scramble):
    seen, action, own = ends
    values = scramble(
        make_values(form, spec, HIDDEN, acts=True, heads=HEADS, key=jax.random.key(0)), 0, 0.4
    )
    # [i, batch, j, batch, action]
    slopes = jax.jit(jax.jacrev(lambda own: values(seen, action, own)))(own)
    slopes = np.abs(slopes).sum(axis=(1, 3, 4))
    assert np.all((slopes > 0) == np.eye(3, dtype=bool))


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(
        ValueError, match="critic_sees='state' of Vm3Ac: a critic 'split' sees what each agent sees"
    ):
        Vm3Ac(critic="split", critic_sees="state")
    with pytest.raises(
        ValueError, match=r"attention_heads=3 of Vm3Ac must divide hidden\[0\], 128"
    ):
        Vm3Ac(critic="attention", attention_heads=3)
