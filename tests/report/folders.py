"""Run folders as training would write them, for the tests of reports."""

import json

import numpy as np

HOPPER = "mamujoco/Hopper-3x1"


def lines_of(seed, evaluations, best_team=None, **metrics):
    """Records of one seed from {env_steps: returns of its episodes}, with the same metrics at each
    evaluation."""
    lines = []
    for place, (env_steps, returns) in enumerate(evaluations.items()):
        line = {
            "seed": seed,
            "env_steps": env_steps,
            "updates": 2 * env_steps,
            "round": place,
            "wall_time": 0.5 * place,
        }
        line |= {"marl_team": returns, "training": {"critic_loss": 1.0}}
        lines.append((line if best_team is None else line | {"best_team": best_team}) | metrics)
    return lines


def battles(
    folder,
    seeds,
    *,
    rng=0,
    evaluations=6,
    population=False,
    name="qmix",
    task="smax/3m",
    **settings,
):
    """A run that wins more and more of its 32 battles: what is won returns 2, the rest 0.5."""
    generator, lines = np.random.default_rng(rng), []
    for seed in seeds:
        for place in range(1, evaluations + 1):
            won = {
                team: (generator.random(32) < place / (evaluations + 1)).astype(float).tolist()
                for team in ("marl_team", "best_team")[: 1 + population]
            }
            returns = {team: [0.5 + 1.5 * x for x in values] for team, values in won.items()}
            (line,) = lines_of(seed, {1000 * place: returns["marl_team"]}, returns.get("best_team"))
            lines.append(line | {f"{team}_won": values for team, values in won.items()})
    return write_run(folder, lines, name=name, task=task, **settings)


def write_run(folder, lines, name="matd3", task=HOPPER, **settings):
    folder.mkdir()
    config = {
        "kind": "Run",
        "algorithm": {"kind": "Matd3", **settings},
        "task_name": task,
        "seeds": 3,
    }
    (folder / "config.json").write_text(json.dumps(config | {"algorithm_name": name}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def noisy_run(folder, seeds, *, rng=0, evaluations=6, best_team=None, **about):
    """Seeds of unequal steps, with five episodes an evaluation."""
    generator = np.random.default_rng(rng)
    lines = []
    for seed in seeds:
        steps = np.cumsum(generator.integers(80, 120, evaluations)).tolist()
        lines += lines_of(
            seed, {step: generator.normal(step, 9.0, 5).tolist() for step in steps}, best_team
        )
    return write_run(folder, lines, **about)


def png_size(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
