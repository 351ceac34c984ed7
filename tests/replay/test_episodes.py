"""The replay of whole episodes: what is kept, what is drawn, and at what precision."""

import dataclasses
import functools
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.algorithms.qmix import Qmix
from comarl.replay.episodes import EpisodeRing, Latent
from comarl.replay.pace import EpisodePace
from comarl.training.memory import check_memory, num_bytes
from comarl.training.settings import Run
from comarl.types import EnvSpec, Episode, Timestep

HORIZON = 5
SPEC = EnvSpec(2, 3, 4, 3, discrete=True, horizon=HORIZON, obs_range=(-2.0, 3.0))
FROM_STATE = dataclasses.replace(SPEC, obs_from_state=((0, 1, 2), (3, 0)))
CONTINUOUS = dataclasses.replace(SPEC, discrete=False, action_size=2)


@functools.partial(jax.jit, static_argnums=(0, 3))
def add(ring, state, episodes, spec):
    return ring.add(state, episodes, spec)


@functools.partial(jax.jit, static_argnums=(0, 2))
def sample(ring, state, spec, key):
    return ring.sample(state, spec, key)


def make_episodes(lengths, spec=SPEC, *, first=1, garbage=0.0, seed=0) -> Episode:
    """One per length, 0 for one that was not played; its number, from `first` on, is in every one
    of its rewards.

    What comes after an end is garbage, and so is all of an episode that was not played.
    """
    random, teams = np.random.default_rng(seed), len(lengths)
    mask = np.arange(HORIZON) < np.array(lengths)[:, None]
    seen = np.arange(HORIZON + 1) <= np.array(lengths)[:, None]
    seen[np.array(lengths) == 0] = False

    def spoil(x, there):
        blank = garbage if x.dtype.kind == "f" else np.array(garbage != 0, x.dtype)
        return jnp.asarray(np.where(there.reshape(*there.shape, *[1] * (x.ndim - 2)), x, blank))

    state = random.uniform(-2, 3, (teams, HORIZON + 1, 4)).astype(np.float32)
    obs = random.uniform(-2, 3, (teams, HORIZON + 1, 2, 3)).astype(np.float32)
    obs = np.array(spec.observe(jnp.asarray(state))) if spec.obs_from_state else obs
    if spec.discrete:
        action = random.integers(0, 3, (teams, HORIZON, 2)).astype(np.int32)
    else:
        action = random.uniform(-1, 1, (teams, HORIZON, 2, 2)).astype(np.float32)
    available = random.random((teams, HORIZON + 1, 2, 3)) < 0.5
    number = np.zeros((teams, HORIZON), np.float32) + np.arange(first, first + teams)[:, None]
    terminated = (np.arange(1, HORIZON + 1) == np.array(lengths)[:, None]) & (
        random.random((teams, 1)) < 0.5
    )
    return Episode(
        memory=jnp.ones((teams, 7)),  # the replay starts every episode anew
        timesteps=Timestep(
            spoil(obs, seen), spoil(state, seen), spoil(available, seen) if spec.discrete else None
        ),
        action=spoil(action, mask),
        reward=spoil(number, mask),
        terminated=spoil(terminated, mask),
        mask=jnp.asarray(mask),
    )


def numbers(batch: Episode) -> list[int]:
    return [int(x) for x in batch.reward[:, 0]]


def rows(episodes: Episode) -> dict[int, list]:
    """Each episode's leaves, by its number."""
    assert episodes.memory == ()
    leaves = jax.tree.leaves(episodes)
    return {
        number: [np.asarray(leaf[i]) for leaf in leaves]
        for i, number in enumerate(numbers(episodes))
    }


def assert_same(batch: Episode, played: Episode, which: list[int], atol: float = 0.0) -> None:
    found, expected = rows(batch), rows(dataclasses.replace(played, memory=()))
    assert sorted(found) == sorted(which)
    for number, leaves in found.items():
        for leaf, other in zip(leaves, expected[number], strict=True):
            assert leaf.dtype == other.dtype and leaf.shape == other.shape
            np.testing.assert_allclose(leaf, other, atol=atol, rtol=0)


