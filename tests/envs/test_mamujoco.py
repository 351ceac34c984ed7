"""Multi-Agent MuJoCo, held against gymnasium-robotics step by step."""

# MuJoCo's own module is compiled and tells type checkers little; physics is one of two kinds.
# pyright: reportAttributeAccessIssue=false

import builtins
import importlib
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import tyro

pytest.importorskip("gymnasium_robotics")

from comarl.envs import TASKS as ALL_TASKS
from comarl.envs import find_task, mamujoco_physics
from comarl.envs.known import PARTITIONS
from comarl.envs.mamujoco import MultiAgentMujoco, MultiAgentMujocoCopies, parse
from comarl.envs.mamujoco_physics import ViewSettings
from comarl.types import HostEnvironment, Task, TaskDied

TASKS = [name.removeprefix("mamujoco/") for name in ALL_TASKS if name.startswith("mamujoco/")]
OTHERS = (
    "Walker2d-2x3",
    "Swimmer-2x1",
    "ManySegmentSwimmer-3x2",
    "Reacher-2x1",
    "ManySegmentAnt-2x2",
)
BOTH = np.ones(2, bool)


def task_of(name, **settings):
    parsed = parse(name)
    return MultiAgentMujoco(parsed.robot, parsed.partition, **settings)


def random_actions(spec, copies, steps, seed=0):
    shape = (steps, copies, spec.num_agents, spec.action_size)
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


class Reference:
    """One environment of gymnasium-robotics, as published; a task's own horizon of 1000 steps is
    left to it to know."""

    def __init__(self, task):
        from gymnasium_robotics import mamujoco_v1

        limit = {} if task.horizon == 1000 else {"max_episode_steps": task.horizon}
        with mamujoco_physics.no_mujoco_log():
            self.env = mamujoco_v1.parallel_env(
                task.robot,
                task.partition,
                agent_obsk=task.agent_obsk,
                global_categories=task.global_categories,
                local_categories=task.local_categories,
                **limit,
            )
        self.scale = self.env.single_agent_env.unwrapped.model.actuator_ctrlrange[0, 1]

    def reset(self, seed):
        self.obs, self.reward = self.env.reset(seed=seed)[0], 0.0
        self.terminated = self.truncated = False

    def step(self, action):
        if self.terminated or self.truncated:
            self.reward = 0.0
            return
        sizes = {agent: self.env.action_space(agent).shape[0] for agent in self.env.possible_agents}
        own = {
            agent: self.scale * action[i, :size] for i, (agent, size) in enumerate(sizes.items())
        }
        self.obs, rewards, terminated, truncated, _ = self.env.step(own)
        self.reward = rewards["agent_0"]
        self.terminated, self.truncated = terminated["agent_0"], truncated["agent_0"]
        self.state = self.env.state()


def assert_same(timestep, copy, reference):
    np.testing.assert_allclose(timestep.state[copy], reference.state, rtol=0, atol=1e-9)
    for row, own in zip(timestep.obs[copy], reference.obs.values(), strict=True):
        np.testing.assert_allclose(row[: len(own)], own, rtol=0, atol=1e-9)
        assert not row[len(own) :].any(), "padding is zero"


def compare(task, episodes, steps):
    """Plays two copies and two references alike; the number of steps that were compared."""
    copies, references = (
        MultiAgentMujocoCopies(task, 2, np.float64),
        [Reference(task), Reference(task)],
    )
    compared = 0
    for episode in range(episodes):
        seeds = np.array([episode, 100 + episode])
        timestep, ended = copies.reset(seeds, BOTH), np.zeros(2, bool)
        for copy, reference in enumerate(references):
            reference.reset(int(seeds[copy]))
            reference.state = reference.env.state()
            assert_same(timestep, copy, reference)
        for action in random_actions(task.spec, 2, steps, episode).astype(np.float64):
            timestep, reward, terminated, truncated = copies.step(action)
            for copy, reference in enumerate(references):
                reference.step(action[copy])
                assert_same(timestep, copy, reference)
                np.testing.assert_allclose(reward[copy], reference.reward, rtol=0, atol=1e-9)
                assert terminated[copy] == (reference.terminated and not ended[copy])
                assert truncated[copy] == (reference.truncated and not ended[copy])
            compared += int((~ended).sum())
            ended |= terminated | truncated
    return compared


