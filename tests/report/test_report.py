"""Reports on run folders that these tests write, as training would."""

import csv
import io
import json
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest

from comarl.reporting import ReportError, comparison, report, rich_table, single_run_curve
from comarl.reporting import curves as drawing
from comarl.reporting.papers import paper_numbers
from comarl.reporting.runs import read_run
from comarl.reporting.tables import (
    cells,
    decimals,
    exact,
    final_scores,
    header,
    improvements,
    latex_table,
    markdown_table,
    notes,
    per_seed_csv,
    table_rows,
)
from comarl.runs.records import FATES, count_of
from tests.report.folders import HOPPER, lines_of, noisy_run, png_size, write_run


@pytest.fixture
def runs(tmp_path):
    ours = noisy_run(tmp_path / "ours", [0, 1, 2], best_team=[50.0, 70.0], name="race-matd3")
    return [
        ours,
        noisy_run(tmp_path / "base", range(6), rng=1),
        noisy_run(tmp_path / "ant", [0], rng=2, task="a/b_c|d"),
    ]


# What was measured in training


def trained(folder, losses, **about):
    """A run of seeds whose critic's loss was each row of `losses`, None where no update came
    yet."""
    lines = []
    for seed, row in enumerate(losses):
        for place, loss in enumerate(row, start=1):
            (line,) = lines_of(seed, {100 * place: [float(seed)]})
            lines.append(line | {"training": {} if loss is None else {"critic_loss": loss}})
    return write_run(folder, lines, **about)


def fates(folder, counts, *, counted=True):
    """A run of one seed, of whose injected teams these many became elite, selected, discarded."""
    (first, *others) = lines_of(0, {1000 * i: [1.0] for i in range(1, 1 + len(counts))}, [2.0])
    for line, numbers in zip((first, *others), counts, strict=True):
        pairs = list(zip(FATES, numbers, strict=True))
        line["training"] = {name: number / sum(numbers) for name, number in pairs if sum(numbers)}
        if counted and sum(numbers):
            line["training"] |= {count_of(name): float(number) for name, number in pairs}
    return write_run(folder, [first, *others], name="race-matd3")


def test_what_became_of_injected_teams_is_a_share_of_all_rounds_so_far(tmp_path):
    """Worked by hand: of 0, 1, 1 + 3 and 4 + 4 rounds; windows weigh by their rounds."""
    counts = [(0, 0, 0), (1, 0, 0), (0, 1, 2), (1, 3, 0)]
    fates(tmp_path / "new", counts)
    fates(tmp_path / "old", counts, counted=False)
    runs = [read_run(tmp_path / name) for name in ("new", "old")]
    new, old = (run.seeds[0].training["injected_elite"] for run in runs)
    np.testing.assert_allclose(new, [np.nan, 1.0, 1 / 4, 2 / 8])
    np.testing.assert_allclose(old, [np.nan, 1.0, 0.0, 1 / 4])
    labels = [
        drawing.draw_training([run], ["injected_discarded"]).axes[0].get_ylabel() for run in runs
    ]
    assert labels == [
        "injected discarded in training, of all rounds so far",
        "injected discarded in training, mean of each window",
    ]
    rows = list(csv.DictReader(io.StringIO(per_seed_csv(runs))))
    assert [row["injected_selected"] for row in rows[:4]] == ["", "0.0", "0.25", "0.5"]
    assert [row["injected_selected_of_window"] for row in rows[4:]] == [
        "",
        "0.0",
        repr(1 / 3),
        "0.75",
    ]
    assert all(not row["injected_selected_of_window"] for row in rows[:4])
    assert all(not row["injected_selected"] for row in rows[4:])


