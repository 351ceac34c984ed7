"""The contract of a task, as a check that users run on their own: `comarl check smax/3m`.

It plays episodes of random actions twice over, and raises `ContractViolation` for the first thing
that is wrong. Shapes and types are checked before anything is compiled.
"""

import contextlib
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from comarl.envs.pettingzoo import PettingZoo
from comarl.types import (
    Environment,
    EnvSpec,
    HostEnvironment,
    HostTimestep,
    Key,
    Task,
    Timestep,
)

FEWEST_EPISODES = 8


class ContractViolation(ValueError):
    """A task breaks the contract: the message names the field, what was found, and what would be
    right."""


class Report(NamedTuple):
    """What random actions came to."""

    episodes: int
    mean_length: float
    mean_return: float


class Played(NamedTuple):
    """Episodes of random actions, as NumPy arrays [episodes, time, ...]; the timesteps have one
    more time."""

    timesteps: Any  # Timestep or HostTimestep
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    metrics: dict[str, Any]  # [episodes], at the end

    @property
    def alive(self) -> np.ndarray:
        """Whether the episode was still on before each step."""
        over = np.cumsum(self.terminated | self.truncated, axis=1) > 0
        return np.concatenate([np.ones_like(over[:, :1]), ~over[:, :-1]], axis=1)


def check(env: Any, steps: int = 1000, seed: int = 0) -> Report:
    """Plays about `steps` steps of random actions of an `Environment` or a `Task`; what they came
    to.

    Raises ContractViolation.
    """
    require(
        isinstance(env, Environment | Task),
        f"{type(env).__name__} is no task: an Environment has spec, reset, step and metrics, "
        "a Task has spec and make",
    )
    episodes = max(FEWEST_EPISODES, -(-steps // env.spec.horizon))
    require(
        is_hashable(env),
        f"{type(env).__name__} cannot be hashed; make it a frozen dataclass of hashable fields",
    )
    if isinstance(env, Environment):
        check_signature(env)
        play_all = lambda: play(env, episodes, seed)
    else:
        play_all = lambda: play_host(env, episodes, seed)
    played = play_all()
    check_values(env.spec, played)
    check_ends(env.spec, played)
    check_equal(played, play_all())
    returns = np.where(played.alive, played.reward, 0.0).sum(1)
    return Report(episodes, float(played.alive.sum(1).mean()), float(returns.mean()))


def require(holds: Any, violation: str) -> None:
    """Raises ContractViolation with this message unless something holds."""
    if not holds:
        raise ContractViolation(violation)


def is_hashable(value: Any) -> bool:
    """Whether a value has a hash, as what is static under `jit` must."""
    try:
        hash(value)
    except TypeError:
        return False
    return True


def check_signature(env: Environment) -> None:
    """Shapes and types of all that a jittable task returns, found without running it."""
    spec, key = env.spec, jax.random.key(0)
    env_state, first = shapes_of("reset", ("env_state", "timestep"), env.reset, key)
    check_timestep(spec, first, "reset")
    action = jax.eval_shape(lambda: random_action(spec, None, key))
    results = ("env_state", "timestep", "reward", "terminated", "truncated")
    after_state, after, reward, terminated, truncated = shapes_of(
        "step", results, env.step, env_state, action, key
    )
    check_timestep(spec, after, "step")
    check_array("the reward of step", reward, (), "float32", "a scalar: the team shares it")
    check_array("terminated of step", terminated, (), "bool", "a scalar")
    check_array("truncated of step", truncated, (), "bool", "a scalar")
    types = lambda tree: str(jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree))
    before = types(env_state)
    now = types(after_state)
    require(before == now, f"env_state is {now} after step; it must be as after reset, {before}")
    for name, value in jax.eval_shape(env.metrics, env_state).items():
        check_array(f"{name!r} of metrics", value, (), "float32", "a scalar")


def shapes_of(method: str, results: tuple[str, ...], function: Any, *given: Any) -> tuple:
    """Shapes and types of what a method returns, which must be a tuple of as many results."""
    try:
        found = jax.eval_shape(function, *given)
    except Exception as error:
        said = " ".join(str(error).split())
        raise ContractViolation(
            f"{method} cannot be compiled: {type(error).__name__}: {said}"
        ) from error
    right = isinstance(found, tuple) and len(found) == len(results)
    number = f"a tuple of {len(found)}" if isinstance(found, tuple) else type(found).__name__
    require(right, f"{method} returns {number}; it must return ({', '.join(results)})")
    return found


def check_timestep(spec: EnvSpec, timestep: Any, where: str, lead: tuple[int, ...] = ()) -> None:
    """Shapes and types of what a team sees. `lead` are axes in front of those that the spec
    knows."""
    require(
        isinstance(timestep, Timestep | HostTimestep),
        f"the timestep of {where} is of {type(timestep).__name__}; it must be a Timestep",
    )
    obs = (*lead, spec.num_agents, spec.obs_size)
    state = (*lead, spec.state_size)
    actions = (*lead, spec.num_agents, spec.action_size)
    available = timestep.available
    check_array(f"obs of {where}", timestep.obs, obs, "float32", "[num_agents, obs_size] of spec")
    check_array(f"state of {where}", timestep.state, state, "float32", "[state_size] of spec")
    name = f"available of {where}"
    if spec.discrete:
        require(available is not None, f"{name} is None; discrete actions need a mask")
        check_array(name, available, actions, "bool", "[num_agents, action_size] of spec")
    else:
        require(available is None, f"{name} is a mask; for continuous actions it must be None")


def check_array(name: str, found: Any, shape: tuple[int, ...], dtype: str, meaning: str) -> None:
    """Shape and type of one array; `meaning` says where the shape comes from."""
    found = found if hasattr(found, "dtype") else np.asarray(found)
    require(
        found.shape == shape,
        f"{name} has shape {list(found.shape)}; it must have {list(shape)}, {meaning}",
    )
    require(found.dtype == dtype, f"{name} is of {found.dtype}; it must be of {dtype}")


def random_action(spec: EnvSpec, available: Any, key: Key) -> jax.Array:
    """One team's: uniform over [-1, 1], or over the available actions."""
    shape = (spec.num_agents, spec.action_size)
    if spec.discrete:
        logits = jnp.zeros(shape) if available is None else jnp.where(available, 0.0, -jnp.inf)
        return jax.random.categorical(key, logits).astype(jnp.int32)
    return jnp.asarray(spec.action_mask) * jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)


