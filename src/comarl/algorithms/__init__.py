"""The table of algorithms and presets, by the names that they are called by.

Nothing of them is loaded before it is used, so that names can be looked up at once.
"""

from dataclasses import dataclass, replace
from typing import Any

from comarl.names import is_own, load, name_of, offered
from comarl.validation import unknown


@dataclass(frozen=True)
class Entry:
    """An algorithm or preset as it is called by name."""

    where: str
    """`module:Name`"""
    summary: str = ""

    @property
    def algorithm(self) -> Any:
        """The `Algorithm`: of a class the one with its defaults. Raises as `comarl.names.load`."""
        return load("algorithm", self.where)


ALGORITHMS = {
    "matd3": Entry(
        "comarl.algorithms.matd3:Matd3",
        "twin delayed policy gradients with one critic for the team (Ackermann et al., 2019)",
    ),
    "matd3-td3": Entry(
        "comarl.algorithms.presets:MATD3_TD3",
        "MATD3 with the networks and settings of TD3's own code",
    ),
    "maddpg": Entry(
        "comarl.algorithms.maddpg:Maddpg",
        "an actor and a critic of the team's action for each agent (Lowe et al., NeurIPS 2017)",
    ),
    "maddpg-vm3": Entry(
        "comarl.algorithms.presets:MADDPG_VM3", "MADDPG with the settings of VM3-AC"
    ),
    "race-matd3": Entry(
        "comarl.algorithms.race_matd3:RaceMatd3",
        "evolving teams and a learning team share their encoders (Li et al., ICML 2023)",
    ),
    "facmac": Entry(
        "comarl.algorithms.facmac:Facmac",
        "actors maximise a factored critic of the team, all at once (Peng et al., NeurIPS 2021)",
    ),
    "facmac-nonmonotonic": Entry(
        "comarl.algorithms.presets:FACMAC_NONMONOTONIC",
        "FACMAC whose mixer may weigh a utility negatively",
    ),
    "facmac-continuous": Entry(
        "comarl.algorithms.facmac:FacmacContinuous", "FACMAC for continuous actions"
    ),
    "race-facmac": Entry(
        "comarl.algorithms.race_facmac:RaceFacmac",
        "RACE on FACMAC: recurrent teams with discrete actions (Li et al., ICML 2023)",
    ),
    "merl-matd3": Entry(
        "comarl.algorithms.merl:Merl",
        "whole networks evolve beside a team trained by MATD3 (Majumdar et al., ICML 2020)",
    ),
    "merl-facmac": Entry(
        "comarl.algorithms.presets:MERL_FACMAC", "the same beside a team trained by FACMAC"
    ),
    "ea-matd3": Entry(
        "comarl.algorithms.ea:Ea",
        "teams only evolve, with MATD3's networks (Khadka & Tumer, NeurIPS 2018)",
    ),
    "ea-facmac": Entry("comarl.algorithms.presets:EA_FACMAC", "the same with FACMAC's networks"),
    "lsf-sac": Entry(
        "comarl.algorithms.lsf_sac:LsfSac",
        "soft actors and a critic whose utilities hear messages (Zhou et al., 2022)",
    ),
    "lsf-sac-fixed-temperature": Entry(
        "comarl.algorithms.presets:LSF_SAC_FIXED_TEMPERATURE",
        "LSF-SAC whose temperature stays at 1",
    ),
    "masac": Entry("comarl.algorithms.presets:MASAC", "LSF-SAC without messages"),
    "masac-double-q": Entry(
        "comarl.algorithms.presets:MASAC_DOUBLE_Q",
        "LSF-SAC without messages, with the minimum of two critics",
    ),
    "ndq": Entry(
        "comarl.algorithms.ndq:Ndq",
        "QMIX whose agents send each other messages (Wang et al., ICLR 2020)",
    ),
    "ndq-pymarl2": Entry(
        "comarl.algorithms.presets:NDQ_PYMARL2", "NDQ with the settings of PyMARL2"
    ),
    "qmix": Entry(
        "comarl.algorithms.qmix:Qmix",
        "utilities joined by a monotonic mixer (Rashid et al., ICML 2018)",
    ),
    "qmix-pymarl2": Entry(
        "comarl.algorithms.presets:QMIX_PYMARL2",
        "QMIX with the settings of PyMARL2 (Hu et al., 2021)",
    ),
    "vdn": Entry(
        "comarl.algorithms.presets:VDN", "QMIX whose mixer is a sum (Sunehag et al., AAMAS 2018)"
    ),
    "vdn-pymarl2": Entry(
        "comarl.algorithms.presets:VDN_PYMARL2", "VDN with the settings of PyMARL2"
    ),
    "iql": Entry(
        "comarl.algorithms.presets:IQL",
        "QMIX without a mixer: each agent learns the team's reward for itself (Tan, 1993)",
    ),
    "qplex": Entry(
        "comarl.algorithms.qplex:Qplex",
        "duelling decomposition of the joint value function (Wang et al., ICLR 2021)",
    ),
    "qplex-pymarl2": Entry(
        "comarl.algorithms.presets:QPLEX_PYMARL2", "QPLEX with the settings of PyMARL2"
    ),
    "fop": Entry(
        "comarl.algorithms.fop:Fop",
        "soft actor-critic with QPLEX's duelling decomposition (Zhang et al., ICML 2021)",
    ),
    "fop-pymarl2": Entry(
        "comarl.algorithms.presets:FOP_PYMARL2", "FOP with the settings of PyMARL2"
    ),
    "maven": Entry(
        "comarl.algorithms.maven:Maven",
        "QMIX in modes: a team explores in one of them an episode (Mahajan et al., NeurIPS 2019)",
    ),
    "maven-pymarl2": Entry(
        "comarl.algorithms.presets:MAVEN_PYMARL2", "MAVEN with the settings of PyMARL2"
    ),
    "msac": Entry(
        "comarl.algorithms.msac:Msac",
        "soft actor-critic with twin critics, each mixed linearly (Pu et al., 2021)",
    ),
    "msac-pymarl2": Entry(
        "comarl.algorithms.presets:MSAC_PYMARL2", "mSAC with the settings of PyMARL2"
    ),
    "msac-single": Entry("comarl.algorithms.presets:MSAC_SINGLE", "mSAC with one critic"),
    "qtran": Entry(
        "comarl.algorithms.qtran:Qtran",
        "utilities bound the joint value and meet it at its best (Son et al., ICML 2019)",
    ),
    "qtran-pymarl2": Entry(
        "comarl.algorithms.presets:QTRAN_PYMARL2", "QTRAN with the settings of PyMARL2"
    ),
    "cw-qmix": Entry(
        "comarl.algorithms.presets:CW_QMIX",
        "QMIX whose loss weights the best joint actions more (Rashid et al., NeurIPS 2020)",
    ),
    "cw-qmix-pymarl2": Entry(
        "comarl.algorithms.presets:CW_QMIX_PYMARL2", "CW-QMIX with the settings of PyMARL2"
    ),
    "ow-qmix": Entry(
        "comarl.algorithms.presets:OW_QMIX",
        "QMIX whose loss weights what it underestimates more (Rashid et al., NeurIPS 2020)",
    ),
    "ow-qmix-pymarl2": Entry(
        "comarl.algorithms.presets:OW_QMIX_PYMARL2", "OW-QMIX with the settings of PyMARL2"
    ),
    "vdac-mix": Entry(
        "comarl.algorithms.vdac:Vdac",
        "on-policy actor-critics whose values are mixed as QMIX's are (Su et al., AAAI 2021)",
    ),
    "vdac-mix-pymarl2": Entry(
        "comarl.algorithms.presets:VDAC_MIX_PYMARL2",
        "VDAC with the settings of PyMARL2, which calls it VMIX",
    ),
    "vdac-sum": Entry("comarl.algorithms.presets:VDAC_SUM", "VDAC whose mixer is a sum"),
    "maa2c": Entry(
        "comarl.algorithms.presets:MAA2C",
        "VDAC with separate actor and critic networks, and a bonus on entropy",
    ),
    "lica": Entry(
        "comarl.algorithms.lica:Lica",
        "actors maximise a hypernetwork critic through their policies (Zhou et al., NeurIPS 2020)",
    ),
    "lica-pymarl2": Entry(
        "comarl.algorithms.presets:LICA_PYMARL2", "LICA with the settings of PyMARL2"
    ),
    "dop": Entry(
        "comarl.algorithms.dop:Dop",
        "a linear critic of the team, learnt on-policy and off-policy (Wang et al., ICLR 2021)",
    ),
    "dop-pymarl2": Entry(
        "comarl.algorithms.presets:DOP_PYMARL2", "DOP with the settings of PyMARL2"
    ),
    "vm3-ac": Entry(
        "comarl.algorithms.vm3_ac:Vm3Ac",
        "soft actor-critics that maximise mutual information between agents' actions "
        "(Kim et al., AAMAS 2023)",
    ),
    "vm3-ac-discrete": Entry(
        "comarl.algorithms.vm3_ac_discrete:Vm3AcDiscrete",
        "FOP that maximises mutual information between agents' actions (Kim et al., AAMAS 2023)",
    ),
    "ma-ac": Entry(
        "comarl.algorithms.presets:MA_AC", "VM3-AC without latent, entropy and mutual information"
    ),
    "ma-sac": Entry(
        "comarl.algorithms.presets:MA_SAC", "VM3-AC without latent and mutual information"
    ),
    "maven-ac": Entry(
        "comarl.algorithms.maven_ac:MavenAc",
        "MA-AC in modes, of which a team keeps one an episode (Mahajan et al., NeurIPS 2019)",
    ),
    "si-moa": Entry(
        "comarl.algorithms.si_moa:SiMoa",
        "MA-AC whose agents are rewarded for influence on others (Jaques et al., ICML 2019)",
    ),
}


