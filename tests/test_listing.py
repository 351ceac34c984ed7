"""`comarl list`: kinds are those of the algorithms, words choose lines, probes are hidden."""

import pytest

from comarl.algorithms import ALGORITHMS
from comarl.cli import main
from comarl.envs import TASKS, find_task
from comarl.listing import ACTIONS, algorithms, tasks

EVOLUTIONARY = {"race", "merl", "ea"}
VALUE_BASED = {"qmix", "vdn", "iql", "qtran", "qplex", "ndq", "maven", "cw", "ow"}


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """A terminal on which no line breaks."""
    monkeypatch.setenv("COLUMNS", "300")


def names(capsys, *arguments):
    """The first words of the lines of `comarl list` with these arguments."""
    assert main(("list", *arguments)) == 0
    lines = capsys.readouterr().out.splitlines()
    return {line.split()[0] for line in lines if line and not line.startswith("name ")}


def test_every_algorithm_is_of_the_kind_that_its_paper_says():
    for line in algorithms():
        stem = line.name.partition("-")[0]
        on_values = stem in VALUE_BASED and line.name != "maven-ac"
        learns = "evolutionary" if stem in EVOLUTIONARY else "actor-critic"
        assert line.kind.partition(",")[0] == ("value-based" if on_values else learns), line.name
        (actions,) = ALGORITHMS[line.name].algorithm.actions
        assert line.kind.endswith(f", {actions}")


@pytest.mark.parametrize("family", sorted(ACTIONS.keys() - {"smax", "pettingzoo"}))
def test_the_actions_of_a_family_are_those_of_its_tasks(family):
    for line in tasks(probes=False):
        if line.name.startswith(f"{family}/"):
            spec = find_task(line.name).spec
            assert line.kind == ("discrete" if spec.discrete else "continuous"), line.name


def test_probes_are_listed_only_where_all_are_asked_for(capsys):
    probes = {name for name in TASKS if name.startswith("probe/")}
    assert not probes & names(capsys)
    assert probes <= names(capsys, "--all")


def test_words_choose_the_lines_in_which_all_of_them_stand(capsys):
    found = names(capsys, "RACE")
    assert {"race-matd3", "race-facmac"} <= found and not {"qmix", "matrix/qtran"} & found
    expected = {name for name in ALGORITHMS if name.startswith(("merl-f", "race-f", "ea-f"))}
    assert names(capsys, "evolutionary", "discrete", "--algorithms") == {"Algorithms", *expected}


@pytest.mark.parametrize(
    ("option", "title"), [("--algorithms", "Algorithms"), ("--tasks", "Tasks")]
)
def test_an_option_shows_one_table_alone(option, title, capsys):
    found = names(capsys, option)
    expected = ALGORITHMS if title == "Algorithms" else {x for x in TASKS if "probe/" not in x}
    assert found == {title, *expected}


def test_what_other_packages_offer_is_listed(monkeypatch, capsys):
    offer = {"task": {"line/8": "lines.tasks:Line"}, "algorithm": {}}
    monkeypatch.setattr("comarl.listing.offered", offer.__getitem__)
    assert names(capsys, "lines.tasks:Line") == {"Tasks", "line/8"}


def test_words_that_no_line_has_are_an_error_that_says_what_helps(capsys):
    assert main(("list", "quantum")) == 2
    assert "no line has 'quantum'; `comarl list --all` shows all lines" in capsys.readouterr().err


def test_its_help_says_what_the_words_do(capsys):
    with pytest.raises(SystemExit) as end:
        main(("list", "--help"))
    text = capsys.readouterr().out
    assert not end.value.code and "usage: comarl list" in text and "all of these words" in text


def test_an_option_that_there_is_not_is_answered_in_a_sentence(capsys):
    assert main(("list", "--probes")) == 2
    assert "--probes" in capsys.readouterr().err
