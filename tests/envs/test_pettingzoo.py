"""PettingZoo's environments as tasks, held against the environments themselves; and every one that
cannot be a task."""

import sys
import warnings
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("Box2D")

from gymnasium import spaces

from comarl.cli import main
from comarl.envs import find_task, pettingzoo
from comarl.envs.check import check
from comarl.envs.pettingzoo import PettingZoo
from comarl.runs.records import read
from comarl.types import HostEnvironment, Task
from comarl.workers.measure import measure
from comarl.workers.pool import Workers
from comarl.workers.team import ParallelTeam

SPREAD = "mpe2.simple_spread_v3"
OTHER = "mpe2.simple_reference_v3"
WALKERS = "pettingzoo.sisl.multiwalker_v9"
VECTOR = spaces.Box(-1.0, 1.0, (2,))


class Toy:
    """A parallel environment in which agents leave one by one: agent i after `lives[i]` steps."""

    def __init__(
        self,
        obs=(VECTOR, VECTOR),
        actions=(VECTOR, VECTOR),
        lives=(2, 4),
        cut=(False, False),
        state=None,
    ):
        self.possible_agents = [f"agent_{i}" for i in range(len(obs))]
        self.spaces = dict(zip(self.possible_agents, zip(obs, actions, strict=True), strict=True))
        self.lives = dict(zip(self.possible_agents, zip(lives, cut, strict=True), strict=True))
        self.given_state, self.infos, self.unwrapped = state, {}, self

    def observation_space(self, agent):
        return self.spaces[agent][0]

    def action_space(self, agent):
        return self.spaces[agent][1]

    def state(self):
        if self.given_state is None:
            raise NotImplementedError
        return self.given_state

    def observe(self, agents):
        return {agent: self.spaces[agent][0].sample() for agent in agents}

    def reset(self, seed=None, options=None):
        for one, _ in self.spaces.values():
            one.seed(seed)
        self.agents, self.time = list(self.possible_agents), 0
        self.seen = self.observe(self.agents)
        return self.seen, self.infos

    def step(self, actions):
        self.got, self.time = actions, self.time + 1
        assert set(actions) == set(self.agents), "those that are gone do not act"
        acted, gone = self.agents, lambda agent: self.time >= self.lives[agent][0]
        self.agents = [agent for agent in acted if not gone(agent)]
        self.seen = self.observe(acted)
        cut = {agent: self.lives[agent][1] and gone(agent) for agent in acted}
        ended = {agent: gone(agent) and not cut[agent] for agent in acted}
        return (
            self.seen,
            {agent: 1.0 + self.possible_agents.index(agent) for agent in acted},
            ended,
            cut,
            self.infos,
        )


@pytest.fixture
def toy(monkeypatch):
    """`toy(**settings)` is a module with such an environment, by name."""

    def module(**parts):
        monkeypatch.setitem(sys.modules, "toy_v0", ModuleType("toy_v0"))
        for name, part in parts.items():
            setattr(sys.modules["toy_v0"], name, part)
        return "toy_v0"

    return lambda **settings: module(parallel_env=lambda **kwargs: Toy(**{**settings, **kwargs}))


def raw(module, **kwargs):
    with warnings.catch_warnings(action="ignore"):
        __import__(module)
        return sys.modules[module].parallel_env(**kwargs)


