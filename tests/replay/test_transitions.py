import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.replay.episodes import Latent
from comarl.replay.transitions import Ring
from comarl.types import Episode, Timestep

HORIZON = 10


@functools.partial(jax.jit, static_argnums=(0, 3))
def add(ring, state, episodes, spec):
    return ring.add(state, episodes, spec)


@functools.partial(jax.jit, static_argnums=(0, 2))
def sample(ring, state, spec, key):
    return ring.sample(state, spec, key)


class Tape:
    """Makes episodes whose every row carries its own number, and remembers rows in a plain list,
    newest last."""

    def __init__(self, spec, capacity: int, seed: int = 0):
        self.spec, self.capacity = spec, capacity
        self.random = np.random.default_rng(seed)
        self.rows: list[dict] = []  # every row ever written
        self.count = 0  # numbers handed out

    def episodes(self, lengths, garbage: float = np.nan, horizon: int = HORIZON) -> Episode:
        """One episode per length; 0 is one that was masked from its start. What is masked is
        garbage."""
        spec, teams = self.spec, len(lengths)
        state = np.full((teams, horizon + 1, spec.state_size), garbage)
        obs = np.full((teams, horizon + 1, spec.num_agents, spec.obs_size), garbage)
        shape = (
            (teams, horizon, spec.num_agents)
            if spec.discrete
            else (teams, horizon, spec.num_agents, 2)
        )
        action = np.full(shape, 77) if spec.discrete else np.full(shape, garbage)
        reward, terminated = np.full((teams, horizon), garbage), np.ones((teams, horizon), bool)
        mask = np.zeros((teams, horizon), bool)
        for team, length in enumerate(lengths):
            for t in range(length + 1 if length else 0):
                self.count += 1
                state[team, t], obs[team, t] = self.count, 1000 + self.count
                row = {"state": self.count, "starts": t < length}
                if t < length:
                    mask[team, t], reward[team, t] = True, -self.count
                    action[team, t] = self.count % 5 if spec.discrete else self.count / 1024
                    terminated[team, t] = t == length - 1 and self.random.random() < 0.5
                    row |= {
                        "action": action[team, t].flat[0],
                        "terminated": bool(terminated[team, t]),
                    }
                self.rows.append(row)
        as_array = lambda x, dtype=jnp.float32: jnp.asarray(x, dtype)
        return Episode(
            memory=(),
            timesteps=Timestep(as_array(obs), as_array(state)),
            action=as_array(action, jnp.int32 if spec.discrete else jnp.float32),
            reward=as_array(reward),
            terminated=jnp.asarray(terminated),
            mask=jnp.asarray(mask),
        )

    def held(self) -> dict[int, tuple]:
        """The transitions that the newest `capacity` rows make: number of the state -> what belongs
        to it."""
        rows = self.rows[-self.capacity :]
        return {
            row["state"]: (row["state"] + 1, -row["state"], row["action"], row["terminated"])
            for row in rows
            if row["starts"]
        }


def seen(batch) -> dict[int, tuple]:
    """The same of a sampled batch; draws of one transition must agree."""
    found: dict[int, tuple] = {}
    columns = (
        batch.now.state[:, 0],
        batch.next.state[:, 0],
        batch.reward,
        batch.action.reshape(len(batch.reward), -1)[:, 0],
        batch.terminated,
    )
    for now, *rest in zip(*(np.asarray(c).tolist() for c in columns), strict=True):
        assert found.setdefault(int(now), tuple(rest)) == tuple(rest)
    return found


@pytest.fixture(scope="module")
def with_obs(spec):
    return dataclasses.replace(spec, obs_from_state=None)


@pytest.fixture(scope="module")
def played(spec):
    """A small ring after one round of four teams: 3 + 0 + 10 + 5 transitions."""
    ring, tape = Ring(50, 4000), Tape(spec, 50)
    return ring, tape, add(ring, ring.init(spec), tape.episodes([3, 0, 10, 5]), spec)


def test_every_transition_comes_back_with_its_own_next_state(played, spec, key):
    ring, tape, state = played
    found = seen(sample(ring, state, spec, key))
    assert len(found) == 18
    assert found == tape.held()


