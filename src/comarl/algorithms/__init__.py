"""The table of algorithms: names, presets, and the settings that papers tuned for their tasks."""

from dataclasses import dataclass, replace
from typing import Any

from comarl.algorithms.dop import DOP_PYMARL2, Dop
from comarl.algorithms.ea import EA_FACMAC, Ea
from comarl.algorithms.facmac import FACMAC_NONMONOTONIC, Facmac, FacmacContinuous
from comarl.algorithms.fop import FOP_PYMARL2, Fop
from comarl.algorithms.lica import LICA_PYMARL2, Lica
from comarl.algorithms.lsf_sac import LSF_SAC_FIXED_TEMPERATURE, MASAC, MASAC_DOUBLE_Q, LsfSac
from comarl.algorithms.maddpg import MADDPG_VM3, Maddpg
from comarl.algorithms.matd3 import Matd3
from comarl.algorithms.maven import MAVEN_PYMARL2, Maven
from comarl.algorithms.maven_ac import MavenAc
from comarl.algorithms.merl import MERL_FACMAC, Merl
from comarl.algorithms.msac import MSAC_PYMARL2, MSAC_SINGLE, Msac
from comarl.algorithms.ndq import NDQ_PYMARL2, Ndq
from comarl.algorithms.qmix import IQL, QMIX_PYMARL2, VDN, VDN_PYMARL2, Qmix
from comarl.algorithms.qplex import QPLEX_PYMARL2, Qplex
from comarl.algorithms.qtran import QTRAN_PYMARL2, Qtran
from comarl.algorithms.race_facmac import RaceFacmac
from comarl.algorithms.race_matd3 import RaceMatd3
from comarl.algorithms.si_moa import SiMoa
from comarl.algorithms.vdac import MAA2C, VDAC_MIX_PYMARL2, VDAC_SUM, Vdac
from comarl.algorithms.vm3_ac import MA_AC, MA_SAC, Vm3Ac
from comarl.algorithms.vm3_ac_discrete import Vm3AcDiscrete
from comarl.algorithms.wqmix import CW_QMIX, CW_QMIX_PYMARL2, OW_QMIX, OW_QMIX_PYMARL2
from comarl.validation import unknown


@dataclass(frozen=True)
class Entry:
    """An algorithm or preset as it is called by name."""

    algorithm: Any  # an `Algorithm`
    summary: str


