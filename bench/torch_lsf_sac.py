"""comarl's update of LSF-SAC in PyTorch, in two ways: what `bench/lsf_sac.py` compares with.

    "stepped"  as LSF-SAC's released code goes about it: GRUCell in a Python loop over time, one for
               the actor, one for the critic and one for its target; a step of a critic encodes and
               draws the messages, and the live one's also guesses actions from them
    "whole"    as eager PyTorch goes best: one `torch.gru` over all of time for each of the three,
               and everything else for all steps at once

Both compute the same, and the same as comarl (`bench/test_torch_lsf_sac.py`). What the two share is
written for speed: time and agents lead, so that no step copies its batch; inputs are joined once
for all unrolls, and noise is drawn at once; the mixer's weights are made once for both losses; the
actors' gradient does not pass through the critic's utilities; the target is copied by one
`_foreach_copy_`. "Stepped" thus does less than the released code, which differs in each of these
and whose target also guesses actions. Networks are built from comarl's and begin with the same
parameters; hyperparameters are comarl's. Only what LSF-SAC does by default is here: its switches
are not.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_matd3 import AdamKind, Optimiser, frozen_copy
from torch_race_facmac import (
    Batch,
    Encoder,
    Mixer,
    Mode,
    Replay,
    lambda_returns,
    linear,
    masked_mean,
    mix,
    network,
    only_available,
)

from comarl.algorithms import lsf_sac
from comarl.nn import messages, recurrent

LOG_2_PI = math.log(2 * math.pi)


class Actor(nn.Module):
    """pi, before its logits are clamped."""

    def __init__(self, source: recurrent.RecurrentNet):
        super().__init__()
        self.encoder, self.head = Encoder(source.encoder), linear(source.head)

    def whole(self, inputs: Tensor) -> Tensor:
        return self.head(self.encoder(inputs))

    def stepped(self, inputs: Tensor) -> Tensor:
        memory, logits = self.encoder.start(inputs), []
        for x in inputs.unbind():
            memory = self.encoder.step(x, memory)
            logits.append(self.head(memory).unflatten(0, x.shape[:2]))
        return torch.stack(logits)


class Messenger(nn.Module):
    """f_m and q_psi."""

    def __init__(self, source: messages.Messenger):
        super().__init__()
        self.encoder, self.head = network(source.encoder), linear(source.head)
        self.posterior, self.size = network(source.posterior), source.size

    def forward(self, inputs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Means and messages [.. senders, batch, receivers * size], and inputs with what each agent
        is told."""
        mean = self.head(self.encoder(inputs))
        sent = mean + noise
        # [.. receivers, batch, received]
        received = sent.unflatten(-1, (-1, self.size)).transpose(-4, -2).flatten(-2)
        return mean, sent, torch.cat([inputs, received], -1)


