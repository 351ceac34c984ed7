import re
import subprocess
import sys
import tomllib
from collections import namedtuple
from pathlib import Path

import pytest

from comarl import doctor
from comarl.doctor import GIB, Check

Disk = namedtuple("Disk", "total used free")


def test_a_machine_that_runs_these_tests_has_no_failure_and_every_warning_has_a_remedy():
    checks = doctor.diagnose()
    assert not [check for check in checks if check.status == "fail"]
    assert all(check.remedy for check in checks if check.status != "ok")
    names = [check.name for check in checks]
    assert len(set(names)) == len(names)
    assert {
        "python",
        "jax",
        "jax devices",
        "mujoco",
        "rendering",
        "cores",
        "memory",
        "disk",
    } <= set(names)


def test_a_missing_core_package_fails_and_a_missing_extra_only_warns(monkeypatch):
    assert doctor.check_package("no-such-package") == Check(
        "no-such-package", "fail", "not installed", "pip install no-such-package"
    )
    monkeypatch.setitem(doctor.EXTRAS, "later", (("json", "no_such_module"), "sweeps"))
    check = doctor.check_extra("later")
    assert check.status == "warn" and "no_such_module" in check.detail
    assert check.remedy == "For sweeps: pip install -U 'comarl[later]'"


def test_every_extra_and_core_package_it_names_is_one_of_the_project():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert set(doctor.EXTRAS) <= set(project["optional-dependencies"])
    needed = {re.match(r"[\w-]+", requirement)[0] for requirement in project["dependencies"]}
    assert set(doctor.CORE) - {"comarl"} == needed | {"jaxlib"}  # which comes with jax


def test_an_extra_of_which_one_part_is_broken_is_a_warning(monkeypatch, tmp_path):
    (tmp_path / "broken_extra.py").write_text(
        "raise OSError('libGL.so.1: cannot open\\nshared object file')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(doctor.EXTRAS, "mujoco", (("broken_extra",), "tasks"))
    check = doctor.check_extra("mujoco")
    assert check.status == "warn" and "libGL.so.1: cannot open shared object file" in check.detail


def test_what_an_extra_prints_or_warns_about_does_not_disturb_the_table(
    monkeypatch, tmp_path, capsys
):
    (tmp_path / "loud_extra.py").write_text("import warnings; print('hello'); warnings.warn('old')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(doctor.EXTRAS, "mujoco", (("loud_extra",), "tasks"))
    assert doctor.check_extra("mujoco") == Check("mujoco", "ok", "loud_extra")
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def with_mujoco(monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: object())


def test_rendering_falls_back_to_software(with_mujoco, monkeypatch):
    monkeypatch.setattr(doctor, "FRAME", "import os; assert os.environ['MUJOCO_GL'] == 'osmesa'")
    assert doctor.check_rendering() == Check(
        "rendering", "ok", "MuJoCo draws with MUJOCO_GL=osmesa"
    )


def test_a_renderer_that_fails_or_crashes_is_named_with_the_packages_to_install(
    with_mujoco, monkeypatch
):
    monkeypatch.setattr(doctor, "FRAME", "raise ImportError('no library')")
    check = doctor.check_rendering()
    assert check.status == "warn" and "libegl1 libosmesa6" in check.remedy
    assert check.detail == "egl: ImportError: no library; osmesa: ImportError: no library"
    monkeypatch.setattr(doctor, "FRAME", "import os; os.abort()")
    assert doctor.check_rendering().status == "warn"


def test_a_renderer_that_hangs_is_given_up(with_mujoco, monkeypatch):
    monkeypatch.setattr(doctor, "FRAME", "import time; time.sleep(100)")
    check = doctor.check_rendering(timeout=0.2)
    assert check.status == "warn" and "no frame within 0.2 seconds" in check.detail


def test_rendering_without_mujoco_says_what_to_install(monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    assert "comarl[mujoco]" in doctor.check_rendering().remedy


def test_a_gpu_that_jax_does_not_use_is_a_warning(monkeypatch):
    device = namedtuple("Device", "platform device_kind")("cpu", "cpu")
    monkeypatch.setattr("jax.devices", lambda: [device])
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    check = doctor.check_devices()
    assert check.status == "warn" and "comarl[cuda]" in check.remedy


def test_a_jax_that_finds_no_device_fails(monkeypatch):
    def devices():
        raise RuntimeError("no\nbackend")

    monkeypatch.setattr("jax.devices", devices)
    check = doctor.check_devices()
    assert check.status == "fail" and check.detail == "no backend" and check.remedy


@pytest.mark.parametrize("free, status", [(100 * GIB, "ok"), (GIB, "warn"), (GIB // 10, "fail")])
def test_a_full_disk_is_told_before_a_checkpoint_fails(monkeypatch, tmp_path, free, status):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: Disk(free, 0, free))
    assert doctor.check_disk(tmp_path).status == status


def test_little_memory_and_a_single_core_are_warnings(monkeypatch):
    monkeypatch.setattr(doctor, "total_memory", lambda: GIB)
    monkeypatch.setattr(doctor, "usable_cores", lambda: 1)
    assert doctor.check_memory().status == "warn" and doctor.check_cores().status == "warn"


@pytest.mark.parametrize("status, code", [("ok", 0), ("warn", 0), ("fail", 1)])
def test_the_exit_status_is_one_only_if_something_failed(monkeypatch, capsys, status, code):
    monkeypatch.setattr(
        doctor, "diagnose", lambda: [Check("disk", status, "[full]", "Free some space.")]
    )
    assert doctor.main() == code
    printed = capsys.readouterr().out
    # Not taken for rich's markup
    assert "[full]" in printed and "Free some space." in printed and status in printed


def test_it_runs_as_a_program():
    code = (
        "import comarl.doctor as d, sys; "
        "d.diagnose = lambda: [d.check_python()]; sys.exit(d.main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "python" in done.stdout, done.stderr
