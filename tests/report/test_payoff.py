"""What a report says of matrix games, from the `payoff.csv` of each run."""

import csv
import json
import warnings

import numpy as np
import pytest

from comarl.envs.matrix import GAMES
from comarl.reporting import ReportError, comparison, report
from comarl.reporting.payoff import Learnt, learnt, payoff_csv, payoff_markdown
from comarl.runs.payoff import PayoffLine, write_payoff
from tests.report.folders import lines_of, write_run

QTRAN = np.array(GAMES["qtran"].payoff)


def values_of(table):
    return tuple(np.float64(table).ravel().tolist())


FIRST = PayoffLine(4, "11", "AA", 8.0, values_of(QTRAN))
SECOND = PayoffLine(5, "11", "BC", 0.0, values_of(2 * QTRAN + 1.0))


def made(*lines, label="qtran", algorithm="qtran", payoff=QTRAN, task="matrix/qtran"):
    """Two seeds, of which the first finds the best joint action."""
    return Learnt(label, algorithm, task, payoff, lines or (FIRST, SECOND))


def game_run(folder, lines, name="qtran", game="qtran"):
    """The folder of a run on a game; without `payoff.csv` if `lines` is None."""
    seeds = sorted({line.seed for line in lines or [FIRST]})
    records = [line for seed in seeds for line in lines_of(seed, {10: [float(seed)]})]
    write_run(folder, records, name=name, task=f"matrix/{game}")
    config = json.loads((folder / "config.json").read_text())
    config["task"] = {"kind": "MatrixGame", "payoff": GAMES[game].payoff}
    (folder / "config.json").write_text(json.dumps(config))
    if lines is not None:
        write_payoff(folder, lines)
    return folder


def test_a_seed_hits_if_it_earns_the_most_in_every_state():
    assert made().hits == 1 and made().mean_reward == 4.0
    both = np.concatenate([QTRAN, QTRAN[:, ::-1, ::-1]])
    lines = [
        PayoffLine(seed, state, choice, reward)
        for seed, state, choice, reward in (
            *((0, "00", "AA", 8.0), (0, "01", "CC", 8.0)),
            *((1, "00", "AA", 8.0), (1, "01", "AA", 0.0)),
        )
    ]
    two = made(*lines, payoff=both)
    assert two.hits == 1 and two.seeds == (0, 1) and two.best("01") == 8.0
    page = payoff_markdown([two])
    assert "| qtran | 1 of 2 | 6.00 |" in page and "| payoff |" not in page


def test_medians_stand_beside_the_papers_table():
    page = payoff_markdown([made(), made(label="other", algorithm="other")])
    assert "| qtran | 1 of 2 | 4.00 |" in page
    median = "12.5 -17.5 -17.5 | -17.5 0.5 0.5 | -17.5 0.5 0.5"
    assert f"| qtran | {median} | 8.0 6.1 6.1 | 2.1 0.2 0.2 |" in page
    assert f"| other | {median} |  |  |" in page
    line = "qtran,matrix/qtran,5,11,BC,0,17.000,-23.000"
    assert payoff_csv([made()]).splitlines()[2].startswith(line)


def test_an_algorithm_without_values_is_counted_and_has_no_table():
    without = made(PayoffLine(0, "11", "AA", 8.0), label="merl-facmac", algorithm="merl-facmac")
    page = payoff_markdown([made(), without])
    assert "| merl-facmac | 1 of 1 | 8.00 |" in page
    assert page.count("merl-facmac") == 1
    assert payoff_csv([without]).splitlines()[1] == "merl-facmac,matrix/qtran,0,11,AA,8" + "," * 9


def test_folders_of_one_run_are_one_and_the_report_writes_page_and_table(tmp_path):
    runs = [game_run(tmp_path / "b", [SECOND]), game_run(tmp_path / "a", [FIRST])]
    written = report(runs, tmp_path / "out")
    assert {"payoff.md", "payoff.csv"} <= {path.name for path in written}
    rows = list(csv.DictReader((tmp_path / "out" / "payoff.csv").read_text().splitlines()))
    assert [(row["seed"], row["choice"]) for row in rows] == [("4", "AA"), ("5", "BC")]
    page = (tmp_path / "out" / "payoff.md").read_text()
    assert "| qtran | 1 of 2 | 4.00 |" in page and "| payoff | 8.0 -12.0 -12.0 |" in page


def test_a_run_without_the_file_is_named_with_the_remedy_and_the_others_are_reported(tmp_path):
    old = game_run(tmp_path / "old", None, name="vdn")
    new = game_run(tmp_path / "new", [FIRST, SECOND])
    with pytest.warns(UserWarning, match=r"old: no payoff\.csv in it.*`comarl evaluate .*old`"):
        report([old, new], tmp_path / "out")
    page = (tmp_path / "out" / "payoff.md").read_text()
    assert "| qtran | 1 of 2 |" in page and "vdn" not in page
    with pytest.warns(UserWarning, match="comarl evaluate"):
        names = [path.name for path in report([old], tmp_path / "alone")]
    assert "table.md" in names and "payoff.md" not in names


def test_a_damaged_file_is_one_clear_line(tmp_path):
    run = game_run(tmp_path / "x", [FIRST])
    for text in ("seed,state\n", (run / "payoff.csv").read_text().replace("8", "eight")):
        (run / "payoff.csv").write_text(text)
        with pytest.raises(ReportError, match=r"its payoff\.csv cannot be read .*evaluate"):
            learnt(*comparison([run]))


def test_what_was_written_is_read_back_to_the_last_bit_of_a_float32(tmp_path):
    values = tuple(np.random.default_rng(0).normal(size=9).astype(np.float32).tolist())
    line = PayoffLine(3, "01", "CA", -12.0, values)
    run = game_run(tmp_path / "x", [line], game="two-states")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = learnt(*comparison([run]))
    assert found is not None
    assert np.asarray(found.lines[0].values, np.float32).tolist() == list(values)
