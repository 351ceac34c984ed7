"""Checks whether this machine has what comarl needs, and says what to do where it has not."""

import os
import platform
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import psutil

from comarl.envs.smax import silence
from comarl.machine.hardware import cpu_model, total_memory, usable_cores

Status = Literal["ok", "warn", "fail"]

CORE = (
    "comarl",
    "jax",
    "jaxlib",
    "equinox",
    "optax",
    "numpy",
    "jaxtyping",
    "tyro",
    "rich",
    "psutil",
    "filelock",
    "safetensors",
)
EXTRAS = {  # each extra in pyproject.toml that a user may want -> its modules, and what it is for
    "mujoco": (("mujoco", "mujoco.batch", "gymnasium", "gymnasium_robotics"), "the mamujoco tasks"),
    "smax": (("jaxmarl",), "the smax tasks"),
    "pettingzoo": (
        ("pettingzoo", "mpe2", "Box2D", "pygame"),
        "the pettingzoo and multiwalker tasks",
    ),
    "report": (("matplotlib",), "learning curves"),
    "watch": (("PIL", "imageio_ffmpeg"), "films of trained teams"),
    "stablehlo": (("flatbuffers",), "exported teams as programs"),
}
FRAME = """
import mujoco
model = mujoco.MjModel.from_xml_string(
    "<mujoco><worldbody><light pos='0 0 3'/><geom size='.5' rgba='1 0 0 1'/></worldbody></mujoco>")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 64, 64) as renderer:
    renderer.update_scene(data)
    assert renderer.render().max() > 0, "the frame is black"
"""
GIB = 2**30


@dataclass(frozen=True)
class Check:
    """One thing that was checked."""

    name: str
    status: Status
    """ "warn": something optional is missing; "fail": nothing can be trained"""
    detail: str
    remedy: str = ""
    """what to do, if anything is amiss"""


def diagnose() -> list[Check]:
    """All checks, in the order in which a reader wants them. Raises nothing: what goes wrong is a
    check that failed."""
    return [
        check_python(),
        *(check_package(name) for name in CORE),
        check_devices(),
        *(check_extra(extra) for extra in EXTRAS),
        check_rendering(),
        check_cores(),
        check_memory(),
        check_disk(Path.cwd()),
    ]


def check_python() -> Check:
    """Which Python runs this. Too old a one does not get here: it cannot read this file."""
    return Check("python", "ok", f"{platform.python_version()} at {sys.executable}")


def check_package(name: str) -> Check:
    """Whether a package of the core is installed."""
    try:
        return Check(name, "ok", metadata.version(name))
    except metadata.PackageNotFoundError:
        return Check(name, "fail", "not installed", f"pip install {name}")


def check_devices() -> Check:
    """Which devices JAX computes on. A GPU that JAX does not use is worth a warning."""
    try:
        import jax

        devices = jax.devices()
    except Exception as error:  # a broken plugin raises whatever it likes
        remedy = "Reinstall jax and jaxlib: pip install -U jax"
        return Check("jax devices", "fail", _line(error), remedy)
    detail = ", ".join(f"{device.platform}: {device.device_kind}" for device in devices)
    if devices[0].platform == "cpu" and shutil.which("nvidia-smi"):
        detail = f"{detail}; there is a GPU, too"
        return Check("jax devices", "warn", detail, "pip install 'comarl[cuda]'")
    return Check("jax devices", "ok", detail)


def check_extra(extra: str) -> Check:
    """Whether the modules of one extra can be imported."""
    modules, purpose = EXTRAS[extra]
    for module in modules:
        try:
            _import_quietly(module)
        except Exception as error:  # a missing library raises OSError, or a kind of its own
            remedy = f"For {purpose}: pip install -U 'comarl[{extra}]'"
            return Check(extra, "warn", f"{module}: {_line(error)}", remedy)
    return Check(extra, "ok", ", ".join(_versions(modules)))


