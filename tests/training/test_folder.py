"""The folder of a run under hostile conditions: nothing in it is lost, and the same command goes on
where it can."""

import errno
import io
import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest

from comarl.cli import main
from comarl.runs.checkpoint import Checkpoints
from comarl.runs.lock import locked
from comarl.runs.payoff import PAYOFF

CALL = "import sys; from comarl.cli import main; sys.exit(main())"
TRAIN = (
    *("train", "qmix", "matrix/qtran", "--evaluate-every", "20", "--evaluation-episodes", "2"),
    *("--algorithm.hidden", "4", "--algorithm.mixer-width", "3", "--algorithm.hypernet", "3"),
    *("--algorithm.replay.capacity", "20", "--algorithm.replay.batch-size", "4"),
)


def train(folder, steps, *more):
    return (*TRAIN, "--folder", str(folder), "--steps", str(steps), *more)


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A run that has done 40 steps."""
    folder = tmp_path_factory.mktemp("half") / "run"
    assert main(train(folder, 40)) == 0
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The same run, after 80 steps without a stop."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main(train(folder, 80)) == 0
    return folder


@pytest.fixture
def folder(half, tmp_path):
    """A copy of the first half, to do harm to."""
    return shutil.copytree(half, tmp_path / "run")


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def newest(folder):
    checkpoints = Checkpoints(folder / "checkpoints")
    return checkpoints.path(max(checkpoints.numbers()))


def assert_same_bits(folder, whole):
    assert newest(folder).name == newest(whole).name
    with np.load(newest(folder)) as ours, np.load(newest(whole)) as theirs:
        names = [name for name in theirs.files if not name.endswith(".json")]
        assert names and all(ours[name].tobytes() == theirs[name].tobytes() for name in names)


def begin(arguments, limit=resource.RLIM_INFINITY):
    """The command as a process, without a home; none of its files may have more bytes than the
    limit."""
    without = {"HOME"}
    if limit != resource.RLIM_INFINITY:
        without.add("JAX_COMPILATION_CACHE_DIR")  # its files may be larger
    call = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); {CALL}"
    return subprocess.Popen(
        [sys.executable, "-c", call, *arguments],
        env={name: value for name, value in os.environ.items() if name not in without},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_disk_that_is_full_in_the_middle_of_a_checkpoint_costs_only_that_checkpoint(
    folder, whole
):
    good = newest(folder)
    before = good.read_bytes()
    full = begin(train(folder, 80), limit=len(before) // 2)
    _, told = full.communicate(timeout=240)
    assert full.returncode == 1 and told.count("\n") == 1, told
    assert ".npz" in told and "File too large: free some space" in told
    assert newest(folder) == good and good.read_bytes() == before
    assert not [*folder.rglob("*.partial")]
    assert main(train(folder, 80)) == 0
    assert_same_bits(folder, whole)


def test_a_run_whose_output_is_no_longer_read_goes_on_and_says_so(folder, whole):
    with begin(train(folder, 80)) as run:
        assert run.stdout and run.stderr
        assert run.stdout.readline().startswith("qmix on matrix/qtran")
        run.stdout.close()
        told = run.stderr.read()
    assert run.returncode == 0
    assert told == "comarl: whoever read the output has closed it; the run goes on without it.\n"
    assert_same_bits(folder, whole)


def test_a_line_of_the_records_that_no_run_writes_is_named_before_anything_changes(
    folder, whole, capsys
):
    records = folder / "metrics.jsonl"
    good = records.read_text()
    records.write_text(good.replace('"updates": 17', '"updates": -7', 1))
    before = contents(folder)
    assert main(train(folder, 80)) == 2
    assert "metrics.jsonl, line 1: updates -7" in capsys.readouterr().err
    assert contents(folder) == before
    # What comes after the checkpoint is played again, so it may be anything
    records.write_text(good + "noise\n")
    assert main(train(folder, 80)) == 0
    assert_same_bits(folder, whole)
    assert "noise" not in records.read_text()


def test_beside_a_run_that_has_not_saved_yet_no_second_one_begins(tmp_path, capsys):
    with locked(tmp_path):
        before = contents(tmp_path)
        assert main(train(tmp_path, 40)) == 2
        assert f"in use by process {os.getpid()}" in capsys.readouterr().err
        assert contents(tmp_path) == before


def test_beside_a_run_that_trains_its_teams_are_evaluated_and_reported(folder, tmp_path):
    with locked(folder):
        before = contents(folder)
        assert main(("evaluate", str(folder), "--episodes", "2")) == 0
        assert main(("report", str(folder), "--out", str(tmp_path / "report"))) == 0
        assert contents(folder) == before


def test_a_run_in_a_folder_that_may_only_be_read_is_evaluated_reported_and_not_trained(
    folder, tmp_path, monkeypatch, capsys
):
    before = contents(folder)

    def refuse(path, flags):
        if str(path).startswith(str(folder)) and flags:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    os_open, io_open = os.open, io.open
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def guarded_os_open(path, flags, *more, **options):
        refuse(path, flags & writes)
        return os_open(path, flags, *more, **options)

    def guarded_open(path, mode="r", *more, **options):
        refuse(path, set(mode) & set("wax+"))
        return io_open(path, mode, *more, **options)

    monkeypatch.setattr(os, "open", guarded_os_open)
    monkeypatch.setattr(io, "open", guarded_open)
    assert main(train(folder, 80)) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "name a folder that may be written" in told
    assert main(("evaluate", str(folder), "--episodes", "2")) == 0
    assert "payoff.csv is not written" in capsys.readouterr().out
    assert main(("report", str(folder), "--out", str(tmp_path / "report"))) == 0
    assert contents(folder) == before


def test_records_of_a_matrix_game_are_reported_without_a_checkpoint(folder, tmp_path):
    record, out = tmp_path / "record", tmp_path / "report"
    assert main(("evaluate", str(folder), "--episodes", "2", "--folder", str(record))) == 0
    shutil.rmtree(folder / "checkpoints")
    for run in (record, folder):
        assert main(("report", str(run), "--out", str(out / run.name))) == 0
        assert "qmix" in (out / run.name / "table.md").read_text()
        assert (out / run.name / "payoff.md").exists() and (run / PAYOFF).exists()
        assert not (run / "checkpoints").exists()
