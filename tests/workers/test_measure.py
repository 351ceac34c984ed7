"""Whatever an environment's code does where it is imported and made, `comarl` answers in a sentence
and lives on."""

import sys

import pytest

pytest.importorskip("gymnasium")

from comarl.cli import main
from comarl.envs.pettingzoo import PettingZoo
from comarl.types import TaskDied
from comarl.workers import pool
from comarl.workers.pool import Workers

OWN = """
import os, signal, sys, time
import numpy as np
from gymnasium.spaces import Box, Discrete

class parallel_env:
    metadata, possible_agents = {}, ["ann", "bob"]
    def __init__(self, wide): {fault}
    def observation_space(self, agent): return Box(-1.0, 1.0, (3,))
    def action_space(self, agent): return Discrete(2)
    def reset(self, seed=None, options=None):
        self.agents = list(self.possible_agents)
        return {agent: np.zeros(3, np.float32) for agent in self.agents}, {}
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """`own(name, code)` is a module of the user's; its name is one that no other test has."""
    monkeypatch.syspath_prepend(tmp_path)

    def module(name, fault=None, code=OWN):
        (tmp_path / f"{name}.py").write_text(code.replace("{fault}", fault or "pass"))
        return name

    return module


def train(module, *options):
    task = ("--task.kwargs", "wide=1", "--task.horizon", "5", "--dry-run")
    return main(("train", "iql", f"pettingzoo/{module}", *task, *options))


def test_an_environment_that_needs_arguments_and_a_time_limit_is_trained_in(own, capsys):
    assert train(own("measured_well")) == 0
    spec = PettingZoo("measured_well", kwargs=("wide=1",), horizon=5).spec
    assert (spec.num_agents, spec.obs_size, spec.state_size, spec.horizon) == (2, 3, 6, 5)
    assert "measured_well" not in sys.modules


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", 1, "was killed by SIGSEGV at its start."),
        ("os._exit(0)", 1, "ended with exit status 0 at its start."),
        ("sys.exit(3)", 2, "parallel_env of measured_{} answers SystemExit: 3 ("),
        ("raise KeyError('[/x]')", 2, "parallel_env of measured_{} answers KeyError: '[/x]' ("),
    ],
)
def test_a_constructor_that_fails_ends_in_a_sentence(fault, status, words, own, capsys):
    name = f"{status}{abs(hash(fault))}"
    assert train(own(f"measured_{name}", fault)) == status
    told = capsys.readouterr().err
    assert words.format(name) in told and told.count("\n") == 1


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise SystemExit('no licence')", "SystemExit: no licence ("),
        ("1 / 0", "ZeroDivisionError: division by zero ("),
        ("def (", "SyntaxError: invalid syntax ("),
    ],
)
def test_a_module_that_fails_as_it_is_imported_ends_in_a_sentence(code, words, own, capsys):
    name = f"imported_{abs(hash(code))}"
    assert train(own(name, code=code)) == 1
    told = capsys.readouterr().err
    assert f"module='{name}' cannot be imported: {words}" in told and told.count("\n") == 1


def test_a_constructor_that_hangs_is_given_up_after_its_last_words(own, monkeypatch, capsys):
    monkeypatch.setattr(pool, "START_TIMEOUT", 3.0)
    name = own("measured_slowly", "print('waiting'); time.sleep(1000)")
    task = PettingZoo(name, kwargs=("wide=1",), horizon=5, workers=Workers(timeout=3.0))
    with pytest.raises(TaskDied, match=f"pettingzoo/{name}, .*gave no answer for 3 s at its start"):
        _ = task.spec
    assert "prints: waiting" in capsys.readouterr().err