@pytest.mark.parametrize(
    ("module", "kwargs"),
    [
        (SPREAD, {"N": 2, "max_cycles": 8}),
        (SPREAD, {"continuous_actions": True, "max_cycles": 8}),
        ("mpe2.simple_speaker_listener_v4", {"continuous_actions": True, "max_cycles": 8}),
        (WALKERS, {"n_walkers": 2}),
    ],
)
def test_every_step_is_that_of_the_environment_itself(module, kwargs):
    team, env = ParallelTeam(module, kwargs), raw(module, **kwargs)
    chance, ends, width = np.random.default_rng(0), 0, max(team.obs_sizes)
    for seed in range(3):
        observations, _ = env.reset(seed=seed)
        seen, over, steps = team.reset(seed), False, 0
        while not over and steps < 100:
            rows = [
                np.pad(observations[agent], (0, width - len(observations[agent])))
                for agent in team.agents
            ]
            np.testing.assert_array_equal(seen.obs, np.array(rows, np.float32))
            np.testing.assert_array_equal(seen.state, env.state().astype(np.float32))
            if team.discrete:
                action = chance.integers(0, team.action_sizes)
                given = dict(zip(team.agents, action.tolist(), strict=True))
            else:
                action = chance.uniform(-1, 1, team.legal.shape).astype(np.float32)
                box = env.action_space(team.agents[0])
                scaled = (box.high[0] + box.low[0]) / 2 + (box.high[0] - box.low[0]) / 2 * action
                parts = zip(team.agents, scaled, team.action_sizes, strict=True)
                given = {agent: row[:size].astype(np.float32) for agent, row, size in parts}
            seen, reward, terminated, truncated = team.step(action)
            observations, rewards, terminations, truncations, _ = env.step(given)
            assert reward == pytest.approx(
                np.mean([rewards[agent] for agent in team.agents]), abs=1e-6
            )
            assert terminated == all(terminations.values()) and truncated == all(
                truncations.values()
            )
            over, steps = terminated or truncated, steps + 1
        ends += over
        rows = [observations[agent] for agent in team.agents]
        assert all(
            (seen.obs[i, : len(row)] == row.astype(np.float32)).all() for i, row in enumerate(rows)
        )
    assert ends >= 2


@pytest.mark.parametrize(
    "settings", [{}, {"kwargs": ("continuous_actions=True", "N=2")}, {"reward": "sum"}]
)
def test_the_contract_holds_for_it(settings):
    task = PettingZoo(SPREAD, **settings, workers=Workers(1))
    assert isinstance(task, Task) and hash(task) == hash(PettingZoo(SPREAD, **settings))
    assert task.spec.discrete == ("kwargs" not in settings) and task.spec.horizon == 25
    report = check(task, steps=50)
    assert report.mean_length == 25.0


def test_time_that_an_environment_calls_a_termination_truncates():
    copies = PettingZoo(WALKERS, kwargs=("n_walkers=2",), horizon=3, workers=Workers(1)).make(1)
    assert isinstance(copies, HostEnvironment)
    copies.reset(np.zeros(1, int), np.ones(1, bool))
    flags = [copies.step(np.zeros((1, 2, 4), np.float32))[2:] for _ in range(3)]
    copies.close()
    assert [[bool(flag) for flag in step] for step in flags] == [
        [False, False],
        [False, False],
        [False, True],
    ]
    env = raw(WALKERS, n_walkers=2, max_cycles=3)
    env.reset(seed=0)
    for _ in range(3):
        _, _, terminations, truncations, _ = env.step(
            {agent: np.zeros(4, np.float32) for agent in env.agents}
        )
    assert all(terminations.values()) and not any(truncations.values()), (
        "it does no more: the rule may go"
    )


def test_the_limit_and_the_state_come_from_the_environment_where_it_has_them(toy):
    assert PettingZoo(SPREAD, horizon=7).spec.horizon == 7
    own, gathered = PettingZoo(SPREAD).spec, PettingZoo(SPREAD, state="observations").spec
    assert own.obs_from_state is None and own.state_size == gathered.state_size == 54
    assert gathered.obs_from_state[1] == tuple(range(18, 36))
    with pytest.raises(
        ValueError, match="horizon: toy_v0 does not say when its time runs out; give --task"
    ):
        measure(toy(), {}, "environment", None)
    assert ParallelTeam(toy(state=np.zeros((3, 2))), {}).state_size == 6
    assert ParallelTeam(toy(state=np.zeros((3, 2), np.uint8)), {}).state_size == 4, (
        "a picture is no state"
    )


