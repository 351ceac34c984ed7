"""What is in a folder is never lost unasked, and a run that was killed early needs no help."""

import pytest

from comarl.runs import beginning
from comarl.runs.beginning import FolderNotEmpty, prepare

CONFIG = {"algorithm_name": "qmix"}


def test_an_empty_folder_and_one_of_a_run_that_never_saved_are_ready(tmp_path):
    prepare(tmp_path, CONFIG)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "config.json.partial").write_text("{")
    (tmp_path / "run.lock").touch()
    prepare(tmp_path, CONFIG)
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.json", "payoff.csv", "thesis.txt"])
def test_a_folder_that_holds_anything_is_refused_and_nothing_is_lost(name, tmp_path):
    (tmp_path / name).write_text("years of work")
    with pytest.raises(FolderNotEmpty, match=rf"holds {name}\. Give .* --overwrite"):
        prepare(tmp_path, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    prepare(tmp_path, CONFIG, overwrite=True)
    assert (tmp_path / name).exists() == (name == "thesis.txt")


def test_a_run_whose_checkpoints_were_deleted_or_with_other_settings_is_refused(tmp_path):
    prepare(tmp_path, CONFIG)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(FolderNotEmpty):
        prepare(tmp_path, {"algorithm_name": "vdn"})
    beginning.saved(tmp_path)
    with pytest.raises(FolderNotEmpty):
        prepare(tmp_path, CONFIG)
    assert (tmp_path / "metrics.jsonl").read_text() == "{}\n"