@pytest.mark.parametrize(
    "spec", [SPEC, FROM_STATE, CONTINUOUS], ids=["plain", "from-state", "continuous"]
)
def test_what_goes_in_comes_out(spec, key):
    ring, played = EpisodeRing(4, 4), make_episodes([3, 5, 1, 4], spec)
    state = add(ring, ring.init(spec), played, spec)
    assert_same(sample(ring, state, spec, key), played, [1, 2, 3, 4])


@pytest.mark.parametrize("storage", ["full", "half", "byte"])
def test_what_stands_after_an_end_and_what_was_not_played_leave_no_trace(storage, bits):
    ring = EpisodeRing(6, 4, storage)
    clean, dirty = (
        add(ring, ring.init(SPEC), make_episodes([3, 0, 5, 1, 0, 4], garbage=x), SPEC)
        for x in (0.0, np.nan)
    )
    assert bits(dirty) == bits(clean)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(dirty))
    assert int(dirty.size) == 4 and int(dirty.cursor) == 4


def test_episodes_that_were_not_played_are_never_drawn(key):
    ring, played = EpisodeRing(6, 4), make_episodes([0, 3, 0, 5, 1, 4], garbage=np.nan)
    state = add(ring, ring.init(SPEC), played, SPEC)
    assert sorted(numbers(sample(ring, state, SPEC, key))) == [2, 4, 5, 6]


def test_the_oldest_are_overwritten(key):
    """Seven rounds of three, of which one sometimes was not played; the ring wraps in the middle of
    a round."""
    ring, random, held, first = EpisodeRing(5, 1), np.random.default_rng(1), [], 1
    state, whole = ring.init(SPEC), EpisodeRing(5, 5)
    for _ in range(7):
        lengths = random.integers(0, HORIZON + 1, 3).tolist()
        state = add(ring, state, make_episodes(lengths, first=first), SPEC)
        held = [*held, *(first + i for i, length in enumerate(lengths) if length)][-5:]
        first += 3
        assert int(state.size) == len(held)
        if len(held) == 5:
            assert sorted(numbers(sample(whole, state, SPEC, key))) == held
    assert first > 20 and held[0] > 10


def test_a_replay_is_ready_when_it_can_fill_a_batch():
    ring, state, ready = EpisodeRing(5, 3), EpisodeRing(5, 3).init(SPEC), []
    for _ in range(4):
        state = add(ring, state, make_episodes([2, 0, 0]), SPEC)
        ready.append(bool(ring.ready(state)))
    assert ready == [False, False, True, True]


@pytest.fixture(scope="module")
def draws():
    """Many draws of 3 from the 7 episodes that a ring of 10 holds, sorted: `[draws 3]`."""
    ring = EpisodeRing(10, 3)
    state = add(ring, ring.init(SPEC), make_episodes([1, 2, 3, 4, 5, 1, 2]), SPEC)
    keys = jax.random.split(jax.random.key(1), 7000)
    drawn = jax.jit(jax.vmap(lambda key: ring.sample(state, SPEC, key).reward[:, 0]))(keys)
    return np.asarray(drawn).astype(int)


def test_no_episode_is_drawn_twice_in_a_batch(draws):
    assert (np.diff(np.sort(draws, axis=1), axis=1).astype(int) > 0).all()


def test_every_episode_and_every_place_in_a_batch_is_as_likely(draws):
    counts = np.stack([np.bincount(draws[:, place], minlength=8) for place in range(3)])
    assert counts[:, 0].sum() == 0 and counts.shape[1] == 8
    chi_square = ((counts[:, 1:] - 1000) ** 2 / 1000).sum(1)
    # 6 degrees of freedom: 1 in 2000 on either side
    assert (chi_square < 24).all() and chi_square.min() > 0.3
    pairs = np.unique(np.sort(draws, axis=1) @ np.array([100, 10, 1]), return_counts=True)[1]
    assert len(pairs) == 35  # all sets of three, each about 200 times
    assert 12 < ((pairs - 200) ** 2 / 200).sum() < 66  # 34 degrees of freedom


def test_seeds_keep_apart_when_the_ring_is_mapped(bits):
    ring = EpisodeRing(5, 2)
    both = jax.tree.map(
        lambda *x: jnp.stack(x), make_episodes([1, 0, 3]), make_episodes([2, 5, 4], seed=1)
    )
    start = jax.tree.map(lambda x: jnp.stack([x, x]), ring.init(SPEC))
    mapped = jax.jit(jax.vmap(lambda s, e: ring.add(s, e, SPEC)))(start, both)
    for seed in range(2):
        alone = add(ring, ring.init(SPEC), jax.tree.map(lambda x, seed=seed: x[seed], both), SPEC)
        assert bits(jax.tree.map(lambda x, seed=seed: x[seed], mapped)) == bits(alone)


