"""A run that is killed, at any moment and also while it writes a checkpoint, ends as if it never
had been."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

COMMAND = (
    *(
        "train",
        "race-matd3",
        "probe/truncated",
        "--seeds",
        "2",
        "--steps",
        "700",
        "--evaluate-every",
        "100",
    ),
    *("--checkpoint-seconds", "0", "--algorithm.pace.warmup-steps", "60"),
    *("--algorithm.breeding.population", "2"),
    *("--algorithm.hidden", "8", "8", "--algorithm.embedding", "4", "--algorithm.mine-width", "8"),
    *(
        "--algorithm.replay.capacity",
        "1000",
        "--algorithm.replay.batch-size",
        "8",
        "--evaluation-episodes",
        "2",
    ),
)


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """One cache of compiled programs for all processes: a killed run would else spend its life
    compiling."""
    cache = tmp_path_factory.mktemp("cache")
    return {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def launch(folder: Path, environment: dict, *more: str) -> subprocess.Popen:
    call = "import sys; from comarl.cli import main; sys.exit(main())"
    if "EDITED" in environment:
        call = "import comarl.runs.sources as sources; sources._hash = lambda *_: 'edited'; " + call
    command = [sys.executable, "-c", call, *COMMAND, "--folder", str(folder), *more]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(folder: Path, environment: dict) -> str:
    process = launch(folder, environment)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def wait_for(condition, process: subprocess.Popen, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.0005)


def newest_checkpoint(folder: Path) -> Path | None:
    return max((folder / "checkpoints").glob("checkpoint-*.npz"), default=None)


def final_state(folder: Path) -> dict[str, bytes]:
    newest = newest_checkpoint(folder)
    assert newest is not None
    with np.load(newest) as file:
        return {
            name: file[name].tobytes()
            for name in file.files
            if not name.endswith(".json") and "header" not in name
        }


def records(folder: Path) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "wall_time"} for line in lines]


@pytest.fixture(scope="module")
def never_killed(environment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    finish(folder, environment)
    return folder


def test_a_run_killed_again_and_again_ends_bit_for_bit_like_the_one_that_never_was(
    never_killed, environment, tmp_path
):
    chance = random.Random(0)
    writes = lambda: any((tmp_path / "checkpoints").glob("*.partial"))
    killed = 0
    for attempt in range(5):
        process = launch(tmp_path, environment)
        before = newest_checkpoint(tmp_path)
        wait_for(lambda before=before: newest_checkpoint(tmp_path) not in (None, before), process)
        if attempt % 2:
            wait_for(writes, process)  # killed while a checkpoint is being written
        else:
            time.sleep(chance.uniform(0.0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
    assert killed >= 3, "the runs ended before they could be killed: the test proves nothing"
    output = finish(tmp_path, environment)
    assert "Resumed after round" in output
    assert final_state(tmp_path) == final_state(never_killed)
    assert records(tmp_path) == records(never_killed)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"]
)
def test_ctrl_c_and_sigterm_save_and_say_how_to_go_on(
    number, status, never_killed, environment, tmp_path
):
    process = launch(tmp_path, environment, "--checkpoint-seconds", "1e9")
    wait_for(
        lambda: (
            (tmp_path / "metrics.jsonl").exists() and (tmp_path / "metrics.jsonl").stat().st_size
        ),
        process,
    )
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == status, output
    assert "the same command resumes it" in output and newest_checkpoint(tmp_path)
    finish(tmp_path, environment)
    assert final_state(tmp_path) == final_state(never_killed)


def test_no_two_processes_and_no_edited_code_mix_in_one_run(environment, tmp_path):
    process = launch(tmp_path, environment)
    wait_for(lambda: (tmp_path / "checkpoints").exists(), process)
    second = launch(tmp_path, environment)
    output, _ = second.communicate(timeout=120)
    assert second.returncode == 2 and f"in use by process {process.pid} on" in output
    process.send_signal(signal.SIGKILL)
    process.communicate()
    edited = {**environment, "EDITED": "1"}
    refused = launch(tmp_path, edited)
    output, _ = refused.communicate(timeout=120)
    assert refused.returncode == 2 and "comarl " in output and " -> edited" in output
    allowed = launch(tmp_path, edited, "--continue-with-other-code", "--steps", "100")
    output, _ = allowed.communicate(timeout=300)
    assert allowed.returncode == 0 and "Warning" in output
    stretches = json.loads((tmp_path / "environment.json").read_text())
    assert len(stretches) == 2 and stretches[-1]["code"]["comarl"] == "edited"


def test_a_run_that_is_done_says_so_and_changes_nothing(never_killed, environment):
    before = final_state(never_killed)
    assert "The run is done." in finish(never_killed, environment)
    assert final_state(never_killed) == before


def test_a_damaged_checkpoint_is_named_and_the_older_one_used(never_killed, environment, tmp_path):
    process = launch(tmp_path, environment, "--steps", "400")
    process.communicate(timeout=300)
    newest = newest_checkpoint(tmp_path)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 255
    newest.write_bytes(content)
    output = finish(tmp_path, environment)
    assert newest.name in output.replace("\n", "") and "Warning" in output
    assert final_state(tmp_path) == final_state(never_killed)


def test_a_checkpoint_of_another_configuration_is_refused_by_its_first_differing_field(
    never_killed, environment
):
    process = launch(never_killed, environment, "--algorithm.beta", "0.5")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "algorithm.beta" in output and "0.5" in output and "Traceback" not in output
