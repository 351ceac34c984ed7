"""VM3-AC in the training loop."""

import jax
from rich.console import Console

from comarl.algorithms.vm3_ac import Vm3Ac
from comarl.training.replay import Ring
from comarl.training.run import Options, Session, identity
from comarl.training.train import Run
from tests.training.tasks import Wander


def test_a_resumed_run_never_stopped_and_a_seed_does_not_see_its_neighbour(tmp_path, bits):
    algorithm = Vm3Ac(hidden=(4,), latent_size=2, replay=Ring(100, 8), warmup_steps=20, updates_per_step=1.0)
    settings = dict(seeds=2, steps=70, evaluate_every=40, evaluation_episodes=2)

    def trained(folder, **more):
        run = Run(algorithm, Wander(), **{**settings, **more})
        return Session(run, identity(run, "test", "test"), tmp_path / folder, Options(), Console(quiet=True)).train()

    whole = trained("whole")
    assert int(whole.clock.updates.min()) > 0
    for steps in (30, 70):
        stretches = trained("stretches", steps=steps)
    assert bits(stretches.agent) == bits(whole.agent)
    shifted, one = trained("shifted", first_seed=1).agent, lambda tree, seed: jax.tree.map(lambda x: x[seed], tree)
    assert bits(one(shifted, 0)) == bits(one(whole.agent, 1)) != bits(one(shifted, 1))