# What is smaller than the full precision


def seen_bytes(ring, spec):
    kept = jax.eval_shape(lambda: ring.init(spec)).kept
    return num_bytes((kept.obs, kept.state))


def test_half_and_byte_keep_observations_and_states_in_a_half_and_a_quarter():
    full, half, byte = (seen_bytes(EpisodeRing(100, 1, s), SPEC) for s in ("full", "half", "byte"))
    assert full == 100 * 6 * (2 * 3 + 4) * 4
    assert (half, byte) == (full // 2, full // 4)


def test_byte_is_half_where_the_task_declares_no_range():
    spec = dataclasses.replace(SPEC, obs_range=None)
    ring = EpisodeRing(100, 1, "byte")
    assert seen_bytes(ring, spec) == seen_bytes(EpisodeRing(100, 1, "half"), spec)
    state = add(ring, ring.init(spec), make_episodes([5]), spec)
    assert_same(sample(ring, state, spec, jax.random.key(0)), make_episodes([5]), [1], atol=2e-3)


def test_a_replay_keeps_no_observations_that_are_parts_of_the_state():
    kept = jax.eval_shape(lambda: EpisodeRing(100, 1).init(FROM_STATE)).kept
    assert kept.obs is None and num_bytes(kept.state) == 100 * 6 * 4 * 4


# Of numbers up to 3 a half keeps 11 bits, so they are off by 2 ** -10 at most; a byte is off by
# half of 5 / 255.
PRECISION: dict[Literal["full", "half", "byte"], float] = {
    "full": 0.0,
    "half": 2.0**-10,
    "byte": 2.51 / 255,
}


@pytest.mark.parametrize("spec", [SPEC, FROM_STATE], ids=["plain", "from-state"])
@pytest.mark.parametrize("storage", PRECISION)
def test_numbers_come_back_within_the_precision_of_their_storage(storage, spec, key):
    ring, played = EpisodeRing(4, 4, storage), make_episodes([5, 5, 5, 5], spec)
    batch = sample(ring, add(ring, ring.init(spec), played, spec), spec, key)
    assert_same(batch, played, [1, 2, 3, 4], atol=PRECISION[storage])
    exact = ("action", "reward", "terminated", "mask")
    order = np.array(numbers(batch)) - 1
    for name in exact:
        np.testing.assert_array_equal(
            getattr(batch, name), np.asarray(getattr(played, name))[order]
        )
    np.testing.assert_array_equal(
        batch.timesteps.available, np.asarray(played.timesteps.available)[order]
    )


def test_the_ends_of_a_declared_range_are_kept_exactly_and_what_is_beyond_as_the_ends():
    ring, low, high = EpisodeRing(1, 1, "byte"), -2.0, 3.0
    x = jnp.array([low, high, -2.001, 3.001, -9.0, 1e9])
    np.testing.assert_array_equal(ring.unpack(SPEC, ring.pack(SPEC, x)), [low, high] * 3)


def test_bits_are_kept_exactly_in_a_byte():
    spec = dataclasses.replace(SPEC, obs_range=(0.0, 1.0))
    x = jnp.array([0.0, 1.0, 1.0, 0.0])
    ring = EpisodeRing(1, 1, "byte")
    assert ring.pack(spec, x).dtype == jnp.uint8
    np.testing.assert_array_equal(ring.unpack(spec, ring.pack(spec, x)), x)


def test_what_qmix_learns_from_a_smaller_replay_is_almost_the_same(key):
    """Values and targets of the same draw, of utilities and their sum: a mixer takes long to
    compile."""
    qmix, played, found = Qmix(hidden=8, mixing="sum"), make_episodes([3, 5, 1, 4]), {}

    @jax.jit
    def values(batch):
        agent = qmix.init(SPEC, key)
        return jax.vmap(
            lambda episode: qmix.values(agent.network.value, agent.network.target, episode)
        )(batch)

    for storage in PRECISION:
        ring = EpisodeRing(6, 4, storage)
        batch = sample(ring, add(ring, ring.init(SPEC), played, SPEC), SPEC, key)
        found[storage] = np.stack(values(batch))[:, np.asarray(batch.mask)]
    np.testing.assert_allclose(found["half"], found["full"], atol=1e-3)
    np.testing.assert_allclose(found["byte"], found["full"], atol=2e-2)
    assert np.abs(found["byte"] - found["full"]).max() > 1e-5, "it was kept in full"
    assert np.std(found["full"], axis=1).min() > 0.1


def test_discrete_actions_take_a_byte_each_and_more_than_256_of_them_four(key):
    many = dataclasses.replace(SPEC, action_size=257)
    for spec, size in ((SPEC, 1), (many, 4)):
        assert (
            num_bytes(jax.eval_shape(lambda s=spec: EpisodeRing(1, 1).init(s)).kept.action)
            == 5 * 2 * size
        )
    most = dataclasses.replace(SPEC, action_size=256)
    played = make_episodes([5])
    played = dataclasses.replace(
        played,
        action=played.action + 253,
        timesteps=dataclasses.replace(played.timesteps, available=jnp.ones((1, 6, 2, 256), bool)),
    )
    ring = EpisodeRing(1, 1)
    batch = sample(ring, add(ring, ring.init(most), played, most), most, key)
    np.testing.assert_array_equal(batch.action, played.action)
    assert batch.action.max() == 255


# What policies remember


def with_latents(episodes: Episode, length=3) -> Episode:
    """Each with a vector of its own: its number, and noise that no rounding keeps."""
    noise = jax.random.normal(jax.random.key(5), (len(episodes.reward), length))
    latent = noise.at[:, 0].set(episodes.reward[:, 0])
    return dataclasses.replace(episodes, memory=Latent(latent))


@pytest.mark.parametrize("storage", ["full", "half", "byte"])
def test_a_latent_comes_back_with_its_own_episode_and_in_full(storage, key):
    ring, played = (
        EpisodeRing(3, 3, storage, latent=3),
        with_latents(make_episodes([3, 0, 5, 1, 4])),
    )
    batch = sample(ring, add(ring, ring.init(SPEC), played, SPEC), SPEC, key)
    assert sorted(numbers(batch)) == [3, 4, 5]  # of five one was not played and one is overwritten
    for number, latent in zip(numbers(batch), batch.memory.latent, strict=True):
        np.testing.assert_array_equal(latent, played.memory.latent[number - 1])


def test_of_a_memory_nothing_but_the_latent_is_kept():
    plain, kept = (
        num_bytes(jax.eval_shape(lambda n=n: EpisodeRing(100, 1, latent=n).init(SPEC)))
        for n in (0, 7)
    )
    assert kept - plain == 100 * 7 * 4

    class Memory(eqx.Module):
        hidden: jax.Array
        latent: jax.Array

    ring, played = EpisodeRing(4, 2, latent=3), with_latents(make_episodes([3, 4]))
    more = dataclasses.replace(played, memory=Memory(jnp.ones((2, 9)), played.memory.latent))
    one, two = (add(ring, ring.init(SPEC), episodes, SPEC) for episodes in (played, more))
    assert jax.tree.structure(one) == jax.tree.structure(two)
    np.testing.assert_array_equal(one.kept.memory.latent, two.kept.memory.latent)


def test_cutting_a_batch_leaves_its_latents(key):
    ring, played = EpisodeRing(2, 2, latent=3), with_latents(make_episodes([3, 1]))
    batch = sample(ring, add(ring, ring.init(SPEC), played, SPEC), SPEC, key)
    np.testing.assert_array_equal(batch.cut(3).memory.latent, batch.memory.latent)


# Bad input


def test_a_batch_larger_than_the_replay_is_refused():
    with pytest.raises(
        ValueError, match=r"replay\.batch_size 33: it must be at most the capacity, 32 episodes"
    ):
        EpisodeRing(32, 33)


@pytest.mark.parametrize("name", ["capacity", "batch_size"])
def test_a_replay_of_nothing_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}=0 of EpisodeRing must be 1 or more"):
        dataclasses.replace(EpisodeRing(capacity=1, batch_size=1), **{name: 0})


