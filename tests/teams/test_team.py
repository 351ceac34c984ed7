"""A team outside its run does what it does when it is evaluated: every algorithm of the table."""

import jax
import numpy as np
import pytest

from comarl.play.player import make_player
from comarl.teams.export import export, read
from comarl.teams.team import Team, Which
from comarl.types import Communicates
from tests.teams.small import FAMILIES, config_of, run_of, trained_of

KEY = jax.random.key(5)
DRAWS = {"ndq", "vm3-ac-shared", "vm3-ac-discrete-shared", "maven", "maven-learned", "maven-ac"}


def teams_of(name):
    run = run_of(name)
    return ["marl_team", "best_team"][: min(2, run.num_teams)]


def team_of(run, seed=0, which: Which = "marl_team", draw=0):
    return Team.of_run(run, config_of(run), trained_of(run, draw), seed, which)


def evaluated(run, team, draw=0, key=KEY):
    """One greedy episode `[time ...]` of a team of the first seed, and its key."""
    teams, playing = np.array([[team.acting.form.team]]), np.ones((1, 1), bool)
    player, close = make_player(run.algorithm, run.task, 1, 1)
    episode = player(*trained_of(run, draw), teams, playing, key[None], "greedy")
    close()
    return jax.tree.map(lambda x: np.asarray(x[0, 0]), episode), jax.random.split(key, 1)[0]


def lively(run, which: Which = "marl_team"):
    """A team that does not always choose the same, and an episode of it: others prove nothing."""
    for draw in range(30):
        team = team_of(run, 0, which, draw)
        episode, key = evaluated(run, team, draw)
        if len(np.unique(episode.action)) > 1:
            return team, episode, key
    raise AssertionError("none of thirty teams moves")


def replayed(actor, episode, key, agent=None):
    """The actions of a team, or of one agent, that is shown an episode step by step."""
    actor.reset(key)
    see = episode.timesteps
    row = (lambda x: x) if agent is None else (lambda x: x[agent])
    steps = range(len(episode.mask))
    allowed = lambda t: None if see.available is None else row(see.available[t])
    return np.array([actor.act(row(see.obs[t]), allowed(t), see.state[t]) for t in steps])


def same(one, two, discrete):
    """Discrete actions are the same; others but for the rounding of another compiled program."""
    if discrete:
        np.testing.assert_array_equal(one, two)
    else:
        np.testing.assert_allclose(one, two, atol=2e-6)


@pytest.mark.parametrize(("name", "which"), [(n, w) for n in FAMILIES for w in teams_of(n)])
def test_a_team_acts_as_evaluated_and_so_does_its_file_and_each_agent_alone(name, which, tmp_path):
    run = run_of(name)
    team, episode, key = lively(run, which)
    discrete = run.spec.discrete
    same(replayed(team, episode, key), episode.action, discrete)
    # Its file
    again = read(export(team, tmp_path / "team.safetensors"))
    np.testing.assert_array_equal(replayed(again, episode, key), replayed(team, episode, key))
    # Each agent by itself, whatever the others see
    for i in range(run.spec.num_agents):
        alone = replayed(team.agent(i), episode, key, i)
        if not isinstance(run.algorithm, Communicates):
            same(alone, replayed(team, episode, key)[:, i], discrete)
    # What is drawn follows the key
    other = replayed(team, episode, jax.random.key(8))
    assert name in DRAWS or (other == replayed(team, episode, key)).all()
