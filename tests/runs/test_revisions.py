"""The revisions of the repositories that a run's code lies in."""

import os
import subprocess
from pathlib import Path

import pytest

from comarl.runs.revisions import own_revision, users_revisions


def git(folder, *arguments):
    names = ("-c", "user.name=a", "-c", "user.email=a@b")
    command = ["git", "-C", str(folder), *names, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with a commit; the working directory is beside it."""
    folder = tmp_path / "mine"
    package = folder / "src" / "comarl"
    package.mkdir(parents=True)
    (package / "a.py").write_text("")
    git(folder, "init")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "first")
    monkeypatch.chdir(tmp_path)
    return folder


def test_comarls_revision_is_that_of_its_checkout_and_of_no_repository_around_an_installation(
    checkout,
):
    package = checkout / "src" / "comarl"
    assert own_revision(package) == {"revision": git(checkout, "rev-parse", "HEAD"), "dirty": False}
    (package / "a.py").write_text("changed")
    changed = own_revision(package)
    assert changed and changed["dirty"]
    for inside in (("venv", "lib", "site-packages", "comarl"), ("other", "deep", "comarl")):
        installed = checkout.joinpath(*inside)
        installed.mkdir(parents=True)
        assert own_revision(installed) is None
    assert own_revision(Path("/nowhere/src/comarl")) is None


def test_each_of_the_users_repositories_is_named_once_with_what_it_holds(checkout, monkeypatch):
    code = checkout / "src" / "comarl" / "a.py"
    clean = {"revision": git(checkout, "rev-parse", "HEAD"), "dirty": False}
    assert users_revisions({"task a": code}) == [{"holds": ["task a"], **clean}]
    monkeypatch.chdir(checkout / "src")
    (checkout / "new.py").touch()
    assert users_revisions({"task a": code}) == [
        {"holds": ["task a", "working directory"], **clean, "dirty": True}
    ]


def test_what_is_installed_and_comarls_own_checkout_are_no_repository_of_the_user(
    checkout, monkeypatch
):
    installed = checkout / "venv" / "lib" / "site-packages" / "theirs"
    installed.mkdir(parents=True)
    monkeypatch.chdir(Path(__file__).parent)
    assert users_revisions({"task theirs": installed}) == []


@pytest.mark.parametrize("kind", ["no git", "git fails", "no commit", "damaged", "deleted"])
def test_without_a_git_that_works_nothing_is_known_and_nothing_fails(
    kind, checkout, tmp_path, monkeypatch
):
    monkeypatch.chdir(checkout)
    tools = tmp_path / "tools"
    tools.mkdir()
    if kind == "no commit":
        git(checkout, "update-ref", "-d", "HEAD")
    elif kind == "damaged":
        (checkout / ".git" / "HEAD").write_text("\0")
    elif kind == "deleted":
        gone = tmp_path / "gone"
        gone.mkdir()
        monkeypatch.chdir(gone)
        gone.rmdir()
    else:
        if kind == "git fails":
            (tools / "git").write_text("#!/bin/sh\necho secret\nexit 3\n")
            (tools / "git").chmod(0o755)
        monkeypatch.setenv("PATH", str(tools))
    assert users_revisions({}) == []


def test_another_repository_that_the_environment_names_is_not_asked(
    checkout, tmp_path, monkeypatch
):
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    (found,) = users_revisions({"task a": checkout / "src"})
    monkeypatch.delenv("GIT_DIR")
    assert found["revision"] == git(checkout, "rev-parse", "HEAD")


def test_no_program_that_a_repository_names_is_started(checkout, tmp_path):
    spy = tmp_path / "spy"
    spy.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    spy.chmod(0o755)
    git(checkout, "config", "core.fsmonitor", str(spy))
    assert len(users_revisions({"task a": checkout})) == 1
    assert not os.path.exists(tmp_path / "started")
