"""The contract: tasks of the library keep it, and a task broken in one way is told which."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl import envs
from comarl.cli import main
from comarl.envs import find_task, probes
from comarl.envs.check import ContractViolation, check
from comarl.types import EnvSpec, HostTimestep, Timestep

SPEC = EnvSpec(
    2,
    2,
    3,
    2,
    discrete=True,
    horizon=4,
    obs_sizes=(2, 1),
    obs_from_state=((0, 1), (2,)),
    obs_range=(0.0, 1.0),
)
calls = iter(range(10**6))  # what a task must not depend on


def same(x):
    return x


@dataclass(frozen=True)
class Walk:
    """A whole task; every field may replace one part of it by something broken."""

    spec: EnvSpec = SPEC
    first: Callable = same  # of the first timestep
    later: Callable = same  # of those after
    reward: Callable = lambda x, time: x
    flags: Callable = lambda terminated, truncated, time: (terminated, truncated)
    count: Callable = same
    after: Callable = same  # of the environment's state

    def observe(self, state):
        available = jnp.stack([state[:2] >= 0.0, state[:2] > 0.5])
        return Timestep(SPEC.observe(state), state, available.at[:, 0].set(True))

    def reset(self, key):
        state = jax.random.uniform(key, (3,))
        return (state, jnp.int32(0)), self.first(self.observe(state))

    def step(self, env_state, action, key):
        state, time = jax.random.uniform(key, (3,)), env_state[1] + 1
        flags = self.flags(jnp.bool_(False), time >= 4, time)
        return (
            self.after((state, time)),
            self.later(self.observe(state)),
            self.reward(state[0], time),
            *flags,
        )

    def metrics(self, env_state):
        return {"place": self.count(env_state[0][1])}


def changed(name, change):
    return lambda timestep: replace(timestep, **{name: change(getattr(timestep, name))})


def drifted(timestep, call):
    state = timestep.state * (1.0 - 1e-4 * call)
    return Timestep(SPEC.observe(state), state, timestep.available)


UNKNOWN = Timestep(jnp.zeros((2, 2)), jnp.zeros(3), None)
BROKEN: dict[str, Any] = {
    "obs of reset has shape [2, 3]; it must have [2, 2], [num_agents, obs_size] of spec": dict(
        first=changed("obs", lambda x: jnp.zeros((2, 3)))
    ),
    "state of step has shape [4]; it must have [3], [state_size] of spec": dict(
        later=changed("state", lambda x: jnp.zeros(4))
    ),
    "obs of step is of float16; it must be of float32": dict(
        later=changed("obs", lambda x: x.astype(jnp.float16))
    ),
    "available of reset is None; discrete actions need a mask": dict(first=lambda x: UNKNOWN),
    "available of step has shape [2, 5]; it must have [2, 2], [num_agents, action_size]": dict(
        later=changed("available", lambda x: jnp.ones((2, 5), bool))
    ),
    "available of reset is a mask; for continuous actions it must be None": dict(
        spec=replace(SPEC, discrete=False, action_size=1)
    ),
    "the reward of step has shape [2]; it must have [], a scalar: the team shares it": dict(
        reward=lambda x, time: jnp.stack([x, x])
    ),
    "the reward of step is of int32; it must be of float32": dict(
        reward=lambda x, time: x.astype(jnp.int32)
    ),
    "terminated of step is of float32; it must be of bool": dict(
        flags=lambda end, cut, time: (jnp.float32(0), cut)
    ),
    "'place' of metrics has shape [1]; it must have [], a scalar": dict(count=lambda x: x[None]),
    "env_state is ('float32[3]', 'float32[]') after step; it must be as after reset, ": dict(
        after=lambda env_state: (env_state[0], env_state[1].astype(jnp.float32))
    ),
    "state has NaN or infinite entries; all must be finite": dict(
        later=changed("state", lambda x: x.at[0].set(jnp.nan))
    ),
    "reward has NaN or infinite entries": dict(reward=lambda x, time: x / 0.0),
    "'place' of metrics has NaN or infinite entries": dict(count=lambda x: x * jnp.nan),
    "obs is in [0.0, 2.0]; obs_range of spec is [0.0, 1.0]": dict(
        later=changed("obs", lambda x: x.at[0, 0].set(2.0))
    ),
    "obs of agent 1 is not 0 after its first 1 entries, its size in obs_sizes of spec": dict(
        later=changed("obs", lambda x: x.at[1, 1].set(0.5))
    ),
    "obs is not spec.observe(state); correct obs_from_state of spec": dict(
        later=changed("obs", lambda x: x * 0.5)
    ),
    "available is all false for agent 1; one action at least must always be true": dict(
        later=changed("available", lambda x: x.at[1].set(False))
    ),
    "terminated and truncated are both true at step 4; one at most may be": dict(
        flags=lambda end, cut, time: (cut, cut)
    ),
    "truncated is true at step 3; time runs out at step 4, the horizon of spec": dict(
        flags=lambda end, cut, time: (end, time >= 3)
    ),
    "truncated is false at step 4, the horizon of spec; it must be true unless terminated is": dict(
        flags=lambda end, cut, time: (end, time >= 5)
    ),
    "reset gives two different starts for one key": dict(
        first=lambda timestep: drifted(timestep, next(calls))
    ),
    "step gives two different results for one env_state, action and key": dict(
        reward=lambda x, time: x * (1.0 - 1e-4 * next(calls))
    ),
}


@pytest.mark.parametrize("name", probes.PROBES)
def test_every_probe_keeps_the_contract(name):
    check(find_task(f"probe/{name}"), steps=20)


def test_a_task_that_keeps_the_contract_is_reported_as_it_was_played():
    report = check(Walk(reward=lambda x, time: x * 0.0 + 1.5), steps=40)
    assert report == (10, 4.0, 6.0)


def test_an_episode_that_the_task_ends_counts_until_its_end_and_what_follows_is_ignored():
    task = Walk(
        reward=lambda x, time: jnp.where(time <= 2, 1.5, jnp.nan),
        flags=lambda end, cut, time: (time == 2, cut),
        count=lambda x: jnp.float32(1.0),
    )
    assert check(task, steps=40) == (10, 2.0, 3.0)


@pytest.mark.parametrize("violation", BROKEN)
def test_each_violation_names_the_field_what_was_found_and_what_would_be_right(violation):
    with pytest.raises(ContractViolation, match="^" + re.escape(violation)):
        check(Walk(**BROKEN[violation]), steps=32)


def test_what_is_no_task_or_cannot_be_hashed_is_refused():
    with pytest.raises(
        ContractViolation,
        match=r"^int is no task: an Environment has spec, reset, step and metrics",
    ):
        check(3)
    with pytest.raises(
        ContractViolation, match=r"^Walk cannot be hashed; make it a frozen dataclass of hashable"
    ):
        check(Walk(first=cast(Any, [])))


@dataclass(frozen=True)
class HostWalk:
    """Copies that count to their horizon of 3; `fault` is what they do wrong."""

    fault: str = ""
    spec = EnvSpec(2, 1, 1, 1, discrete=False, horizon=3)

    def make(self, num_copies):
        return HostWalks(self, num_copies)


class HostWalks:
    def __init__(self, task, num_copies):
        self.task, self.spec, self.num_copies = task, task.spec, num_copies
        self.place, self.over = np.zeros(num_copies), np.ones(num_copies, bool)

    def observe(self):
        dtype = np.float64 if self.task.fault == "dtype" else np.float32
        state = self.place[:, None].astype(dtype)
        return HostTimestep(np.stack([state, state], 1), state)

    def reset(self, seeds, playing):
        chance = next(calls) if self.task.fault == "chance" else 0
        self.place, self.time, self.over = np.float64(seeds) + chance, 0, ~playing
        return self.observe()

    def step(self, action):
        self.time += 1
        playing = ~self.over | (self.task.fault == "idle")
        self.place = self.place + playing * action[:, 0, 0]
        truncated = playing & (self.time >= 3)
        self.over = self.over | truncated
        return (
            self.observe(),
            playing.astype(np.float32),
            np.zeros(self.num_copies, bool),
            truncated,
        )

    def close(self):
        pass


def test_a_task_outside_jax_is_held_to_the_same_contract():
    assert check(HostWalk(), steps=30) == (10, 3.0, 3.0)


@pytest.mark.parametrize(
    ("fault", "violation"),
    [
        ("dtype", "obs of reset is of float64; it must be of float32"),
        (
            "chance",
            "reset gives two different starts for one key (or seed); its randomness must come from "
            "that alone",
        ),
        ("idle", "reward of step is 1.0 in a copy that is not playing; it must be 0 there"),
    ],
)
def test_a_fault_of_a_task_outside_jax_is_told(fault, violation):
    with pytest.raises(ContractViolation, match="^" + re.escape(violation)):
        check(HostWalk(fault))


def test_the_command_prints_one_line_and_fails_for_a_broken_task(capsys, monkeypatch):
    assert main(["check", "matrix/penalty", "--steps", "64", "--seed", "1"]) == 0
    said = capsys.readouterr().out
    assert re.fullmatch(
        r"matrix/penalty keeps the contract: 64 episodes of random actions, mean length 1.0, mean "
        r"return -\d+.*\n",
        said,
    )
    assert main(["check", "matrix/penalti"]) == 2
    assert "did you mean 'matrix/penalty' or" in capsys.readouterr().err
    monkeypatch.setattr(envs, "find_task", lambda name: HostWalk("idle"))
    assert main(["check", "mine"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("comarl: mine: reward of step is 1.0 in a copy that is not playing")
    assert told.count("\n") == 1
