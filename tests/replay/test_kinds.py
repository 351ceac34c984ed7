"""A replay says what a batch is. That algorithms refuse the wrong kind is in test_validation.py."""

import pytest

from comarl.replay.episodes import EpisodeRing
from comarl.replay.transitions import NoReplay, Ring
from comarl.types import Episode, Replay, Transition


@pytest.mark.parametrize(
    ("replay", "batch"), [(Ring(), Transition), (EpisodeRing(), Episode), (NoReplay(), tuple)]
)
def test_every_replay_says_what_it_draws(replay, batch):
    assert isinstance(replay, Replay) and replay.batch is batch
