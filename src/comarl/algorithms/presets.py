"""Algorithms with other settings than their defaults, each with the source of its settings.

A variant that only switches a term off or chooses another part is a preset; one with a loss of its
own is an algorithm.
"""

from typing import Any

from comarl.algorithms.dop import Dop
from comarl.algorithms.ea import Ea
from comarl.algorithms.facmac import Facmac
from comarl.algorithms.fop import Fop
from comarl.algorithms.lica import Lica
from comarl.algorithms.lsf_sac import LsfSac, Messaging, Temperature
from comarl.algorithms.maddpg import Maddpg
from comarl.algorithms.matd3 import Matd3
from comarl.algorithms.maven import Maven
from comarl.algorithms.merl import Merl
from comarl.algorithms.msac import Msac
from comarl.algorithms.ndq import Ndq
from comarl.algorithms.qmix import Qmix
from comarl.algorithms.qplex import Qplex
from comarl.algorithms.qtran import Qtran
from comarl.algorithms.vdac import Vdac
from comarl.algorithms.vm3_ac import MA_AC as MA_AC
from comarl.algorithms.vm3_ac import Vm3Ac
from comarl.algorithms.wqmix import Wqmix
from comarl.ops.exploration import Epsilon
from comarl.ops.learner import Adam, RmsProp
from comarl.replay.episodes import EpisodeRing
from comarl.replay.pace import EpisodePace, StepPace
from comarl.replay.transitions import Ring

# Variants that their papers name.

VDN = Qmix(mixing="sum")
IQL = Qmix(mixing="none")
CW_QMIX = Wqmix()
OW_QMIX = Wqmix(weighting="optimistic")
VDAC_SUM = Vdac(mixing="sum")
MAA2C = Vdac(
    separate=True,
    value_weight=1.0,
    entropy_weight=0.01,
    actor_optimiser=Adam(1e-3),
    critic_optimiser=Adam(1e-3),
)
MSAC_SINGLE = Msac(critics=1)
FACMAC_NONMONOTONIC = Facmac(mixing="any")
MERL_FACMAC = Merl(Facmac(), population_after=10_000)
EA_FACMAC = Ea(Facmac())
MASAC = LsfSac(messages=Messaging("none"))
MASAC_DOUBLE_Q = LsfSac(messages=Messaging("none"), critics=2)
LSF_SAC_FIXED_TEMPERATURE = LsfSac(temperature=Temperature("fixed"))
MA_SAC = Vm3Ac(latent_size=0, mutual_information=False)

# The settings of PyMARL2 (Hu et al., 2021), in which LSF-SAC's authors compared.

PYMARL2_PACE = EpisodePace(parallel_envs=8, updates_per_episode=0.125)
PYMARL2: dict[str, Any] = dict(
    optimiser=Adam(1e-3),
    td_lambda=0.6,
    epsilon=Epsilon(steps=100_000),
    target_period=25,
    replay=EpisodeRing(5_000, 128),
    pace=PYMARL2_PACE,
)
"""what its value-based algorithms share"""

