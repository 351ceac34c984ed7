"""Agents of different seeds in one team."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.algorithms.qmix import Qmix
from comarl.play.player import make_player
from comarl.teams.acting import clock_of, unseen
from comarl.teams.cross_play import Guest, Pair, cross_play, cross_play_rows
from comarl.teams.team import Team, mixed
from comarl.training.evaluate import evaluate, evaluation_plan
from comarl.types import EnvSpec
from tests.teams.small import config_of, run_of, trained_of
from tests.training.tasks import HostWander, Stroll

EPISODES = 2


def evaluated(run):
    """Mean returns of each seed's own team, as evaluation has them."""
    player, close = make_player(
        run.algorithm, run.task, run.seeds, EPISODES * min(run.num_teams, 2)
    )
    scores = evaluate(run, player, *trained_of(run), np.ones(run.seeds, bool))
    close()
    return scores["marl_team"].mean(axis=1)


@pytest.mark.parametrize("name", ["qmix", "maven", "ea-matd3", "matd3"])
def test_the_diagonal_is_ordinary_play_and_the_rest_is_what_mixed_teams_get(name):
    run = run_of(name, seeds=2, task=HostWander() if name == "matd3" else None)
    returns = cross_play(run, trained_of(run), EPISODES)
    np.testing.assert_allclose(np.diag(returns), evaluated(run), rtol=1e-6)
    assert len(set(returns.ravel())) > 2
    if run.task == Stroll():
        np.testing.assert_allclose(returns[0, 1], by_hand(run, guest=0, host=1), rtol=1e-5)


def by_hand(run, guest, host):
    """The same entry of the matrix from two teams outside their run, step by step."""
    keys = evaluation_plan(run, trained_of(run).agent, trained_of(run).clock)[1]
    teams = [Team.of_run(run, config_of(run), trained_of(run), seed) for seed in (guest, host)]
    returns = []
    for place in range(run.spec.num_agents):
        members = [teams[0] if i == place else teams[1] for i in range(run.spec.num_agents)]
        for key in jax.random.split(keys[host], EPISODES):
            returns.append(play(run.task, mixed(members).reset(key), key))
    return np.mean(returns)


def play(task, team, key):
    """The return of one episode, with the keys of `comarl.play.rollout`."""
    reset_key, _, steps_key = jax.random.split(key, 3)
    state, seen = jax.jit(task.reset)(reset_key)
    total, step = 0.0, jax.jit(task.step)
    for step_key in jax.random.split(steps_key, task.spec.horizon):
        action = team.act(seen.obs, seen.available, seen.state)
        env_key = jax.random.split(step_key)[1]
        state, seen, reward, terminated, truncated = step(state, action, env_key)
        total += float(reward)
        if terminated or truncated:
            break
    return total


def test_one_agent_is_the_guest_and_the_others_are_at_home():
    class Constant(Qmix):
        """Every agent chooses the number that it has learnt, plus its team's."""

        def act(self, state: Any, team, memory: Any, timestep, clock, key, *, explore):
            return memory + 1, jnp.full(3, state + team)

    pair = Pair(jnp.int32(10), jnp.int32(20), jnp.int32(1), jnp.int32(2))
    seen = unseen(EnvSpec(3, 1, 1, 2, discrete=True, horizon=1))
    guest, key = Guest(Constant()), jax.random.key(0)
    memory, action = guest.act(pair, 1, (0, 5), seen, clock_of(0, 0), key, explore=False)
    assert action.tolist() == [11, 22, 11] and memory == (1, 6)


def test_agents_that_communicate_have_no_cross_play():
    run = run_of("ndq", seeds=2)
    with pytest.raises(ValueError, match="no common language"):
        cross_play(run, trained_of(run))


def test_the_table_names_seeds_and_says_what_partners_cost():
    run = dataclasses.replace(run_of("qmix", seeds=2), first_seed=7)
    rows = cross_play_rows(run, np.array([[3.0, 1.0], [2.0, 5.0]]))
    assert rows == [
        ["one agent of", "in team of seed 7", "in team of seed 8"],
        ["seed 7", "3", "1"],
        ["seed 8", "2", "5"],
        ["others less own", "-1", "-4"],
    ]
