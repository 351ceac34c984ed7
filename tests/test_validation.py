"""Wrong settings: whoever sets them in Python is told which, what it was, and what would be
right."""

import dataclasses
from typing import Any, Literal, get_origin

import pytest

from comarl.algorithms import ALGORITHMS
from comarl.algorithms.dop import Dop
from comarl.algorithms.lsf_sac import LsfSac, Temperature
from comarl.algorithms.msac import Msac
from comarl.algorithms.qmix import Qmix
from comarl.algorithms.vm3_ac import Vm3Ac
from comarl.algorithms.wqmix import Wqmix
from comarl.envs.waves import Waves
from comarl.evolution.population import HeadBreeding, NetworkBreeding
from comarl.ops.exploration import Epsilon
from comarl.ops.learner import Adam, RmsProp
from comarl.replay.episodes import EpisodeRing
from comarl.replay.pace import EpisodePace, StepPace
from comarl.replay.transitions import Ring
from tests.data import changed

ALL = {type(entry.algorithm): entry.algorithm for entry in ALGORITHMS.values()}


def fields(kind) -> list[tuple[Any, str]]:
    """Every field of every algorithm whose type `kind` accepts."""
    return [
        (a, field.name) for a in ALL.values() for field in dataclasses.fields(a) if kind(field.type)
    ]


def named(case: Any) -> str:
    return case if isinstance(case, str) else type(case).__name__


@pytest.mark.parametrize(
    ("algorithm", "name"), fields(lambda kind: get_origin(kind) is Literal), ids=named
)
def test_a_choice_that_there_is_not_is_refused_by_its_field(algorithm, name):
    with pytest.raises(
        ValueError,
        match=rf"{name}='sideways' of {type(algorithm).__name__} is no choice; it can be",
    ):
        changed(algorithm, **{name: "sideways"})


@pytest.mark.parametrize(
    ("algorithm", "name"), fields(lambda kind: kind == tuple[int, ...]), ids=named
)
def test_a_layer_of_no_width_is_refused_by_its_field(algorithm, name):
    with pytest.raises(
        ValueError, match=rf"{name}=\(64, 0\) of {type(algorithm).__name__} must be 1 or more"
    ):
        dataclasses.replace(algorithm, **{name: (64, 0)})


@pytest.mark.parametrize(
    ("settings", "name", "wrong", "words"),
    [
        (Qmix(), "double", 1, "double of Qmix must be a bool, not 1"),
        (Qmix(), "hidden", True, "hidden of Qmix must be an int, not True"),
        (Qmix(), "gamma", True, "gamma of Qmix must be a float, not True"),
        (EpisodeRing(8, 8), "recent", True, "recent of EpisodeRing must be an int, not True"),
        (Ring(8, 8), "capacity", 1e6, "capacity of Ring must be an int, not 1000000.0"),
        (StepPace(), "warmup_steps", 1e4, "warmup_steps of StepPace must be an int, not 10000.0"),
        (EpisodePace(), "parallel_envs", 2.0, "parallel_envs of EpisodePace must be an int"),
        (Epsilon(), "steps", 5e4, "steps of Epsilon must be an int, not 50000.0"),
        (HeadBreeding(), "injection", 0, "injection of HeadBreeding must be a bool, not 0"),
        (NetworkBreeding(), "population", 5.0, "population of NetworkBreeding must be an int"),
        (Adam(), "epsilon", False, "epsilon of Adam must be a float, not False"),
        (RmsProp(), "decay", True, "decay of RmsProp must be a float, not True"),
    ],
    ids=named,
)
def test_a_number_of_the_wrong_type_is_refused_by_its_field(settings, name, wrong, words):
    with pytest.raises(ValueError) as error:
        changed(settings, **{name: wrong})
    assert words in str(error.value)


def test_a_whole_number_may_stand_for_a_float():
    assert changed(Qmix(), gamma=1).gamma == 1
    assert changed(Adam(), learning_rate=1).learning_rate == 1


def test_an_optimiser_that_is_none_is_refused_with_both_that_there_are():
    with pytest.raises(ValueError) as error:
        changed(Qmix(), optimiser=1e-3)
    assert str(error.value) == "optimiser of Qmix must be an Adam or RmsProp, not 0.001"


def test_a_share_of_random_actions_above_1_is_refused():
    with pytest.raises(ValueError, match=r"first=2.0 of Epsilon must be between 0 and 1"):
        Epsilon(first=2.0)


@pytest.mark.parametrize(
    ("algorithm", "name"), fields(lambda kind: kind in (Ring, EpisodeRing)), ids=named
)
def test_a_replay_of_the_wrong_kind_is_refused_in_one_sentence(algorithm, name):
    """It draws what the algorithm does not learn from: transitions, or episodes."""
    replay = getattr(algorithm, name)
    wrong = EpisodeRing(8, 8) if isinstance(replay, Ring) else Ring(8, 8)
    with pytest.raises(ValueError) as error:
        changed(algorithm, **{name: wrong})
    kind = "a Ring" if isinstance(replay, Ring) else "an EpisodeRing"
    whose = f"{name} of {type(algorithm).__name__}"
    assert str(error.value) == f"{whose} must be {kind}, not {wrong!r}"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: changed(Wqmix(), weighting="centrally"),
            "weighting='centrally' of Wqmix is no choice; did you mean 'central'?",
        ),
        (
            lambda: changed(Waves(), growth="linaer"),
            "growth='linaer' of Waves is no choice; did you mean 'linear'?",
        ),
        (
            lambda: changed(EpisodeRing(8, 8), storage="hlaf"),
            "storage='hlaf' of EpisodeRing is no choice; did you mean 'half'?",
        ),
        (
            lambda: LsfSac(logit_clamp=(2.0, -5.0)),
            "logit_clamp=(2.0, -5.0) of LsfSac must begin below where it ends",
        ),
        (
            lambda: Msac(logit_range=(2.0, 2.0)),
            "logit_range=(2.0, 2.0) of Msac must begin below where it ends",
        ),
        (
            lambda: Vm3Ac(log_std_range=(2.0, -5.0)),
            "log_std_range=(2.0, -5.0) of Vm3Ac must begin below",
        ),
        (
            lambda: Dop(critic_hidden=()),
            "critic_hidden=() of Dop must name one hidden layer at least",
        ),
        (
            lambda: Temperature(alpha=0.3),
            "alpha=0.3 of Temperature counts only with mode='fixed', not 'schedule'",
        ),
    ],
)
def test_a_mistake_is_answered_with_what_would_be_right(make, words):
    with pytest.raises(ValueError) as error:
        make()
    assert words in str(error.value)


def test_what_is_allowed_to_be_absent_may_be():
    assert LsfSac(logit_clamp=None).logit_clamp is None
    assert Temperature("fixed", alpha=0.3).alpha == 0.3
