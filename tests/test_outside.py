"""What comes from outside: code that a folder names is not imported, and text is only text."""

import csv
import io
import json
import os
import subprocess
import sys
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
from rich.console import Console

from comarl import escape
from comarl.cli import main
from comarl.reporting import report
from comarl.runs.identity import identity
from comarl.training.events import Evaluated, Note, Progress, Started
from comarl.training.load import load_settings
from comarl.training.progress import Display
from tests.fuzz_settings import config_of, write
from tests.report.folders import lines_of, write_run

TRAP = "raise SystemExit('a trap: it was imported')\n"


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """The folder of a run whose task is a module that lies beside it."""
    from comarl.algorithms import find_algorithm
    from comarl.envs import find_task

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trap.py").write_text(TRAP)
    task = "pettingzoo/trap"
    config = {"algorithm_name": "qmix", "task_name": task, "kind": "Run", "seeds": 1}
    run = {"algorithm": find_algorithm("qmix").algorithm, "task": find_task(task)}
    settings = {name: json.loads(json.dumps(_plain(value))) for name, value in run.items()}
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines_of(0, {10: [1.0], 20: [2.0]}))
    )
    return write(folder, config | settings)


def _plain(settings):
    from comarl.runs.identity import to_config

    return to_config(settings)


def test_a_strangers_module_is_imported_only_if_the_user_names_it(stranger, capsys):
    assert main(("evaluate", str(stranger))) == 2
    said = capsys.readouterr().err
    assert "'trap'" in said and "--import trap" in said and said.count("\n") == 1
    assert "trap" not in sys.modules
    assert main(("evaluate", str(stranger), "--import", "trap")) == 1
    said = capsys.readouterr().err
    assert "cannot be imported: SystemExit: a trap: it was imported" in said
    assert said.count("\n") == 1


def test_a_report_of_a_strangers_run_imports_nothing(stranger, tmp_path):
    assert main(("report", str(stranger), "--out", str(tmp_path / "report"))) == 0
    assert "trap" not in sys.modules


@pytest.mark.parametrize("place", ["task", "task_name", "kind"])
def test_a_module_that_only_a_part_of_the_settings_names_is_refused(tmp_path, place):
    config = config_of("qmix", "matrix/climbing")
    if place == "task_name":
        config["task_name"] = "pettingzoo/trap"
    elif place == "task":
        config["task"] |= {"module": "trap"}
    else:
        config["task"] |= {"kind": "PettingZoo"}
    with pytest.raises(ValueError, match=r"config\.json|this version of comarl has not"):
        load_settings(write(tmp_path, config))


def test_a_task_other_than_its_name_says_is_refused(tmp_path):
    config = config_of("matd3", "probe/action")
    config["task"]["name"] = "signal"
    with pytest.raises(ValueError, match="but task_name says"):
        load_settings(write(tmp_path, config))


def test_a_billion_seeds_are_refused_at_once_and_without_memory(tmp_path):
    write(tmp_path, config_of("qmix", "matrix/climbing") | {"seeds": 10**9})
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"seeds=1000000000 of Run must be between 1 and 4096"):
        load_settings(tmp_path)
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    "text", ["[1, 2]", "3", "null", "{", "\x00", "[" * 100_000, '{"seeds": ' + "9" * 5000 + "}"]
)
def test_a_config_that_is_no_object_is_named_in_a_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json") as error:
        load_settings(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("bad path [/data/x]", "bad path [/data/x]"),
        ("a[/x]b [red]x[/red]", "a[/x]b [red]x[/red]"),
        ("\x1b[31mred\x07 \x9b2J", r"\x1b[31mred\x07 \x9b2J"),
    ],
)
def test_a_message_is_shown_as_it_is_and_its_escapes_as_text(text, shown):
    console = Console(record=True, width=100, force_terminal=True)
    display = Display(console)
    display(Note(text, warning=True))
    assert console.export_text().strip() == f"Warning: {shown}"


def test_a_folder_whose_name_is_markup_is_shown_by_its_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    game = ("train", "vdn", "matrix/qtran", "--dry-run")
    assert main((*game, "--folder", "a[/x]b [red]y")) == 0
    assert "a[/x]b [red]y" in capsys.readouterr().out
    assert main((*game, "--folder", "a\x1b[31m :warning:")) == 0
    assert r"a\x1b[31m :warning:" in capsys.readouterr().out


