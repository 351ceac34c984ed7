"""Reports on what tasks count besides the return."""

import csv
import io
import json
import re
from typing import Any

import numpy as np
import pytest

from comarl.reporting import ReportError, comparison, report, rich_table, single_run_curve
from comarl.reporting import curves as drawing
from comarl.reporting.runs import compared_by
from comarl.reporting.tables import (
    cells,
    columns,
    header,
    improvements,
    latex_table,
    markdown_table,
    notes,
    per_seed_csv,
    table_rows,
)
from tests.report.folders import HOPPER, battles, lines_of, noisy_run, png_size, write_run


@pytest.fixture
def plain(tmp_path):
    """A run that counts nothing besides its return."""
    return noisy_run(tmp_path / "plain", [0, 1, 2], best_team=[50.0, 70.0], name="race-matd3")


def test_runs_with_a_win_rate_are_compared_by_it_and_others_by_their_return(tmp_path):
    both = comparison([battles(tmp_path / "won", [0, 1]), noisy_run(tmp_path / "plain", [0])])
    assert compared_by(both) == {"smax/3m": "won", HOPPER: "return"}
    assert compared_by(both, "return") == {"smax/3m": "return", HOPPER: "return"}
    assert [run.metrics for run in both] == [("won",), ()]


def test_a_win_rate_that_one_run_of_a_task_lacks_is_not_what_they_are_compared_by(tmp_path):
    runs = battles(tmp_path / "a", [0]), noisy_run(tmp_path / "b", [0], name="old", task="smax/3m")
    assert compared_by(comparison(runs)) == {"smax/3m": "return"}
    half = lines_of(0, {10: [1.0]}, marl_team_won=[1.0]) + lines_of(0, {20: [1.0]})
    (run,) = comparison([write_run(tmp_path / "half", half)])
    assert run.metrics == ()


def test_a_metric_that_was_not_recorded_is_one_clear_line_and_nothing_is_written(tmp_path, plain):
    message = rf"--metric won: not every run on {HOPPER} has recorded it; there it can be return$"
    with pytest.raises(ReportError, match=message):
        report([plain], tmp_path / "out", "won")
    message = r"--metric captures: not every run on smax/3m .*; there it can be return or won$"
    with pytest.raises(ReportError, match=message):
        report([battles(tmp_path / "x", [0])], tmp_path / "out", "captures")
    assert not (tmp_path / "out").exists()


def test_the_report_draws_the_win_rate_and_the_return_beside_it(tmp_path, plain):
    won, out = battles(tmp_path / "won", range(5), population=True), tmp_path / "out"
    names = [path.name for path in report([won, plain], out)]
    pictures = ["curves.png", "curves.svg", "curves_return.png", "curves_return.svg"]
    assert names == [*pictures, "table.md", "table.tex", "per_seed.csv"]
    assert png_size(out / "curves.png") == (8.8 * 150, 4.4 * 150)  # two tasks
    # The return of the other is in the first picture
    assert png_size(out / "curves_return.png") == (960, 660)
    assert [path.name for path in report([won], tmp_path / "again", "return")][:3] == [
        *pictures[:2],
        "table.md",
    ]


def test_the_win_rate_is_drawn_in_percent_from_0_to_100(tmp_path):
    (run,) = comparison([battles(tmp_path / "x", range(5), population=True)])
    (axis,) = drawing.draw([run]).axes
    solid, dashed = axis.lines
    np.testing.assert_allclose(
        solid.get_ydata(), 100 * run.on_grid("marl_team", "won")[1].mean(axis=0)
    )
    np.testing.assert_allclose(
        dashed.get_ydata(), 100 * run.on_grid("best_team", "won")[1].mean(axis=0)
    )
    low, high = axis.get_ylim()
    assert low <= 0 and 100 <= high <= 110
    assert axis.get_ylabel() == "test win rate in %\n(greedy, 32 episodes)"
    (axis,) = drawing.draw([run], {"smax/3m": "return"}).axes
    assert axis.get_ylabel() == "return\n(greedy, 32 episodes)"
    assert axis.lines[0].get_ydata().max() <= 2.0


def test_both_pictures_have_the_same_colours(tmp_path, plain):
    lines = [
        plain,
        battles(tmp_path / "a", [0, 1], name="race-facmac"),
        battles(tmp_path / "b", [0, 1], rng=1),
    ]
    curves = comparison(lines)
    both = drawing.draw(curves), drawing.draw(curves, {"smax/3m": "return"}, tasks=["smax/3m"])
    first, second = ([line.get_color() for line in figure.axes[-1].lines] for figure in both)
    assert first == second and len(set(first)) == 2
    assert both[0].axes[0].lines[0].get_color() not in first


def test_many_runs_of_few_seeds_in_one_panel_are_drawn_without_a_line_for_each_seed(tmp_path):
    curves = comparison([battles(tmp_path / f"{i}", [0, 1], rng=i, name=f"a{i}") for i in range(5)])
    (axis,) = drawing.draw(curves).axes
    assert len(axis.lines) == 5
    assert drawing.captions(curves) == "mean and min-max range of 2 seeds"


