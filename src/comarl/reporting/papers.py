"""The numbers of papers that tables show beside ours, from the CSV files of this folder."""

import csv
from importlib import resources
from typing import NamedTuple

RACE_STEPS, PYMARL2_STEPS = 1_000_000, 10_000_000
MAMUJOCO = {
    "race-matd3": "race",
    "merl-matd3": "merl",
    "matd3": "matd3",
    "facmac-continuous": "facmac",
}
MAMUJOCO |= {"ea-matd3": "ea"}
"""an algorithm's column in paper_numbers.csv, RACE's Fig. 2, where its base learner is MATD3"""
SMAC_RACE = {"race-facmac": "race", "merl-facmac": "merl", "facmac": "facmac", "ea-facmac": "ea"}
"""the same in paper_numbers_race_smac.csv, RACE's Fig. 3, where it is FACMAC"""
SMAC_PYMARL2 = {"qmix-pymarl2": "qmix", "vdn-pymarl2": "vdn"}
"""the same in paper_numbers_pymarl2.csv"""


class Paper(NamedTuple):
    """One number of a paper."""

    text: str
    """as printed there, or empty if there is none"""
    source: str = ""
    """what `notes` of a table says about it"""
    steps: int = 0
    """the environment steps that it took"""
    same_game: bool = True
    """whether it was measured on the task itself, or on one that only goes by the same name"""


RACE = (
    "Paper: RACE (ICML 2023), Fig. 2, at 1e6 environment steps, 5 seeds, its own settings, read "
    "off the plot; gym v2 tasks on mujoco-py, whose Ant and Humanoid returns are not comparable "
    "with v4 and v5 tasks."
)
RACE_SMAC = (
    "Paper: RACE (ICML 2023), Fig. 3, at 1e6 or 2e6 environment steps, 5 seeds, read off the plot."
)
PYMARL2 = "Paper: the table of PyMARL2 (Hu et al., 2021), at 1e7 environment steps, tuned per map."


def paper_numbers() -> dict[tuple[str, str], Paper]:
    """The papers' numbers by task and algorithm: returns for Multi-Agent MuJoCo, win rates of SMAC
    beside SMAX."""
    numbers = {}
    for line in _read("paper_numbers.csv"):
        for name, column in MAMUJOCO.items():
            numbers[f"mamujoco/{line['task']}", name] = Paper(line[column], RACE, RACE_STEPS)
    for line in _read("paper_numbers_race_smac.csv"):
        for name, column in SMAC_RACE.items():
            paper = Paper(
                _percent(line[column]), RACE_SMAC, int(float(line["budget_steps"])), same_game=False
            )
            numbers[f"smax/{line['map']}", name] = paper
    for line in _read("paper_numbers_pymarl2.csv"):
        for name, column in SMAC_PYMARL2.items():
            numbers[f"smax/{line['map']}", name] = Paper(
                f"{line[column]} %", PYMARL2, PYMARL2_STEPS, same_game=False
            )
    return numbers


def _read(name: str) -> list[dict[str, str]]:
    text = (resources.files("comarl.reporting") / name).read_text()
    return list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))


def _percent(fractions: str) -> str:
    """ "0.97" as "97 %", and a range "0.2-0.25" as "20-25 %"."""
    return "-".join(f"{100 * float(fraction):g}" for fraction in fractions.split("-")) + " %"