def test_off_a_terminal_lines_do_not_break(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert main(("list",)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(len(line.rstrip()) > 80 for line in lines)
    assert sum(line.startswith("vm3-ac ") for line in lines) == 1
    vm3_ac = next(line for line in lines if line.startswith("vm3-ac "))
    assert "soft actor-critics" in vm3_ac and "2023" in vm3_ac


def test_on_a_narrow_terminal_the_steps_are_shown():
    console = Console(width=80, force_terminal=True, file=io.StringIO())
    display = Display(console)
    display(Started(1_000_000, 1, None))
    display(Evaluated({**lines_of(0, {1000: [12.0]})[0]}))
    display(Progress("training", np.array([1234]), 10))
    display.bar.stop()
    assert "1,234 steps" in display.bar.tasks[0].fields["line"]


NASTY = '=1+1|<img src=x onerror="a()">\n\x1b[2J$x$ 50 % a_b \\'


@pytest.fixture
def nasty_report(tmp_path):
    run = write_run(
        tmp_path / "run", lines_of(0, {10: [1.0], 20: [2.0]}), name=NASTY, task=f"@{NASTY}"
    )
    out = tmp_path / "report"
    report([run or tmp_path / "run"], out)
    return out


def test_names_are_escaped_in_each_format(nasty_report):
    table = (nasty_report / "table.md").read_text()
    assert "<img" not in table and "&lt;img" in table and "\x1b" not in table
    first = table.splitlines()[2]
    assert first.replace(r"\|", "").count("|") == table.splitlines()[0].count("|")
    latex = (nasty_report / "table.tex").read_text()
    assert r"\$x\$ 50 \% a\_b \textbackslash{}" in latex and "\x1b" not in latex
    with (nasty_report / "per_seed.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["algorithm"][:2] for row in rows] == ["'="] * 2
    assert [row["task"][:2] for row in rows] == ["'@"] * 2
    assert (nasty_report / "curves.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("escaped", "right"),
    [
        (escape.terminal("a\x1b[0m\r\nb\udcff"), "a\\x1b[0m\\r\nb\\udcff"),
        (escape.line("a\nb\u202e"), r"a\nb\u202e"),
        (escape.markdown("a|b <i> [x](http://y) `c`"), r"a\|b &lt;i> [x]\(http://y) \`c\`"),
        (escape.csv_cell("=1+1"), "'=1+1"),
        (escape.csv_cell("-x"), "'-x"),
        (escape.csv_cell("\t@x"), r"'\t@x"),
        (escape.csv_cell("qmix (beta=0.1)"), "qmix (beta=0.1)"),
        (escape.latex("a_b & 5 % {x}"), r"a\_b \& 5 \% \{x\}"),
        (escape.latex("~\\"), r"\textasciitilde{}\textbackslash{}"),
        (escape.plot("$x$"), r"\$x\$"),
    ],
)
def test_each_format_has_its_own_escapes(escaped, right):
    assert escaped == right


def test_the_installed_command_shows_a_strangers_name_without_its_escapes(tmp_path):
    code = "import sys; from comarl.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "evaluate", "no\x1b[31msuch"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and "\x1b" not in done.stderr and r"no\x1b[31msuch" in done.stderr


def test_the_settings_of_a_run_that_comarl_wrote_have_a_name_for_every_part(tmp_path):
    run, config = load_settings(write(tmp_path, config_of("qmix", "matrix/climbing")))
    assert identity(run, "qmix", "matrix/climbing")["algorithm"] == config["algorithm"]


def harm(folder, kind):
    """Makes the folder of a run one that a stranger may have made."""
    checkpoint = folder / "checkpoints" / "checkpoint-00000001.npz"
    metrics, config = folder / "metrics.jsonl", folder / "config.json"
    if kind == "inflating checkpoint":
        with zipfile.ZipFile(checkpoint, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("header.json", b" " * (1 << 28))
    elif kind == "deep checkpoint":
        with zipfile.ZipFile(checkpoint, "w") as archive:
            archive.writestr("header.json", b"[" * (1 << 21))
    elif kind == "pipe":
        os.mkfifo(checkpoint)
    elif kind == "zeros":
        checkpoint.symlink_to("/dev/zero")
    elif kind == "seeds":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"seeds": 10**9}))
    elif kind == "deep settings":
        config.write_text('{"algorithm": ' * 200_000)
    elif kind == "deep records":
        metrics.write_text("[" * 2_000_000 + "\n")
    else:
        size = {"large records": 300 << 20, "a large line": 200 << 20}[kind]
        with metrics.open("r+b") as file:
            file.truncate(size)  # a hole: it takes no disk


@pytest.fixture
def peak_memory():
    """What the block allocates at most in Python and NumPy, in MiB."""

    def measure(call):
        tracemalloc.start()
        try:
            call()
            return tracemalloc.get_traced_memory()[1] / 2**20
        finally:
            tracemalloc.stop()

    return measure


@pytest.mark.parametrize(
    "kind",
    [
        *("inflating checkpoint", "deep checkpoint", "pipe", "zeros", "seeds", "deep settings"),
        *("deep records", "large records", "a large line"),
    ],
)
def test_a_strangers_folder_takes_no_memory_and_ends_in_a_sentence(
    kind, tmp_path, capsys, peak_memory
):
    run = write_run(tmp_path / "run", lines_of(0, {10: [1.0], 20: [2.0]}))
    (run / "checkpoints").mkdir()
    write(run, config_of("qmix", "matrix/climbing"))
    harm(run, kind)
    in_records = kind in ("deep records", "large records", "a large line")
    command = ("report", "--out", str(tmp_path / "out")) if in_records else ("evaluate",)
    statuses = []
    memory = peak_memory(lambda: statuses.append(main((command[0], str(run), *command[1:]))))
    told = capsys.readouterr().err
    assert statuses[0] in (1, 2) and told.count("\n") == 1
    assert ("seeds=1000000000" if kind == "seeds" else str(run)) in told
    assert memory < 50