@pytest.mark.parametrize("global_categories", [(), ("qpos", "qvel")])
@pytest.mark.parametrize("agent_obsk", [0, 1])
@pytest.mark.parametrize("name", TASKS)
def test_the_tasks_of_race_equal_those_of_gymnasium_robotics(name, agent_obsk, global_categories):
    task = task_of(name, agent_obsk=agent_obsk, global_categories=global_categories)
    assert compare(task, episodes=4, steps=80) >= 150


@pytest.mark.parametrize("name", TASKS)
def test_every_task_of_race_truncates_where_that_of_gymnasium_robotics_does(name):
    """After as many steps by themselves, which not all robots survive, and after a few that all
    do."""
    limit = Reference(task_of(name)).env.single_agent_env.spec.max_episode_steps
    assert task_of(name).spec.horizon == limit
    assert compare(task_of(name, horizon=6), episodes=2, steps=8) == 2 * 2 * 6


EVERY_CATEGORY = ("qpos", "qvel", "cfrc_ext", "cinert", "cvel", "qfrc_actuator")
CATEGORIES = {
    "Ant": EVERY_CATEGORY[:3],
    "Humanoid": EVERY_CATEGORY,
    "HumanoidStandup": EVERY_CATEGORY,
}


@pytest.mark.parametrize("kinds", ["one of each", "all of both"])
@pytest.mark.parametrize("name", TASKS)
def test_every_task_of_race_shows_the_categories_that_that_of_gymnasium_robotics_shows(name, kinds):
    """Of joints at each distance, and of the root; whatever the robot's state has."""
    known = CATEGORIES.get(name.partition("-")[0], EVERY_CATEGORY[:2])
    local, root = (known[-1:], known[:1]), known[1:2]
    if kinds == "all of both":  # of the root of Humanoid the reference cannot show more
        local, root = (known, known[::-1]), ("qpos", "qvel")
    views: dict[str, Any] = dict(agent_obsk=1, local_categories=local, global_categories=root)
    assert compare(task_of(name, **views), episodes=1, steps=20) >= 20


@pytest.mark.parametrize(
    ("name", "local_categories"),
    [
        ("HalfCheetah-2x3", (("qvel",), ("qpos", "qvel"))),
        ("Ant-4x2", (("qpos", "cfrc_ext"), ("cvel",))),
        ("Humanoid-9|8", (("qfrc_actuator", "qpos"), ())),
    ],
)
def test_what_agents_see_of_joints_can_be_chosen(name, local_categories):
    task = task_of(name, agent_obsk=1, local_categories=local_categories)
    if name == "Ant-4x2":  # no state of Ant-v5 holds velocities of bodies
        with pytest.raises(ValueError, match="gymnasium-robotics cannot make Ant-4x2"):
            _ = task.spec
        return
    assert compare(task, episodes=2, steps=60) >= 60


def test_the_command_line_has_a_word_for_each_distance():
    read = lambda *words: (
        tyro.cli(
            MultiAgentMujoco,
            args=["--agent-obsk", "1", *words],
            default=task_of("Hopper-3x1"),
        ).local_categories
    )
    assert read() is None and read("--local-categories", "None") is None
    assert read("--local-categories", "qpos,qvel", "qpos") == (("qpos", "qvel"), ("qpos",))
    assert read("--local-categories", "qvel", "") == (("qvel",), ())


def test_an_agent_sees_its_own_joints_alone_unless_told_otherwise():
    sizes = lambda name, **view: task_of(name, **view).spec.obs_size
    assert sizes("HalfCheetah-2x3") == 6
    assert sizes("HalfCheetah-6x1") == sizes("Hopper-3x1") == 2
    torso = {"global_categories": ("qpos", "qvel")}
    assert sizes("HalfCheetah-2x3", **torso) == 11
    assert sizes("HalfCheetah-6x1", **torso) == sizes("Hopper-3x1", **torso) == 7


