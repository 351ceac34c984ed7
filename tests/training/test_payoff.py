"""What a report says of matrix games."""

import csv
import dataclasses

import numpy as np
import pytest
from rich.console import Console

from comarl.algorithms.qmix import Qmix
from comarl.envs.matrix import GAMES
from comarl.replay.episodes import EpisodeRing
from comarl.replay.pace import EpisodePace
from comarl.report import report
from comarl.runs.identity import identity
from comarl.training.payoff import Learnt, payoff_csv, payoff_markdown
from comarl.training.run import Options, Session
from comarl.training.settings import Run

QTRAN = np.array(GAMES["qtran"].payoff)


@pytest.fixture(scope="module", params=["qtran", "two-states"])
def reported(request, tmp_path_factory):
    """The report of two runs of one game, seeds 0 and 1 in one and seed 2 in the other, and the
    game."""
    folder, name = tmp_path_factory.mktemp("payoff"), request.param
    algorithm = Qmix(
        hidden=4,
        mixer_width=3,
        hypernet=3,
        replay=EpisodeRing(20, 4),
        pace=EpisodePace(parallel_envs=4),
    )
    for seeds, first in (2, 0), (1, 2):
        run = Run(
            algorithm, GAMES[name], seeds, first, steps=40, evaluate_every=20, evaluation_episodes=2
        )
        identified = identity(run, "qmix", f"matrix/{name}")
        Session(run, identified, folder / str(first), Options(), Console(quiet=True)).train()
    report([folder / "0", folder / "2"], folder / "out")
    return folder / "out", GAMES[name]


def test_every_seed_and_state_has_a_choice_what_it_earns_and_a_table(reported):
    out, game = reported
    lines = list(csv.DictReader((out / "payoff.csv").read_text().splitlines()))
    states = ["11"] if len(game.payoff) == 1 else ["00", "01", "10", "11"]
    assert [(x["seed"], x["state"]) for x in lines] == [
        (str(s), bits) for s in range(3) for bits in states
    ]
    for line in lines:
        table = game.payoff[sum(map(int, line["state"])) % len(game.payoff)]
        row, column = ("ABC".index(x) for x in line["choice"])
        assert float(line["reward"]) == table[row][column]
        values = {a + b: float(line[a + b]) for a in "ABC" for b in "ABC"}
        assert values[line["choice"]] == max(values.values()), (
            "QMIX's greedy joint action is the best of its own table"
        )


def test_the_page_counts_the_seeds_of_the_csv(reported):
    out, game = reported
    lines = list(csv.DictReader((out / "payoff.csv").read_text().splitlines()))
    hits = sum(
        all(float(x["reward"]) == 8.0 for x in lines if x["seed"] == seed)
        for seed in {x["seed"] for x in lines}
    )
    mean = np.mean([float(x["reward"]) for x in lines])
    page = (out / "payoff.md").read_text()
    assert f"| qmix | {hits} of 3 | {mean:.2f} |" in page
    assert ("| payoff | 8.0 -12.0 -12.0 |" in page) == (len(game.payoff) == 1)


def made(**changes):
    """Two seeds, of which the first finds the best joint action."""
    values = np.stack([QTRAN, 2 * QTRAN + 1.0])
    greedy = np.array([[[0, 0]], [[1, 2]]])
    learnt = Learnt(
        "qtran", "qtran", "matrix/qtran", (4, 5), np.ones((1, 2)), QTRAN, values, greedy
    )
    return dataclasses.replace(learnt, **changes)


def test_a_seed_hits_if_it_earns_the_most_in_every_state():
    assert made().hits.tolist() == [True, False] and made().rewards.tolist() == [[8.0], [0.0]]
    both = np.concatenate([QTRAN, QTRAN[:, ::-1, ::-1]])
    greedy = np.array([[[0, 0], [2, 2]], [[0, 0], [0, 0]]])
    two = made(states=np.eye(2), payoff=both, greedy=greedy, values=np.zeros((2, 2, 3, 3)))
    assert two.hits.tolist() == [True, False] and two.rewards.tolist() == [[8.0, 8.0], [8.0, 0.0]]
    assert "| qtran | 1 of 2 | 6.00 |" in payoff_markdown([two])


def test_medians_stand_beside_the_papers_table():
    page = payoff_markdown([made(), made(label="other", algorithm="other")])
    assert "| qtran | 1 of 2 | 4.00 |" in page
    median = "12.5 -17.5 -17.5 | -17.5 0.5 0.5 | -17.5 0.5 0.5"
    assert f"| qtran | {median} | 8.0 6.1 6.1 | 2.1 0.2 0.2 |" in page
    assert f"| other | {median} |  |  |" in page
    assert (
        payoff_csv([made()])
        .splitlines()[2]
        .startswith("qtran,matrix/qtran,5,11,BC,0,17.000,-23.000")
    )