def test_draws_are_uniform_over_the_transitions_held(played, spec, key):
    ring, _, state = played
    draws = np.concatenate(
        [sample(ring, state, spec, k).now.state[:, 0] for k in jax.random.split(key, 5)]
    )
    counts = np.unique(draws, return_counts=True)[1]
    expected = len(draws) / 18
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert len(counts) == 18
    assert 4 < chi_square < 43  # 17 degrees of freedom: 1 in 2000 on either side


def test_draws_stay_uniform_after_the_ring_has_wrapped(spec, key):
    ring, tape = Ring(50, 4000), Tape(spec, 50)
    state = ring.init(spec)
    for lengths in ([10, 10, 10, 10], [1, 7, 0, 3], [4, 4, 1, 1]):
        state = add(ring, state, tape.episodes(lengths), spec)
    draws = np.concatenate(
        [sample(ring, state, spec, k).now.state[:, 0] for k in jax.random.split(key, 5)]
    )
    counts = np.unique(draws, return_counts=True)[1]
    expected = len(draws) / len(tape.held())
    assert len(counts) == len(tape.held())
    assert ((counts - expected) ** 2 / expected).sum() < 2.2 * len(counts)


@pytest.mark.parametrize("seed", range(4))
def test_the_ring_holds_what_a_list_of_the_newest_rows_holds(spec, key, seed):
    """Forty rounds of four teams with episodes of any length, many times around the ring."""
    ring, tape = Ring(50, 4000), Tape(spec, 50, seed)
    state = ring.init(spec)
    for round_ in range(40):
        lengths = tape.random.integers(0, HORIZON + 1, size=4) * (tape.random.random(4) < 0.8)
        if round_ == 0:
            lengths[0] = 3
        state = add(ring, state, tape.episodes(lengths), spec)
        assert int(state.size) == len(tape.held())
        assert seen(sample(ring, state, spec, jax.random.fold_in(key, round_))) == tape.held()


def test_a_round_may_fill_the_whole_ring(spec, key):
    ring, tape = Ring(44, 4000), Tape(spec, 44)
    state = add(ring, ring.init(spec), tape.episodes([2, 0, 0, 1]), spec)
    state = add(ring, state, tape.episodes([HORIZON] * 4), spec)
    assert int(state.size) == 40
    assert seen(sample(ring, state, spec, key)) == tape.held()


def test_nothing_is_held_before_the_first_step(spec):
    ring, tape = Ring(50, 4000), Tape(spec, 50)
    state = add(ring, ring.init(spec), tape.episodes([0, 0, 0, 0]), spec)
    assert int(state.size) == 0 and int(state.cursor) == 0


def test_episodes_that_were_not_played_change_nothing(played, spec, bits):
    ring, _, state = played
    after = add(ring, state, Tape(spec, 50).episodes([0, 0, 0, 0]), spec)
    assert bits(after) == bits(state)


def test_what_is_masked_does_not_matter(spec, bits):
    """No transition holds any of it, whatever it is."""
    ring = Ring(50, 4000)
    states = [
        add(ring, ring.init(spec), Tape(spec, 50).episodes([3, 0, 10, 5], garbage=garbage), spec)
        for garbage in (np.nan, 7e7)
    ]
    live = states[0].is_start
    for name in ("state", "reward", "action", "terminated"):
        one, two = (np.asarray(getattr(s, name)) for s in states)
        rows = np.asarray(live) if name != "state" else np.arange(50) < int(states[0].cursor)
        assert np.isfinite(one[rows]).all()
        np.testing.assert_array_equal(one[rows], two[rows])
    for name in ("is_start", "starts", "cursor", "first", "size"):
        np.testing.assert_array_equal(getattr(states[0], name), getattr(states[1], name))


def test_a_truncated_step_keeps_its_true_next_state_and_is_not_terminated(spec, key):
    """An episode cut by the horizon, one that the task ended in its last step, and one cut
    early."""
    ring, tape = Ring(50, 4000), Tape(spec, 50)
    episodes = tape.episodes([HORIZON, HORIZON, 4, 2])
    ends = np.zeros((4, HORIZON), bool)
    ends[1, HORIZON - 1] = ends[3, 1] = True
    episodes = dataclasses.replace(episodes, terminated=jnp.asarray(ends))
    found = seen(sample(ring, add(ring, ring.init(spec), episodes, spec), spec, key))
    # Rows are numbered from 1: 10 steps and a last state, 10 and one, 4 and one, 2 and one.
    last_steps = {10: False, 21: True, 26: False, 29: True}
    for last, terminated in last_steps.items():
        assert found[last][0] == last + 1
        assert found[last][3] is terminated
    assert sum(transition[3] for transition in found.values()) == 2
    assert not {11, 22, 27, 30} & found.keys()  # a last state begins nothing