def test_unequal_agents_are_padded_and_the_padding_does_nothing(toy, monkeypatch):
    sizes = (spaces.Box(-1.0, 1.0, (3,)), VECTOR)
    module = toy(
        obs=sizes, actions=(spaces.Box(0.0, 10.0, (1,)), spaces.Box(-2.0, 2.0, (2, 2), np.float64))
    )
    monkeypatch.setattr(pettingzoo, "measures", lambda *of: measure(of[0], {}, *of[2:4]))
    spec = PettingZoo(module, horizon=3).spec
    assert (spec.obs_size, spec.obs_sizes, spec.action_size, spec.action_sizes) == (
        3,
        (3, 2),
        4,
        (1, 4),
    )
    assert spec.obs_from_state == ((0, 1, 2), (3, 4)) and spec.state_size == 5
    team = ParallelTeam(module, {})
    team.reset(0)
    seen, *_ = team.step(np.array([[0.5, np.nan, np.nan, np.nan], [1.5, -1.0, 0.0, 1.0]]))
    assert team.env.got["agent_0"] == np.array([7.5], np.float32)
    np.testing.assert_array_equal(team.env.got["agent_1"], [[2.0, -2.0], [0.0, 2.0]])
    np.testing.assert_array_equal(seen.obs[1], [*team.env.seen["agent_1"], 0.0])


def test_an_agent_that_is_gone_sees_nothing_does_nothing_and_counts_as_nothing(toy):
    team = ParallelTeam(toy(actions=(spaces.Discrete(3), spaces.Discrete(2, start=5))), {})
    assert team.reset(0).available.tolist() == [[True] * 3, [True, True, False]]
    said = [team.step(np.array([1, 1])) for _ in range(4)]
    assert team.env.got == {"agent_1": 6}
    assert [reward for _, reward, *_ in said] == [1.5, 1.5, 1.0, 1.0], "the mean is over both"
    assert [flags for *_, flags in [(0, step[2:]) for step in said]] == [(False, False)] * 3 + [
        (True, False)
    ]
    assert said[1][0].obs[0].any() and not said[2][0].obs[0].any(), (
        "its last observation is seen once"
    )
    assert not said[2][0].state[:2].any() and said[2][0].state[2:].any()
    assert said[2][0].available.tolist() == [[True, False, False], [True, True, False]]
    summed = ParallelTeam(toy(), {}, reward="sum")
    summed.reset(0)
    assert summed.step(np.zeros((2, 2)))[1] == 3.0


@pytest.mark.parametrize(
    ("lives", "cut", "ended"),
    [
        ((2, 4), (False, True), (False, True)),
        ((2, 4), (True, False), (True, False)),
        ((4, 4), (False, True), (False, True)),
    ],
)
def test_an_episode_is_cut_if_one_of_the_last_agents_was(lives, cut, ended, toy):
    team = ParallelTeam(toy(lives=lives, cut=cut, actions=(spaces.Discrete(2),) * 2), {})
    team.reset(0)
    seen, _, terminated, truncated = [team.step(np.zeros(2, int)) for _ in range(4)][-1]
    assert (terminated, truncated) == ended
    assert seen.available[1].all() == truncated, (
        "what follows a cut counts, and so do its legal actions"
    )


def test_legal_actions_are_read_from_observations_and_infos(toy):
    masked = spaces.Dict({"observation": VECTOR, "action_mask": spaces.MultiBinary(3)})
    team = ParallelTeam(
        toy(obs=(masked, VECTOR), actions=(spaces.Discrete(3), spaces.Discrete(2))), {}
    )
    assert team.obs_sizes == (2, 2)
    team.env.observe = lambda agents: {
        agent: {"observation": np.ones(2), "action_mask": np.array([0, 1, 1], np.int8)}
        if agent == "agent_0"
        else np.ones(2)
        for agent in agents
    }
    team.env.infos = {"agent_1": {"action_mask": np.array([1, 0], np.int8)}}
    seen = team.reset(0)
    assert seen.available.tolist() == [[False, True, True], [True, False, False]] and seen.obs.all()
    team.env.infos = {"agent_1": {"action_mask": np.array([0, 0], np.int8)}}
    with pytest.raises(
        ValueError,
        match="action_mask of agent 'agent_1' allows no action; one at least must always",
    ):
        team.reset(0)


