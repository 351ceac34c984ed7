"""One process at a time writes into a run's folder."""

import json
import os
import platform
import signal
import subprocess
import sys

import pytest

from comarl.runs.lock import FolderInUse, holder, locked

HOLD = """
import sys, time
from pathlib import Path
from comarl.runs.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "held\n"
    return process


def test_the_second_process_is_told_who_holds_the_folder_and_gets_it_when_that_one_is_killed(
    tmp_path,
):
    process = hold(tmp_path)
    with pytest.raises(FolderInUse) as refused, locked(tmp_path):
        pass
    told = str(refused.value)
    assert f"process {process.pid} on {platform.node()} since 20" in told and str(tmp_path) in told
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with locked(tmp_path):
        assert json.loads((tmp_path / "run.lock.json").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "run.lock.json").exists()


def test_a_second_session_of_the_same_process_is_refused_too(tmp_path):
    with locked(tmp_path), pytest.raises(FolderInUse), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "[]", "{", '{"pid": 1}', "[" * 100_000])
def test_who_holds_it_may_be_unknown(content, tmp_path):
    (tmp_path / "run.lock.json").write_text(content)
    assert holder(tmp_path) == "another process"
