"""What runs on matrix games have learnt: the value of every joint action, and the one that is
chosen.

Unlike the rest of a report this reads the newest checkpoint of a run, and asks its algorithm.
"""

import csv
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from comarl.envs.matrix import MatrixGame
from comarl.training.load import load_run
from comarl.types import Episode, ValuesTeams

ACTIONS = "ABC"
JOINT_ACTIONS = jnp.array(list(itertools.product(range(3), repeat=2)), jnp.int32)
DRAWS = 32  # of values that depend on chance, such as on a message's noise: their mean counts
# LSF-SAC (arXiv 2201.01247), Table I; its row C, and LSF-SAC's own table, cannot be read in print
PAPER = {
    "qtran": ((8.0, 6.13, 6.1), (2.1, 0.2, 0.2)),
    "vdn": ((-5.4, -4.6, -4.7), (-4.4, -3.5, -3.6)),
    "qmix": ((-8.1, -8.1, -8.1), (-8.1, 0.0, 0.0)),
    "dop": ((-7.8, -6.0, -4.2), (-6.1, -4.4, -2.6)),
}


@dataclass(frozen=True)
class Learnt:
    """What the seeds of one algorithm have learnt of a game, for each state that it may be in."""

    label: str
    algorithm: str
    task: str
    seeds: tuple[int, ...]
    states: np.ndarray  # [states, 2]: what the agents see
    payoff: np.ndarray  # [states, 3, 3]
    values: np.ndarray  # [seeds, states, 3, 3]: the team's value of each joint action
    greedy: np.ndarray  # [seeds, states, 2]: the joint action chosen without exploring

    @property
    def rewards(self) -> np.ndarray:
        """What the choices earn: [seeds, states]."""
        each = np.arange(len(self.states))
        return self.payoff[each, self.greedy[..., 0], self.greedy[..., 1]]

    @property
    def hits(self) -> np.ndarray:
        """Which seeds choose a best joint action in every state."""
        return (self.rewards == self.payoff.max(axis=(1, 2))).all(axis=1)


def learnt(folders: Sequence[Path], label: str) -> Learnt:
    """What runs that differ in nothing but seeds have learnt, a seed of two folders the first time
    it is met.

    Raises as `load_run` does.
    """
    runs = [_learnt(folder, label) for folder in folders]
    seeds, first = np.unique(np.concatenate([run.seeds for run in runs]), return_index=True)
    pooled = {
        name: np.concatenate([getattr(run, name) for run in runs])[first]
        for name in ("values", "greedy")
    }
    return replace(runs[0], seeds=tuple(seeds.tolist()), **pooled)


def _learnt(folder: Path, label: str) -> Learnt:
    run, config, state = load_run(folder)
    game, algorithm = run.task, run.algorithm
    assert isinstance(game, MatrixGame) and isinstance(algorithm, ValuesTeams)
    bits = (
        [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)] if len(game.payoff) == 2 else [(1.0, 1.0)]
    )
    states = jnp.array(bits)

    def judge(agent, clock, seen_state, key):
        seen = game.look(seen_state)
        memory = algorithm.initial_memory(agent, seen, key)
        _, greedy = algorithm.act(agent, 0, memory, seen, clock, key, explore=False)
        twice = jax.tree.map(lambda x: jnp.stack([x, x]), seen)  # now, and after the only step
        one, ends = jnp.zeros(1), jnp.ones(1, bool)
        value = lambda action, key: algorithm.team_values(
            agent, Episode(memory, twice, action[None], one, ends, ends), key
        )[0]
        values = jax.vmap(
            lambda action: jax.vmap(lambda k: value(action, k))(jax.random.split(key, DRAWS)).mean()
        )
        return values(JOINT_ACTIONS).reshape(3, 3), greedy

    def seed(agent, env_steps, updates):
        clock = state.clock._replace(env_steps=env_steps, updates=updates)
        return jax.vmap(lambda s: judge(agent, clock, s, jax.random.key(0)))(states)

    values, greedy = jax.jit(jax.vmap(seed))(
        state.agent, state.clock.env_steps, state.clock.updates
    )
    return Learnt(
        label=label,
        algorithm=config["algorithm_name"],
        task=config["task_name"],
        seeds=tuple(range(run.first_seed, run.first_seed + run.seeds)),
        states=np.array(states),
        payoff=np.array(jax.vmap(lambda s: game.tables[game.table_of(s)])(states)),
        values=np.array(values),
        greedy=np.array(greedy),
    )


def payoff_csv(found: Sequence[Learnt]) -> str:
    """One line per run, seed and state: the choice, what it earns, and the value of each joint
    action."""
    pairs = [a + b for a in ACTIONS for b in ACTIONS]
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["algorithm", "task", "seed", "state", "choice", "reward", *pairs])
    for run in found:
        for (i, seed), (j, state) in itertools.product(enumerate(run.seeds), enumerate(run.states)):
            choice = "".join(ACTIONS[a] for a in run.greedy[i, j])
            values = [f"{v:.3f}" for v in run.values[i, j].ravel()]
            sees = "".join(str(int(x)) for x in state)
            lines.writerow(
                [run.label, run.task, seed, sees, choice, f"{run.rewards[i, j]:g}", *values]
            )
    return text.getvalue()


def payoff_markdown(found: Sequence[Learnt]) -> str:
    """How many seeds found the best joint action; and, where there is one state, the median of what
    they learnt."""
    sections = []
    for task in dict.fromkeys(run.task for run in found):
        runs = [run for run in found if run.task == task]
        lines = [
            f"## {task}",
            "",
            "| algorithm | seeds that choose the best | mean reward of the choices |",
            "|---|---|---|",
        ]
        for run in runs:
            lines.append(
                f"| {run.label} | {run.hits.sum()} of {len(run.seeds)} | {run.rewards.mean():.2f} |"
            )
        if len(runs[0].states) == 1:
            lines += ["", *_tables(runs)]
        sections.append("\n".join(lines))
    return "\n\n".join(sections) + "\n"


def _tables(runs: Sequence[Learnt]) -> list[str]:
    row = lambda numbers: " ".join(f"{x:.1f}" for x in numbers)
    rows = lambda table: " | ".join(row(numbers) for numbers in table)
    lines = [
        "The team's value of each joint action, the median over seeds; a cell holds the second agent's A, B and C.",
        "",
        "| | first agent A | B | C | paper: A | paper: B |",
        "|---|---|---|---|---|---|",
        f"| payoff | {rows(runs[0].payoff[0])} | | |",
    ]
    for run in runs:
        paper = (
            PAPER.get(run.algorithm.removesuffix("-pymarl2"))
            if run.task == "matrix/qtran"
            else None
        )
        lines.append(
            f"| {run.label} | {rows(np.median(run.values[:, 0], axis=0))} | {rows(paper or ((), ()))} |"
        )
    return lines