def test_observations_are_gathered_from_the_state_when_the_spec_says_so(played, spec, key):
    ring, _, state = played
    assert state.obs is None
    batch = sample(ring, state, spec, key)
    np.testing.assert_array_equal(batch.now.obs, spec.observe(batch.now.state))
    np.testing.assert_array_equal(batch.next.obs, spec.observe(batch.next.state))
    # Padding of the agent that sees two numbers
    np.testing.assert_array_equal(batch.now.obs[:, 1, 2:], 0.0)
    assert np.all(batch.now.obs[:, 1, :2] > 0)


def test_observations_are_kept_when_they_are_no_part_of_the_state(with_obs, key):
    ring, tape = Ring(50, 4000), Tape(with_obs, 50)
    state = add(ring, ring.init(with_obs), tape.episodes([3, 0, 10, 5]), with_obs)
    state = add(ring, state, tape.episodes([10, 10, 2, 0]), with_obs)
    batch = sample(ring, state, with_obs, key)
    assert seen(batch) == tape.held()
    for timestep in (batch.now, batch.next):
        np.testing.assert_array_equal(
            timestep.obs, np.asarray(timestep.state)[:, :1, None] + np.full((3, 5), 1000.0)
        )


def test_discrete_actions_are_kept_as_whole_numbers(spec, key):
    discrete = dataclasses.replace(spec, discrete=True, action_size=5, action_sizes=None)
    ring, tape = Ring(50, 4000), Tape(discrete, 50)
    state = add(ring, ring.init(discrete), tape.episodes([3, 0, 10, 5]), discrete)
    batch = sample(ring, state, discrete, key)
    assert batch.action.dtype == jnp.int32 and batch.action.shape == (4000, 3)
    assert seen(batch) == tape.held()


def test_seeds_keep_apart_when_the_ring_is_mapped(spec, key, bits):
    ring = Ring(50, 8)
    rounds = [
        Tape(spec, 50, seed=1).episodes([3, 0, 10, 5]),
        Tape(spec, 50, seed=2).episodes([1, 2, 3, 4]),
    ]
    stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    both = jax.jit(jax.vmap(lambda s, e: ring.add(s, e, spec)))(
        stack([ring.init(spec)] * 2), stack(rounds)
    )
    for seed in range(2):
        alone = add(ring, ring.init(spec), rounds[seed], spec)
        assert bits(jax.tree.map(lambda leaf, seed=seed: leaf[seed], both)) == bits(alone)
    keys = jax.random.split(key, 2)
    batch = jax.jit(jax.vmap(lambda s, k: ring.sample(s, spec, k)))(both, keys)
    assert batch.reward.shape == (2, 8)


def test_each_transition_comes_back_with_the_latent_of_its_episode(spec, key):
    """Also after the ring has wrapped; what policies without one remember is refused."""
    ring, tape = Ring(50, 4000, latent=2), Tape(spec, 50)
    state, of_state, count = ring.init(spec), {}, 0
    for lengths in ([10, 0, 7, 10], [9, 1, 3, 10], [4, 4, 0, 8]):
        latent = tape.random.normal(size=(4, 2)).astype(np.float32)
        episodes = dataclasses.replace(tape.episodes(lengths), memory=Latent(jnp.asarray(latent)))
        state = add(ring, state, episodes, spec)
        for length, vector in zip(lengths, latent, strict=True):
            of_state |= {count + 1 + t: vector for t in range(length)}
            count += length + (length > 0)
    batch = sample(ring, state, spec, key)
    assert seen(batch) == tape.held()
    np.testing.assert_array_equal(batch.latent, [of_state[int(x)] for x in batch.now.state[:, 0]])
    with pytest.raises(
        ValueError,
        match=r"replay\.latent 2: it must be 0, because these policies have no such vector",
    ):
        add(ring, state, tape.episodes([1, 1, 1, 1]), spec)