def find_algorithm(name: str) -> Entry:
    """The algorithm of a name: of the table, of another package, or `module:Name`. Raises
    UnknownName."""
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    if is_own(name):
        return Entry(name)
    if name in (others := offered("algorithm")):
        return Entry(others[name])
    hint = "`comarl list` shows all; an algorithm of your own is called module:Name."
    raise unknown("algorithm", name, [*ALGORITHMS, *others], hint)


def name_of_algorithm(algorithm: Any) -> str:
    """What an algorithm is called, whatever its settings; a preset by its own name as long as it is
    as it was, and a user's own as `module:Name`.

    >>> from comarl.algorithms.qmix import Qmix
    >>> name_of_algorithm(Qmix(mixing="sum")), name_of_algorithm(Qmix(hidden=8))
    ('vdn', 'qmix')

    Raises WrongSetting as `comarl.names.name_of`.
    """
    if not type(algorithm).__module__.startswith("comarl."):
        return name_of("algorithm", algorithm)
    named = {name: entry.algorithm for name, entry in ALGORITHMS.items()}
    equal = (name for name, one in named.items() if one == algorithm)
    alike = (name for name, one in named.items() if type(one) is type(algorithm))
    return next(equal, None) or next(alike)


def tuned(name: str, task: str) -> tuple[Any, dict[str, Any]]:
    """The algorithm with what its paper tuned for this task, and those fields by their path."""
    from comarl.algorithms.presets import TUNED

    algorithm, changes = find_algorithm(name).algorithm, TUNED.get((name, task), {})
    for path, value in changes.items():
        algorithm = with_field(algorithm, path, value)
    return algorithm, changes


def with_field(settings: Any, path: str, value: Any) -> Any:
    """Settings in which the field of this dotted path has another value.

    >>> from comarl.algorithms.qmix import Qmix
    >>> with_field(Qmix(), "replay.batch_size", 8).replay.batch_size
    8
    """
    name, _, rest = path.partition(".")
    return replace(
        settings, **{name: with_field(getattr(settings, name), rest, value) if rest else value}
    )