def test_a_delayed_reward_is_the_sum_of_what_was_earned_since_the_last():
    actions = random_actions(parse("Hopper-3x1").spec, 4, 60).astype(np.float64)
    rewards = play(task_of("Hopper-3x1", horizon=50), range(4), actions)[1]
    delayed = play(task_of("Hopper-3x1", horizon=50, reward_delay=20), range(4), actions)[1]
    lengths = (rewards != 0).sum(axis=0)
    assert len(set(lengths.tolist())) > 1, "some fall sooner than others"
    for copy, length in enumerate(lengths.tolist()):
        ends = [*range(20, length, 20), length]
        expected = np.zeros(60)
        for begin, end in zip([0, *ends], ends, strict=False):
            expected[end - 1] = rewards[begin:end, copy].sum()
        np.testing.assert_allclose(delayed[:, copy], expected, rtol=0, atol=1e-12)


def test_a_delayed_reward_is_not_carried_into_the_next_episode():
    copies = task_of("HalfCheetah-2x3", reward_delay=3).make(1)
    actions = random_actions(copies.spec, 1, 3)
    episodes = []
    for _ in range(2):
        copies.reset(np.zeros(1, int), np.ones(1, bool))
        episodes.append([copies.step(action)[1][0] for action in actions])
        copies.step(actions[0])  # one more, which is not paid
    assert episodes[0] == episodes[1] and episodes[0][:2] == [0, 0] and episodes[0][2] != 0


@pytest.mark.parametrize("agent_obsk", [0, 1])
@pytest.mark.parametrize("name", OTHERS)
def test_other_robots_equal_those_of_gymnasium_robotics(name, agent_obsk):
    assert compare(task_of(name, agent_obsk=agent_obsk), episodes=2, steps=40) >= 40


def test_joints_of_one_label_are_seen_in_one_order():
    copies = parse("Pusher-3p").make(3)
    timestep = copies.reset(np.full(3, 5), np.ones(3, bool))
    timestep, reward, _, _ = copies.step(np.full((3, 3, 3), 0.5, np.float32))
    assert (timestep.obs == timestep.obs[0]).all() and (reward == reward[0]).all()
    np.testing.assert_array_equal(timestep.obs[0, 0, [0, 2, 4]], timestep.state[0, [2, 0, 1]])


@pytest.mark.parametrize("name", [*TASKS, "Swimmer-2x1", "ManySegmentSwimmer-3x2"])
def test_observations_are_gathered_from_the_state(name):
    task = task_of(name, agent_obsk=1)
    copies = task.make(2)
    copies.reset(np.arange(2), BOTH)
    for action in random_actions(task.spec, 2, 5):
        timestep, *_ = copies.step(action)
        np.testing.assert_array_equal(task.spec.observe(jnp.asarray(timestep.state)), timestep.obs)


@pytest.mark.parametrize("name", ["Walker2d-2x3", "Reacher-2x1"])
def test_observations_that_hold_more_than_the_state_are_not_said_to_be_gathered(name):
    assert parse(name).spec.obs_from_state is None


@pytest.mark.parametrize("name", ["HalfCheetah-6x1", "Humanoid-9|8", "Reacher-2x1"])
def test_arrays_are_as_the_spec_says(name):
    task = parse(name)
    copies, spec = task.make(3), task.spec
    assert isinstance(task, Task) and isinstance(copies, HostEnvironment) and task.spec is spec
    first = copies.reset(np.arange(3), np.ones(3, bool))
    timestep, reward, terminated, truncated = copies.step(random_actions(spec, 3, 1)[0])
    for seen in (first, timestep):
        assert (
            seen.obs.shape == (3, spec.num_agents, spec.obs_size) and seen.obs.dtype == np.float32
        )
        assert seen.state.shape == (3, spec.state_size) and seen.state.dtype == np.float32
        assert seen.available is None
    assert reward.shape == (3,) and reward.dtype == np.float32
    assert (
        terminated.shape == truncated.shape == (3,) and terminated.dtype == truncated.dtype == bool
    )
    assert not np.array_equal(first.state, timestep.state), "a timestep keeps its arrays to itself"
    copies.close()