def play(env: Environment, episodes: int, seed: int) -> Played:
    """Episodes of a jittable task, compiled anew at every call: randomness at compile time then
    shows, too."""

    def one_step(carry: tuple, key: Key) -> tuple[tuple, tuple]:
        env_state, timestep, end, over = carry
        action_key, step_key = jax.random.split(key)
        action = random_action(env.spec, timestep.available, action_key)
        env_state, after, reward, terminated, truncated = env.step(env_state, action, step_key)
        end = jax.tree.map(lambda old, new: jnp.where(over, old, new), end, env.metrics(env_state))
        record = (after, reward, terminated, truncated)
        return (env_state, after, end, over | terminated | truncated), record

    def episode(key: Key) -> Played:
        reset_key, steps_key = jax.random.split(key)
        env_state, first = env.reset(reset_key)
        start = (env_state, first, env.metrics(env_state), jnp.bool_(False))
        (*_, end, _), (after, *rest) = jax.lax.scan(
            one_step, start, jax.random.split(steps_key, env.spec.horizon)
        )
        timesteps = jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), first, after)
        return Played(timesteps, *rest, metrics=end)

    keys = jax.random.split(jax.random.key(seed), episodes)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(episode))(keys))


def play_host(task: Task, episodes: int, seed: int) -> Played:
    """Episodes of a task outside JAX, one in each copy; one more copy is left out, and must ignore
    its actions."""
    env = task.make(episodes + 1)
    require(
        isinstance(env, HostEnvironment),
        "make must give copies with spec, num_copies, reset, step and close",
    )
    with contextlib.closing(env):
        return play_copies(task.spec, env, episodes, seed)


def play_copies(spec: EnvSpec, env: HostEnvironment, episodes: int, seed: int) -> Played:
    """The same, of the copies that were made."""
    act = jax.jit(jax.vmap(lambda available, key: random_action(spec, available, key)))
    keys = jax.random.split(jax.random.key(seed), (spec.horizon, env.num_copies))
    over = np.arange(env.num_copies) == episodes
    timesteps, steps = [env.reset(seed + np.arange(env.num_copies), ~over)], []
    check_timestep(spec, timesteps[0], "reset", over.shape)
    for key in keys:
        timestep, *results = env.step(np.asarray(act(timesteps[-1].available, key)))
        check_timestep(spec, timestep, "step", over.shape)
        for name, result in zip(("reward", "terminated", "truncated"), results, strict=True):
            dtype = "float32" if name == "reward" else "bool"
            check_array(f"{name} of step", result, over.shape, dtype, "one for each copy")
            idle = result[over]
            require(
                not idle.any(),
                f"{name} of step is {idle.max()} in a copy that is not playing; it must be 0 there",
            )
        timesteps.append(timestep)
        steps.append(results)
        over = over | results[1] | results[2]
        if over.all():
            break
    stack: Any = lambda *xs: None if xs[0] is None else np.stack(xs, axis=1)[:episodes]
    return Played(HostTimestep(*map(stack, *timesteps)), *map(stack, *steps), metrics={})


