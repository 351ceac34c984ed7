"""Whole runs that learn a small task within a minute or two: a threshold that chance does not
reach."""

from typing import Any

import numpy as np
import pytest

from comarl.algorithms.facmac import Facmac
from comarl.algorithms.qmix import Qmix
from comarl.envs.predator_prey import PredatorPrey
from comarl.ops.exploration import Epsilon
from comarl.ops.learner import Adam
from comarl.replay.episodes import EpisodeRing
from comarl.replay.pace import EpisodePace
from comarl.runs.records import read
from comarl.training.settings import Run
from tests.sessions import session

# One capture, worth 10, is all that two can make.
HUNT = PredatorPrey(agents=2, prey=4, size=3, horizon=12)
PACE: dict[str, Any] = dict(
    hidden=32,
    replay=EpisodeRing(500, 32),
    pace=EpisodePace(8, 1.0),
    target_period=50,
)
ALGORITHMS = {
    "qmix": Qmix(**PACE, optimiser=Adam(2e-3), epsilon=Epsilon(1.0, 0.05, 6_000)),
    "facmac": Facmac(**PACE, epsilon=Epsilon(0.5, 0.05, 6_000)),
}


@pytest.mark.parametrize("name", ["qmix", pytest.param("facmac", marks=pytest.mark.slow)])
def test_two_predators_learn_to_catch_together(name, tmp_path):
    run = Run(ALGORITHMS[name], HUNT, steps=10_000, evaluate_every=10_000, evaluation_episodes=64)
    session(run, tmp_path).train()
    last = read(tmp_path)[-1]
    assert np.mean(last["marl_team"]) > 6.0, (
        "random teams get 1.3, measured over a thousand episodes"
    )
    np.testing.assert_allclose(last["marl_team"], 10.0 * np.array(last["marl_team_captures"]))
