"""The modules of `comarl.nn.duplex` again, in float64 NumPy."""

import numpy as np

from tests.oracles import Reference


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def importance(net, state, action):
    """lambda `[..., agents]`, kernel by kernel."""
    taken = np.eye(net.num_actions)[np.asarray(action)].reshape(*state.shape[:-1], -1)
    both, result = np.concatenate([state, taken], axis=-1), 0.0
    for k in range(len(net.keys.output.bias)):
        keys, agents, actions = (
            Reference.part(part, k) for part in (net.keys, net.agents, net.actions)
        )
        key = np.abs(Reference.mlp(keys, state, Reference.relu)) + 1e-10
        result += (
            key
            * sigmoid(Reference.mlp(agents, state, Reference.relu))
            * sigmoid(Reference.mlp(actions, both, Reference.relu))
        )
    return result


def positive(net, state):
    """w, b and no logits."""
    return (
        np.abs(Reference.mlp(net.weight, state, Reference.relu)) + 1e-10,
        Reference.mlp(net.bias, state, Reference.relu),
        0.0,
    )


def attention(net, utilities, obs, state):
    """w, b and the squared logits, head by head and agent by agent."""
    agents, (heads, _, width) = utilities.shape[-1], net.keys.shape
    weight, squares = np.zeros(utilities.shape), 0.0
    for h in range(heads):
        query = (
            Reference.torso(Reference.part(net.query_torsos, h), state, Reference.relu)
            @ net.queries[h]
        )
        logits = np.zeros(utilities.shape)
        for i in range(agents):
            unit = (
                state[..., i * net.unit_size : (i + 1) * net.unit_size]
                if net.unit_size
                else obs[..., i, :]
            )
            if net.nonlinear:
                unit = np.concatenate([unit, utilities[..., i : i + 1]], axis=-1)
            logits[..., i] = (unit @ net.keys[h] * query).sum(-1)
        squares = squares + (logits**2).mean(-1)
        shares = np.exp(logits / np.sqrt(width))
        shares /= shares.sum(-1, keepdims=True)
        if net.head_weights is not None:
            shares *= np.abs(Reference.mlp(net.head_weights, state, Reference.relu)[..., h, None])
        weight += shares
    return (
        weight + 1e-10,
        Reference.mlp(net.value, state, Reference.relu) / agents + 0 * utilities,
        squares,
    )