def test_a_latent_that_policies_do_not_have_is_refused():
    ring = EpisodeRing(2, 1, latent=3)
    with pytest.raises(
        ValueError,
        match=r"replay\.latent 3: it must be 0, because these policies have no such vector",
    ):
        ring.add(ring.init(SPEC), make_episodes([2]), SPEC)


def test_a_replay_that_cannot_hold_one_round_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Task:
        spec = SPEC

        def make(self, num_copies):
            raise AssertionError("nothing is built")

    run = Run(Qmix(replay=EpisodeRing(7, 2), pace=EpisodePace(parallel_envs=8)), Task())
    with pytest.raises(
        ValueError,
        match=r"replay\.capacity 7 is less than one round of 8 episode.* must be 8 or more",
    ):
        check_memory(run)


# Recent episodes, and some of all, in one batch

TWO_DRAWS = EpisodeRing(6, 3, recent=3, recent_batch=2)


@pytest.mark.parametrize(("rounds", "newest"), [(1, [2, 3, 4]), (2, [6, 7, 8]), (3, [10, 11, 12])])
def test_a_batch_has_some_of_the_newest_first_and_then_some_of_all(rounds, newest):
    """Each part without repeats, also when the ring has wrapped and when it is not full."""
    state = TWO_DRAWS.init(SPEC)
    for i in range(rounds):
        state = add(TWO_DRAWS, state, make_episodes([3, 5, 1, 4], first=1 + 4 * i), SPEC)
    keys = jax.random.split(jax.random.key(0), 400)
    drawn = jax.jit(jax.vmap(lambda key: TWO_DRAWS.sample(state, SPEC, key).reward[:, 0]))(keys)
    recent, every = np.split(np.asarray(drawn).astype(int), [2], axis=1)
    assert every.shape[1] == 3
    for part, among in ((recent, newest), (every, range(max(newest[-1] - 5, 1), newest[-1] + 1))):
        values, counts = np.unique(part, return_counts=True)
        assert values.tolist() == list(among) and counts.min() > 0.75 * counts.mean()
        assert (np.diff(np.sort(part, axis=1), axis=1) > 0).all()