def check_equal(played: Played, again: Played) -> None:
    """Bit for bit, also after the end, where a task may give NaN."""
    bits = lambda tree: [x.tobytes() for x in jax.tree.leaves(tree)]
    start, start_again = (
        jax.tree.map(lambda x: x[:, 0], both.timesteps) for both in (played, again)
    )
    require(
        bits(start) == bits(start_again),
        "reset gives two different starts for one key (or seed); its randomness must come from "
        "that alone",
    )
    require(
        bits(played) == bits(again),
        "step gives two different results for one env_state, action and key (or seed); "
        "its randomness must come from that alone",
    )


def check_values(spec: EnvSpec, played: Played) -> None:
    """The numbers of all steps that took place."""
    seen = np.concatenate([np.ones_like(played.alive[:, :1]), played.alive], axis=1)
    obs, state = played.timesteps.obs[seen], played.timesteps.state[seen]
    numbers = {"obs": obs, "state": state, "reward": played.reward[played.alive]}
    metrics = {f"{name!r} of metrics": values for name, values in played.metrics.items()}
    for name, values in {**numbers, **metrics}.items():
        finite = np.isfinite(values).all()
        require(finite, f"{name} has NaN or infinite entries; all must be finite")
    low, high = spec.obs_range or (-np.inf, np.inf)
    for name in ("obs", "state"):
        minimum = numbers[name].min()
        maximum = numbers[name].max()
        require(
            low <= minimum and maximum <= high,
            f"{name} is in [{minimum}, {maximum}]; obs_range of spec is [{low}, {high}]",
        )
    for agent, size in enumerate(spec.obs_sizes or ()):
        padded = not obs[:, agent, size:].any()
        require(
            padded,
            f"obs of agent {agent} is not 0 after its first {size} entries, its size in obs_sizes "
            "of spec",
        )
    if spec.obs_from_state is not None:
        same = np.array_equal(obs, np.asarray(spec.observe(jnp.asarray(state))))
        require(
            same, "obs is not spec.observe(state); correct obs_from_state of spec, or leave it None"
        )
    if played.timesteps.available is not None:
        stuck = ~played.timesteps.available[seen].any(-1)
        agent = stuck.any(0).argmax()
        require(
            not stuck.any(),
            f"available is all false for agent {agent}; one action at least must always be true",
        )


def check_ends(spec: EnvSpec, played: Played) -> None:
    """Episodes are truncated after exactly `horizon` steps, unless the task ends them."""
    terminated, truncated = played.terminated & played.alive, played.truncated & played.alive
    both = terminated & truncated
    require(
        not both.any(),
        f"terminated and truncated are both true at step {first_step(both)}; one at most may be",
    )
    early = truncated[:, : spec.horizon - 1]
    require(
        not early.any(),
        f"truncated is true at step {first_step(early)}; time runs out at step {spec.horizon}, the "
        "horizon of spec",
    )
    ended = (terminated | truncated).any(1)
    require(
        ended.all(),
        f"truncated is false at step {spec.horizon}, the horizon of spec; it must be true unless "
        "terminated is",
    )


def first_step(flags: np.ndarray) -> int:
    """The first step, counted from 1, at which a flag [episodes, time] is true; 0 if none is."""
    return int(flags.any(0).argmax()) + 1 if flags.any() else 0


def check_strictly(task: Any, steps: int, seed: int) -> Report:
    """The same, with all that a task of PettingZoo shows held against its spaces, too."""
    if isinstance(task, PettingZoo):
        task = dataclasses.replace(task, strict=True)
    return check(task, steps, seed)


def report_text(name: str, report: Report) -> str:
    """What a task that keeps the contract came to, in a line."""
    return (
        f"{name} keeps the contract: {report.episodes} episodes of random actions, "
        f"mean length {report.mean_length:.1f}, mean return {report.mean_return:.4g}"
    )