class Critic(nn.Module):
    """Q_tot. Both ways of its utilities begin with the messages."""

    def __init__(self, source: lsf_sac.Critic):
        super().__init__()
        assert source.messenger is not None
        self.messenger, self.mixer = Messenger(source.messenger), Mixer(source.mixer)
        self.encoder, self.head = Encoder(source.utility.encoder), linear(source.utility.head)

    def whole(
        self, inputs: Tensor, noise: Tensor, guess: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Utilities, means, messages, and the posterior's logits if it is to `guess`."""
        mean, sent, x = self.messenger(inputs, noise)
        logits = self.messenger.posterior(x) if guess else mean.new_empty(0)
        return self.head(self.encoder(x)), mean, sent, logits

    def stepped(self, inputs: Tensor, noise: Tensor, guess: bool) -> tuple[Tensor, ...]:
        """The same."""
        memory, steps = self.encoder.start(inputs), []
        for now, drawn in zip(inputs.unbind(), noise.unbind(), strict=True):
            mean, sent, x = self.messenger(now, drawn)
            logits = self.messenger.posterior(x) if guess else mean.new_empty(0)
            memory = self.encoder.step(x, memory)
            steps.append((self.head(memory).unflatten(0, now.shape[:2]), mean, sent, logits))
        return tuple(torch.stack(part) for part in zip(*steps, strict=True))


class TorchLsfSac:
    """LSF-SAC: actor, critic, target, optimisers and one update of all."""

    def __init__(self, algorithm: lsf_sac.LsfSac, state: Any, mode: Mode, kind: AdamKind = "fused"):
        """`state` is what `algorithm.init` made."""
        self.algorithm, self.mode, self.updates = algorithm, mode, 0
        self.actor, self.critic = (
            Actor(state.actor.value),
            Critic(lsf_sac.first_critic(state.critics.value)),
        )
        self.target_critic = frozen_copy(self.critic)
        self.online, self.targets = (
            list(self.critic.parameters()),
            list(self.target_critic.parameters()),
        )
        self.actor_optimiser = Optimiser(self.actor.parameters(), algorithm.actor_optimiser, kind)
        self.critic_optimiser = Optimiser(
            self.critic.parameters(), algorithm.critic_optimiser, kind
        )

    def step(self, replay: Replay) -> None:
        """What is timed: a draw from the replay and one update with random noise."""
        batch = replay.sample()
        steps, agents, size, _ = batch.inputs.shape
        draw = lambda steps: torch.randn(steps, agents, size, agents * self.algorithm.messages.size)
        self.update(batch, draw(steps - 1), draw(steps))

    def update(
        self, batch: Batch, noise: Tensor, target_noise: Tensor, env_steps: int = 0
    ) -> dict[str, Tensor]:
        """Standard normal noise, [time, senders, batch, receivers * size], for the critic and for
        its target."""
        alpha, std = self.alpha_at(env_steps), self.algorithm.messages.std
        logits = self.unroll(self.actor)(batch.inputs).clamp(
            *self.algorithm.logit_clamp or (-math.inf, math.inf)
        )
        best = only_available(logits.detach(), batch.available).argmax(-1)
        target = self.target(batch, best, std * target_noise)

        utilities, *messages = self.unroll(self.critic)(batch.inputs[:-1], std * noise, True)
        weights = self.critic.mixer.weights(batch.state[:-1])
        q = mix((utilities * batch.action).sum(-1), *weights)
        error = masked_mean(0.5 * (q - target).square(), batch.mask)
        message_loss = masked_mean(self.bottleneck(best[:-1], *messages), batch.mask)
        given = tuple(weight.detach() for weight in weights)
        actor_loss, entropy = self.actor_loss(batch, logits[:-1], utilities.detach(), given, alpha)

        critic_loss = error + self.algorithm.messages.weight * message_loss
        critic_loss.backward()
        actor_loss.backward()
        self.actor_optimiser.step()
        self.critic_optimiser.step()
        self.updates += 1
        if self.updates % self.algorithm.target_period == 0:
            torch._foreach_copy_(self.targets, [p.detach() for p in self.online])
        losses = {
            "critic_loss": critic_loss,
            "td_loss": error,
            "message_loss": message_loss,
            "actor_loss": actor_loss,
        }
        means = {
            "q_taken_mean": masked_mean(q, batch.mask),
            "target_value": masked_mean(target, batch.mask),
            "td_error_abs": masked_mean((q - target).abs(), batch.mask),
            "entropy": entropy,
            "temperature": torch.tensor(alpha),
            "epsilon": torch.tensor(self.epsilon_at(env_steps)),
        }
        metrics = losses | means
        return {name: value.detach() for name, value in metrics.items()}

    def unroll(self, net: Any) -> Any:
        """The way of this mode."""
        return net.stepped if self.mode == "stepped" else net.whole

    def alpha_at(self, env_steps: int) -> float:
        """The schedule's temperature."""
        settings = self.algorithm.temperature
        alpha = math.exp(settings.log_alpha - settings.fall * self.updates)
        return max(alpha, settings.floor) if env_steps > settings.floor_after else alpha

    def epsilon_at(self, env_steps: int) -> float:
        """The share of random actions, which is only recorded here."""
        epsilon = self.algorithm.epsilon
        progress = min(env_steps / epsilon.steps, 1.0)
        return epsilon.first + (epsilon.last - epsilon.first) * progress

    @torch.no_grad()
    def target(self, batch: Batch, best: Tensor, noise: Tensor) -> Tensor:
        utilities = self.unroll(self.target_critic)(batch.inputs, noise, False)[0]
        values = utilities[1:].gather(-1, best[1:].unsqueeze(-1)).squeeze(-1)
        next_value = self.target_critic.mixer(values, batch.state[1:])
        return lambda_returns(batch, next_value, self.algorithm.gamma, self.algorithm.td_lambda)

    def bottleneck(self, label: Tensor, mean: Tensor, sent: Tensor, logits: Tensor) -> Tensor:
        """L_m at each step, [time, batch]."""
        guess = (
            F.cross_entropy(logits.flatten(0, 2), label.flatten(), reduction="none")
            .view_as(label)
            .sum(1)
        )
        kl = 0.5 * mean.square().sum((1, 3))
        cross_entropy = 0.5 * (sent.square() + LOG_2_PI).sum((1, 3))
        return (
            guess
            + self.algorithm.messages.kl_weight * kl
            + self.algorithm.messages.entropy_weight * cross_entropy
        )

    def actor_loss(
        self,
        batch: Batch,
        logits: Tensor,
        utilities: Tensor,
        weights: tuple[Tensor, ...],
        alpha: float,
    ) -> tuple[Tensor, Tensor]:
        """Of all but the policies' logits as they are; also the policies' entropy."""
        log_policy = only_available(logits, batch.available[:-1]).log_softmax(-1)
        policy = log_policy.exp()
        q = mix((policy * (utilities - alpha * log_policy)).sum(-1), *weights)
        entropy = -(policy.detach() * log_policy.detach()).sum(-1).mean(1)
        return masked_mean(-q, batch.mask), masked_mean(entropy, batch.mask)