def test_agents_of_unequal_size_are_padded():
    spec = MultiAgentMujoco("Humanoid", "9|8", agent_obsk=1).spec
    assert spec.obs_sizes == (231, 159) and spec.obs_size == 231
    assert spec.action_sizes == (9, 8) and spec.action_size == 9
    assert spec.action_mask.sum() == 17
    assert parse("HalfCheetah-2x3").spec.action_sizes is None


def test_padded_entries_of_an_action_are_ignored():
    copies = parse("Humanoid-9|8").make(2)
    copies.reset(np.zeros(2, int), BOTH)
    action = random_actions(copies.spec, 1, 1)[0].repeat(2, axis=0)
    action[1, 1, 8] = np.nan
    timestep, reward, _, _ = copies.step(action)
    np.testing.assert_array_equal(timestep.state[0], timestep.state[1])
    assert reward[0] == reward[1]


def test_actions_span_the_range_of_the_actuators():
    copies = parse("Humanoid-9|8").make(2)
    copies.reset(np.arange(2), BOTH)
    copies.step(np.stack([np.ones((2, 9), np.float32), np.full((2, 9), -0.5, np.float32)]))
    physics: Any = copies.physics
    np.testing.assert_allclose(physics.controls, [[0.4] * 17, [-0.2] * 17], atol=1e-7)


@pytest.mark.parametrize("name", ["HalfCheetah-6x1", "Reacher-2x1"])
def test_the_time_limit_truncates_and_does_not_terminate(name):
    copies = task_of(name, horizon=5).make(2)
    copies.reset(np.arange(2), BOTH)
    for step, action in enumerate(random_actions(copies.spec, 2, 7), start=1):
        last, reward, terminated, truncated = copies.step(action)
        assert not terminated.any()
        assert truncated.tolist() == [step == 5] * 2
        assert (reward != 0).tolist() == [step <= 5] * 2
        if step == 5:
            at_the_end = last
    np.testing.assert_array_equal(at_the_end.state, last.state)
    np.testing.assert_array_equal(at_the_end.obs, last.obs)


@pytest.mark.parametrize("name", ["Hopper-3x1", "Ant-4x2"])
def test_a_copy_that_fell_ignores_actions_until_the_next_episode(name):
    copies = parse(name).make(6)
    copies.reset(np.arange(6), np.ones(6, bool))
    over, last = np.zeros(6, bool), None
    for action in random_actions(copies.spec, 6, 150):
        timestep, reward, terminated, truncated = copies.step(action)
        assert not (over & (terminated | truncated)).any()
        assert not reward[over].any() and reward[~over].all()
        if last is not None:
            np.testing.assert_array_equal(timestep.state[over], last.state[over])
            np.testing.assert_array_equal(timestep.obs[over], last.obs[over])
        over, last = over | terminated, timestep
    assert over.sum() >= 2, "some fall"
    again = copies.reset(np.arange(6), np.ones(6, bool))
    np.testing.assert_array_equal(
        again.state, parse(name).make(6).reset(np.arange(6), np.ones(6, bool)).state
    )


@pytest.mark.parametrize("name", ["Hopper-3x1", "Ant-2x4", "Reacher-2x1"])
def test_a_copy_that_does_not_play_stands_still(name):
    copies = parse(name).make(3)
    playing = np.array([True, False, True])
    first = copies.reset(np.arange(3), playing)
    playing[:] = True  # the copies keep their own
    for action in random_actions(copies.spec, 3, 4):
        timestep, reward, terminated, truncated = copies.step(action)
        np.testing.assert_array_equal(timestep.state[1], first.state[1])
        assert reward[1] == 0 and not terminated[1] and not truncated[1]
        assert reward[0] != 0 and (timestep.state[0] != first.state[0]).any()


