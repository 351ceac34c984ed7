"""A number that is none in a task's episodes is named, and nothing learns from it."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.algorithms.qmix import Qmix
from comarl.envs import find_task
from comarl.envs.check import ContractViolation
from comarl.envs.matrix import MatrixGame
from comarl.play.finite import all_finite, check_finite
from comarl.runs.identity import identity
from comarl.training.run import Options, Session, evaluate_once
from comarl.training.settings import Run
from comarl.types import Episode, TaskDied, Timestep


def episodes(**changes):
    """Two seeds with one episode each of three steps, of which two were played."""
    mask = jnp.array([[[True, True, False]]] * 2)
    parts = {"obs": (2, 1, 4, 2, 3), "state": (2, 1, 4, 5), "reward": (2, 1, 3)}
    arrays = {name: jnp.zeros(shape) for name, shape in parts.items()}
    for name, (index, value) in changes.items():
        arrays[name] = arrays[name].at[index].set(value)
    timesteps = Timestep(arrays["obs"], arrays["state"], None)
    action = jnp.zeros((2, 1, 3, 2), jnp.int32)
    return Episode(None, timesteps, action, arrays["reward"], jnp.zeros_like(mask), mask)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"reward": ((1, 0, 1), jnp.nan)},
            "toy, seed 8, copy 0, step 2 of the episode: the reward is nan; it must be finite",
        ),
        (
            {"obs": ((0, 0, 2, 1, 2), jnp.inf)},
            "toy, seed 7, copy 0, step 2 of the episode: the observation of agent 1 is inf "
            "at entry 2; it must be finite",
        ),
        (
            {"state": ((0, 0, 0, 4), -jnp.inf)},
            "toy, seed 7, copy 0, the start of the episode: the state is -inf at entry 4; it must "
            "be finite",
        ),
    ],
)
def test_the_first_number_that_is_none_is_named(changes, words):
    with pytest.raises(TaskDied) as error:
        check_finite(episodes(**changes), "toy", 7)
    assert str(error.value) == words


def test_what_comes_after_the_end_may_be_anything():
    late = episodes(reward=((0, 0, 2), jnp.nan), obs=((0, 0, 3), jnp.nan))
    assert all_finite(late) and all_finite(episodes())
    check_finite(late, "toy")


@dataclass(frozen=True)
class Sick(MatrixGame):
    """A matrix game that falls ill at some of its starts, or pays whole numbers."""

    whole: bool = False

    def step(self, env_state, action, key):
        env_state, after, reward, *ends = super().step(env_state, action, key)
        if self.whole:
            return env_state, after, reward.astype(jnp.int32), *ends
        reward = jnp.where(jax.random.uniform(key) < 0.02, jnp.nan, reward)
        return env_state, after, reward, *ends


def session(task, folder, tell=lambda event: None):
    run = Run(Qmix(), task, steps=20_000, evaluate_every=20_000)
    config = identity(run, "qmix", "matrix/climbing")
    return Session.open(run, config, folder, Options(checkpoint_seconds=1e9), tell)


def test_a_sick_step_ends_the_run_with_the_last_good_state(tmp_path):
    task = Sick(**vars(find_task("matrix/climbing")))
    ill = session(task, tmp_path)
    with pytest.raises(TaskDied, match=r"matrix/climbing, seed 0, copy .*: the reward is nan"):
        ill.train()
    again = session(task, tmp_path)
    state = again.resume()
    assert state is not None and again.log.round == ill.log.round > 0
    assert all(
        np.isfinite(leaf).all()
        for leaf in map(np.asarray, jax.tree.leaves(state.replay))
        if leaf.dtype.kind == "f"
    )
    many = replace(again.run, evaluation_episodes=500)
    with pytest.raises(TaskDied, match=r"^evaluation on Sick, seed 0, copy .*: the reward is nan"):
        evaluate_once(many, state)


def test_a_task_that_breaks_the_contract_is_refused_before_training(tmp_path):
    whole = replace(Sick(**vars(find_task("matrix/climbing"))), whole=True)
    with pytest.raises(ContractViolation, match="the reward of step is of int32"):
        session(whole, tmp_path)
