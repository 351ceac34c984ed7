"""Updates per second of RACE on FACMAC at its paper's sizes: comarl against the same update in
eager PyTorch.

The sizes are those of StarCraft's 3s_vs_3z and of FACMAC: 32 episodes of 3 agents, all of them 150
steps long, so that no side gains from what comes after an end. PyTorch's update is
`bench/torch_race_facmac.py` in both its ways: "stepped" in time, as the released code of RACE is,
and "whole", with one kernel for all of time. How they take turns is in `bench/turns.py`.
"""

import tyro
from torch_race_facmac import TorchRaceFacmac
from turns import Settings, Subject, measure

from comarl.algorithms.race_facmac import RaceFacmac
from comarl.replay.episodes import EpisodeRing
from comarl.types import EnvSpec

SPEC = EnvSpec(num_agents=3, obs_size=36, state_size=27, action_size=9, discrete=True, horizon=150)
"""StarCraft's 3s_vs_3z"""
SUBJECT = Subject(
    "RACE on FACMAC", RaceFacmac(replay=EpisodeRing(64, 32)), SPEC, TorchRaceFacmac, "at least 5"
)

if __name__ == "__main__":
    measure(SUBJECT, tyro.cli(Settings, description=__doc__))