def test_the_curve_of_one_run_has_a_panel_for_the_win_rate(tmp_path):
    run = battles(tmp_path / "x", [0, 1], population=True)
    left, right = drawing.draw_single(*comparison([run])).axes
    assert left.get_ylabel().startswith("test win rate") and right.get_ylabel().startswith("return")
    assert png_size(single_run_curve(run)) == (8.8 * 150, 660)


def test_a_row_of_win_rates_by_hand(tmp_path):
    lines = [
        line
        for seed, x in enumerate([0.0, 0.5, 1.0])
        for line in lines_of(
            seed, {10: [2 * x]}, [x + 1], marl_team_won=[x] * 4, best_team_won=[1.0, 0.0]
        )
    ]
    won = write_run(tmp_path / "x", lines, name="qmix", task="smax/3m")
    rows = table_rows(comparison([won, write_run(tmp_path / "y", lines_of(0, {10: [1.0]}))]))
    assert header(rows)[2:6] == ("win rate", "final return", "best seed", "best team")
    assert cells(rows[0], columns(rows))[2:6] == (
        "50.0 % ± 124.2 %",
        "1.00 ± 2.48",
        "100.0 %",
        "50.0 %",
    )
    assert cells(rows[1], columns(rows))[2:6] == ("", "1.00 (no interval)", "1.00", "")
    assert any(note.startswith("Win rate: ") for note in notes(rows))
    assert not any("win rate" in note.lower() for note in notes(rows[1:]))
    # The win rate stays in the table
    by_return = table_rows(comparison([won]), {"smax/3m": "return"})
    assert cells(by_return[0], columns(by_return))[2:6] == (
        "50.0 % ± 124.2 %",
        "1.00 ± 2.48",
        "2.00",
        "1.50",
    )


def test_improvement_is_by_what_the_runs_are_compared_by(tmp_path):
    better = lines_of(0, {10: [1.0]}, marl_team_won=[1.0]) + lines_of(
        1, {10: [1.1]}, marl_team_won=[0.9]
    )
    worse = lines_of(0, {10: [2.0]}, marl_team_won=[0.5]) + lines_of(
        1, {10: [2.1]}, marl_team_won=[0.4]
    )
    about: dict[str, Any] = {"task": "smax/3m"}
    curves = comparison(
        [
            write_run(tmp_path / "a", better, "qmix", **about),
            write_run(tmp_path / "b", worse, "vdn", **about),
        ]
    )
    assert improvements(curves) == ["smax/3m: P(qmix > vdn) = 1.00, 2 and 2 seeds"]
    assert improvements(curves, {"smax/3m": "return"}) == [
        "smax/3m: P(qmix > vdn) = 0.00, 2 and 2 seeds"
    ]
    assert "improvement in the final win rate," in markdown_table(
        table_rows(curves), improvements(curves)
    )


def test_captures_are_compared_by_when_asked_for(tmp_path):
    lines = lines_of(0, {10: [20.0, 10.0]}, marl_team_captures=[2.0, 1.0])
    run = write_run(tmp_path / "x", lines, name="vdn", task="predator-prey/small")
    (curves,) = comparison([run])
    assert compared_by([curves]) == {"predator-prey/small": "return"}
    rows = table_rows([curves], compared_by([curves], "captures"))
    assert header(rows)[2:4] == ("captures", "final return")
    assert cells(rows[0], columns(rows))[2:5] == (
        "1.50 (no interval)",
        "15.0 (no interval)",
        "1.50",
    )
    (axis,) = drawing.draw([curves], {curves.task: "captures"}).axes
    assert axis.get_ylabel() == "captures\n(greedy, 2 episodes)"


def test_the_csv_gives_back_every_number_of_every_metric(tmp_path, plain):
    won = battles(tmp_path / "won", [0, 1], population=True)
    read = list(csv.DictReader(per_seed_csv(comparison([won, plain])).splitlines()))
    recorded = [json.loads(line) for line in (won / "metrics.jsonl").read_text().splitlines()]
    for row, line in zip(read, recorded, strict=False):
        for team in ("marl_team", "best_team"):
            assert [float(x) for x in row[f"{team}_won"].split(";")] == line[f"{team}_won"]
            assert float(row[f"{team}_won_mean"]) == np.mean(line[f"{team}_won"])
            assert [float(x) for x in row[f"{team}_returns"].split(";")] == line[team]
    assert {row["marl_team_won"] + row["best_team_won_mean"] for row in read[len(recorded) :]} == {
        ""
    }


def test_tables_with_a_win_rate_have_as_many_cells_in_every_row_and_fit_the_terminal(
    tmp_path, plain
):
    from rich.console import Console

    one = battles(
        tmp_path / "won", range(5), name="qmix-pymarl2", task="smax/3s5z_vs_3s6z", population=True
    )
    rows = table_rows(comparison([one, plain]))
    table = [line for line in markdown_table(rows).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {10}
    body = [line for line in latex_table(rows).splitlines() if line.endswith(r"\\")]
    assert {line.count(" & ") for line in body} == {8}
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(rich_table(rows))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80 and "win" in text and "…" not in text
