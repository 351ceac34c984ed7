"""Every algorithm that learns from episodes, at a size that compiles in seconds."""

import dataclasses
from typing import Any

from comarl.algorithms.dop import Dop
from comarl.algorithms.facmac import Facmac
from comarl.algorithms.fop import Fop
from comarl.algorithms.lica import Lica
from comarl.algorithms.lsf_sac import LsfSac, Messaging, Temperature
from comarl.algorithms.maven import Maven
from comarl.algorithms.msac import Msac
from comarl.algorithms.ndq import Ndq
from comarl.algorithms.presets import MAA2C
from comarl.algorithms.qmix import Qmix
from comarl.algorithms.qplex import Qplex
from comarl.algorithms.qtran import Qtran
from comarl.algorithms.race_facmac import RaceFacmac
from comarl.algorithms.vdac import Vdac
from comarl.algorithms.vm3_ac_discrete import Vm3AcDiscrete
from comarl.algorithms.wqmix import Wqmix
from comarl.evolution.population import HeadBreeding
from comarl.replay.episodes import EpisodeRing
from comarl.replay.pace import EpisodePace
from tests.data import SMOOTH

SIZES: dict[str, Any] = dict(hidden=4, mixer_width=3, hypernet=3)
PACE: dict[str, Any] = dict(replay=EpisodeRing(100, 5), pace=EpisodePace(2, 1.5))
BOTH: dict[str, Any] = dict(actor_optimiser=SMOOTH, critic_optimiser=SMOOTH)

ON_POLICY: dict[str, Any] = dict(replay=EpisodeRing(2, 2), pace=EpisodePace(2, 0.5))
FOP = Fop(hidden=4, mixer_width=3, **PACE, **BOTH)

TINY = {
    "vdac": Vdac(**SIZES, **ON_POLICY, **BOTH),
    "maa2c": dataclasses.replace(MAA2C, **SIZES, **ON_POLICY, **BOTH),
    "lica": Lica(hidden=4, critic_width=3, hypernet=3, **ON_POLICY, **BOTH),
    "dop": Dop(
        hidden=4,
        critic_hidden=(4,),
        mixer_width=3,
        **{**PACE, "replay": EpisodeRing(100, 2, recent=4, recent_batch=2)},
        **BOTH,
    ),
    "maven": Maven(
        **SIZES,
        **PACE,
        discriminator=(3,),
        latent_policy="learned",
        optimiser=SMOOTH,
        latent_optimiser=SMOOTH,
    ),
    "msac": Msac(hidden=4, **PACE, **BOTH, temperature_optimiser=SMOOTH),
    "lsf-sac": LsfSac(**SIZES, **PACE, **BOTH, messages=Messaging(size=2, hidden=3, weight=0.5)),
    "masac-double-q": LsfSac(
        **SIZES,
        **PACE,
        **BOTH,
        messages=Messaging("none"),
        critics=2,
        temperature=Temperature("sac-discrete"),
    ),
    "ndq": Ndq(**SIZES, **PACE, message_size=2, message_width=3, optimiser=SMOOTH),
    "qmix": Qmix(**SIZES, **PACE, optimiser=SMOOTH),
    "qplex": Qplex(**SIZES, **PACE, optimiser=SMOOTH),
    "qplex-attention": Qplex(
        **SIZES, **PACE, mixing="attention", weighted_heads=True, optimiser=SMOOTH
    ),
    "fop": FOP,
    "vm3-ac-discrete": Vm3AcDiscrete(
        FOP, predictor_hidden=3, latent_size=2, predictor_optimiser=SMOOTH
    ),
    "qtran": Qtran(hidden=4, joint_hidden=(3, 3), **PACE, optimiser=SMOOTH),
    "wqmix": Wqmix(**SIZES, unrestricted_width=3, **PACE, optimiser=SMOOTH),
    "facmac": Facmac(**SIZES, **PACE, **BOTH),
    "race-facmac": RaceFacmac(
        **SIZES,
        **PACE,
        **BOTH,
        mine_optimiser=SMOOTH,
        breeding=HeadBreeding(mutated_fraction=0.05, population=2),
        population_after=0,
        embedding=3,
        mine_width=3,
        value_hidden=3,
        beta=0.5,
    ),
}
