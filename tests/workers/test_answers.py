"""Every answer of an environment, right and wrong: agents that come and go, and whatever breaks
PettingZoo's rules."""

import itertools
import random
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np
import pytest

pytest.importorskip("gymnasium")

from gymnasium import spaces

from comarl.workers.answers import BrokenAnswer
from comarl.workers.team import ParallelTeam
from tests.workers import random_values

BOX = spaces.Box(-1.0, 1.0, (2,))
A, B = "ann", "bob"


class Scripted:
    """An environment that plays what is written: for each time the agents that act, and what ends.

    `flags[t]` are the letters of agents that terminate (`T`) or are truncated (`U`) in step t + 1.
    `wrong(method, answer)` may change whatever it answers.
    """

    def __init__(self, living=((A, B),) * 9, flags=(), wrong=lambda method, answer: answer):
        self.living, self.flags, self.wrong = living, dict(enumerate(flags)), wrong
        self.possible_agents, self.time = [A, B], 0

    def observation_space(self, agent):
        return BOX

    def action_space(self, agent):
        return spaces.Discrete(3)

    def state(self):
        return self.wrong("state", np.full(3, self.time, np.float32))

    @property
    def agents(self):
        return list(self.living[self.time])

    def seen(self, agents):
        return {agent: np.full(2, 0.1 * (self.time + 1), np.float32) for agent in agents}

    def reset(self, seed=None, options=None):
        self.time, self.acted = 0, []
        return self.wrong("reset", (self.seen(self.agents), {}))

    def step(self, actions):
        acted, flags = self.agents, self.flags.get(self.time, {})
        assert list(actions) == acted
        self.acted.append(sorted(actions))
        self.time += 1
        answer = (
            self.seen({*acted, *self.agents}),
            {agent: 1.0 for agent in acted},
            {agent: flags.get(agent) == "T" for agent in acted},
            {agent: flags.get(agent) == "U" for agent in acted},
            {agent: {} for agent in acted},
        )
        return self.wrong("step", answer)


@pytest.fixture
def team_of(monkeypatch):
    """`team_of(**settings)` is the team of a module `scripted` with such an environment."""

    def team(state: Literal["environment", "observations"] = "observations", **settings):
        module = ModuleType("scripted")
        vars(module)["parallel_env"] = lambda: Scripted(**settings)
        monkeypatch.setitem(sys.modules, "scripted", module)
        return ParallelTeam("scripted", {}, state=state)

    return team


def ends_of(team, steps):
    """Rewards and ends of some steps, up to the end of the episode."""
    team.reset(0)
    found = []
    for _ in range(steps):
        _, *outcome = team.step(np.zeros(2, int))
        found.append(tuple(outcome))
        if outcome[1] or outcome[2]:
            break
    return found


ON, END, CUT = (False, False), (True, False), (False, True)


@pytest.mark.parametrize(
    ("living", "flags", "ends", "acted"),
    [
        # ann acts alone and ends as bob joins: the episode goes on
        ([[A], [B], [B], []], [{A: "T"}, {}, {B: "T"}], [ON, ON, END], [[A], [B], [B]]),
        # bob pauses for a step and comes back
        (
            [[A, B], [A], [A, B], []],
            [{}, {}, {A: "T", B: "T"}],
            [ON, ON, END],
            [[A, B], [A], [A, B]],
        ),
        # one by one; what ended first does not matter
        ([[A, B], [B], []], [{A: "U"}, {B: "T"}], [ON, END], [[A, B], [B]]),
        ([[A, B], [B], []], [{A: "T"}, {B: "U"}], [ON, CUT], [[A, B], [B]]),
        # at once: all terminated, all truncated, a mix
        ([[A, B], []], [{A: "T", B: "T"}], [END], [[A, B]]),
        ([[A, B], []], [{A: "U", B: "U"}], [CUT], [[A, B]]),
        ([[A, B], []], [{A: "T", B: "U"}], [CUT], [[A, B]]),
        # ann ends, and returns later
        ([[A, B], [B], [A, B], []], [{A: "T"}, {}, {A: "T", B: "T"}], [ON, ON, END], None),
    ],
)
def test_an_episode_is_over_when_no_agent_is_left(living, flags, ends, acted, team_of):
    team = team_of(living=living, flags=flags)
    found = ends_of(team, 5)
    assert [end[1:] for end in found] == ends
    assert acted is None or team.env.acted == acted
    share = [len(agents) / 2 for agents in living[: len(ends)]]
    assert [end[0] for end in found] == share, "the mean is over all, absent or not"


