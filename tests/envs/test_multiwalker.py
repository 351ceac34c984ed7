"""Multi-walker, held against PettingZoo's environment step by step, and the older rewards against
their rules."""

import warnings

import numpy as np
import pytest

pytest.importorskip("Box2D")

from comarl.envs import find_task
from comarl.envs.check import check
from comarl.envs.multiwalker import Multiwalker
from comarl.workers.team import ParallelTeam
from comarl.workers.walkers import Walkers

with warnings.catch_warnings(action="ignore"):
    from pettingzoo.sisl import multiwalker_v9

STEP = 14 / 30


def team_of(walkers=3, madrl_rewards=False):
    return Walkers(walkers, 25 * walkers, 500, madrl_rewards)


def push(chance, walkers):
    """Actions that hold for a while, so that walkers move before they fall."""
    return np.repeat(chance.uniform(-1, 1, (12, walkers, 4)), 10, axis=0).astype(np.float32)


@pytest.mark.parametrize("walkers", [3, 4])
def test_every_step_is_pettingzoos_with_the_walkers_number_and_the_older_terrain(walkers):
    team, ends = team_of(walkers), 0
    env = multiwalker_v9.parallel_env(n_walkers=walkers, terrain_length=25 * walkers)
    chance = np.random.default_rng(0)
    for seed in range(4):
        observations, _ = env.reset(seed=seed)
        seen, over = team.reset(seed), False
        for action in push(chance, walkers):
            expected = np.array(
                [[*observations[agent], i / walkers] for i, agent in enumerate(env.possible_agents)]
            )
            np.testing.assert_array_equal(seen.obs, expected.astype(np.float32))
            np.testing.assert_array_equal(seen.state, seen.obs.reshape(-1))
            if over:
                break
            seen, reward, over, truncated = team.step(action)
            observations, rewards, terminations, _, _ = env.step(
                dict(zip(env.agents, action, strict=True))
            )
            assert reward == pytest.approx(np.mean(list(rewards.values())))
            assert over == all(terminations.values()) and not truncated
        ends += over
    assert ends >= 3


@pytest.mark.parametrize("walkers", [3, 4])
def test_the_older_rewards_are_madrls_rules(walkers):
    team, chance = team_of(walkers, madrl_rewards=True), np.random.default_rng(1)
    fell = dropped = 0
    for seed in range(6):
        team.reset(seed)
        world = team.team.env.unwrapped.env
        # What is paid for is the change of this, the mean over walkers.
        worth = lambda w=world: (
            130 * w.package.position.x / 30 - 5 * np.mean([abs(x.hull.angle) for x in w.walkers])
        )
        over = False
        for time, action in enumerate(push(chance, walkers)):
            before = worth()
            # The package drops, which chance seldom does before a fall
            world.game_over |= seed == time == 5
            _, reward, over, _ = team.step(action)
            first = world.walkers[-1].hull.position.x
            lost = world.game_over or first < 0
            expected = worth() - before - 100 * lost - 100 * world.fallen_walkers.mean()
            assert reward == pytest.approx(expected, abs=1e-6)
            assert over == (lost or world.fallen_walkers.any())
            if over:
                fell, dropped = fell + world.fallen_walkers.any(), dropped + lost
                break
        assert over
    assert fell and dropped, "both kinds of failure were seen"


@pytest.mark.parametrize("madrl_rewards", [True, False])
def test_a_package_that_is_carried_back_beyond_the_start_is_a_failure(madrl_rewards):
    team = team_of(3, madrl_rewards)
    team.reset(0)
    world = team.team.env.unwrapped.env
    before = world.package.position.x
    # Above the walkers, of whom none goes back
    world.package.position = (-0.5, world.package.position.y + 3.0)
    _, reward, over, _ = team.step(np.zeros((3, 4), np.float32))
    assert over and not world.fallen_walkers.any() and world.walkers[-1].hull.position.x > 0
    after = world.package.position.x  # pyright: ignore[reportAttributeAccessIssue]  # Box2D's vector
    moved = 130 / 30 * (after - before)
    assert reward == pytest.approx(-100 + moved, abs=2.0)


@pytest.mark.parametrize(("walkers", "package", "front"), [(3, 91.0, 70.8), (4, 131.4, 101.1)])
def test_the_way_to_the_finish_is_worth_what_the_rules_say(walkers, package, front):
    team = team_of(walkers)
    team.reset(0)
    world, finish = team.team.env.unwrapped.env, (25 * walkers - 10) * STEP
    starts = [walker.hull.position.x for walker in world.walkers]
    np.testing.assert_allclose(starts, [10 * STEP * (i + 1) for i in range(walkers)], rtol=1e-6)
    assert 130 / 30 * (finish - world.package.position.x) == pytest.approx(package, abs=0.05)
    assert 130 / 30 * (finish - starts[-1]) == pytest.approx(front, abs=0.05)


@pytest.mark.parametrize(("madrl_rewards", "at_the_finish"), [(True, "front"), (False, "package")])
def test_an_episode_ends_without_a_fall_when_the_finish_is_reached(madrl_rewards, at_the_finish):
    team = team_of(3, madrl_rewards)
    team.reset(0)
    world = team.team.env.unwrapped.env
    x = {"front": world.walkers[-1].hull.position.x, "package": world.package.position.x}
    bodies = [
        world.package,
        *(body for walker in world.walkers for body in (walker.hull, *walker.legs)),
    ]
    for short, ends in ((0.3, False), (-0.1, True)):
        shift = (75 - 10) * STEP - x[at_the_finish] - short
        x = {name: place + shift for name, place in x.items()}
        for body in bodies:
            # Above the ground, which is uneven
            body.position = (body.position.x + shift, body.position.y + 0.3)
        _, reward, over, _ = team.step(np.zeros((3, 4), np.float32))
        assert over == ends and not world.fallen_walkers.any() and not world.game_over
        assert reward == pytest.approx(130 / 30 * shift, abs=2.0), (
            "reaching it pays nothing of its own"
        )


def test_time_that_runs_out_is_left_to_the_pool():
    team = Walkers(3, 75, 2, False)
    team.reset(0)
    assert [team.step(np.zeros((3, 4), np.float32))[2:] for _ in range(2)] == [(False, False)] * 2


def test_a_state_that_is_gone_with_the_agents_ends_no_run():
    team = ParallelTeam("pettingzoo.sisl.multiwalker_v9", {"n_walkers": 2})
    for seed in range(3):
        team.reset(seed)
        steps = (team.step(action) for action in push(np.random.default_rng(seed), 2))
        last = next(seen for seen, _, terminated, _ in steps if terminated)
        assert np.isfinite(last.state).all()


@pytest.mark.parametrize("walkers", [3, 4])
def test_the_presets_keep_the_contract(walkers):
    task = find_task(f"multiwalker/{walkers}")
    assert task == Multiwalker(walkers) and task.pieces == 25 * walkers
    spec = task.spec
    assert (spec.num_agents, spec.obs_size, spec.state_size) == (walkers, 32, 32 * walkers)
    assert (spec.action_size, spec.horizon, spec.discrete) == (4, 500, False)
    report = check(task, steps=100)
    assert 30 < report.mean_length < 150 and -125 < report.mean_return < -85


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"walkers": 0}, "walkers=0 of Multiwalker must be between 1 and 40"),
        ({"terrain_length": 40}, "terrain_length=40 of Multiwalker must be 50 or more"),
        ({"horizon": 0}, "horizon=0 of Multiwalker must be 1 or more"),
    ],
)
def test_an_impossible_setting_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Multiwalker(**settings)