def test_what_was_measured_in_training_is_drawn_from_the_first_update_and_written(tmp_path):
    ours = trained(tmp_path / "ours", [[None, 4.0, 2.0], [None, 6.0, 1.0]], name="qmix")
    (run,) = comparison([ours])
    grid, values = run.training_on_grid("critic_loss")
    assert grid.tolist() == [200, 300] and values.tolist() == [[4.0, 2.0], [6.0, 1.0]]
    (axis,) = drawing.draw_training([run], ["critic_loss"]).axes
    middle = axis.lines[-1]
    assert middle.get_xdata().tolist() == [200, 300] and middle.get_ydata().tolist() == [5.0, 1.5]
    assert axis.get_ylabel() == "critic loss in training"
    written = report([ours], tmp_path / "out", training=["critic_loss"])
    assert {"training.png", "training.svg", "training.csv"} <= {path.name for path in written}
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "training.csv").read_text())))
    assert [(row["seed"], row["env_steps"], row["critic_loss"]) for row in rows[:3]] == [
        ("0", "100", ""),
        ("0", "200", "4.0"),
        ("0", "300", "2.0"),
    ]


def test_a_task_or_run_without_the_measurement_is_said_to_have_none(tmp_path):
    ours = trained(tmp_path / "ours", [[1.0, 2.0]], name="qmix")
    other = trained(tmp_path / "other", [[None, None]], name="vdn", task="a/b")
    first, second = drawing.draw_training(comparison([ours, other]), ["critic_loss"]).axes
    assert len(first.lines) == 1 and not second.lines
    assert "not measured here" in [text.get_text() for text in second.texts]


def test_a_measurement_that_no_run_has_is_one_clear_line_and_nothing_is_written(tmp_path):
    ours = trained(tmp_path / "ours", [[1.0, 2.0]], name="qmix")
    with pytest.raises(ReportError, match=r"--training entropy: .* it can be critic_loss"):
        report([ours], tmp_path / "out", training=["critic_loss", "entropy"])
    assert not (tmp_path / "out").exists()


# What a run is


def test_a_run_has_its_names_from_its_configuration_and_else_from_its_folder(tmp_path):
    named = write_run(tmp_path / "x", lines_of(0, {1: [1.0]}), name="qmix", task="smax/3m")
    bare = write_run(tmp_path / "y", lines_of(0, {1: [1.0]}))
    (bare / "config.json").unlink()
    assert [(run.label, run.task) for run in comparison([named, bare])] == [
        ("qmix", "smax/3m"),
        ("y", "y"),
    ]


def test_episodes_are_not_counted_as_replications(tmp_path):
    """Two seeds at 1 and 3, with 100 episodes each that differ by nothing: the interval is that of
    two numbers."""
    lines = lines_of(0, {10: [1.0] * 100}) + lines_of(1, {10: [3.0] * 100})
    (run,) = comparison([write_run(tmp_path / "x", lines)])
    (row,) = table_rows([run])
    assert row.seeds == 2
    final = row.finals["return"]
    assert final.mean == 2.0
    # T(0.975, 1) times s / sqrt(2) = 1
    assert final.half_interval == pytest.approx(12.7062, rel=1e-5)
    assert run.on_grid("marl_team")[1].shape == (2, 1)


def test_a_seed_with_more_episodes_does_not_weigh_more(tmp_path):
    lines = lines_of(0, {10: [0.0] * 9}) + lines_of(1, {10: [6.0]})
    assert (
        table_rows(comparison([write_run(tmp_path / "x", lines)]))[0].finals["return"].mean == 3.0
    )


def test_seeds_of_different_lengths_are_cut_and_interpolated(tmp_path):
    lines = lines_of(0, {10: [0.0], 20: [10.0], 40: [30.0]}) + lines_of(
        1, {5: [0.0], 30: [90.0, 110.0]}
    )
    (run,) = comparison([write_run(tmp_path / "x", lines)])
    grid, values = run.on_grid("marl_team")
    np.testing.assert_array_equal(grid, [10, 20, 30])
    np.testing.assert_allclose(values.mean(axis=0), [10, 35, 60])
    assert cells(table_rows([run])[0])[6] == "30 to 40"


def test_the_final_score_is_the_mean_of_the_last_tenth_of_the_evaluations_rounded_up(tmp_path):
    for count, expected in [(1, 1.0), (10, 10.0), (11, 10.5), (20, 19.5)]:
        lines = lines_of(0, {step: [float(step)] for step in range(1, count + 1)})
        (run,) = comparison([write_run(tmp_path / str(count), lines)])
        assert final_scores(run) == [expected]


def test_a_return_that_is_null_in_the_record_is_nan(tmp_path):
    (run,) = comparison([write_run(tmp_path / "x", lines_of(0, {1: [1.0, None]}))])
    assert np.isnan(final_scores(run)).all()