def test_an_absent_agent_sees_zeros_and_returns_to_what_it_sees(team_of):
    team = team_of(living=[[A, B], [A], [A], [A, B], [A, B]])
    seen = [team.reset(0), *(team.step(np.zeros(2, int))[0] for _ in range(3))]
    bob = [timestep.obs[1].tolist() for timestep in seen]
    np.testing.assert_allclose(bob, [[0.1] * 2, [0.2] * 2, [0.0] * 2, [0.4] * 2], rtol=1e-6)
    assert [timestep.available[1].tolist() for timestep in seen] == [
        [True, True, True],
        [True, False, False],
        [True, False, False],
        [True, True, True],
    ]


def change(method, part, agent, value):
    """Has one method say something else: as a whole (`part` None), in a part, or of one agent."""

    def wrong(asked, answer):
        if asked != method:
            return answer
        if part is None:
            return value
        parts = list(answer)
        parts[part] = value if agent is None else {**parts[part], agent: value}
        return tuple(parts)

    return wrong


def drop(method, part):
    """Has one method say nothing of ann."""
    return lambda asked, answer: (
        tuple(
            {k: v for k, v in p.items() if k != A} if i == part else p for i, p in enumerate(answer)
        )
        if asked == method
        else answer
    )


SENTENCES = [
    (change("reset", None, None, {A: 1}), "reset returned .*; PettingZoo wants reset"),
    (change("step", None, None, ({}, {}, {}, {})), "step returned .*; PettingZoo wants step"),
    (change("reset", 1, None, None), "reset returned infos that are None; PettingZoo wants a dict"),
    (change("step", 4, None, None), "step returned infos that are None; PettingZoo wants a dict"),
    (change("step", 1, "zoe", 1.0), "step returned rewards with 'zoe', which is none of possible"),
    (
        change("step", 1, A, np.nan),
        "step returned .*a reward of agent 'ann', nan; it must be finite",
    ),
    (
        change("step", 1, A, 1e39),
        r"step returned .*reward of agent 'ann', 1e\+39, which as float32 is inf; it must be",
    ),
    (
        change("step", 1, A, "1"),
        "step returned .*a reward of agent 'ann', '1'; PettingZoo wants a number",
    ),
    (
        change("step", 0, A, np.array([0, np.inf])),
        "step returned .*observation of agent 'ann', inf at entry 1",
    ),
    (
        change("step", 0, A, 0.5),
        r"step returned .*observation of agent 'ann', of shape \[\]; its space has \[2\]",
    ),
    (
        change("step", 2, A, None),
        "step returned .*terminations of agent 'ann', None; PettingZoo wants a bool",
    ),
    (
        change("step", 2, A, 7),
        "step returned .*terminations of agent 'ann', 7; PettingZoo wants a bool",
    ),
    (change("step", 2, A, True), "step ended agent 'ann' and left it in agents"),
    (drop("step", 0), "step returned no observations of agent 'ann'"),
    (drop("step", 1), "step returned no rewards of agent 'ann'"),
    (change("state", None, None, np.zeros(1)), "state returned a state of 1 entries; there were 3"),
]


@pytest.mark.parametrize(("wrong", "sentence"), SENTENCES)
def test_a_broken_answer_is_named(wrong, sentence, team_of):
    team = team_of(state="environment")
    team.env.wrong = wrong
    with pytest.raises(BrokenAnswer, match=f"module='scripted': {sentence.split()[0]}") as error:
        team.reset(0)
        team.step(np.zeros(2, int))
    assert re.search(sentence, str(error.value))


def test_an_error_is_named_with_type_message_and_place(team_of):
    team = team_of()

    def fail(method, answer):
        raise KeyError("two\nlines")

    team.env.wrong = fail
    place = r"\(.*test_answers.py, line \d+\); PettingZoo wants step"
    team._living = [A, B]
    with pytest.raises(BrokenAnswer, match=rf"module='scripted': step raised KeyError: .*{place}"):
        team.step(np.zeros(2, int))