QMIX_PYMARL2 = Qmix(**PYMARL2)
VDN_PYMARL2 = Qmix(mixing="sum", **PYMARL2)
CW_QMIX_PYMARL2 = Wqmix(**PYMARL2)
OW_QMIX_PYMARL2 = Wqmix(weighting="optimistic", **PYMARL2)
QPLEX_PYMARL2 = Qplex(importance_hidden=(64,), **PYMARL2)
QTRAN_PYMARL2 = Qtran(**PYMARL2)
MAVEN_PYMARL2 = Maven(hypernet=64, **PYMARL2)
NDQ_PYMARL2 = Ndq(hypernet=64, **PYMARL2)
FOP_PYMARL2 = Fop(
    actor_optimiser=Adam(1e-3),
    critic_optimiser=Adam(1e-3),
    td_lambda=0.6,
    epsilon=Epsilon(steps=100_000),
    target_period=25,
    replay=EpisodeRing(5_000, 128),
    pace=PYMARL2_PACE,
)
VDAC_MIX_PYMARL2 = Vdac(
    entropy_weight=0.01,
    epsilon=Epsilon(0.5, 0.0, 100_000),
    epsilon_in_loss=False,
    actor_optimiser=RmsProp(1e-3, epsilon=1e-8),
    critic_optimiser=RmsProp(1e-3, epsilon=1e-8),
)
LICA_PYMARL2 = Lica(hypernet=64, td_lambda=0.6, replay=EpisodeRing(128, 32), pace=PYMARL2_PACE)
DOP_PYMARL2 = Dop(
    actor_optimiser=RmsProp(5e-4, 20.0, epsilon=1e-8),
    critic_optimiser=RmsProp(5e-4, 20.0, epsilon=1e-8),
    replay=EpisodeRing(5_000, 64, recent=64, recent_batch=32),
    pace=PYMARL2_PACE,
)
MSAC_PYMARL2 = Msac(
    td_lambda=0.6,
    tau=0.04,  # as slow, in updates, as copying after 25
    actor_optimiser=Adam(1e-3),
    critic_optimiser=Adam(1e-3),
    replay=EpisodeRing(5_000, 128),
    pace=PYMARL2_PACE,
)

# The settings of TD3's code as it is now (Fujimoto et al., 2018), which RACE's paper names for
# MATD3. The paper of TD3, and its code at first, had networks of 400 and 300 units.

MATD3_TD3 = Matd3(
    hidden=(256, 256),
    activation="relu",
    output_scale=1.0,
    layer_norm=False,
    actor_optimiser=Adam(3e-4, max_grad_norm=0.0),
    critic_optimiser=Adam(3e-4, max_grad_norm=0.0),
    replay=Ring(1_000_000, 256),
    pace=StepPace(warmup_steps=25_000),
)

# The settings of VM3-AC (Kim et al., AAMAS 2023), in which its authors compared.

MADDPG_VM3 = Maddpg(
    hidden=(128, 128),
    gamma=0.99,
    tau=0.005,
    actor_optimiser=Adam(3e-4, max_grad_norm=0.0),
    critic_optimiser=Adam(3e-4, max_grad_norm=0.0),
    replay=Ring(500_000, 128),
    pace=StepPace(warmup_steps=10_000, updates_per_step=0.25),
)

# What papers tuned for a task, on the test metric.

_RACE_MATD3 = {  # RACE, Table 3: alpha and beta
    "HalfCheetah-2x3": (0.7, 0.1),
    "HalfCheetah-6x1": (0.5, 0.01),
    "Ant-2x4": (0.7, 0.01),
    "Ant-2x4d": (0.2, 0.01),
    "Ant-4x2": (0.2, 0.001),
    "Hopper-3x1": (1.0, 0.1),
    "Humanoid-9|8": (0.7, 0.01),
    "HumanoidStandup-9|8": (1.0, 0.001),
}
# RACE, Table 4. SMAX has three of these maps; the others wait for a game that has them.
_RACE_FACMAC = {
    "so_many_baneling": (0.1, 0.001),
    "2s3z": (0.05, 0.001),
    "2c_vs_64zg": (0.05, 0.01),
    "2s_vs_1sc": (0.05, 0.01),
    "MMM": (0.05, 0.1),
    "MMM2": (0.01, 0.01),
    "3s5z": (0.005, 0.001),
    "3s_vs_3z": (0.005, 0.001),
}
TUNED: dict[tuple[str, str], dict[str, Any]] = {
    (algorithm, f"{family}/{task}"): {"breeding.mutated_fraction": alpha, "beta": beta}
    for algorithm, family, table in (
        ("race-matd3", "mamujoco", _RACE_MATD3),
        ("race-facmac", "smax", _RACE_FACMAC),
    )
    for task, (alpha, beta) in table.items()
}
"""(algorithm, task) -> the fields that its paper set for that task, by their dotted path"""
# LSF-SAC's released code explores for longer on this map.
TUNED["lsf-sac", "smax/6h_vs_8z"] = {"epsilon.steps": 500_000}
