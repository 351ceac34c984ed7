"""A replay says what a batch is, and an algorithm refuses one of the wrong kind."""

import pytest

from comarl.algorithms.matd3 import Matd3
from comarl.algorithms.qmix import Qmix
from comarl.replay.episodes import EpisodeRing
from comarl.replay.transitions import NoReplay, Ring
from comarl.types import Episode, Replay, Transition


@pytest.mark.parametrize(
    ("replay", "batch"), [(Ring(), Transition), (EpisodeRing(), Episode), (NoReplay(), tuple)]
)
def test_every_replay_says_what_it_draws(replay, batch):
    assert isinstance(replay, Replay) and replay.batch is batch


@pytest.mark.parametrize(
    ("kind", "wrong", "right"),
    [(Qmix, Ring(100, 16), "EpisodeRing"), (Matd3, EpisodeRing(100, 16), "Ring")],
)
def test_a_replay_of_the_other_kind_is_refused_in_one_sentence_that_names_the_field(
    kind, wrong, right
):
    with pytest.raises(ValueError) as error:
        kind(replay=wrong)
    message = str(error.value)
    assert message.startswith("replay=") and message.endswith(f"must be: {right}")
    assert f" of {kind.__name__} " in message and "\n" not in message