VALUES = (
    *(None, "x", b"x", object(), {}, [], (), float("nan"), -float("inf"), 1e300, 10**400, 1j, 7),
    *([1, 2, 3], [[1.0], [2.0, 3.0]], np.zeros((2, 2)), np.array(["a", "b"]), {"ann": None}),
    *(np.array([np.nan, 0]), np.zeros(0), (i for i in range(2)), set(), range(2), int, np.True_),
)
PLACES = [
    *((method, None, None) for method in ("reset", "step", "state")),
    *(("reset", part, agent) for part in range(2) for agent in (None, A, "zoe", 3)),
    *(("step", part, agent) for part in range(5) for agent in (None, A, "zoe", 3)),
]


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_any_answer_is_either_right_or_named(place, team_of):
    method, part, agent = place
    for value in VALUES:
        team = team_of(state="environment")
        team.env.wrong = change(method, part, agent, value)
        try:
            seen = [team.reset(0)]
            timestep, reward, *ends = team.step(np.zeros(2, int))
        except BrokenAnswer as error:
            assert re.match(rf"module='scripted': {method}\b", str(error)), (value, str(error))
            assert "\n" not in str(error)
            continue
        for each in (*seen, timestep):
            assert each.obs.shape == (2, 2) and np.isfinite(each.obs).all()
            assert each.state.shape == (3,) and np.isfinite(each.state).all()
        assert np.isfinite(reward) and all(type(end) is bool for end in ends)
        assert is_allowed(method, part, agent, value), f"{value!r} passed in silence"


def is_allowed(method, part, agent, value):
    """What PettingZoo allows after all, of the values above."""
    if method == "state" or part is None:
        return isinstance(value, list | range) and len(value) == 3
    infos = 1 if method == "reset" else 4
    if part == infos:
        return isinstance(value, dict) or agent is not None
    if agent is None or agent in ("zoe", 3):
        return False
    if part == 0:
        return isinstance(value, range)  # two numbers
    if part == 1:
        return isinstance(value, int | float | np.bool_)
    return False


def test_the_table_of_values_is_not_all_refused_or_all_allowed():
    pairs = itertools.product(PLACES, VALUES)
    allowed = sum(bool(is_allowed(place[0], place[1], place[2], value)) for place, value in pairs)
    assert 0 < allowed < len(PLACES) * len(VALUES)


def is_right(method, part, agent, value):
    """Whether PettingZoo allows a value here, said otherwise than `comarl.workers.answers` does."""
    if method == "state":
        return numbers_in(value) is not None and numbers_in(value).size == 3
    if part is None:
        return False
    if part == (1 if method == "reset" else 4):  # infos, of whomever
        infos = value if agent is None else {agent: value}
        known = isinstance(infos, dict) and [infos.get(name) for name in (A, B)]
        return known and all(info is None or isinstance(info, dict) for info in known)
    if agent is None or agent in ("zoe", 3):
        return False
    if part == 0:
        return numbers_in(value) is not None and numbers_in(value).shape == (2,)
    if part == 1:
        return numbers_in(value) is not None and numbers_in(value).shape == ()
    return isinstance(value, int | np.integer | np.bool_) and value == 0  # ann is still there


def numbers_in(value):
    """The array of finite numbers that a value is; None if it is none."""
    try:
        found = np.asarray(value)
    except Exception:
        return None
    with np.errstate(over="ignore"):
        good = found.dtype.kind in "biuf" and np.isfinite(found.astype(np.float32)).all()
    return found if good else None


def fuzz_answers(team_of, variants):
    """How many of so many answers were accepted: each that is not right must be named."""
    chance, accepted = random.Random(0), 0
    for _ in range(variants):
        (method, part, agent), value = chance.choice(PLACES), random_values.value(chance)
        team = team_of(state="environment")
        team.env.wrong = change(method, part, agent, value)
        try:
            seen = [team.reset(0), *(team.step(np.zeros(2, int))[0] for _ in range(2))]
        except BrokenAnswer as error:
            assert re.match(rf"module='scripted': {method}\b", str(error))
            assert "\n" not in str(error) and len(str(error)) < 500
            assert not is_right(method, part, agent, value), (method, part, agent, str(error))
            continue
        accepted += 1
        assert is_right(method, part, agent, value), f"{method} {part} {agent} {value!r} passed"
        assert all(np.isfinite(each.obs).all() and np.isfinite(each.state).all() for each in seen)
    return accepted