def test_dictionaries_and_whole_numbers_are_flattened(toy):
    parts = spaces.Dict({"place": spaces.Box(-1.0, 1.0, (2, 2)), "turn": spaces.Discrete(3)})
    team = ParallelTeam(toy(obs=(parts, spaces.Tuple([VECTOR, spaces.MultiBinary(2)]))), {})
    seen = team.reset(0)
    place, turn = (team.env.seen["agent_0"][name] for name in ("place", "turn"))
    np.testing.assert_array_equal(seen.obs[0], [*place.reshape(-1), *np.eye(3)[turn]])
    assert team.obs_sizes == (7, 4)


PICTURE = spaces.Box(0, 255, (8, 8, 3), np.uint8)
TOY = "module='toy_v0'"
REFUSED: dict[str, Any] = {
    "the observation space of agent 'agent_0' has pictures, Box": dict(obs=(PICTURE, VECTOR)),
    "the observation space of agent 'agent_1' has pictures, Dict": dict(
        obs=(VECTOR, spaces.Dict({"eye": PICTURE}))
    ),
    "which has no fixed length; it must be one that gymnasium can flatten": dict(
        obs=(spaces.Sequence(VECTOR), VECTOR)
    ),
    "the action space of agent 'agent_1' is MultiDiscrete([2 2]); it must be Discrete": dict(
        actions=(VECTOR, spaces.MultiDiscrete([2, 2]))
    ),
    "it must be Discrete, or a Box of floating-point numbers": dict(
        actions=(VECTOR, spaces.Box(0, 3, (1,), np.int32))
    ),
    "it must be bounded: comarl's actions are in [-1, 1]": dict(
        actions=(VECTOR, spaces.Box(-np.inf, np.inf, (1,)))
    ),
    "has discrete and continuous actions; a team must have one kind": dict(
        actions=(VECTOR, spaces.Discrete(2))
    ),
    "has no possible_agents; a team needs a fixed list": dict(obs=(), actions=(), lives=(), cut=()),
}


@pytest.mark.parametrize("message", REFUSED)
def test_an_environment_that_is_no_task_for_a_team_is_refused_by_what_would_be_right(message, toy):
    with pytest.raises(ValueError) as error:
        measure(toy(**REFUSED[message]), {}, "environment", 3)
    assert TOY in str(error.value) and message in str(error.value)


@pytest.mark.parametrize(
    ("module", "kind", "message"),
    [
        (
            "mpe2.simple_spreed_v3",
            ValueError,
            "module 'simple_spreed_v3' .*did you mean 'simple_spread_v3'.* of mpe2",
        ),
        ("pettingzoo.sisl.multiwalker_v8", ValueError, "did you mean 'multiwalker_v9'"),
        (
            "mpe2.simple_spread_v3.parallel_env",
            ImportError,
            "simple_spread_v3 is a module itself; leave out .parallel_env",
        ),
        (
            "mpe3.simple_spread_v3",
            ImportError,
            r"package 'mpe3' is not installed.*come with pip install \"comarl\[pet",
        ),
        (
            "pettingzoo.mpe.simple_spread_v3",
            ImportError,
            "cannot be imported: MPE has been moved into its own package",
        ),
        (
            "pettingzoo.classic.connect_four_v3",
            ValueError,
            "no parallel_env, but env alone, whose agents act in turns",
        ),
        ("json", ValueError, "module='json' has no parallel_env; agents"),
    ],
)
def test_a_module_without_such_an_environment_says_why_and_what_would_be_right(
    module, kind, message
):
    with pytest.raises(kind, match=message):
        _ = find_task(f"pettingzoo/{module}").spec


