"""The multiply-adds that an update cannot do without, counted by hand, for `bench/updates.py`.

Only matrix products count, per sample of the batch: a layer of `i` inputs and `o` outputs takes i o
to go forward, as many for the gradient of its weights, and as many for that of its inputs, where
something before it needs one.
"""

import itertools

from comarl.algorithms.matd3 import Matd3
from comarl.algorithms.race_matd3 import RaceMatd3
from comarl.types import EnvSpec

# What for -> multiply-adds of one update, the mean over updates with and without the policy's
Count = dict[str, float]


def network(*sizes: int) -> int:
    return sum(i * o for i, o in itertools.pairwise(sizes))


class Sizes:
    """Multiply-adds of whole networks going forward, for one sample; `into` is what of a critic's
    inputs wants a gradient, from its first layer."""

    def __init__(self, algorithm: Matd3 | RaceMatd3, spec: EnvSpec):
        hidden, self.actions = algorithm.hidden, spec.num_agents * spec.action_size
        self.encoders_first = spec.num_agents * spec.obs_size * hidden[0]
        self.encoders = spec.num_agents * network(spec.obs_size, *hidden)
        self.heads = hidden[-1] * self.actions
        self.value = network(spec.state_size, *hidden, 1)
        self.critic = network(spec.state_size + self.actions, *hidden, 1)
        self.upper = network(*hidden, 1)
        self.into_actions = self.actions * hidden[0]


def of_critics(pair: int, upper: int, count: int, label: str, extra: int = 0) -> Count:
    """Twin critics, or more of them; `extra` is what their first layer's gradient by its inputs
    takes."""
    return {
        f"{label}: forward": count * pair,
        f"{label}: gradient": count * (pair + upper + extra),
    }


def of_matd3(algorithm: Matd3, spec: EnvSpec) -> Count:
    """One sample's."""
    s, rare = Sizes(algorithm, spec), 1 / algorithm.policy_delay
    policy = s.encoders + s.heads
    return {
        "target policy": policy,
        "target critics": algorithm.critics * s.critic,
        **of_critics(s.critic, s.upper, algorithm.critics, "critics"),
        "policy: forward": rare * policy,
        "policy: first critic, there and back": rare * (s.critic + s.upper + s.into_actions),
        "policy: gradient": rare * (2 * policy - s.encoders_first),
    }


def of_race(algorithm: RaceMatd3, spec: EnvSpec) -> Count:
    """One sample's. What is done once a batch counts as a share of a sample."""
    s, rare, batch = Sizes(algorithm, spec), 1 / algorithm.policy_delay, algorithm.replay.batch_size
    features, chi, width, agents = (
        algorithm.hidden[-1],
        algorithm.embedding,
        algorithm.mine_width,
        spec.num_agents,
    )
    embed = s.actions * network(features + 1, chi, chi, chi) / batch
    into_chi = chi * algorithm.hidden[0]
    team = s.critic + into_chi
    branches = agents * (network(spec.state_size, width, width) + features * width)
    no_inputs = agents * spec.state_size * width
    scores = agents * batch * width
    return {
        "target policy": s.encoders + s.heads,
        "target critics": 2 * s.critic,
        **of_critics(s.critic, s.upper, 2, "critics"),
        "any team's actions": s.encoders + s.heads,
        "target team critics": 2 * (team + embed),
        **of_critics(team, s.upper, 2, "team critics", into_chi),
        "team critics: embedding, there and back": 2 * 3 * embed,
        "value: forward": s.value,
        "value: gradient": s.value + s.upper,
        "encoders and two teams: forward": rare * (s.encoders + 2 * s.heads),
        "first critics, there and back": rare
        * (s.critic + team + embed + 2 * (s.upper + s.into_actions)),
        "mutual information: forward": rare * (branches + scores + s.value),
        "mutual information: gradient": rare * (2 * (branches + scores) - no_inputs),
        "encoders and heads: gradient": rare * (2 * s.encoders - s.encoders_first + 3 * s.heads),
    }


def of_update(algorithm: Matd3 | RaceMatd3, spec: EnvSpec) -> Count:
    """One update's, in millions."""
    one = of_matd3(algorithm, spec) if isinstance(algorithm, Matd3) else of_race(algorithm, spec)
    return {what: count * algorithm.replay.batch_size / 1e6 for what, count in one.items()}
