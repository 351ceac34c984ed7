"""What a person sees while a run trains."""

import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from comarl.training import progress
from comarl.training.events import Evaluated, Progress, Started
from comarl.training.progress import Display, clock_text, mean_text, number_text, percent_text


@pytest.fixture
def now(monkeypatch):
    """A clock that stands until it is moved."""
    time = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: time[0])
    return time


def started(console, steps, seeds, deadline=None):
    """The display of a run that has just begun."""
    display = Display(console)
    display(Started(steps, seeds, deadline))
    return display


def line_of(display):
    return display.bar.tasks[0].fields["line"]


def test_numbers_and_times_are_short():
    assert [number_text(x) for x in (12345.6, -1234.0, 12.34, 0.1234)] == [
        "12,346",
        "-1,234",
        "12.3",
        "0.12",
    ]
    assert [clock_text(x) for x in (5, 65.9, 3723)] == ["0:05", "1:05", "1:02:03"]
    assert [percent_text(x) for x in (0.0, 1 / 32, 14 / 32, 1.0)] == [
        "0 %",
        "3.1 %",
        "43.8 %",
        "100 %",
    ]


def test_a_mean_is_of_what_there_is_and_a_win_rate_is_in_percent():
    assert [mean_text(x) for x in (None, [], [1.0, 2.0], [1.0, None])] == ["-", "-", "1.50", "nan"]
    assert mean_text([1.0, 0.0], "won") == "50 %" and mean_text([1.0, 0.0], "captures") == "0.50"


def test_speeds_and_time_left_follow_from_steps_and_seconds(now):
    display = started(Console(file=io.StringIO(), width=120), steps=1000, seeds=2)
    display(Progress("training", np.array([100, 100]), 0))
    now[0] += 10.0
    display(Progress("training", np.array([200, 200]), 50))
    # 200 steps of both seeds in 10 s; 800 steps of each are left
    assert "20 steps/s" in line_of(display) and "5 updates/s" in line_of(display)
    assert "1:20 left" in line_of(display)


def test_a_new_phase_is_timed_by_itself(now):
    display = started(Console(file=io.StringIO(), width=120), steps=1000, seeds=1)
    display(Progress("warm-up", np.array([0]), 0))
    now[0] += 1.0
    display(Progress("warm-up", np.array([500]), 0))
    assert "0:01 left" in line_of(display)
    display(Progress("training", np.array([500]), 0))
    now[0] += 10.0
    display(Progress("training", np.array([510]), 10))
    assert "1 steps/s" in line_of(display) and "8:10 left" in line_of(display)


def test_a_time_budget_ends_the_estimate_where_it_ends_sooner(now):
    display = started(Console(file=io.StringIO(), width=120), steps=10**6, seeds=1, deadline=160.0)
    display(Progress("training", np.array([0]), 0))
    now[0] += 15.0
    display(Progress("training", np.array([10]), 10))
    assert "0:45 left" in line_of(display)
    assert display.bar.tasks[0].completed == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("scores", "shown"),
    [
        ({"marl_team": [1234.5, 1230.0]}, "return 1,232 "),
        ({"marl_team": [2.0, 0.5], "marl_team_won": [1.0, 0.0]}, "won 50 % "),
    ],
)
def test_the_line_fits_a_terminal_of_80_columns_and_shows_the_win_rate_where_there_is_one(
    now, scores, shown
):
    screen = io.StringIO()
    display = started(Console(file=screen, width=80, force_terminal=True), steps=200_000, seeds=3)
    display(Evaluated({"seed": 0, "env_steps": 1, "updates": 1, "wall_time": 61.0, **scores}))
    display(Progress("training", np.array([10_000, 10_000, 10_000]), 100_000))
    now[0] += 10.0
    display(Progress("training", np.array([11_500, 11_500, 11_500]), 101_500))
    display.bar.refresh()
    assert line_of(display).startswith(shown)
    assert "left" in screen.getvalue() and "…" not in screen.getvalue()


def test_an_evaluation_is_a_line_with_both_teams_where_there_are_two():
    screen = io.StringIO()
    display = Display(Console(file=screen, width=120))
    line: dict[str, Any] = {
        "seed": 3,
        "env_steps": 5000,
        "updates": 4000,
        "marl_team": [1.0, 3.0],
        "wall_time": 61.0,
    }
    display(Evaluated(line))
    display(Evaluated({**line, "best_team": [20.0]}))
    first, second = screen.getvalue().splitlines()
    assert "seed 3" in first and "2.00" in first and "1:01" in first and "best team" not in first
    assert "best team 20.0" in second


def test_an_evaluation_shows_the_win_rate_of_each_team_in_percent():
    screen = io.StringIO()
    display = Display(Console(file=screen, width=140))
    line: dict[str, Any] = {
        "seed": 3,
        "env_steps": 5000,
        "updates": 4000,
        "marl_team": [2.0, 1.0],
        "wall_time": 61.0,
    }
    display(Evaluated({**line, "marl_team_won": [1.0, 0.0, 0.0]}))
    display(Evaluated({**line, "marl_team_won": [1.0], "best_team": [0.5], "best_team_won": [0.0]}))
    first, second = screen.getvalue().splitlines()
    assert "  return 1.50, won 33.3 %  (1:01)" in first
    assert "return of the MARL team 1.50, won 100 %; best team 0.50, won 0 %  (1:01)" in second
    assert display.score == "won 100 %"
