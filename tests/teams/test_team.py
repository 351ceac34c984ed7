"""A team outside its run does what it does when it is evaluated: every algorithm of the table."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.envs import find_task
from comarl.play.player import make_player
from comarl.teams.acting import Acting, Form, begin, clock_of, first_key, step_key
from comarl.teams.export import export, read
from comarl.teams.team import About, Team, Which, mixed, read_key
from comarl.types import Communicates, Timestep
from tests.teams.small import FAMILIES, config_of, run_of, trained_of
from tests.training.tasks import HostWander

OBS, ALL = np.zeros((2, 2), np.float32), np.ones((2, 3), bool)
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
    first = jax.tree.map(lambda x: jnp.asarray(x[0]), episode.timesteps)
    began = begin(team.acting, first, key)
    assert jax.tree.leaves(jax.tree.map(np.array_equal, began, episode.memory)).count(False) == 0
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


@pytest.mark.parametrize("name", ["matd3", "vm3-ac-shared"])
def test_outside_jax_a_team_acts_as_evaluated_too(name):
    run = run_of(name, task=HostWander())
    team = team_of(run)
    episode, key = evaluated(run, team)
    state = jnp.asarray(episode.timesteps.state)
    seen = Timestep(run.spec.observe(state), state)
    episode = eqx.tree_at(lambda episode: episode.timesteps, episode, seen)
    steps = episode.mask
    assert steps.sum() > 2
    same(replayed(team, episode, key)[steps], episode.action[steps], discrete=False)


@pytest.mark.parametrize(
    ("name", "task"),
    [("race-matd3", "mamujoco/Hopper-3x1"), ("vm3-ac-shared", "mamujoco/Hopper-3x1")],
)
def test_a_team_alone_gets_the_return_of_its_evaluation_in_a_simulation(name, task):
    """Step by step by hand, as a user plays it."""
    run = run_of(name, task=find_task(task))
    team = team_of(run)
    episode, key = evaluated(run, team)
    env = run.task.make(1)
    seed = jax.random.randint(jax.random.split(key, 3)[0], (), 0, 2**31 - 1)
    seen = env.reset(np.array([seed]), np.ones(1, bool))
    total, over = 0.0, False
    team.reset(key)
    while not over:
        obs = seen.obs[0] if seen.obs.size else run.spec.observe(jnp.asarray(seen.state[0]))
        seen, reward, terminated, truncated = env.step(team.act(obs)[None])
        total, over = total + reward[0], terminated[0] or truncated[0]
    env.close()
    np.testing.assert_allclose(total, episode.returns(), rtol=1e-3)


def kept(name, which: Which = "marl_team"):
    return [path for path, _, _ in team_of(run_of(name), which=which).acting.form.kept]


def test_only_what_acts_is_kept():
    for name in FAMILIES:
        for path in kept(name):
            assert not any(word in path for word in ("critic", "target", "mixer", "mine", "state"))
    assert all(path.startswith((".encoder", ".head")) for path in kept("race-matd3"))
    assert all(
        path.startswith((".encoder", ".population")) for path in kept("race-matd3", "best_team")
    )
    assert all(path.startswith(".base") for path in kept("merl-facmac"))
    # Of a population one team
    acting = team_of(run_of("merl-matd3"), which="best_team").acting
    assert isinstance(acting, Acting)
    assert {leaf.shape[0] for leaf in acting.leaves} == {1}


@pytest.mark.parametrize("name", ["qmix", "maven-learned"])
def test_the_pure_form_runs_inside_a_loop_of_ones_own(name):
    team, episode, key = lively(run_of(name))
    steps = jax.tree.map(lambda x: jnp.asarray(x[:-1]), episode.timesteps)

    @jax.jit
    @jax.vmap
    def play(memory_key, step_keys):
        first = team.first_memory(jax.tree.map(lambda x: x[0], steps), memory_key)
        step = lambda memory, now: team.step(memory, *now)
        return jax.lax.scan(step, first, (steps, step_keys))[1]

    times = jnp.arange(team.spec.horizon)
    keys = jax.vmap(lambda time: step_key(team.acting.form, key, time))(times)
    twice = lambda x: jnp.stack([x, x])
    actions = play(twice(first_key(key)), twice(keys))
    assert actions.tolist() == [replayed(team, episode, key).tolist()] * 2


def test_agents_that_communicate_hear_nothing_when_alone():
    """NDQ: what is left is the team whose messages are all dropped."""
    run = run_of("ndq")
    without = dataclasses.replace(FAMILIES["ndq"], drop_share=1.0)
    deaf = dataclasses.replace(run, algorithm=without)
    differs = []
    for draw in range(5):
        team = team_of(run, draw=draw)
        episode, key = evaluated(run, team, draw)
        silence = replayed(team_of(deaf, draw=draw), episode, key)
        for i in range(2):
            assert (replayed(team.agent(i), episode, key, i) == silence[:, i]).all()
        differs.append((silence != replayed(team, episode, key)).any())
    assert any(differs)


def test_agents_with_equal_keys_share_their_latent():
    """So that alone each does what it does in the team; with another key it does not."""
    team, episode, key = lively(run_of("vm3-ac-shared"))
    one = replayed(team.agent(1), episode, key, 1)
    assert (one != replayed(team.agent(1), episode, jax.random.key(77), 1)).any()


def test_agents_of_unequal_size_take_rows_without_padding(spec):
    algorithm = FAMILIES["matd3"]
    form = Form.of(algorithm, spec, 0, True)
    agent = algorithm.init(spec, jax.random.key(0))
    team = Team(Acting.of(form, agent, clock_of(0, 0)), About({}))
    rows = [np.arange(size) / 3.0 for size in (4, 2, 5)]
    padded = np.stack([np.pad(row, (0, 5 - len(row))) for row in rows])
    whole = team.reset().act(padded)
    assert (team.reset().act(rows) == whole).all() and whole.shape == (3, 2) and whole[1, 1] == 0
    for i, size in enumerate((2, 1, 2)):
        action = team.agent(i).reset().act(rows[i])
        assert action.shape == (size,) and (action == whole[i, :size]).all()


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda t: t.act(OBS, ALL), "call reset"),
        (lambda t: t.reset().act(None, ALL), "obs is missing; it must be .2, 2., a row for each"),
        (lambda t: t.reset().act(np.zeros((3, 2)), ALL), "obs has shape .3, 2.; it must be .2, 2."),
        (
            lambda t: t.reset().act(np.zeros((2, 5)), ALL),
            "obs of agent 0 has shape .5.; it must be .2",
        ),
        (lambda t: t.reset().act(np.zeros(2), ALL), "obs has shape .2.; it must be .2, 2."),
        (lambda t: t.reset().act([[0.0], [0.0, 1.0]], ALL), "obs of agent 0 has shape .1."),
        (lambda t: t.reset().act({"a": 1}, ALL), "obs is a dict; it must be"),
        (lambda t: t.reset().act(["a", "b"], ALL), "obs has shape"),
        (lambda t: t.reset().act([["a", "b"], [0, 1]], ALL), "obs of agent 0 must be numbers"),
        (lambda t: t.reset().act(OBS), "available is missing; it must be .2, 3."),
        (lambda t: t.reset().act(OBS, ALL[:, :2]), "available of agent 0 has shape .2."),
        (lambda t: t.reset().act(OBS, [[1, 0, 0], [0, 0, 0]]), "allows agent 1 no action"),
        (lambda t: t.reset().act(OBS, ALL, np.zeros(3)), "state has shape .3.; it must be .2."),
        (lambda t: t.reset(-1), "key=-1 must be a seed"),
        (lambda t: read_key(jax.random.split(jax.random.key(0))), "must be a seed"),
        (lambda t: t.agent(2), "agent 2 must be between 0 and 1"),
        (lambda t: t.agent(0).reset().act(OBS, ALL[0]), "obs of agent 0 has shape .2, 2."),
        (lambda t: t.agent(1).reset().act(OBS[1]), "available of agent 1 is missing"),
        (lambda t: mixed([t]), "1 team given; there must be"),
        (lambda t: mixed([t, mixed([t, t])]), "team 1 is itself mixed"),
        (lambda t: mixed([t, team_of(run_of("ndq"))]), "communicate"),
        (lambda t: mixed([t, team_of(run_of("matd3"))]), "task of other sizes"),
        (lambda t: team_of(run_of("qmix"), seed=3), "seed=3 must be one that the run has: 0"),
        (lambda t: team_of(run_of("qmix"), which="best_team"), "trains one team only"),
        (lambda t: team_of(run_of("matd3")).reset().act(OBS, ALL), "actions are continuous"),
        (lambda t: team_of(run_of("maven-learned")).reset().act(OBS, ALL), "state is missing"),
    ],
)
def test_what_cannot_be_meant_is_answered_in_one_sentence(act, message):
    with pytest.raises(ValueError, match=message) as error:
        act(team_of(run_of("qmix")))
    assert "\n" not in str(error.value)