def test_the_recent_are_all_there_are_while_there_are_few():
    state, ready = TWO_DRAWS.init(SPEC), []
    for i in range(3):
        state = add(TWO_DRAWS, state, make_episodes([2], first=1 + i), SPEC)
        ready.append(bool(TWO_DRAWS.ready(state)))
    assert ready == [False, False, True]
    wide = EpisodeRing(6, 1, recent=6, recent_batch=3)
    assert sorted(numbers(sample(wide, state, SPEC, jax.random.key(0)))[:3]) == [1, 2, 3]


def test_episodes_of_both_draws_come_back_as_they_were_and_can_be_cut():
    played = make_episodes([3, 2, 1, 3])
    batch = sample(
        TWO_DRAWS, add(TWO_DRAWS, TWO_DRAWS.init(SPEC), played, SPEC), SPEC, jax.random.key(0)
    )
    for b, number in enumerate(numbers(batch)):
        whole = dataclasses.replace(played, memory=())
        for leaf, other in zip(*map(jax.tree.leaves, (batch, whole)), strict=True):
            np.testing.assert_array_equal(leaf[b], other[number - 1])
    assert batch.cut(3).reward.shape == (5, 3) and batch.cut(3).timesteps.obs.shape[:2] == (5, 4)


@pytest.mark.parametrize(
    "sizes", [dict(recent=7), dict(recent=2, recent_batch=3), dict(recent_batch=0)]
)
def test_what_is_recent_must_fit_into_the_ring_and_its_draw_into_what_is_recent(sizes):
    with pytest.raises(ValueError, match="recent"):
        EpisodeRing(6, 3, **{**dict(recent=3, recent_batch=2), **sizes})


def test_without_recent_episodes_a_draw_is_uniform_alone(key):
    """No key is split: the draw is that of a ring that knows of no recent episodes."""
    ring, state = EpisodeRing(6, 3), EpisodeRing(6, 3).init(SPEC)
    state = add(ring, state, make_episodes([3, 5, 1, 4]), SPEC)
    batch = sample(ring, state, SPEC, key)
    expected = ring.gather(state, SPEC, ring.draw_uniform(state, key))
    assert numbers(batch) == numbers(expected) and len(numbers(batch)) == 3
    with pytest.raises(ValueError, match="recent_batch=2 of EpisodeRing"):
        EpisodeRing(6, 3, recent_batch=2)
