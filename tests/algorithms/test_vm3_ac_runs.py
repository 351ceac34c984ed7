"""VM3-AC and its field in the training loop."""

import dataclasses
from typing import Any

import jax
import pytest

from comarl.algorithms.maddpg import Maddpg
from comarl.algorithms.maven_ac import MavenAc
from comarl.algorithms.presets import MA_AC
from comarl.algorithms.si_moa import SiMoa
from comarl.algorithms.vm3_ac import Vm3Ac
from comarl.replay.pace import StepPace
from comarl.replay.transitions import Ring
from comarl.training.settings import Run
from tests.sessions import session
from tests.training.tasks import Wander

TINY: dict[str, Any] = dict(hidden=(4,), replay=Ring(100, 8))
PACE = StepPace(warmup_steps=20, updates_per_step=1.0)
BASE = dataclasses.replace(MA_AC, **TINY, pace=PACE)
ALGORITHMS = {
    "vm3-ac": Vm3Ac(latent_size=2, **TINY, pace=PACE),
    "maddpg": Maddpg(**TINY, pace=dataclasses.replace(PACE, parallel_envs=2)),
    "maven-ac": MavenAc(BASE, latents=3, discriminator=(4,)),
    "si-moa": SiMoa(BASE, counterfactuals=2, model_hidden=(4,)),
}


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
def test_a_resumed_run_never_stopped_and_a_seed_does_not_see_its_neighbour(
    algorithm, tmp_path, bits
):
    settings: dict[str, Any] = dict(seeds=2, steps=70, evaluate_every=40, evaluation_episodes=2)

    def trained(folder, **more):
        return session(Run(algorithm, Wander(), **{**settings, **more}), tmp_path / folder).train()

    whole = trained("whole")
    assert int(whole.clock.updates.min()) > 0
    for steps in (30, 70):
        stretches = trained("stretches", steps=steps)
    assert bits(stretches.agent) == bits(whole.agent)
    shifted = trained("shifted", first_seed=1).agent
    one = lambda tree, seed: jax.tree.map(lambda x: x[seed], tree)
    assert bits(one(shifted, 0)) == bits(one(whole.agent, 1)) != bits(one(shifted, 1))
