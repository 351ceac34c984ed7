"""Edited code is noticed, and nothing else is."""

import sys
from dataclasses import dataclass

from comarl.runs import sources
from comarl.runs.sources import changes, fingerprints, place_of


@dataclass(frozen=True)
class Task:
    module: str = "json"


def test_edited_code_changes_the_fingerprint_and_line_endings_do_not(tmp_path):
    package = tmp_path / "mine"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_bytes(b"x = 1\n")
    (package / "deep" / "team.py").write_bytes(b"y = 2\nz = 3\n")
    before = sources._hash(package)
    (package / "deep" / "team.py").write_bytes(b"y = 2\r\nz = 3\r\n")
    (package / "notes.txt").write_text("no code")
    assert sources._hash(package) == before
    (package / "deep" / "team.py").write_bytes(b"y = 2\nz = 4\n")
    assert sources._hash(package) != before
    assert sources._hash(package, ("deep",)) == sources._hash(package, ("deep", "report"))


def test_comarl_and_the_modules_outside_it_are_fingerprinted():
    found = fingerprints(Task(), Task())
    assert [*found] == [
        "comarl",
        f"algorithm {__name__}",
        f"task {__name__}",
        "task's environment json",
    ]
    assert all(len(value) == 12 for value in found.values())
    assert fingerprints(Task(), Task()) == found


def test_a_module_is_found_without_being_imported(tmp_path, monkeypatch):
    (tmp_path / "unseen.py").write_text("raise SystemExit('it was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert place_of("unseen") == tmp_path / "unseen.py"
    assert place_of("unseen.inner") == tmp_path / "unseen.py"
    assert place_of("no_such_module_anywhere") is place_of("comarl.envs") is None
    assert "unseen" not in sys.modules


def test_every_difference_is_named_with_both_values():
    assert changes({"comarl": "a", "jax": "0.10.0"}, {"comarl": "a", "jax": "0.12.0"}) == [
        "jax 0.10.0 -> 0.12.0"
    ]
    assert changes({"gone": "1"}, {"new": "2"}) == ["new none -> 2", "gone 1 -> none"]
