"""Names that others gave to tasks: what can be played of them here, and what they are called."""

# Multi-Agent MuJoCo

PARTITIONS = {
    "HalfCheetah": ("2x3", "6x1"),
    "Ant": ("2x4", "2x4d", "4x2"),
    "Hopper": ("3x1",),
    "Humanoid": ("9|8",),
    "HumanoidStandup": ("9|8",),
    "Walker2d": ("2x3",),
    "Swimmer": ("2x1",),
    "Reacher": ("2x1",),
    "Pusher": ("3p",),
    "CoupledHalfCheetah": ("1p1",),
    "ManySegmentAnt": ("<agents>x<segments of each>",),
    "ManySegmentSwimmer": ("<agents>x<segments of each>",),
}
"""the names that `gymnasium_robotics.envs.multiagent_mujoco.obsk` knows; what they stand for is
read there"""

OTHER_NAMES = {
    "manyagent_swimmer": "ManySegmentSwimmer-<agents>x<segments of each>",
    "manyagent_ant": "ManySegmentAnt-<agents>x<segments of each>",
    "coupled_half_cheetah": "CoupledHalfCheetah-1p1",
    "2-agent-halfcheetah": "HalfCheetah-2x3",
    "6-agent-halfcheetah": "HalfCheetah-6x1",
    "2-agent-ant": "Ant-2x4",
    "2-agent-ant-v2": "Ant-2x4d",
    "4-agent-ant": "Ant-4x2",
    "3-agent-hopper": "Hopper-3x1",
    "2-agent-humanoid": "Humanoid-9|8",
    "2-agent-humanoidstandup": "HumanoidStandup-9|8",
}
"""what the benchmark's first version and RACE's figures call them, in lower case and with dashes"""


def called_here(name: str) -> str | None:
    """What a task of Multi-Agent MuJoCo that others call so is called here; None for no such name.

    >>> called_here("2-Agent HalfCheetah"), called_here("HalfCheetah-2x3")
    ('mamujoco/HalfCheetah-2x3', None)
    """
    ours = OTHER_NAMES.get(name.lower().replace(" ", "-"))
    return ours and f"mamujoco/{ours}"


# StarCraft

MISSING = {
    "MMM": "medivac",
    "MMM2": "medivac",
    "1c3s5z": "colossus",
    "2c_vs_64zg": "colossus",
    "bane_vs_bane": "baneling",
    "so_many_baneling": "baneling",
    "2s_vs_1sc": "spine crawler",
}
"""the maps of SMAC that SMAX cannot play -> the unit that it lacks"""
