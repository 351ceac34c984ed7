"""What moves the robots of Multi-Agent MuJoCo: `mujoco.batch`, all copies at once, or else
gymnasium-robotics.

Both have `start`, `advance`, `observe` and `problem`, and besides the positions `qpos`, the `model`
and the seconds of a step, for who draws them; `comarl.envs.mamujoco` adds actions, episodes
and their end.
"""

# MuJoCo's own module is compiled and tells type checkers little.
# pyright: reportAttributeAccessIssue=false

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

Reference = Any
"""a gymnasium_robotics.mamujoco_v1.parallel_env, which is an extra and may not be installed"""

WARNINGS = ("BADQPOS", "BADQVEL", "BADQACC", "BADCTRL")
"""MuJoCo's names of what it warns of when a simulation diverges, in the order of its numbers"""


@dataclass(frozen=True)
class Robot:
    """What a Gymnasium v5 task adds to its model. Functions read the physics of all copies:
    `[copies, ...]`."""

    reset_noise: float
    """half the width of the uniform noise on a start's positions and velocities"""
    normal_velocities: bool = False
    """whether the noise on a start's velocities is normal, with `reset_noise` as deviation"""
    progress: Callable[[Any], np.ndarray] = lambda physics: physics.qpos[:, 0]
    """metres; their growth per second pays"""
    progress_weight: float = 1.0
    """reward for a metre per second"""
    pays_level: bool = False
    """whether progress itself pays, divided by a simulation step, and not its speed"""
    healthy: Callable[[Any], np.ndarray] | None = None
    """an episode ends where it is false; None: nowhere"""
    healthy_reward: float = 0.0
    """reward for each step at whose end the robot is healthy"""
    control_cost: float = 0.0
    """times the sum of squared controls"""
    contact_cost: float = 0.0
    """times the sum of squared contact forces"""
    contact_cost_limit: float = np.inf
    """the most that contacts cost in a step"""
    contact_limit: float | None = None
    """bounds each contact force, in the state as well"""
    velocity_limit: float | None = None
    """bounds each velocity in the state"""
    agents_see_limit: bool = True
    """whether it bounds them in the observations as well"""


def _hopper_is_healthy(physics: "BatchPhysics") -> np.ndarray:
    upright = (physics.qpos[:, 1] > 0.7) & (np.abs(physics.qpos[:, 2]) < 0.2)
    bounded = (np.abs(physics.qpos[:, 2:]) < 100).all(axis=1)
    return upright & bounded & (np.abs(physics.qvel) < 100).all(axis=1)


def _walker_is_healthy(physics: "BatchPhysics") -> np.ndarray:
    height, angle = physics.qpos[:, 1], physics.qpos[:, 2]
    return (height > 0.8) & (height < 2.0) & (np.abs(angle) < 1.0)


_SWIMMER = Robot(reset_noise=0.1, control_cost=1e-4)

ROBOTS = {
    "HalfCheetah": Robot(reset_noise=0.1, normal_velocities=True, control_cost=0.1),
    "Ant": Robot(
        reset_noise=0.1,
        normal_velocities=True,
        progress=lambda physics: physics.xpos[:, 1, 0],  # of the torso
        healthy=lambda physics: (physics.qpos[:, 2] >= 0.2) & (physics.qpos[:, 2] <= 1.0),
        healthy_reward=1.0,
        control_cost=0.5,
        contact_cost=5e-4,
        contact_limit=1.0,
    ),
    "Hopper": Robot(
        reset_noise=5e-3,
        healthy=_hopper_is_healthy,
        healthy_reward=1.0,
        control_cost=1e-3,
        velocity_limit=10.0,
    ),
    "Humanoid": Robot(
        reset_noise=1e-2,
        # of the centre of mass
        progress=lambda physics: physics.xipos[:, :, 0] @ physics.mass_share,
        progress_weight=1.25,
        healthy=lambda physics: (physics.qpos[:, 2] > 1.0) & (physics.qpos[:, 2] < 2.0),
        healthy_reward=5.0,
        control_cost=0.1,
        contact_cost=5e-7,
        contact_cost_limit=10.0,
    ),
    "HumanoidStandup": Robot(
        reset_noise=1e-2,
        progress=lambda physics: physics.qpos[:, 2],  # height
        pays_level=True,
        healthy_reward=1.0,
        control_cost=0.1,
        contact_cost=5e-7,
        contact_cost_limit=10.0,
    ),
    "Walker2d": Robot(
        reset_noise=5e-3,
        healthy=_walker_is_healthy,
        healthy_reward=1.0,
        control_cost=1e-3,
        velocity_limit=10.0,
        agents_see_limit=False,
    ),
    "Swimmer": _SWIMMER,
    "ManySegmentSwimmer": _SWIMMER,
}
"""the constants of `gymnasium.envs.mujoco.*_v5`; other robots are stepped by gymnasium-robotics
itself"""


