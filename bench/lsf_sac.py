"""Updates per second of LSF-SAC with its defaults: comarl against the same update in eager PyTorch.

The batch is LSF-SAC's own, 128 episodes; the sizes are those of StarCraft's 3s_vs_5z but for the
length: all episodes are `--horizon` steps long, so that no side gains from what comes after an end.
PyTorch's update is `bench/torch_lsf_sac.py` in both its ways: "stepped" in time, as LSF-SAC's
released code is, and "whole", with one kernel for all of time. How they take turns is in
`bench/turns.py`.
"""

from dataclasses import dataclass

import tyro
from torch_lsf_sac import TorchLsfSac
from turns import Settings, Subject, measure

from comarl.algorithms.lsf_sac import LsfSac
from comarl.replay.episodes import EpisodeRing
from comarl.types import EnvSpec

ALGORITHM = LsfSac(replay=EpisodeRing(160, 128))


@dataclass(frozen=True)
class Options(Settings):
    """What to measure, and on what."""

    horizon: int = 100
    """steps of every episode: 3s_vs_5z allows 250, for which the memory needed grows in
    proportion"""


def subject(horizon: int) -> Subject:
    spec = EnvSpec(
        num_agents=3, obs_size=48, state_size=68, action_size=11, discrete=True, horizon=horizon
    )
    return Subject(f"LSF-SAC, {horizon} steps", ALGORITHM, spec, TorchLsfSac, "at least 4")


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    measure(subject(options.horizon), options)