@pytest.mark.parametrize(
    ("module", "missing", "remedy"),
    [
        ("pettingzoo.sisl.multiwalker_v9", "Box2D", r'pip install "comarl\[pettingzoo\]"'),
        (
            "pettingzoo.butterfly.cooperative_pong_v6",
            "pygame",
            r'pip install "pettingzoo\[butterfly\]"',
        ),
        ("mpe2.simple_spread_v3", "mpe2", r'pip install "comarl\[pettingzoo\]"'),
        ("toys.of_mine", "gymnasium", r'pip install "comarl\[pettingzoo\]"'),
        ("toys.of_mine", "toybox", "install it, or the extra of toys that brings it"),
    ],
)
def test_a_missing_package_is_an_error_with_its_remedy(module, missing, remedy, monkeypatch):
    def fail(name):
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr("importlib.import_module", fail)
    with pytest.raises(ImportError, match=f"'{missing}'.*{remedy}"):
        measure(module, {}, "environment", None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kwargs": ("N",)}, "kwargs 'N': it must be name=value, such as N=4"),
        (
            {"kwargs": ("max_cycles=9",)},
            "kwargs max_cycles=9: time limits are comarl's; give --task.horizon",
        ),
        (
            {"kwargs": ("M=9",)},
            r"kwargs M=9: parallel_env of mpe2.simple_spread_v3 answers TypeError: .*'M'",
        ),
        ({"horizon": 0}, "horizon=0 of PettingZoo must be 1 or more"),
    ],
)
def test_an_impossible_setting_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        _ = PettingZoo(SPREAD, **settings).spec


def said(capsys):
    return " ".join("".join(capsys.readouterr()).split())


def test_an_environment_with_both_kinds_of_actions_takes_those_of_the_algorithm(capsys):
    continuous = find_task(f"pettingzoo/{SPREAD}").suited_to(frozenset({"continuous"}))
    assert continuous.kwargs == ("continuous_actions=True",) and not continuous.spec.discrete
    assert PettingZoo(SPREAD).suited_to(frozenset({"discrete"})) == PettingZoo(SPREAD)
    assert main(("train", "matd3", f"pettingzoo/{SPREAD}", "--dry-run")) == 0
    own = ("--task.kwargs", "N=4", "--dry-run")
    assert main(("train", "matd3", f"pettingzoo/{SPREAD}", *own)) == 0, "both kwargs apply"
    assert (
        main(
            (
                "train",
                "matd3",
                f"pettingzoo/{SPREAD}",
                "--task.kwargs",
                "continuous_actions=False",
                "--dry-run",
            )
        )
        == 2
    )
    assert "Matd3 chooses continuous actions" in said(capsys)
    assert (
        main(("train", "matd3", f"pettingzoo/{SPREAD}", "--task.module", OTHER, "--dry-run")) == 2
    )
    assert f"--task.module: the task's name already says '{SPREAD}'; give another" in said(capsys)
    assert main(("train", "matd3", "pettingzoo/pettingzoo.sisl.pursuit_v5", "--dry-run")) == 2
    assert "has discrete ones" in said(capsys)


def test_a_run_with_discrete_actions_trains_evaluates_and_is_found_again(tmp_path, capsys):
    tiny = (
        "--algorithm.hidden",
        "4",
        "--algorithm.replay.capacity",
        "8",
        "--algorithm.replay.batch-size",
        "2",
    )
    task = ("--task.kwargs", "N=2", "--task.horizon", "4", "--task.workers.count", "1")
    command = (
        "train",
        "iql",
        f"pettingzoo/{SPREAD}",
        "--steps",
        "12",
        "--evaluate-every",
        "6",
        *tiny,
        *task,
    )
    assert main((*command, "--evaluation-episodes", "2", "--folder", str(tmp_path))) == 0
    assert len(read(tmp_path)[-1]["marl_team"]) == 2
    named = ("--import", SPREAD)
    assert main(("evaluate", str(tmp_path), "--episodes", "2", *named)) == 0
    assert "2 greedy episodes" in said(capsys)