class BatchPhysics:
    """Robots stepped together by MuJoCo's own threads; what is computed from them is vectorised
    over copies."""

    def __init__(
        self, reference: Reference, robot: Robot, num_copies: int, num_threads: int, dtype: type
    ):
        import mujoco
        import mujoco.batch

        env = reference.single_agent_env.unwrapped
        self._robot, self._rne = robot, mujoco.mj_rnePostConstraint
        self.model, self.step_seconds = env.model, env.dt
        self._frame_skip, self._start_qpos = env.frame_skip, env.init_qpos
        # mj_step leaves contact forces out. They are computed in a scratch copy of each simulation,
        # which must be whole
        self._has_contacts = "cfrc_ext" in env.observation_structure
        self._batch = mujoco.batch.Batch(
            env.model, num_copies, num_threads, persistent=self._has_contacts
        )
        self._scratch = mujoco.MjData(env.model)
        self._contacts = np.zeros((num_copies, env.model.nbody * 6))
        # Live views of all copies: positions, velocities and controls; where bodies and their
        # centres of mass are.
        bind = self._batch.bind
        self.qpos = bind("qpos")
        self.qvel = bind("qvel")
        self.controls = bind("ctrl")
        self.xpos = bind("xpos")
        self.xipos = bind("xipos")
        self.mass_share = env.model.body_mass / env.model.body_mass.sum()
        bad_qpos = mujoco.mjtWarning.mjWARN_BADQPOS.value  # then come qvel, qacc and ctrl
        # How often each was raised
        self._warnings = self._batch.warning[:, bad_qpos : bad_qpos + len(WARNINGS), 1]
        self._everyone = np.ones(num_copies, bool)
        self._progress = robot.progress(self).copy()
        self._lay_out_state(env.observation_structure, dtype)
        rows = list(reference.observation_factorization.values())
        width = max(map(len, rows))
        zero = self._state.shape[1] - 1  # padding reads the zero behind the state
        self._seen = np.array([[*row, *[zero] * (width - len(row))] for row in rows], int)

    def _lay_out_state(self, structure: dict[str, int], dtype: type) -> None:
        """The state's array, and what each part of it is copied from: pairs of views of equal
        shape."""
        names = ("qpos", "qvel", "cinert", "cvel", "qfrc_actuator", "cfrc_ext")
        sizes = {name: structure[name] for name in names if structure.get(name)}
        self._state = np.zeros((len(self.qpos), sum(sizes.values()) + 1), dtype)
        self._parts, offset = [], 0
        for name, size in sizes.items():
            field = self._contacts if name == "cfrc_ext" else self._batch.bind(name)
            # What is hidden comes first: x, the world's body
            source = field.reshape(len(self.qpos), -1)[:, -size:]
            self._parts.append((self._state[:, offset : offset + size], source))
            offset += size

    def start(self, ids: Int[np.ndarray, " playing"], seeds: Int[np.ndarray, " copies"]) -> None:
        """Draws a start for the copies `ids`, in the order in which Gymnasium draws it."""
        if not len(ids):
            return
        self._batch.reset(ids=ids, stage=0)
        noise = self._robot.reset_noise
        for i in ids.tolist():
            rng = np.random.default_rng(int(seeds[i]))
            self.qpos[i] = self._start_qpos + rng.uniform(-noise, noise, self.model.nq)
            if self._robot.normal_velocities:
                self.qvel[i] = noise * rng.standard_normal(self.model.nv)
            else:
                self.qvel[i] = rng.uniform(-noise, noise, self.model.nv)
        self._batch.forward(ids=ids)
        self._contacts[ids] = 0
        self._progress = self._robot.progress(self).copy()

    def advance(
        self, ids: Int[np.ndarray, " playing"], controls: Float[np.ndarray, "copies actuators"]
    ) -> tuple[Float[np.ndarray, " copies"], Bool[np.ndarray, " copies"]]:
        """Steps the copies `ids`; rewards and falls of all copies, which mean nothing in the
        others."""
        self.controls[:] = controls
        self._batch.step(ids=None if len(ids) == len(controls) else ids, nstep=self._frame_skip)
        if self._has_contacts:
            for i in ids.tolist():
                self._batch.get_data(i, self._scratch)
                self._rne(self.model, self._scratch)
                self._contacts[i] = self._scratch.cfrc_ext.reshape(-1)
            if (limit := self._robot.contact_limit) is not None:
                np.clip(self._contacts, -limit, limit, out=self._contacts)
        return self._reward(controls)

    def _reward(self, controls: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        robot, before = self._robot, self._progress
        self._progress = robot.progress(self).copy()
        if robot.pays_level:
            reward = self._progress / self.model.opt.timestep
        else:
            reward = robot.progress_weight * (self._progress - before) / self.step_seconds
        healthy = self._everyone if robot.healthy is None else robot.healthy(self)
        reward += robot.healthy_reward * healthy
        reward -= robot.control_cost * np.vecdot(controls, controls)
        if robot.contact_cost:
            cost = robot.contact_cost * np.vecdot(self._contacts, self._contacts)
            reward -= np.minimum(cost, robot.contact_cost_limit)
        return reward, ~healthy

    def observe(
        self,
    ) -> tuple[Float[np.ndarray, "copies agents obs"], Float[np.ndarray, "copies state"]]:
        """`(obs, state)` of all copies, in new arrays."""
        for part, source in self._parts:
            part[...] = source
        obs = self._state.take(self._seen, axis=1)
        if (limit := self._robot.velocity_limit) is not None:
            velocities = self._parts[1][0]
            np.clip(velocities, -limit, limit, out=velocities)
            if self._robot.agents_see_limit:
                obs = self._state.take(self._seen, axis=1)
        return obs, self._state[:, :-1].copy()

    def problem(self) -> str | None:
        """Which copy diverged and why; MuJoCo only counts a warning, and starts a diverged
        simulation anew."""
        if not self._warnings.any():
            return None
        copy, kind = np.argwhere(self._warnings)[0]
        cause = "an action is not finite" if kind == 3 else "the simulation became unstable"
        return f"in copy {copy} {cause} (MuJoCo's warning {WARNINGS[kind]})"


class GymnasiumPhysics:
    """Robots stepped by gymnasium-robotics, one environment for each copy: any robot that it knows,
    slowly."""

    def __init__(
        self,
        references: list[Reference],
        num_agents: int,
        obs_size: int,
        state_size: int,
        dtype: type,
    ):
        self._envs = references
        single = references[0].single_agent_env.unwrapped
        self.model, self.step_seconds = single.model, single.dt
        self._obs = np.zeros((len(references), num_agents, obs_size), dtype)
        self._state = np.zeros((len(references), state_size), dtype)

    @property
    def qpos(self) -> Float[np.ndarray, "copies qpos"]:
        """The positions of all copies."""
        return np.stack([env.single_agent_env.unwrapped.data.qpos for env in self._envs])

    def start(self, ids: Int[np.ndarray, " playing"], seeds: Int[np.ndarray, " copies"]) -> None:
        """Starts the copies `ids`, each from its seed."""
        for i in ids.tolist():
            self._record(i, self._envs[i].reset(seed=int(seeds[i]))[0])

    def advance(
        self, ids: Int[np.ndarray, " playing"], controls: Float[np.ndarray, "copies actuators"]
    ) -> tuple[Float[np.ndarray, " copies"], Bool[np.ndarray, " copies"]]:
        """Steps the copies `ids`; rewards and falls of all copies, 0 and false in the others."""
        reward = np.zeros(len(self._envs))
        fallen = np.zeros(len(self._envs), bool)
        for i in ids.tolist():
            actions = self._envs[i].map_global_action_to_local_actions(controls[i])
            obs, rewards, terminated, _, _ = self._envs[i].step(actions)
            # Both are the same for every agent.
            reward[i] = rewards["agent_0"]
            fallen[i] = terminated["agent_0"]
            self._record(i, obs)
        return reward, fallen

    def _record(self, i: int, obs: dict[str, np.ndarray]) -> None:
        self._state[i] = self._envs[i].state()
        for row, own in zip(self._obs[i], obs.values(), strict=True):
            row[: len(own)] = own

    def observe(
        self,
    ) -> tuple[Float[np.ndarray, "copies agents obs"], Float[np.ndarray, "copies state"]]:
        """`(obs, state)` of all copies, in new arrays."""
        return self._obs.copy(), self._state.copy()

    def problem(self) -> str | None:
        """Which copy diverged."""
        finite = np.isfinite(self._state).all(axis=1)
        if finite.all():
            return None
        return f"in copy {np.argmin(finite)} the simulation became unstable"


class ViewSettings(NamedTuple):
    """What agents see, in the words of gymnasium-robotics."""

    agent_obsk: int
    """the distance in joints up to which an agent sees"""
    global_categories: tuple[str, ...]
    """what all see of the root"""
    local_categories: tuple[tuple[str, ...], ...] | None
    """what they see of joints at each distance; None is the robot's default"""


def new_reference(robot: str, partition: str, view: ViewSettings) -> Reference:
    """gymnasium-robotics' environment of a task: it knows the model, the partition and the
    observations.

    Raises ValueError if it cannot be made, or if no agent's `agent_obsk` reaches that far.
    """
    mamujoco_v1 = _import_gymnasium_robotics()
    try:
        with no_mujoco_log():
            reference = mamujoco_v1.parallel_env(robot, partition, **view._asdict())
    except Exception as error:
        # It raises no narrower one; CoupledHalfCheetah fails so with mujoco 4.
        raise ValueError(
            f"gymnasium-robotics cannot make {robot}-{partition} with this mujoco: {error}"
        ) from error
    reach = max(k for near in reference.k_dicts for k, nodes in near.items() if nodes)
    if view.agent_obsk > reach:
        raise ValueError(
            f"agent_obsk={view.agent_obsk} of {robot}-{partition} must be {reach} or less: no "
            "joint is farther from any agent"
        )
    # Joints are ordered by label alone, but two of Pusher's share one: their order would change
    # from run to run.
    by_label = lambda nodes: sorted(nodes, key=lambda node: (node.label, node.act_ids))
    reference.k_dicts = [
        {k: by_label(nodes) for k, nodes in near.items()} for near in reference.k_dicts
    ]
    return reference


def _import_gymnasium_robotics() -> Any:
    silent = contextlib.redirect_stderr(io.StringIO())  # of a note on robot hands
    try:
        with silent:
            import mujoco
            from gymnasium_robotics import mamujoco_v1
    except ImportError as error:
        raise ImportError('Multi-Agent MuJoCo is an extra: pip install "comarl[mujoco]"') from error
    try:
        import mujoco.batch
    except ImportError as error:
        raise ImportError(
            f"mujoco {mujoco.__version__} has no mujoco.batch, which came with 3.17: "
            'pip uninstall mujoco, then pip install "comarl[mujoco]"'
        ) from error
    return mamujoco_v1


@contextlib.contextmanager
def no_mujoco_log() -> Iterator[None]:
    """MuJoCo 4 warns of an old attribute in half_cheetah.xml, and leaves MUJOCO_LOG.TXT in the
    user's folder."""
    import mujoco

    if not hasattr(mujoco, "MjLogConfig"):  # it came with mujoco 4
        yield
        return
    config = mujoco.MjLogConfig.get()
    quiet = mujoco.MjLogConfig.get()
    quiet.logto_file = quiet.logto_console = False
    mujoco.MjLogConfig.set(quiet)
    try:
        yield
    finally:
        mujoco.MjLogConfig.set(config)
