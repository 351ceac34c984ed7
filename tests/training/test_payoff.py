"""What a run on a matrix game writes of what it has learnt."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.algorithms.facmac import Facmac
from comarl.algorithms.merl import Merl
from comarl.algorithms.qmix import Qmix
from comarl.envs import find_task
from comarl.envs.matrix import GAMES
from comarl.replay.episodes import EpisodeRing
from comarl.runs.payoff import ACTIONS, JOINT_ACTIONS, read_payoff
from comarl.training.payoff import write
from comarl.training.settings import Run
from comarl.training.train import start

QMIX = Qmix(hidden=4, mixer_width=3, hypernet=3, replay=EpisodeRing(20, 4))


@pytest.mark.parametrize("name", ["qtran", "two-states"])
def test_every_seed_and_state_has_a_choice_what_it_earns_and_a_table(tmp_path, name):
    game = GAMES[name]
    run = Run(QMIX, game, seeds=3, first_seed=2)
    assert write(tmp_path, run, start(run)) == tmp_path / "payoff.csv"
    lines = read_payoff(tmp_path)
    states = ["11"] if len(game.payoff) == 1 else ["00", "01", "10", "11"]
    assert [(x.seed, x.state) for x in lines] == [(s, bits) for s in (2, 3, 4) for bits in states]
    for line in lines:
        table = game.payoff[sum(map(int, line.state)) % len(game.payoff)]
        row, column = map(ACTIONS.index, line.choice)
        assert line.reward == table[row][column]
        # QMIX's greedy joint action is the best of its own table
        values = dict(zip(JOINT_ACTIONS, line.values, strict=True))
        assert values[line.choice] == max(values.values())
    assert len({line.values for line in lines}) == len(lines), "seeds and states differ"


def test_the_file_is_the_same_wherever_the_seeds_are(tmp_path):
    run = Run(QMIX, GAMES["qtran"], seeds=2)
    state = start(run)
    write(tmp_path, run, state)
    here = (tmp_path / "payoff.csv").read_bytes()
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("seeds",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("seeds"))
    write(tmp_path, run, state._replace(agent=jax.device_put(state.agent, spread)))
    assert (tmp_path / "payoff.csv").read_bytes() == here


def test_an_algorithm_without_values_of_joint_actions_has_its_choices_alone(tmp_path):
    base = Facmac(hidden=4, mixer_width=3, replay=EpisodeRing(20, 4))
    run = Run(Merl(base), GAMES["qtran"])
    write(tmp_path, run, start(run))
    (line,) = read_payoff(tmp_path)
    assert line.values == () and line.choice in JOINT_ACTIONS


def test_the_choice_of_a_population_is_that_of_the_team_that_stands_for_it(tmp_path):
    base = Facmac(hidden=4, mixer_width=3, replay=EpisodeRing(20, 4))
    algorithm, game = Merl(base), GAMES["qtran"]
    run = Run(algorithm, game, seeds=8)
    state = start(run)
    write(tmp_path, run, state)
    _, seen = game.reset(jax.random.key(0))

    def greedy(agent, clock):
        team = algorithm.num_teams - 1
        memory = algorithm.initial_memory(agent, seen, jax.random.key(0))
        return algorithm.act(agent, team, memory, seen, clock, jax.random.key(0), explore=False)[1]

    clock = jax.tree.map(lambda _: jnp.int32(0), state.clock)
    actions = jax.vmap(greedy, (0, None))(state.agent, clock).tolist()
    choices = [ACTIONS[a] + ACTIONS[b] for a, b in actions]
    assert [line.choice for line in read_payoff(tmp_path)] == choices


def test_nothing_is_written_of_another_task(tmp_path):
    run = Run(QMIX, find_task("predator-prey/small"))
    assert write(tmp_path, run, start(run)) is None
    assert not list(tmp_path.iterdir())
