"""FOP's equations in float64 NumPy, for whole batches; the discrete VM3-AC has them, too."""

import numpy as np

from tests.nn import reference_duplex


def log(pi):
    """0 where there is no chance."""
    return np.log(np.where(pi > 0, pi, 1.0))


class Written:
    """pi, Q_i and Q_tot, at one temperature and one share of random actions."""

    def __init__(self, reference, alpha, epsilon):
        self.reference, self.alpha, self.epsilon = reference, alpha, epsilon

    def policies(self, algorithm, logits, batch):
        available = (
            np.asarray(batch.timesteps.available)
            | ~np.asarray(batch.timesteps.available).any(-1)[..., None]
        )
        pi = np.where(available, np.exp(logits), 0.0)
        pi /= pi.sum(-1, keepdims=True)
        if algorithm.epsilon_in_policy:
            pi = (1 - self.epsilon) * pi + self.epsilon * available / available.sum(
                -1, keepdims=True
            )
        return pi

    def utilities(self, critic, obs):
        agents = obs.shape[-2]
        identity = np.broadcast_to(np.eye(agents), (*obs.shape[:-1], agents))
        x = np.concatenate([obs, identity], axis=-1)
        return self.reference.mlp(critic.utility, x, self.reference.relu)

    def q_tot(self, algorithm, critic, before, batch, steps, action, bonus=0.0):
        """What passes no gradient comes from `before`. A `bonus` on actions counts in soft
        values."""
        t = batch.timesteps
        pick = lambda q: np.take_along_axis(q, np.asarray(action)[..., None], -1)[..., 0]
        obs = np.asarray(t.obs[:, steps], np.float64)
        state = np.asarray(t.state[:, steps], np.float64)
        q, stopped = self.utilities(critic, obs), self.utilities(before, obs)
        counts = (
            np.ones(q.shape, bool)
            if algorithm.value_of_unavailable
            else np.asarray(t.available[:, steps])
        )
        sums = np.where(counts, np.exp((stopped + bonus) / self.alpha), 0.0).sum(-1)
        advantage = pick(stopped) - self.alpha * np.log(np.where(sums > 0, sums, 1.0))
        weight = reference_duplex.importance(critic.importance, state, action)
        total = self.reference.mlp(critic.value, state, self.reference.relu)[..., 0]
        for i in range(obs.shape[-2]):
            total = total + pick(q)[..., i] + (weight[..., i] - 1) * advantage[..., i]
        return total
