"""comarl: cooperative multi-agent reinforcement learning in JAX.

    import comarl
    run = comarl.train("qmix", "smax/3m", seeds=3, steps=200_000)
    comarl.report([run], out="report")

Everything here is loaded when it is first used: `import comarl` alone loads no JAX.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from comarl.algorithms import presets as presets
    from comarl.algorithms.dop import Dop as Dop
    from comarl.algorithms.ea import Ea as Ea
    from comarl.algorithms.facmac import Facmac as Facmac
    from comarl.algorithms.facmac import FacmacContinuous as FacmacContinuous
    from comarl.algorithms.fop import Fop as Fop
    from comarl.algorithms.lica import Lica as Lica
    from comarl.algorithms.lsf_sac import LsfSac as LsfSac
    from comarl.algorithms.maddpg import Maddpg as Maddpg
    from comarl.algorithms.matd3 import Matd3 as Matd3
    from comarl.algorithms.maven import Maven as Maven
    from comarl.algorithms.maven_ac import MavenAc as MavenAc
    from comarl.algorithms.merl import Merl as Merl
    from comarl.algorithms.msac import Msac as Msac
    from comarl.algorithms.ndq import Ndq as Ndq
    from comarl.algorithms.qmix import Qmix as Qmix
    from comarl.algorithms.qplex import Qplex as Qplex
    from comarl.algorithms.qtran import Qtran as Qtran
    from comarl.algorithms.race_facmac import RaceFacmac as RaceFacmac
    from comarl.algorithms.race_matd3 import RaceMatd3 as RaceMatd3
    from comarl.algorithms.si_moa import SiMoa as SiMoa
    from comarl.algorithms.vdac import Vdac as Vdac
    from comarl.algorithms.vm3_ac import Vm3Ac as Vm3Ac
    from comarl.algorithms.vm3_ac_discrete import Vm3AcDiscrete as Vm3AcDiscrete
    from comarl.algorithms.wqmix import Wqmix as Wqmix
    from comarl.api import (
        TrainedRun as TrainedRun,
    )
    from comarl.api import (
        check as check,
    )
    from comarl.api import (
        cross_play as cross_play,
    )
    from comarl.api import (
        evaluate as evaluate,
    )
    from comarl.api import (
        export as export,
    )
    from comarl.api import (
        load as load,
    )
    from comarl.api import (
        open_run as open_run,
    )
    from comarl.api import (
        report as report,
    )
    from comarl.api import (
        train as train,
    )
    from comarl.api import (
        watch as watch,
    )
    from comarl.envs.mamujoco import MultiAgentMujoco as MultiAgentMujoco
    from comarl.envs.matrix import MatrixGame as MatrixGame
    from comarl.envs.multiwalker import Multiwalker as Multiwalker
    from comarl.envs.navigation import Navigation as Navigation
    from comarl.envs.pettingzoo import PettingZoo as PettingZoo
    from comarl.envs.predator_prey import PredatorPrey as PredatorPrey
    from comarl.envs.smax import Smax as Smax
    from comarl.envs.treasure import Treasure as Treasure
    from comarl.envs.waves import Waves as Waves
    from comarl.teams.team import Team as Team
    from comarl.types import (
        Algorithm as Algorithm,
    )
    from comarl.types import (
        Clock as Clock,
    )
    from comarl.types import (
        Environment as Environment,
    )
    from comarl.types import (
        EnvSpec as EnvSpec,
    )
    from comarl.types import (
        Episode as Episode,
    )
    from comarl.types import (
        Evolutionary as Evolutionary,
    )
    from comarl.types import (
        HostEnvironment as HostEnvironment,
    )
    from comarl.types import (
        HostTimestep as HostTimestep,
    )
    from comarl.types import (
        Task as Task,
    )
    from comarl.types import (
        TaskDied as TaskDied,
    )
    from comarl.types import (
        Timestep as Timestep,
    )
    from comarl.types import (
        Transition as Transition,
    )

    __version__: str

PLACES = {
    **dict.fromkeys(
        (
            "TrainedRun",
            "check",
            "cross_play",
            "evaluate",
            "export",
            "load",
            "open_run",
            "report",
            "train",
            "watch",
        ),
        "comarl.api",
    ),
    "Dop": "comarl.algorithms.dop",
    "Ea": "comarl.algorithms.ea",
    "Facmac": "comarl.algorithms.facmac",
    "FacmacContinuous": "comarl.algorithms.facmac",
    "Fop": "comarl.algorithms.fop",
    "Lica": "comarl.algorithms.lica",
    "LsfSac": "comarl.algorithms.lsf_sac",
    "Maddpg": "comarl.algorithms.maddpg",
    "Matd3": "comarl.algorithms.matd3",
    "Maven": "comarl.algorithms.maven",
    "MavenAc": "comarl.algorithms.maven_ac",
    "Merl": "comarl.algorithms.merl",
    "Msac": "comarl.algorithms.msac",
    "Ndq": "comarl.algorithms.ndq",
    "Qmix": "comarl.algorithms.qmix",
    "Qplex": "comarl.algorithms.qplex",
    "Qtran": "comarl.algorithms.qtran",
    "RaceFacmac": "comarl.algorithms.race_facmac",
    "RaceMatd3": "comarl.algorithms.race_matd3",
    "SiMoa": "comarl.algorithms.si_moa",
    "Vdac": "comarl.algorithms.vdac",
    "Vm3Ac": "comarl.algorithms.vm3_ac",
    "Vm3AcDiscrete": "comarl.algorithms.vm3_ac_discrete",
    "Wqmix": "comarl.algorithms.wqmix",
    "MultiAgentMujoco": "comarl.envs.mamujoco",
    "MatrixGame": "comarl.envs.matrix",
    "Multiwalker": "comarl.envs.multiwalker",
    "Navigation": "comarl.envs.navigation",
    "PettingZoo": "comarl.envs.pettingzoo",
    "PredatorPrey": "comarl.envs.predator_prey",
    "Smax": "comarl.envs.smax",
    "Treasure": "comarl.envs.treasure",
    "Waves": "comarl.envs.waves",
    "Team": "comarl.teams.team",
    **dict.fromkeys(
        (
            "Algorithm",
            "Clock",
            "EnvSpec",
            "Environment",
            "Episode",
            "Evolutionary",
            "HostEnvironment",
            "HostTimestep",
            "Task",
            "TaskDied",
            "Timestep",
            "Transition",
        ),
        "comarl.types",
    ),
}
"""public name -> its module"""

__all__ = [
    "Algorithm",
    "Clock",
    "Dop",
    "Ea",
    "EnvSpec",
    "Environment",
    "Episode",
    "Evolutionary",
    "Facmac",
    "FacmacContinuous",
    "Fop",
    "HostEnvironment",
    "HostTimestep",
    "Lica",
    "LsfSac",
    "Maddpg",
    "Matd3",
    "MatrixGame",
    "Maven",
    "MavenAc",
    "Merl",
    "Msac",
    "MultiAgentMujoco",
    "Multiwalker",
    "Navigation",
    "Ndq",
    "PettingZoo",
    "PredatorPrey",
    "Qmix",
    "Qplex",
    "Qtran",
    "RaceFacmac",
    "RaceMatd3",
    "SiMoa",
    "Smax",
    "Task",
    "TaskDied",
    "Team",
    "Timestep",
    "TrainedRun",
    "Transition",
    "Treasure",
    "Vdac",
    "Vm3Ac",
    "Vm3AcDiscrete",
    "Waves",
    "Wqmix",
    "algorithm",
    "check",
    "cross_play",
    "evaluate",
    "export",
    "load",
    "open_run",
    "presets",
    "report",
    "task",
    "train",
    "watch",
]


def algorithm(name: str) -> Any:
    """The algorithm or preset of a name, such as "qmix", as a value; `comarl list` shows all.

    >>> import comarl
    >>> comarl.algorithm("vdn") == comarl.Qmix(mixing="sum")
    True

    Raises ValueError for a name that does not exist, with those that are near.
    """
    from comarl.algorithms import find_algorithm

    return find_algorithm(name).algorithm


def task(name: str) -> Any:
    """The task of a name, such as "smax/3m", as a value; `comarl list` shows all.

    >>> import comarl
    >>> comarl.task("waves/2").spec.num_agents
    2

    Raises ValueError for a name that does not exist, with those that are near.
    """
    from comarl.envs import find_task

    return find_task(name)


def __getattr__(name: str) -> Any:
    """Loads what is public when it is asked for: JAX comes with it, and worker processes do
    without."""
    if name == "__version__":
        from importlib.metadata import version

        return version("comarl")
    if name == "presets":
        return import_module("comarl.algorithms.presets")
    if name in PLACES:
        return getattr(import_module(PLACES[name]), name)
    raise AttributeError(f"module 'comarl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
