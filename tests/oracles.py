"""The networks' equations, written again in plain NumPy."""

import jax
import numpy as np


class Reference:
    """The networks' equations in float64 NumPy, agent by agent and column by column.

    They read the parameters of the library's modules, and call none of its functions.
    """

    @staticmethod
    def doubles(tree):
        """The same tree with float64 NumPy leaves."""
        return jax.tree.map(lambda x: np.array(x, np.float64), tree)

    @staticmethod
    def part(stack, index: int):
        return jax.tree.map(lambda x: x[index], stack)

    @staticmethod
    def leaky_relu(x):
        return np.where(x > 0, x, 0.01 * x)

    @staticmethod
    def layer_norm(norm, x):
        mean, std = x.mean(-1, keepdims=True), x.std(-1, ddof=1, keepdims=True)
        return norm.scale * (x - mean) / (std + 1e-6) + norm.offset

    @staticmethod
    def torso(torso, x, activation):
        for i, layer in enumerate(torso.layers):
            x = x @ layer.weight + layer.bias
            if torso.norms:
                x = Reference.layer_norm(torso.norms[i], x)
            x = activation(x)
        return x

    @staticmethod
    def relu(x):
        return np.maximum(x, 0.0)

    @staticmethod
    def mlp(mlp, x, activation=None):
        """Leaky ReLU between layers if nothing else, nothing after the last."""
        return (
            Reference.torso(mlp.torso, x, activation or Reference.leaky_relu) @ mlp.output.weight
            + mlp.output.bias
        )

    @staticmethod
    def features(encoders, obs):
        """[agents][batch, features]"""
        agents = range(obs.shape[1])
        return [
            Reference.torso(Reference.part(encoders, i), np.float64(obs[:, i]), np.tanh)
            for i in agents
        ]

    @staticmethod
    def actions(encoders, heads, obs, spec):
        result = np.zeros((obs.shape[0], spec.num_agents, spec.action_size))
        for i, z in enumerate(Reference.features(encoders, obs)):
            for a in range(spec.action_sizes[i]):
                result[:, i, a] = np.tanh(z @ heads.weight[i, :, a] + heads.bias[i, a])
        return result

    @staticmethod
    def critic(critic, state, action):
        """[critics, batch]"""
        x = np.concatenate([state, action.reshape(len(action), -1)], axis=1)
        num_critics = critic.critics.output.bias.shape[0]
        return np.stack(
            [Reference.mlp(Reference.part(critic.critics, k), x)[:, 0] for k in range(num_critics)]
        )

    @staticmethod
    def team_embedding(embedder, heads, spec):
        columns = [
            np.append(heads.weight[i, :, a], heads.bias[i, a])
            for i in range(spec.num_agents)
            for a in range(spec.action_sizes[i])
        ]
        return sum(Reference.mlp(embedder, column) for column in columns) / len(columns)

    @staticmethod
    def team_critic(critic, state, action, heads, spec):
        """[critics, batch]"""
        values = []
        for k in range(2):
            chi = Reference.team_embedding(Reference.part(critic.embedders, k), heads, spec)
            chis = np.tile(chi, (len(state), 1))
            x = np.concatenate([state, action.reshape(len(action), -1), chis], axis=1)
            values.append(Reference.mlp(Reference.part(critic.critics, k), x)[:, 0])
        return np.stack(values)

    @staticmethod
    def histories(encoder, spec, batch, received=None):
        """z of every step of a batch of episodes: `[batch, time+1, agents, hidden]`.

        What all agents have `received`, `[batch, time+1, numbers]`, comes after what each sees.
        """
        received = np.zeros((*batch.timesteps.obs.shape[:2], 0)) if received is None else received
        obs = np.asarray(batch.timesteps.obs, np.float64)
        gru, agents = encoder.gru, spec.num_agents
        sigmoid, gates = (
            lambda x: 1 / (1 + np.exp(-x)),
            lambda m, x: [x @ m.weight[k] + m.bias[k] for k in range(3)],
        )
        h, result = np.zeros((len(obs), agents, encoder.layer.bias.shape[-1])), []
        for t in range(obs.shape[1]):
            last = np.eye(spec.action_size)[np.asarray(batch.action)[:, t - 1]] * (t > 0)
            identity = np.tile(np.eye(agents), (len(obs), 1, 1))
            messages = np.repeat(received[:, t, None], agents, axis=1)
            x = np.concatenate([obs[:, t], last, identity, messages], axis=-1)
            x = Reference.relu(x @ encoder.layer.weight + encoder.layer.bias)
            w, u = gates(gru.from_input, x), gates(gru.from_memory, h)
            r, z = sigmoid(w[0] + u[0]), sigmoid(w[1] + u[1])
            h = (1 - z) * np.tanh(w[2] + r * u[2]) + z * h
            result.append(h)
        return np.stack(result, axis=1)

    @staticmethod
    def best(logits, available):
        """The greedy actions, one-hot."""
        return np.eye(logits.shape[-1])[np.where(available, logits, -np.inf).argmax(-1)]

    @staticmethod
    def mixer(mixer, utilities, state):
        """Q_tot of `[..., agents]`."""
        if not hasattr(mixer, "width"):
            return utilities.sum(-1)
        linear = lambda layer, x: x @ layer.weight + layer.bias
        hyper = lambda m: (
            Reference.mlp(m, state, Reference.relu) if hasattr(m, "torso") else linear(m, state)
        )
        sign = np.abs if mixer.monotonic else lambda w: w
        first, x = sign(hyper(mixer.first_weights)), linear(mixer.first_bias, state)
        for i in range(utilities.shape[-1]):
            x = x + utilities[..., i, None] * first[..., i * mixer.width : (i + 1) * mixer.width]
        hidden = np.where(x > 0, x, np.expm1(np.minimum(x, 0.0)))
        return (hidden * sign(hyper(mixer.second_weights))).sum(-1) + hyper(mixer.second_bias)[
            ..., 0
        ]

    @staticmethod
    def factored_critic(critic, obs, action, state):
        """Q_tot of `[..., agents, features]`, agent by agent."""
        agents = range(obs.shape[-2])
        each = [np.concatenate([obs[..., i, :], action[..., i, :]], axis=-1) for i in agents]
        q = np.stack(
            [Reference.mlp(critic.utility, x, Reference.relu)[..., 0] for x in each], axis=-1
        )
        return Reference.mixer(critic.mixer, q, state)

    @staticmethod
    def team_factored_critic(critic, obs, action, state, heads):
        """The same where the utility sees chi_i and the mixer the sum of another chi_i over
        agents."""
        agents, actions = heads.bias.shape
        column = lambda i, a: np.append(heads.weight[i, :, a], heads.bias[i, a])
        mean = lambda embedder, i: (
            sum(Reference.mlp(embedder, column(i, a)) for a in range(actions)) / actions
        )
        wide = lambda x, like: np.broadcast_to(x, (*like.shape[:-1], len(x)))
        utilities = []
        for i in range(agents):
            o, u = obs[..., i, :], action[..., i, :]
            x = np.concatenate([wide(mean(critic.utility_embedder, i), o), o, u], axis=-1)
            utilities.append(Reference.mlp(critic.utility, x, Reference.relu)[..., 0])
        team = sum(mean(critic.mixer_embedder, i) for i in range(agents))
        return Reference.mixer(
            critic.mixer,
            np.stack(utilities, axis=-1),
            np.concatenate([state, wide(team, state)], axis=-1),
        )

    @staticmethod
    def lambda_targets(batch, next_value, gamma, td_lambda):
        """TD(lambda) episode by episode, backwards from the last step that took place; 0 after
        it."""
        result = np.zeros(batch.reward.shape)
        for b, length in enumerate(np.asarray(batch.mask).sum(1)):
            for t in reversed(range(length)):
                value = next_value[b, t]
                if t < length - 1:
                    value = (1 - td_lambda) * value + td_lambda * result[b, t + 1]
                result[b, t] = batch.reward[b, t] + (
                    0.0 if batch.terminated[b, t] else gamma * value
                )
        return result

    @staticmethod
    def masked_mean(x, mask):
        return sum(x[b, t] for b, t in np.argwhere(np.asarray(mask))) / np.sum(np.asarray(mask))

    @staticmethod
    def gumbel(key, shape):
        """`[batch, time, ...]`: each step's noise by a key of its own."""
        size, steps, *rest = shape
        noise = [jax.random.gumbel(jax.random.fold_in(key, t), (size, *rest)) for t in range(steps)]
        return np.float64(np.stack(noise, axis=1))

    @staticmethod
    def relaxed(logits, available, noise):
        """Gumbel-softmax at temperature 1, among what is available."""
        x = np.where(available, logits + noise, -np.inf)
        e = np.exp(x - np.where(available.any(-1), x.max(-1), 0.0)[..., None])
        return e / np.maximum(e.sum(-1, keepdims=True), 1e-30)

    @staticmethod
    def straight_through(logits, logits_before, available, noise):
        """What stands for a draw in a loss: it is the draw, and moves as the relaxed draw does."""
        before = Reference.relaxed(logits_before, available, noise)
        drawn = np.eye(logits.shape[-1])[before.argmax(-1)]
        return drawn + Reference.relaxed(logits, available, noise) - before

    @staticmethod
    def team_gaps(scores, mask):
        """The gap of each agent `[batch, agents]`: other live episodes are what does not belong,
        all agents of them."""
        softplus, log2, (size, _, agents) = (
            lambda x: np.logaddexp(x, 0.0),
            np.log(2.0),
            scores.shape,
        )
        result = np.zeros((size, agents))
        for m in range(size):
            others = [k for k in range(size) if k != m and mask[k]]
            if mask[m] and others:
                wrong = [softplus(scores[m, k, j]) - log2 for k in others for j in range(agents)]
                result[m] = [
                    sum(wrong) / len(wrong) - (log2 - softplus(-scores[m, m, i]))
                    for i in range(agents)
                ]
        return result

    @staticmethod
    def gaps(scores):
        """The Jensen-Shannon gap of every row, term by term."""
        rows, log2 = len(scores), np.log(2.0)
        softplus = lambda x: np.log1p(np.exp(-abs(x))) + max(x, 0.0)
        result = np.zeros(rows)
        for m in range(rows):
            others = [softplus(scores[m, k]) - log2 for k in range(rows) if k != m]
            result[m] = sum(others) / len(others) - (log2 - softplus(-scores[m, m]))
        return result

    @staticmethod
    def assert_descends(
        before, after, loss, *, entries: int = 5, seed: int = 0, atol: float = 2e-5
    ):
        """`after` is `before` after one step of `SMOOTH` down the gradient of `loss`, by central
        differences.

        `loss` takes the whole tree; `entries` random numbers of each leaf are checked.
        """
        expected, found = Reference.steps(before, after, loss, entries=entries, seed=seed)
        assert np.abs(found).max() > 1e-4, "nothing moved"
        np.testing.assert_allclose(found, expected, atol=atol, rtol=1e-3)

    @staticmethod
    def steps(before, after, loss, *, entries: int = 5, seed: int = 0):
        """Of random entries of each leaf: the step that `loss` asks for, and the step taken."""
        random = np.random.default_rng(seed)
        expected, found = [], []
        tree = Reference.doubles(before)
        for leaf, new in zip(jax.tree.leaves(tree), jax.tree.leaves(after), strict=True):
            flat = leaf.reshape(-1)  # a view: changing it changes the tree
            new = np.float64(new).reshape(-1)
            for i in random.choice(flat.size, min(entries, flat.size), replace=False):
                old, h = flat[i], 1e-5
                flat[i] = old + h
                high = loss(tree)
                flat[i] = old - h
                low = loss(tree)
                flat[i] = old
                gradient = (high - low) / (2 * h)
                expected.append(-0.1 * gradient / (abs(gradient) + 1.0))
                found.append(new[i] - old)
        return np.array(expected), np.array(found)