def test_runs_that_differ_only_in_seeds_are_one_and_others_are_told_apart(tmp_path):
    one, two = (noisy_run(tmp_path / f"{s}", [s], rng=s, beta=0.1) for s in (0, 1))
    (pooled,) = comparison([one, two])
    assert (pooled.label, [seed.seed for seed in pooled.seeds]) == ("matd3", [0, 1])
    ablated = noisy_run(tmp_path / "ablated", [0, 1], rng=3, beta=0.0)
    config = json.loads((ablated / "config.json").read_text())
    # A budget is no setting either
    (ablated / "config.json").write_text(json.dumps(config | {"steps": 500}))
    labels = [(run.label, len(run.seeds)) for run in comparison([one, two, ablated])]
    assert labels == [("matd3 (beta=0.1)", 2), ("matd3 (beta=0.0)", 2)]


def test_a_folder_that_is_named_twice_counts_once(runs):
    (run,) = comparison([runs[0], runs[0].parent / "base" / ".." / "ours"])
    assert len(run.seeds) == 3


# Warnings and errors


def test_two_runs_with_one_seed_and_one_curve_are_warned_of(tmp_path):
    one = noisy_run(tmp_path / "one", [0, 1], name="qmix")
    # The same numbers, of which seed 0 is also the same seed
    two = noisy_run(tmp_path / "two", [0, 7], name="vdn")
    with pytest.warns(
        UserWarning, match=r"one seed 0 and .*two seed 0 have identical curves: seed not varied\?"
    ) as seen:
        comparison([one, two])
    assert len(seen) == 1


def test_two_seeds_of_one_run_with_one_curve_are_warned_of(tmp_path):
    evaluations = {10: [1.0], 20: [2.0]}
    run = write_run(tmp_path / "x", lines_of(0, evaluations) + lines_of(1, evaluations))
    with pytest.warns(UserWarning, match="seed not varied"):
        comparison([run])