def _import_quietly(module: str) -> None:
    """Imports, without what some packages print and warn about when they are imported."""
    with silence(), warnings.catch_warnings(action="ignore"):
        import_module(module)


def _versions(modules: tuple[str, ...]) -> Iterator[str]:
    for module in modules:
        try:
            yield f"{module} {metadata.version(module)}"
        except metadata.PackageNotFoundError:
            yield module  # a part of a package has no version of its own


def check_rendering(timeout: float = 60.0) -> Check:
    """Whether MuJoCo draws a frame without a screen, on the GPU's driver or in software."""
    if find_spec("mujoco") is None:
        remedy = "For videos: pip install 'comarl[mujoco]'"
        return Check("rendering", "warn", "MuJoCo is not installed", remedy)
    failures = []
    for backend in ("egl", "osmesa"):
        failure = _render(backend, timeout)
        if failure is None:
            return Check("rendering", "ok", f"MuJoCo draws with MUJOCO_GL={backend}")
        failures.append(f"{backend}: {failure}")
    remedy = (
        "For videos: apt-get install libegl1 libosmesa6 (Debian, Ubuntu), "
        "then set MUJOCO_GL to egl or osmesa."
    )
    return Check("rendering", "warn", "; ".join(failures), remedy)


def _render(backend: str, timeout: float) -> str | None:
    """Draws one small frame in a process of its own, because a bad driver may crash or hang; the
    cause if it fails."""
    environment = {**os.environ, "MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend}
    try:
        command = [sys.executable, "-c", FRAME]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        return f"no frame within {timeout:g} seconds"
    except OSError as error:
        return _line(error)
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if line and not line.startswith(" ")]
    # What follows the first error is the clean-up failing, too.
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or [f"exit status {done.returncode}"])[0][:200]


def check_cores() -> Check:
    """How many cores this process may use, which may be fewer than the machine has."""
    cores = usable_cores()
    detail = f"{cores} of {os.cpu_count()}, {cpu_model()}"
    if cores < 2:
        remedy = "Give the process more cores: many tasks are simulated on the CPU."
        return Check("cores", "warn", detail, remedy)
    return Check("cores", "ok", detail)


def check_memory() -> Check:
    """How much memory there is. The replays of all seeds of a run must fit."""
    memory = total_memory()
    free = min(memory, psutil.virtual_memory().available)
    detail = f"{free / GIB:.1f} of {memory / GIB:.1f} GiB free" if memory else "unknown"
    if memory and free < 2 * GIB:
        remedy = "Lower the capacity of the replay, or the number of seeds."
        return Check("memory", "warn", detail, remedy)
    return Check("memory", "ok", detail)


def check_disk(folder: Path) -> Check:
    """How much room the folder's disk has. A checkpoint is as large as a run's replay, and three
    may coexist."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        remedy = f"Choose a folder that can be written to, instead of {folder}."
        return Check("disk", "fail", _line(error), remedy)
    detail = f"{free / GIB:.1f} GiB free in {folder}"
    if free < GIB // 4:
        return Check("disk", "fail", detail, "Free some space: checkpoints could not be written.")
    if free < 5 * GIB:
        remedy = "Free some space: a run's checkpoints hold its replay."
        return Check("disk", "warn", detail, remedy)
    return Check("disk", "ok", detail)


def _line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


def show(checks: list[Check]) -> None:
    """Prints the checks as a table, with the remedies under what needs one."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    table = Table(box=None, show_header=False)
    for check in checks:
        detail = Text(check.detail)
        if check.remedy:
            detail.append(f"\n{check.remedy}", style="bold")
        table.add_row(Text(check.status, style=colours[check.status]), Text(check.name), detail)
    Console().print(table)


def main() -> int:
    """Prints the diagnosis. Returns 0 if nothing failed, 1 otherwise."""
    checks = diagnose()
    show(checks)
    return int(any(check.status == "fail" for check in checks))


if __name__ == "__main__":
    sys.exit(main())