def play(task, seeds, actions):
    """The states and rewards of a whole play: [steps, copies, ...]."""
    copies = MultiAgentMujocoCopies(task, len(seeds), np.float64)
    copies.reset(np.array(seeds), np.ones(len(seeds), bool))
    states, rewards = [], []
    for action in actions:
        timestep, reward, _, _ = copies.step(action)
        states.append(timestep.state)
        rewards.append(reward)
    return np.array(states), np.array(rewards)


@pytest.mark.parametrize("name", ["Hopper-3x1", "Ant-2x4d", "Humanoid-9|8"])
def test_a_copy_depends_neither_on_the_others_nor_on_threads(name):
    task = task_of(name, num_threads=1)
    actions = random_actions(task.spec, 4, 50)
    states, rewards = play(task, [3, 4, 5, 6], actions)
    alone, reward_alone = play(task, [5], actions[:, 2:3])
    threaded, reward_threaded = play(task_of(name, num_threads=3), [3, 4, 5, 6], actions)
    np.testing.assert_array_equal(states[:, 2], alone[:, 0])
    np.testing.assert_allclose(rewards[:, 2], reward_alone[:, 0], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(states, threaded)
    np.testing.assert_array_equal(rewards, reward_threaded)


def test_the_number_of_threads_is_no_part_of_a_task():
    one, other = task_of("Hopper-3x1", num_threads=1), task_of("Hopper-3x1", num_threads=2)
    assert one == other and hash(one) == hash(other)
    assert one != task_of("Hopper-3x1", agent_obsk=1)


def test_a_simulation_that_diverges_is_an_error_that_names_it():
    copies = parse("HalfCheetah-2x3").make(3)
    copies.reset(np.arange(3), np.ones(3, bool))
    actions = random_actions(copies.spec, 3, 2)
    copies.step(actions[0])
    physics: Any = copies.physics
    physics.qvel[1] = 1e12
    with (
        mamujoco_physics.no_mujoco_log(),
        pytest.raises(TaskDied, match=r"HalfCheetah-2x3, step 2 .* copy 1 "),
    ):
        copies.step(actions[1])


def test_an_action_that_is_no_number_is_an_error_that_names_it():
    copies = parse("Hopper-3x1").make(2)
    copies.reset(np.arange(2), BOTH)
    action = np.zeros((2, 3, 1), np.float32)
    action[1] = np.nan
    with (
        mamujoco_physics.no_mujoco_log(),
        pytest.raises(TaskDied, match="copy 1 an action is not finite"),
    ):
        copies.step(action)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: parse("Hoper-3x1"),
            r"robot 'Hoper' .*; did you mean 'Hopper'\? The robots are HalfCheetah, Ant, ",
        ),
        (
            lambda: parse("Ant-2x4e"),
            r"partition '2x4e' .*; did you mean '2x4' or '2x4d'\? Ant has 2x4, 2x4d",
        ),
        (
            lambda: parse("ManySegmentAnt-2"),
            r"partition '2' .* ManySegmentAnt has <agents>x<segments of each>",
        ),
        (
            lambda: parse("Hopper"),
            r"task 'Hopper' .*; did you mean 'Hopper-3x1'\? A name is <robot>-<partition>",
        ),
        (
            lambda: MultiAgentMujoco("Hopper", "3x1", agent_obsk=-1),
            "agent_obsk=-1 is too small: it must be 0 or more",
        ),
        (
            lambda: MultiAgentMujoco("Hopper", "3x1", horizon=0),
            "horizon=0 is too small: it must be 1 or more",
        ),
        (
            lambda: MultiAgentMujoco("Hopper", "3x1", reward_delay=0),
            "reward_delay=0 is too small: it must be 1 or more",
        ),
        (
            lambda: MultiAgentMujoco("Hopper", "3x1", agent_obsk=99).spec,
            "agent_obsk=99 of Hopper-3x1 must be 2 or less: no joint is farther",
        ),
        (
            lambda: MultiAgentMujoco("Hopper", "3x1", global_categories=("qpo",)),
            r"category 'qpo' .*; did you mean 'qpos'\? The categories are qpos, qvel, ",
        ),
        (
            lambda: MultiAgentMujoco("Hopper", "3x1", local_categories=(("qpos",), ("qvel",))),
            "has 2 entries: it must have one for each distance from 0 to agent_obsk=0",
        ),
        (
            lambda: find_task("mamujoco/coupled_half_cheetah"),
            "'coupled_half_cheetah' is called mamujoco/CoupledHalfCheetah-1p1 here",
        ),
        (
            lambda: find_task("mamujoco/manyagent_swimmer"),
            "is called mamujoco/ManySegmentSwimmer-<agents>x<segments of each> here",
        ),
        (
            lambda: find_task("mamujoco/2-Agent-HalfCheetah"),
            "'2-Agent-HalfCheetah' is called mamujoco/HalfCheetah-2x3 here",
        ),
        (
            lambda: find_task("mamujoco/manyagent_swimmer"),
            "'manyagent_swimmer' is called mamujoco/ManySegmentSwimmer-<agents>x<segments of each>",
        ),
        (
            lambda: find_task("2-Agent Humanoid"),
            r"'2-Agent Humanoid' is called mamujoco/Humanoid-9\|8 here",
        ),
    ],
)
def test_an_impossible_task_is_refused_with_what_would_be_right(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_task_that_gymnasium_robotics_cannot_make_says_so(monkeypatch):
    from gymnasium_robotics import mamujoco_v1

    def fail(*_, **__):
        raise IndexError("invalid index to scalar variable.")

    monkeypatch.setattr(mamujoco_v1, "parallel_env", fail)
    with pytest.raises(ValueError, match="gymnasium-robotics cannot make CoupledHalfCheetah-1p1"):
        _ = parse("CoupledHalfCheetah-1p1").spec


@pytest.mark.parametrize(
    ("missing", "remedy"),
    [
        ("gymnasium_robotics", r'pip install "comarl\[mujoco\]"'),
        ("mujoco", r'pip install "comarl\[mujoco\]"'),
        ("mujoco.batch", "no mujoco.batch, which came with 3.17"),
    ],
)
def test_a_missing_extra_is_an_error_with_its_remedy(missing, remedy, monkeypatch):
    import_as_ever = builtins.__import__

    def import_all_but(name, *rest):
        if name == missing:
            raise ImportError(name)
        return import_as_ever(name, *rest)

    monkeypatch.setattr(builtins, "__import__", import_all_but)
    with pytest.raises(ImportError, match=remedy):
        mamujoco_physics.new_reference("Hopper", "3x1", ViewSettings(0, (), None))


def test_the_named_partitions_are_those_of_gymnasium_robotics():
    from gymnasium_robotics.envs.multiagent_mujoco import obsk

    source = Path(obsk.__file__).read_text()
    theirs = {
        robot: tuple(re.findall(r'partitioning == "([^"]+)"', branch))
        for labels, branch in re.findall(
            r"label in \[([^\]]+)\]:(.*?)return parts", source, re.DOTALL
        )
        for robot in re.findall(r'"(\w+)"', labels)
    }
    ours = {
        robot: () if robot.startswith("ManySegment") else names
        for robot, names in PARTITIONS.items()
    }
    assert ours == theirs
    assert {name.partition("-")[0] for name in TASKS} <= set(PARTITIONS)


def test_loading_a_robot_leaves_nothing_in_the_users_folder(tmp_path, monkeypatch, capfd):
    mujoco: Any = importlib.import_module("mujoco")
    before = mujoco.MjLogConfig.get().logto_file
    monkeypatch.chdir(tmp_path)
    mamujoco_physics.new_reference(
        "HalfCheetah", "2x3", ViewSettings(0, (), None)
    )  # what a first use loads
    parse("HalfCheetah-2x3").make(2)
    assert not list(tmp_path.iterdir()) and capfd.readouterr().err == ""
    assert mujoco.MjLogConfig.get().logto_file == before
