"""Robots of MuJoCo, drawn off screen by MuJoCo itself, each agent's parts in its own colour."""

# MuJoCo's own module is compiled and tells type checkers little.
# pyright: reportAttributeAccessIssue=false

import copy
import importlib
import os
from typing import Any

import numpy as np
from jaxtyping import Int

from comarl.watching.canvas import Image, agent_colour, even, import_pillow
from comarl.watching.play import Played
from comarl.watching.scene import Scene

BACKENDS = ("egl", "osmesa")
"""how MuJoCo draws without a screen: on the GPU's driver, or in software"""
NEAR = 1.9
"""metres between the camera and a robot of one metre"""
FASTEST = 50
"""pictures in a second, at most"""


def scene(
    played: Played,
    size: int,
    model: Any,
    agent_of_actuator: Int[np.ndarray, " actuators"],
    step_seconds: float,
) -> Scene:
    """A camera beside the robot that goes where it goes. Raises CannotDraw without a renderer."""
    import mujoco

    pil, *_ = import_pillow()
    model = coloured(model, agent_of_actuator)
    eye = Eye(model, size, even(0.7 * size))
    data = mujoco.MjData(model)

    def look(time: int) -> None:
        data.qpos[:] = played.states[time]
        mujoco.mj_forward(model, data)

    look(0)
    start = data.subtree_com[0, 0]

    def picture(time: int) -> Image:
        look(time)
        return pil.fromarray(eye.see(data))

    def said(time: int) -> str:
        look(time)
        return f"{time * step_seconds:.2f} s, {data.subtree_com[0, 0] - start:+.2f} m forward"

    return Scene(picture, said, fps=min(FASTEST, 1 / step_seconds))


class CannotDraw(RuntimeError):
    """This machine has nothing that draws what should be shown."""


class Eye:
    """MuJoCo's renderer, with a context of its own: which one MuJoCo would take is settled when it
    is imported, before anyone says that there is no screen."""

    def __init__(self, model: Any, width: int, height: int):
        import mujoco

        model.vis.global_.offwidth, model.vis.global_.offheight = width, height
        self._context = make_context(width, height)
        self._mujoco, self._model = mujoco, model
        self._scene = mujoco.MjvScene(model, maxgeom=2000)
        self._pens = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._pens)
        self._window = mujoco.MjrRect(0, 0, width, height)
        self._camera, self._options = mujoco.MjvCamera(), mujoco.MjvOption()
        mujoco.mjv_defaultFreeCamera(model, self._camera)
        if model.nbody > 1 and model.body_dofnum[1] > 1:  # else it stands somewhere
            self._camera.type = mujoco.mjtCamera.mjCAMERA_TRACKING.value
            self._camera.trackbodyid = 1
            self._camera.distance = NEAR * self._reach(1)
        self._camera.azimuth, self._camera.elevation = 90.0, -15.0
        self._picture = np.zeros((height, width, 3), np.uint8)

    def _reach(self, root: int) -> float:
        """How many metres the robot stretches in its first pose."""
        data = self._mujoco.MjData(self._model)
        self._mujoco.mj_forward(self._model, data)
        mine = self._model.body_rootid == root
        places = data.xpos[mine]
        return float(np.clip(np.ptp(places, axis=0).max(), 0.8, 4.0)) + 0.4

    def see(self, data: Any) -> np.ndarray:
        """A picture, uint8 `[height, width, 3]`."""
        self._context.make_current()
        every = self._mujoco.mjtCatBit.mjCAT_ALL.value
        self._mujoco.mjv_updateScene(
            self._model, data, self._options, None, self._camera, every, self._scene
        )
        self._mujoco.mjr_render(self._window, self._scene, self._pens)
        self._mujoco.mjr_readPixels(self._picture, None, self._window, self._pens)
        return self._picture[::-1].copy()


def make_context(width: int, height: int) -> Any:
    """What MuJoCo draws in without a screen, or the one that MUJOCO_GL names.

    Raises CannotDraw with what would help.
    """
    named = os.environ.get("MUJOCO_GL", "").lower()
    failures = []
    for backend in (named,) if named in (*BACKENDS, "glfw") else BACKENDS:
        try:
            context = importlib.import_module(f"mujoco.{backend}").GLContext(width, height)
            context.make_current()
            return context
        except Exception as error:  # a missing library raises whatever it likes
            failures.append(f"{backend}: {' '.join(str(error).split())[:100]}")
    raise CannotDraw(
        f"MuJoCo cannot draw without a screen here ({'; '.join(failures)}): apt-get install "
        "libegl1 libosmesa6 (Debian, Ubuntu), or set MUJOCO_GL to egl or osmesa; `comarl doctor` "
        "says more"
    )


def lit(model: Any) -> Any:
    """Changes a model so that colours stand out: pale ground and sky, nothing mirrored."""
    model.mat_reflectance[:] = 0
    model.tex_data[:] = 185 + model.tex_data // 4
    model.vis.headlight.ambient[:] = 0.45
    model.vis.headlight.diffuse[:] = 0.45
    model.vis.headlight.specular[:] = 0
    model.light_diffuse[:] = 0.3
    model.light_specular[:] = 0
    return model


def coloured(model: Any, agent_of_actuator: Int[np.ndarray, " actuators"]) -> Any:
    """A copy of a model in which what an agent moves, down to the next joint, has its colour."""
    model = lit(copy.copy(model))
    agent_of_body: dict[int, int] = {}
    for actuator, agent in enumerate(agent_of_actuator):
        joint = model.actuator_trnid[actuator, 0]
        agent_of_body.setdefault(int(model.jnt_bodyid[joint]), int(agent))
    for body in range(1, model.nbody):  # parents come before their children
        agent = agent_of_body.get(body, agent_of_body.get(int(model.body_parentid[body])))
        if agent is None:
            continue
        agent_of_body[body] = agent
        code = agent_colour(agent)
        rgb = [int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        first = model.body_geomadr[body]
        geoms = slice(first, first + model.body_geomnum[body])
        model.geom_matid[geoms] = -1
        model.geom_rgba[geoms] = [*rgb, 1.0]
    return model