ALGORITHMS = {
    "matd3": Entry(Matd3(), "twin delayed policy gradients with one critic for the team (Ackermann et al., 2019)"),
    "maddpg": Entry(Maddpg(), "an actor and a critic of the team's action for each agent (Lowe et al., NeurIPS 2017)"),
    "maddpg-vm3": Entry(MADDPG_VM3, "MADDPG with the settings of VM3-AC"),
    "race-matd3": Entry(RaceMatd3(), "evolving teams and a learning team share their encoders (Li et al., ICML 2023)"),
    "facmac": Entry(Facmac(), "actors climb a factored critic of the team, all at once (Peng et al., NeurIPS 2021)"),
    "facmac-nonmonotonic": Entry(FACMAC_NONMONOTONIC, "FACMAC whose mixer may weigh a utility negatively"),
    "facmac-continuous": Entry(FacmacContinuous(), "FACMAC for continuous actions"),
    "race-facmac": Entry(RaceFacmac(), "RACE on FACMAC: recurrent teams with discrete actions (Li et al., ICML 2023)"),
    "merl-matd3": Entry(Merl(), "whole networks evolve beside a team trained by MATD3 (Majumdar et al., ICML 2020)"),
    "merl-facmac": Entry(MERL_FACMAC, "the same beside a team trained by FACMAC"),
    "ea-matd3": Entry(Ea(), "teams only evolve, with MATD3's networks (Khadka & Tumer, NeurIPS 2018)"),
    "ea-facmac": Entry(EA_FACMAC, "the same with FACMAC's networks"),
    "lsf-sac": Entry(LsfSac(), "soft actors and a critic whose utilities hear messages (Zhou et al., 2022)"),
    "lsf-sac-fixed-temperature": Entry(LSF_SAC_FIXED_TEMPERATURE, "LSF-SAC whose temperature stays at 1"),
    "masac": Entry(MASAC, "LSF-SAC without messages"),
    "masac-double-q": Entry(MASAC_DOUBLE_Q, "the same with two critics, of which the smaller counts"),
    "ndq": Entry(Ndq(), "QMIX whose agents tell each other what they need (Wang et al., ICLR 2020)"),
    "ndq-pymarl2": Entry(NDQ_PYMARL2, "NDQ with the settings of PyMARL2"),
    "qmix": Entry(Qmix(), "utilities joined by a monotonic mixer (Rashid et al., ICML 2018)"),
    "qmix-pymarl2": Entry(QMIX_PYMARL2, "QMIX with the settings of PyMARL2 (Hu et al., 2021)"),
    "vdn": Entry(VDN, "QMIX whose mixer is a sum (Sunehag et al., AAMAS 2018)"),
    "vdn-pymarl2": Entry(VDN_PYMARL2, "VDN with the settings of PyMARL2"),
    "iql": Entry(IQL, "QMIX without a mixer: each agent learns the team's reward for itself (Tan, 1993)"),
    "qplex": Entry(Qplex(), "the team's value and the agents' all duel (Wang et al., ICLR 2021)"),
    "qplex-pymarl2": Entry(QPLEX_PYMARL2, "QPLEX with the settings of PyMARL2"),
    "fop": Entry(Fop(), "soft actor-critic whose joint value duels as QPLEX's does (Zhang et al., ICML 2021)"),
    "fop-pymarl2": Entry(FOP_PYMARL2, "FOP with the settings of PyMARL2"),
    "maven": Entry(
        Maven(), "QMIX in modes: teams explore by committing to one an episode (Mahajan et al., NeurIPS 2019)"
    ),
    "maven-pymarl2": Entry(MAVEN_PYMARL2, "MAVEN with the settings of PyMARL2"),
    "msac": Entry(Msac(), "soft actor-critic with twin critics, each mixed linearly (Pu et al., 2021)"),
    "msac-pymarl2": Entry(MSAC_PYMARL2, "mSAC with the settings of PyMARL2"),
    "msac-single": Entry(MSAC_SINGLE, "mSAC with one critic"),
    "qtran": Entry(Qtran(), "utilities bound the joint value and meet it at its best (Son et al., ICML 2019)"),
    "qtran-pymarl2": Entry(QTRAN_PYMARL2, "QTRAN with the settings of PyMARL2"),
    "cw-qmix": Entry(CW_QMIX, "QMIX that cares most for the best joint actions (Rashid et al., NeurIPS 2020)"),
    "cw-qmix-pymarl2": Entry(CW_QMIX_PYMARL2, "CW-QMIX with the settings of PyMARL2"),
    "ow-qmix": Entry(OW_QMIX, "QMIX that cares most for what it underestimates (Rashid et al., NeurIPS 2020)"),
    "ow-qmix-pymarl2": Entry(OW_QMIX_PYMARL2, "OW-QMIX with the settings of PyMARL2"),
    "vdac-mix": Entry(Vdac(), "on-policy actor-critics whose values are mixed as QMIX's are (Su et al., AAAI 2021)"),
    "vdac-mix-pymarl2": Entry(VDAC_MIX_PYMARL2, "VDAC with the settings of PyMARL2, which calls it VMIX"),
    "vdac-sum": Entry(VDAC_SUM, "VDAC whose mixer is a sum"),
    "maa2c": Entry(MAA2C, "VDAC with separate actor and critic networks, and a bonus on entropy"),
    "lica": Entry(Lica(), "actors climb a hypernetwork critic through their policies (Zhou et al., NeurIPS 2020)"),
    "lica-pymarl2": Entry(LICA_PYMARL2, "LICA with the settings of PyMARL2"),
    "dop": Entry(Dop(), "a linear critic of the team, learnt on-policy and off-policy (Wang et al., ICLR 2021)"),
    "dop-pymarl2": Entry(DOP_PYMARL2, "DOP with the settings of PyMARL2"),
    "vm3-ac": Entry(Vm3Ac(), "soft actor-critics whose actions tell of each other (Kim et al., AAMAS 2023)"),
    "vm3-ac-discrete": Entry(Vm3AcDiscrete(), "FOP whose agents' actions tell of each other (Kim et al., AAMAS 2023)"),
    "ma-ac": Entry(MA_AC, "VM3-AC without latent, entropy and mutual information"),
    "ma-sac": Entry(MA_SAC, "VM3-AC without latent and mutual information"),
    "maven-ac": Entry(MavenAc(), "MA-AC in modes, of which a team keeps one an episode (Mahajan et al., NeurIPS 2019)"),
    "si-moa": Entry(SiMoa(), "MA-AC whose agents are rewarded for influence on others (Jaques et al., ICML 2019)"),
}

# RACE, Table 3: alpha and beta were tuned per task, on the test metric.
_RACE_MATD3 = {
    "HalfCheetah-2x3": (0.7, 0.1),
    "HalfCheetah-6x1": (0.5, 0.01),
    "Ant-2x4": (0.7, 0.01),
    "Ant-2x4d": (0.2, 0.01),
    "Ant-4x2": (0.2, 0.001),
    "Hopper-3x1": (1.0, 0.1),
    "Humanoid-9|8": (0.7, 0.01),
    "HumanoidStandup-9|8": (1.0, 0.001),
}
# RACE, Table 4 (and, for 3s_vs_3z, the command of its released code): StarCraft maps that SMAX has, too.
_RACE_FACMAC = {"2s3z": (0.05, 0.001), "3s5z": (0.005, 0.001), "3s_vs_3z": (0.005, 0.001)}
TUNED: dict[tuple[str, str], dict[str, Any]] = {
    (algorithm, f"{family}/{task}"): {"mutated_fraction": alpha, "beta": beta}
    for algorithm, family, table in (("race-matd3", "mamujoco", _RACE_MATD3), ("race-facmac", "smax", _RACE_FACMAC))
    for task, (alpha, beta) in table.items()
}
"""(algorithm, task) -> the fields that its paper set for that task"""


def find_algorithm(name: str) -> Entry:
    """The algorithm of a name. Raises UnknownName."""
    if name not in ALGORITHMS:
        raise unknown("algorithm", name, ALGORITHMS, "`comarl list` shows all.")
    return ALGORITHMS[name]


def tuned(name: str, task: str) -> tuple[Any, dict[str, Any]]:
    """The algorithm with what its paper tuned for this task, and those fields."""
    changes = TUNED.get((name, task), {})
    return replace(find_algorithm(name).algorithm, **changes), changes
