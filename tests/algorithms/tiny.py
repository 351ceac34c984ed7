"""Every algorithm that learns from episodes, at a size that compiles in seconds."""

from comarl.algorithms.facmac import Facmac
from comarl.algorithms.qmix import Qmix
from comarl.algorithms.race_facmac import RaceFacmac
from comarl.training.replay import EpisodeRing
from tests.conftest import SMOOTH

SIZES = dict(hidden=4, mixer_width=3, hypernet=3)
PACE = dict(replay=EpisodeRing(100, 5), parallel_envs=2, updates_per_episode=1.5)
BOTH = dict(actor_optimiser=SMOOTH, critic_optimiser=SMOOTH)

TINY = {
    "qmix": Qmix(**SIZES, **PACE, optimiser=SMOOTH),
    "facmac": Facmac(**SIZES, **PACE, **BOTH),
    "race-facmac": RaceFacmac(
        **SIZES,
        **PACE,
        **BOTH,
        mine_optimiser=SMOOTH,
        population=2,
        population_after=0,
        embedding=3,
        mine_width=3,
        value_hidden=3,
        beta=0.5,
    ),
}
