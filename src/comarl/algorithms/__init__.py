"""The table of algorithms and presets, by the names that they are called by."""

from dataclasses import dataclass, replace
from typing import Any

from comarl.algorithms import presets
from comarl.algorithms.dop import Dop
from comarl.algorithms.ea import Ea
from comarl.algorithms.facmac import Facmac, FacmacContinuous
from comarl.algorithms.fop import Fop
from comarl.algorithms.lica import Lica
from comarl.algorithms.lsf_sac import LsfSac
from comarl.algorithms.maddpg import Maddpg
from comarl.algorithms.matd3 import Matd3
from comarl.algorithms.maven import Maven
from comarl.algorithms.maven_ac import MavenAc
from comarl.algorithms.merl import Merl
from comarl.algorithms.msac import Msac
from comarl.algorithms.ndq import Ndq
from comarl.algorithms.qmix import Qmix
from comarl.algorithms.qplex import Qplex
from comarl.algorithms.qtran import Qtran
from comarl.algorithms.race_facmac import RaceFacmac
from comarl.algorithms.race_matd3 import RaceMatd3
from comarl.algorithms.si_moa import SiMoa
from comarl.algorithms.vdac import Vdac
from comarl.algorithms.vm3_ac import Vm3Ac
from comarl.algorithms.vm3_ac_discrete import Vm3AcDiscrete
from comarl.validation import unknown


@dataclass(frozen=True)
class Entry:
    """An algorithm or preset as it is called by name."""

    algorithm: Any  # an `Algorithm`
    summary: str


