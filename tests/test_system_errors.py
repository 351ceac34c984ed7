"""What the operating system refuses ends in a sentence, and nothing is lost."""

import errno
import os
import subprocess
import sys

import pytest

from comarl import cli, terminal

CALL = "import sys; from comarl.cli import main; sys.exit(main())"
LIMITED = (
    "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024)); " + CALL
)  # as on a full disk, no file may grow beyond a KiB
QMIX = ("train", "qmix", "matrix/qtran", "--steps", "40")


def comarl(*arguments, call=CALL, environment=None, **options):
    return subprocess.run(
        [sys.executable, "-c", call, *arguments],
        env={**os.environ} if environment is None else environment,
        stderr=subprocess.PIPE,
        text=True,
        timeout=240,
        **options,
    )


def test_a_full_disk_is_named_and_the_run_begins_again_where_there_is_room(tmp_path, capsys):
    folder = tmp_path / "run"
    command = (*QMIX, "--folder", str(folder), "--evaluation-episodes", "2")
    full = comarl(*command, call=LIMITED, stdout=subprocess.PIPE)
    assert full.returncode == 1 and "Traceback" not in full.stderr
    assert "File too large: free some space" in full.stderr
    assert cli.main(command) == 0
    assert "The run is done." in capsys.readouterr().out


def test_a_folder_that_is_a_file_is_named(tmp_path, capsys):
    (tmp_path / "taken").write_text("mine")
    assert cli.main([*QMIX, "--folder", str(tmp_path / "taken")]) == 1
    told = capsys.readouterr().err
    assert str(tmp_path / "taken") in told and told.count("\n") == 1
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_reader_that_closes_the_output_gets_a_sentence():
    reading, writing = os.pipe()
    os.close(reading)
    done = comarl("list", stdout=writing)
    os.close(writing)
    assert done.returncode == 1
    assert done.stderr == "comarl: whoever read the output has closed it.\n"


def test_without_an_output_and_without_a_home_a_command_works():
    closed = comarl("list", call="import sys; sys.stdout = None; " + CALL)
    assert (closed.returncode, closed.stderr) == (0, "")
    homeless = {name: value for name, value in os.environ.items() if name != "HOME"}
    assert comarl("list", environment=homeless, stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EACCES, "name a folder that may be written"),
        (errno.EROFS, "name a folder that may be written"),
        (errno.ENOTDIR, "name another"),
    ],
)
def test_each_cause_has_a_remedy(number, remedy):
    told = terminal.sentence(OSError(number, os.strerror(number), "/data/run"))
    assert told.startswith(f"/data/run: {os.strerror(number)}: ") and remedy in told