def test_seeds_that_all_reach_the_same_constant_are_not_warned_of(tmp_path):
    lines = lines_of(0, {10: [22.0], 20: [22.0]}) + lines_of(1, {10: [22.0], 20: [22.0]})
    one, other = (
        write_run(tmp_path / "one", lines, name="qmix"),
        write_run(tmp_path / "other", lines, name="vdn"),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        comparison([one, other])


def test_a_seed_that_was_run_twice_counts_once(tmp_path):
    one, two = (noisy_run(tmp_path / f"{rng}", [0], rng=rng) for rng in (0, 1))
    with pytest.warns(UserWarning, match="seed 0 of matd3 is in another folder too"):
        (run,) = comparison([one, two])
    assert len(run.seeds) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"bad: no metrics\.jsonl in it; give the folder of a run"),
        ("", r"bad: no evaluation yet; wait"),
        (
            '{"seed": 0, "env_steps": 1, "updates": 0, "training": {}}\n',
            r"bad: no evaluation yet; wait",
        ),
        (
            '{"seed": 0, "marl_team": [1.0]}\n',
            r"bad: its metrics\.jsonl is not a run's record .*env_steps",
        ),
        ("seed 0\n{}\n", r"bad: its metrics\.jsonl is not a run's record .*line 1"),
    ],
)
def test_a_folder_without_evaluations_is_one_clear_line_and_nothing_is_written(
    tmp_path, runs, content, message
):
    (tmp_path / "bad").mkdir()
    if content is not None:
        (tmp_path / "bad" / "metrics.jsonl").write_text(content)
    with pytest.raises(ReportError, match=message) as caught:
        report([runs[0], tmp_path / "bad"], tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_no_run_and_no_such_folder_are_errors(tmp_path):
    with pytest.raises(ReportError, match="no run given"):
        report([], tmp_path)
    with pytest.raises(ReportError, match=r"nowhere: no metrics\.jsonl"):
        single_run_curve(tmp_path / "nowhere")


def test_a_last_line_that_is_half_written_is_not_read_yet(tmp_path):
    run = write_run(tmp_path / "x", lines_of(0, {10: [1.0]}))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"seed": 0, "env_st')
    assert comparison([run])[0].seeds[0].env_steps == (10,)


def test_without_matplotlib_the_remedy_is_said(runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "comarl\[report\]"'):
        single_run_curve(runs[0])


# Pictures


def test_the_report_writes_its_files_with_pictures_of_the_right_size(runs, tmp_path):
    out = tmp_path / "deep" / "out"
    paths = report(runs, out)
    names = ["curves.png", "curves.svg", "table.md", "table.tex", "per_seed.csv"]
    assert paths == [out / name for name in names]
    assert png_size(out / "curves.png") == (8.8 * 150, 4.4 * 150)  # two panels
    assert (out / "curves.png").stat().st_size > 20_000
    assert "<svg" in (out / "curves.svg").read_text()


def test_a_report_is_the_same_bytes_again(runs, tmp_path):
    for one, two in zip(report(runs, tmp_path / "1"), report(runs, tmp_path / "2"), strict=True):
        assert one.read_bytes() == two.read_bytes(), one.name


def test_the_curve_of_one_run_lies_in_its_folder(runs):
    assert single_run_curve(runs[0]) == runs[0] / "curve.png"
    assert png_size(runs[0] / "curve.png") == (960, 660)


def test_the_caption_says_what_is_shaded_and_of_how_many_seeds(runs):
    ours, base, alone = comparison(runs)
    assert drawing.captions([alone]) == "1 seed, no interval"
    assert drawing.captions([ours]) == "mean and min-max range of 3 seeds; thin: each seed"
    assert drawing.captions([ours, base]) == (
        "race-matd3: mean and min-max range of 3 seeds; thin: each seed\n"
        "matd3: mean and 95 % t interval of 6 seeds"
    )


def test_what_most_runs_have_is_said_once(tmp_path):
    few = [noisy_run(tmp_path / f"few{i}", range(2), rng=i, beta=float(i)) for i in range(4)]
    many = noisy_run(tmp_path / "many", range(6), rng=9, name="qmix")
    assert drawing.captions(comparison([*few, many])) == (
        "mean and min-max range of 2 seeds, but\nqmix: mean and 95 % t interval of 6 seeds"
    )


def test_the_curve_drawn_is_the_mean_and_the_band_the_range(runs):
    (run,) = comparison(runs[:1])
    (axis,) = drawing.draw([run], best_team=False).axes
    grid, values = run.on_grid("marl_team")
    thick = [line for line in axis.lines if line.get_linewidth() > 1]
    assert len(thick) == 1 and len(axis.lines) == 4  # three thin ones
    np.testing.assert_allclose(thick[0].get_xydata(), np.stack([grid, values.mean(axis=0)], axis=1))
    (shade,) = axis.collections
    low, high = shade.get_datalim(axis.transData).intervaly
    np.testing.assert_allclose([low, high], [values.min(), values.max()])


def test_the_middle_of_the_seeds_may_be_their_median_within_the_range_of_all(runs):
    """Of six seeds, whose mean would have an interval around it."""
    run = comparison(runs)[1]
    (axis,) = drawing.draw([run], middle="median").axes
    _, values = run.on_grid("marl_team")
    np.testing.assert_allclose(axis.lines[0].get_ydata(), np.median(values, axis=0))
    low, high = axis.collections[0].get_datalim(axis.transData).intervaly
    np.testing.assert_allclose([low, high], [values.min(), values.max()])
    assert drawing.captions([run], "median") == "median and min-max range of 6 seeds"


def test_the_best_team_is_drawn_dashed_only_where_there_is_a_population(runs):
    for run, dashed in zip(comparison(runs[:2]), (1, 0), strict=True):
        (axis,) = drawing.draw([run]).axes
        assert sum(line.get_linestyle() == "--" for line in axis.lines) == dashed


def test_the_axes_say_their_units_and_the_episodes(runs):
    ours, base, _ = comparison(runs)
    (axis,) = drawing.draw([base]).axes
    assert axis.get_xlabel() == "environment steps"
    assert drawing.draw([ours, base]).axes[0].get_xlabel() == "environment steps (all teams)"
    assert axis.get_ylabel() == "return\n(greedy, 5 episodes)"
    both, alone = (drawing.draw([ours], best_team=both).axes[0] for both in (True, False))
    assert both.get_ylabel() == "return\n(greedy, 5 episodes)"
    assert alone.get_ylabel() == "return of the MARL team\n(greedy, 5 episodes)"


@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_a_run_of_one_evaluation_is_drawn_as_dots(tmp_path, seeds):
    run = noisy_run(tmp_path / "x", range(seeds), evaluations=1)
    for figure in (drawing.draw(comparison([run])), drawing.draw_single(*comparison([run]))):
        dots = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
        assert len(dots) == seeds


def test_runs_that_were_evaluated_once_stand_side_by_side(tmp_path):
    returns = {"one": (1.0, 3.0), "two": (5.0, 9.0)}
    lines = {
        name: lines_of(0, {700: [x]}) + lines_of(1, {700: [y]}) for name, (x, y) in returns.items()
    }
    runs = comparison([write_run(tmp_path / name, lines[name], name=name) for name in returns])
    (axis,) = drawing.draw(runs).axes
    dots = [
        (line.get_xdata().mean(), line.get_ydata().ravel().tolist())
        for line in axis.lines
        if len(line.get_xdata()) == 2
    ]
    assert [y for _, y in dots] == [[1.0, 3.0], [5.0, 9.0]] and dots[0][0] < 0.0 < dots[1][0]
    assert [container.lines[0].get_ydata().tolist() for container in axis.containers] == [
        [2.0],
        [7.0],
    ]
    assert (
        axis.get_xlabel() == "after 700 environment steps" and axis.get_title(loc="left") == HOPPER
    )
    assert "2 seeds; dots: each seed" in axis.texts[0].get_text()


def test_an_algorithm_keeps_its_colour_whatever_it_is_compared_with():
    alone = drawing.line_styles({"matd3": "matd3"})["matd3"]
    assert drawing.line_styles({"merl": "merl", "matd3": "matd3"})["matd3"] == alone
    assert drawing.line_styles({"matd3": "matd3", "mine": "mine"})["matd3"] == alone


def test_no_two_labels_look_alike():
    labels = {f"race-matd3 (beta={x})": "race-matd3" for x in range(20)}
    styles = drawing.line_styles(labels)
    assert len({(style["color"], style.get("marker")) for style in styles.values()}) == 20
    assert list(styles) == list(labels)


def test_five_algorithms_differ_in_colour_and_in_marker_and_presets_keep_to_their_algorithm():
    names = ("qmix", "qmix-pymarl2", "vdn", "vdn-pymarl2", "iql")
    styles = drawing.line_styles({name: name for name in names})
    assert (
        len({style["color"] for style in styles.values()})
        == len({style["marker"] for style in styles.values()})
        == 5
    )
    assert drawing.colour_of("qmix") == drawing.colour_of("qmix-pymarl2") == styles["qmix"]["color"]
    battles = ("race-facmac", "merl-facmac", "facmac", "ea-facmac", "qmix")
    robots = ("race-matd3", "merl-matd3", "matd3", "ea-matd3", "facmac-continuous")
    assert all(len({drawing.colour_of(name) for name in names}) == 5 for names in (battles, robots))
    assert drawing.colour_of("race-facmac") == drawing.colour_of("race-matd3")


def test_reading_needs_no_matplotlib_nor_networks_and_drawing_leaves_pyplot_and_the_backend_alone(
    runs,
):
    code = f"""
import sys, pathlib
from comarl.reporting import comparison, single_run_curve
comparison([pathlib.Path({str(runs[0])!r})])
assert "matplotlib" not in sys.modules
networks = ("comarl.training", "comarl.algorithms", "comarl.nn")
assert not [name for name in sys.modules if name.startswith(networks)], "records are enough"
import matplotlib
before = matplotlib.rcParams.copy()
single_run_curve(pathlib.Path({str(runs[0])!r}))
assert "matplotlib.pyplot" not in sys.modules
assert dict.__eq__(matplotlib.rcParams, before)  # == would choose a backend, with pyplot
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# Tables


def test_the_csv_gives_back_every_number(runs):
    read = list(csv.DictReader(per_seed_csv(comparison(runs)).splitlines()))
    recorded = [
        json.loads(line)
        for run in runs
        for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    assert len(read) == len(recorded)
    for row, line in zip(read, recorded, strict=True):
        assert [int(row[name]) for name in ("seed", "env_steps", "updates")] == [
            line[name] for name in ("seed", "env_steps", "updates")
        ]
        assert [float(x) for x in row["marl_team_returns"].split(";")] == line["marl_team"]
        assert float(row["marl_team_return_mean"]) == np.mean(line["marl_team"])
        assert row["best_team_returns"] == ("50.0;70.0" if "best_team" in line else "")
        assert row["best_team_return_mean"] == ("60.0" if "best_team" in line else "")
    assert (read[0]["algorithm"], read[0]["task"], read[-1]["task"]) == (
        "race-matd3",
        HOPPER,
        "a/b_c|d",
    )


def test_where_no_run_has_a_population_no_team_is_named(runs, tmp_path):
    alone = comparison(runs[1:])
    read = list(csv.DictReader(per_seed_csv(alone).splitlines()))
    assert list(read[0])[5:] == ["return_mean", "returns"]
    assert all(float(row["return_mean"]) for row in read)
    rows = table_rows(alone)
    texts = [markdown_table(rows), latex_table(rows), drawing.y_label(alone, True)]
    assert not any(re.search("best team|MARL team", text) for text in texts)
    (legend,) = drawing.draw_single(alone[0]).legends
    assert [text.get_text() for text in legend.get_texts()] == ["matd3"]
    both = markdown_table(table_rows(comparison(runs)))
    assert "| best seed | best team | seeds |" in both and "of the MARL team where" in both


@pytest.mark.parametrize(
    "number", [0.1, 1 / 3, 1e-300, 123456789.123456789, -0.0, np.float64(2) / 3]
)
def test_a_number_is_written_so_that_reading_gives_it_back(number):
    assert float(exact(number)) == number


def test_a_row_of_the_table_by_hand(tmp_path):
    lines = [
        line
        for seed, x in enumerate([1.0, 2.0, 3.0])
        for line in lines_of(seed, {10: [x]}, best_team=[x + 1])
    ]
    (row,) = table_rows(comparison([write_run(tmp_path / "x", lines, name="race-matd3")]))
    assert cells(row) == (HOPPER, "race-matd3", "2.00 ± 2.48", "3.00", "3.00", "3", "10", "3030 †")


def test_the_papers_number_is_marked_unless_the_budget_is_the_papers(tmp_path):
    far, near = (
        write_run(tmp_path / f"{n}", lines_of(0, {n: [1.0]}), n=n) for n in (20_000, 1_003_000)
    )
    rows = table_rows(comparison([far, near]))
    assert [cells(row)[-1] for row in rows] == ["1500 †", "1500"]
    assert any(note.startswith("† ") and "another budget" in note for note in notes(rows))
    assert not any(note.startswith("†") for note in notes(rows[1:]))


def test_the_papers_numbers_are_those_of_the_reference():
    texts = {key: paper.text for key, paper in paper_numbers().items()}
    assert texts[HOPPER, "race-matd3"] == "3030"
    assert texts["mamujoco/Ant-2x4", "ea-matd3"] == "<700"  # an upper bound stays one
    assert texts["mamujoco/HumanoidStandup-9|8", "merl-matd3"] == "156200"
    assert texts["smax/3s5z", "race-facmac"] == "97 %"
    assert texts["smax/2s_vs_1sc", "facmac"] == "20-25 %"
    assert texts["smax/3s5z_vs_3s6z", "vdn-pymarl2"] == "43 %"
    assert len(texts) == 8 * 5 + 8 * 4 + 10 * 2


def test_a_number_of_starcraft_says_that_it_is_another_game_whatever_the_budget(tmp_path):
    near = write_run(
        tmp_path / "near", lines_of(0, {2_000_000: [1.0]}), name="facmac", task="smax/3s5z"
    )
    far = write_run(
        tmp_path / "far",
        lines_of(0, {20_000: [1.0]}),
        name="qmix-pymarl2",
        task="smax/3s5z_vs_3s6z",
    )
    none = write_run(tmp_path / "none", lines_of(0, {20_000: [1.0]}), name="qmix", task="smax/3s5z")
    rows = table_rows(comparison([near, far, none]))
    assert [(row.algorithm, cells(row)[-1]) for row in rows] == [
        ("facmac", "85 % ‡"),
        ("qmix", ""),
        ("qmix-pymarl2", "75 % ‡"),
    ]
    assert header(rows)[-1] == "paper" and header(rows[1:2])[-1] == "paper at 1e6 steps"
    said = " ".join(notes(rows))
    assert "‡ a win rate of StarCraft II" in said and "no comparison" in said and "†" not in said
    assert "RACE (ICML 2023), Fig. 3" in said and "PyMARL2" in said
    assert "‡" not in " ".join(notes(rows[1:2]))
    assert r"85 \% $^\ddagger$" in latex_table(rows)


def test_one_seed_is_said_to_have_no_interval(runs):
    rows = table_rows(comparison(runs[2:]))
    assert cells(rows[0])[2].endswith(" (no interval)")
    assert "One seed has no interval" in markdown_table(rows)


def test_every_row_of_the_markdown_table_has_as_many_cells_as_its_header(runs):
    table = [
        line
        for line in markdown_table(table_rows(comparison(runs))).splitlines()
        if line.startswith("|")
    ]
    assert len(table) == 5
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {9}
    assert r"a/b_c\|d" in table[-1]


def test_the_latex_table_escapes_what_latex_would_read(runs):
    table = latex_table(table_rows(comparison(runs)))
    body = [line for line in table.splitlines() if not line.startswith("%")]
    assert r"a/b\_c\textbar{}d" in table and r"$\pm$" in table and r"3030 $^\dagger$" in table
    assert "\n".join(body).isascii()
    assert {line.count(" & ") for line in body if line.endswith(r"\\")} == {7}


def test_the_rich_table_shows_the_same_rows(runs):
    from rich.console import Console

    rows = table_rows(comparison(runs))
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(rich_table(rows))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    for row in rows:
        assert all(word in text for cell in cells(row) for word in re.split("[/ ]", cell))


def test_improvement_is_said_for_each_pair_with_an_interval_only_from_five_seeds_on(tmp_path, runs):
    other = noisy_run(tmp_path / "other", range(5), rng=5, name="facmac")
    lines = improvements(comparison([*runs, other]))
    assert len(lines) == 3  # three algorithms on Hopper; the other task has one
    assert [bool(re.search(r"\[0\.\d\d, [01]\.\d\d\]", line)) for line in lines] == [
        False,
        False,
        True,
    ]


def test_of_many_algorithms_the_first_alone_is_compared_with_the_others(tmp_path):
    names = ["qmix", "vdn", "iql", "qtran", "lica"]
    five = [noisy_run(tmp_path / name, [0, 1], rng=i, name=name) for i, name in enumerate(names)]
    assert [line.split("(")[1].split(")")[0] for line in improvements(comparison(five))] == [
        f"qmix > {name}" for name in names[1:]
    ]
    assert len(improvements(comparison(five[:4]))) == 6


@pytest.mark.parametrize(
    ("size", "places"), [(0.0, 0), (3030.0, 0), (100.0, 0), (15.3, 1), (0.853, 3), (1e-9, 6)]
)
def test_a_table_shows_three_digits(size, places):
    assert decimals(size) == places


def test_a_table_has_no_papers_column_where_no_paper_has_a_number(tmp_path):
    lines = lines_of(0, {20_000: [1.0]})
    ours = write_run(tmp_path / "ours", lines, name="qmix", task="predator-prey/small")
    papers = write_run(tmp_path / "papers", lines, name="facmac", task="smax/3s5z")
    for folders, there in (([ours], False), ([ours, papers], True)):
        rows = table_rows(comparison(folders))
        assert ("paper" in markdown_table(rows).splitlines()[0]) == there
        assert ("& paper" in latex_table(rows)) == there
        assert len(rich_table(rows).columns) == 6 + there


def test_a_run_that_began_with_trained_networks_is_told_apart_in_words():
    from comarl.reporting import _setting

    assert _setting("begun_from", None) == "own start"
    assert _setting("begun_from", "0123456789abcdef") == "begun from 012345"
    assert _setting("beta", 0.1) == "beta=0.1"
