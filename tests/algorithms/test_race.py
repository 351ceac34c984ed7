"""What both RACEs share: which parts an update has."""

import itertools

import pytest

from comarl.algorithms.race import Parts
from comarl.algorithms.race_facmac import RaceFacmac
from comarl.algorithms.race_matd3 import RaceMatd3


@pytest.mark.parametrize("race", [RaceMatd3, RaceFacmac])
def test_all_parts_take_part_but_for_what_an_ablation_takes_out(race):
    """As the paper's Figs. 5 and 8 name them."""
    cases = {
        (): Parts(True, True, True, True, True),
        (("beta", 0.0),): Parts(True, True, False, False, True),  # VFM only
        (("encoder_learns_from", "neither"),): Parts(False, False, True, True, True),  # VMM only
        (("encoder_learns_from", "marl"),): Parts(True, False, True, True, True),  # without EA
        (("encoder_learns_from", "teams"),): Parts(False, True, True, True, True),  # without MARL
        (("value_weights", False),): Parts(True, True, True, False, True),  # plain MI
        (("evolution", False),): Parts(True, False, True, True, False),
    }
    for fields, expected in cases.items():
        assert race(**dict(fields)).parts == expected, fields


@pytest.mark.parametrize("race", [RaceMatd3, RaceFacmac])
def test_the_team_critic_learns_where_a_part_that_reads_it_does(race):
    """The encoder's term of teams, or V, whose target is the better of the two critics'."""
    switches = itertools.product((True, False), ("both", "marl", "teams", "neither"), (0.0, 0.1))
    for evolution, learns_from, beta in switches:
        parts = race(evolution=evolution, encoder_learns_from=learns_from, beta=beta).parts
        assert parts.team_critic == (parts.teams or (parts.value and evolution))
        assert not parts.team_critic or evolution