ALGORITHMS = {
    "matd3": Entry(
        Matd3(),
        "twin delayed policy gradients with one critic for the team (Ackermann et al., 2019)",
    ),
    "matd3-td3": Entry(presets.MATD3_TD3, "MATD3 with the networks and settings of TD3's own code"),
    "maddpg": Entry(
        Maddpg(),
        "an actor and a critic of the team's action for each agent (Lowe et al., NeurIPS 2017)",
    ),
    "maddpg-vm3": Entry(presets.MADDPG_VM3, "MADDPG with the settings of VM3-AC"),
    "race-matd3": Entry(
        RaceMatd3(),
        "evolving teams and a learning team share their encoders (Li et al., ICML 2023)",
    ),
    "facmac": Entry(
        Facmac(),
        "actors maximise a factored critic of the team, all at once (Peng et al., NeurIPS 2021)",
    ),
    "facmac-nonmonotonic": Entry(
        presets.FACMAC_NONMONOTONIC, "FACMAC whose mixer may weigh a utility negatively"
    ),
    "facmac-continuous": Entry(FacmacContinuous(), "FACMAC for continuous actions"),
    "race-facmac": Entry(
        RaceFacmac(), "RACE on FACMAC: recurrent teams with discrete actions (Li et al., ICML 2023)"
    ),
    "merl-matd3": Entry(
        Merl(), "whole networks evolve beside a team trained by MATD3 (Majumdar et al., ICML 2020)"
    ),
    "merl-facmac": Entry(presets.MERL_FACMAC, "the same beside a team trained by FACMAC"),
    "ea-matd3": Entry(
        Ea(), "teams only evolve, with MATD3's networks (Khadka & Tumer, NeurIPS 2018)"
    ),
    "ea-facmac": Entry(presets.EA_FACMAC, "the same with FACMAC's networks"),
    "lsf-sac": Entry(
        LsfSac(), "soft actors and a critic whose utilities hear messages (Zhou et al., 2022)"
    ),
    "lsf-sac-fixed-temperature": Entry(
        presets.LSF_SAC_FIXED_TEMPERATURE, "LSF-SAC whose temperature stays at 1"
    ),
    "masac": Entry(presets.MASAC, "LSF-SAC without messages"),
    "masac-double-q": Entry(
        presets.MASAC_DOUBLE_Q, "LSF-SAC without messages, with the minimum of two critics"
    ),
    "ndq": Entry(Ndq(), "QMIX whose agents send each other messages (Wang et al., ICLR 2020)"),
    "ndq-pymarl2": Entry(presets.NDQ_PYMARL2, "NDQ with the settings of PyMARL2"),
    "qmix": Entry(Qmix(), "utilities joined by a monotonic mixer (Rashid et al., ICML 2018)"),
    "qmix-pymarl2": Entry(
        presets.QMIX_PYMARL2, "QMIX with the settings of PyMARL2 (Hu et al., 2021)"
    ),
    "vdn": Entry(presets.VDN, "QMIX whose mixer is a sum (Sunehag et al., AAMAS 2018)"),
    "vdn-pymarl2": Entry(presets.VDN_PYMARL2, "VDN with the settings of PyMARL2"),
    "iql": Entry(
        presets.IQL,
        "QMIX without a mixer: each agent learns the team's reward for itself (Tan, 1993)",
    ),
    "qplex": Entry(
        Qplex(), "duelling decomposition of the joint value function (Wang et al., ICLR 2021)"
    ),
    "qplex-pymarl2": Entry(presets.QPLEX_PYMARL2, "QPLEX with the settings of PyMARL2"),
    "fop": Entry(
        Fop(), "soft actor-critic with QPLEX's duelling decomposition (Zhang et al., ICML 2021)"
    ),
    "fop-pymarl2": Entry(presets.FOP_PYMARL2, "FOP with the settings of PyMARL2"),
    "maven": Entry(
        Maven(),
        "QMIX in modes: a team explores in one of them an episode (Mahajan et al., NeurIPS 2019)",
    ),
    "maven-pymarl2": Entry(presets.MAVEN_PYMARL2, "MAVEN with the settings of PyMARL2"),
    "msac": Entry(
        Msac(), "soft actor-critic with twin critics, each mixed linearly (Pu et al., 2021)"
    ),
    "msac-pymarl2": Entry(presets.MSAC_PYMARL2, "mSAC with the settings of PyMARL2"),
    "msac-single": Entry(presets.MSAC_SINGLE, "mSAC with one critic"),
    "qtran": Entry(
        Qtran(), "utilities bound the joint value and meet it at its best (Son et al., ICML 2019)"
    ),
    "qtran-pymarl2": Entry(presets.QTRAN_PYMARL2, "QTRAN with the settings of PyMARL2"),
    "cw-qmix": Entry(
        presets.CW_QMIX,
        "QMIX whose loss weights the best joint actions more (Rashid et al., NeurIPS 2020)",
    ),
    "cw-qmix-pymarl2": Entry(presets.CW_QMIX_PYMARL2, "CW-QMIX with the settings of PyMARL2"),
    "ow-qmix": Entry(
        presets.OW_QMIX,
        "QMIX whose loss weights what it underestimates more (Rashid et al., NeurIPS 2020)",
    ),
    "ow-qmix-pymarl2": Entry(presets.OW_QMIX_PYMARL2, "OW-QMIX with the settings of PyMARL2"),
    "vdac-mix": Entry(
        Vdac(),
        "on-policy actor-critics whose values are mixed as QMIX's are (Su et al., AAAI 2021)",
    ),
    "vdac-mix-pymarl2": Entry(
        presets.VDAC_MIX_PYMARL2, "VDAC with the settings of PyMARL2, which calls it VMIX"
    ),
    "vdac-sum": Entry(presets.VDAC_SUM, "VDAC whose mixer is a sum"),
    "maa2c": Entry(
        presets.MAA2C, "VDAC with separate actor and critic networks, and a bonus on entropy"
    ),
    "lica": Entry(
        Lica(),
        "actors maximise a hypernetwork critic through their policies (Zhou et al., NeurIPS 2020)",
    ),
    "lica-pymarl2": Entry(presets.LICA_PYMARL2, "LICA with the settings of PyMARL2"),
    "dop": Entry(
        Dop(),
        "a linear critic of the team, learnt on-policy and off-policy (Wang et al., ICLR 2021)",
    ),
    "dop-pymarl2": Entry(presets.DOP_PYMARL2, "DOP with the settings of PyMARL2"),
    "vm3-ac": Entry(
        Vm3Ac(),
        "soft actor-critics that maximise mutual information between agents' actions "
        "(Kim et al., AAMAS 2023)",
    ),
    "vm3-ac-discrete": Entry(
        Vm3AcDiscrete(),
        "FOP that maximises mutual information between agents' actions (Kim et al., AAMAS 2023)",
    ),
    "ma-ac": Entry(presets.MA_AC, "VM3-AC without latent, entropy and mutual information"),
    "ma-sac": Entry(presets.MA_SAC, "VM3-AC without latent and mutual information"),
    "maven-ac": Entry(
        MavenAc(),
        "MA-AC in modes, of which a team keeps one an episode (Mahajan et al., NeurIPS 2019)",
    ),
    "si-moa": Entry(
        SiMoa(),
        "MA-AC whose agents are rewarded for influence on others (Jaques et al., ICML 2019)",
    ),
}


def find_algorithm(name: str) -> Entry:
    """The algorithm of a name. Raises UnknownName."""
    if name not in ALGORITHMS:
        raise unknown("algorithm", name, ALGORITHMS, "`comarl list` shows all.")
    return ALGORITHMS[name]


def tuned(name: str, task: str) -> tuple[Any, dict[str, Any]]:
    """The algorithm with what its paper tuned for this task, and those fields by their path."""
    algorithm, changes = find_algorithm(name).algorithm, presets.TUNED.get((name, task), {})
    for path, value in changes.items():
        algorithm = with_field(algorithm, path, value)
    return algorithm, changes


def with_field(settings: Any, path: str, value: Any) -> Any:
    """Settings in which the field of this dotted path has another value.

    >>> from comarl.algorithms import Qmix
    >>> with_field(Qmix(), "replay.batch_size", 8).replay.batch_size
    8
    """
    name, _, rest = path.partition(".")
    return replace(
        settings, **{name: with_field(getattr(settings, name), rest, value) if rest else value}
    )