def test_random_answers_are_right_or_named(team_of):
    assert 5 < fuzz_answers(team_of, 400) < 200


@pytest.mark.fuzz
def test_random_answers_are_right_or_named_at_length(team_of):
    assert fuzz_answers(team_of, 30_000) > 300


def fuzz_spaces(team_of, variants, monkeypatch):
    """How many pairs of spaces make a team: its arrays have the sizes that it says, and its actions
    lie in their space."""
    chance, made = random.Random(0), 0
    for _ in range(variants):
        seen, acted = random_values.space(chance), random_values.space(chance)
        monkeypatch.setattr(Scripted, "observation_space", lambda self, agent, s=seen: s)
        monkeypatch.setattr(Scripted, "action_space", lambda self, agent, s=acted: s)
        monkeypatch.setattr(Scripted, "seen", lambda self, agents, s=seen: observed(s, agents))
        monkeypatch.setattr(Scripted, "step", step_of(acted))
        try:
            team = team_of()
            actions = np.zeros(2, int) if team.discrete else np.ones((2, *team.action_sizes[:1]))
            timesteps = [team.reset(0), team.step(actions)[0]]
        except ValueError as error:
            assert str(error).startswith("module='scripted'") and "\n" not in str(error)
            continue
        made += 1
        for timestep in timesteps:
            assert timestep.obs.shape == (2, max(team.obs_sizes)) and timestep.obs.size
            assert np.isfinite(timestep.obs).all() and timestep.obs.dtype == np.float32
            assert timestep.state.shape == (team.state_size,)
    return made


def observed(space, agents):
    samples = getattr(space, "sample", lambda: None)
    return {agent: samples() for agent in agents}


def step_of(space, step=Scripted.step):
    def checked(self, actions):
        assert all(space.contains(action) for action in actions.values()), actions
        return step(self, actions)

    return checked


def test_random_spaces_make_a_team_or_are_refused(team_of, monkeypatch):
    assert 5 < fuzz_spaces(team_of, 300, monkeypatch) < 295


@pytest.mark.fuzz
def test_random_spaces_make_a_team_or_are_refused_at_length(team_of, monkeypatch):
    assert fuzz_spaces(team_of, 5_000, monkeypatch) > 100


OWN = """
import numpy as np
from gymnasium.spaces import Box, Discrete

class parallel_env:
    metadata, possible_agents = {}, ["ann"]
    def __init__(self, far=0.0): self.far = far
    def observation_space(self, agent): return Box(-1.0, 1.0, (2,))
    def action_space(self, agent): return Discrete(2)
    def seen(self): return {"ann": np.full(2, self.far, np.float32)}
    def reset(self, seed=None, options=None):
        self.agents = ["ann"]
        return self.seen(), {}
    def step(self, actions):
        no = {"ann": False}
        return self.seen(), {"ann": 1.0}, no, no, {}
"""


def test_a_module_beside_the_user_is_checked_by_the_installed_script(tmp_path):
    (tmp_path / "carry.py").write_text(OWN)
    script = str(Path(sys.executable).parent / "comarl")
    assert Path(script).exists(), "the tests need comarl installed: make test"

    def run(*options):
        common = ("check", "pettingzoo/carry", "--task.horizon", "3", "--steps", "12")
        workers = ("--task.workers.count", "1")
        return subprocess.run(
            [script, *common, *workers, *options], cwd=tmp_path, capture_output=True, text=True
        )

    good, far = run(), run("--task.kwargs", "far=5.0")
    assert "pettingzoo/carry keeps the contract: 8 episodes" in good.stdout, good.stderr
    assert far.returncode != 0 and "Traceback" not in far.stderr
    words = "module='carry': reset returned an observation of agent 'ann', array([5., 5."
    assert words in far.stderr and "outside its space" in far.stderr
