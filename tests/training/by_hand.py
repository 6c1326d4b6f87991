"""Networks of which every step is known, and gradient descent in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from baal_jax.typing import Model, Variables


def line(start=0.5):
    """A linear function ``[D, 1]`` that counts its calls in training; in evaluation mode it is smaller."""

    def init(key, inputs):
        return Variables(jnp.full((inputs.shape[-1], 1), start), {"calls": jnp.int32(0), "mean": jnp.zeros(())})

    def train(variables, inputs, key):
        outputs, kept = inputs @ variables.params, variables.collections
        return outputs, {"calls": kept["calls"] + 1, "mean": 0.9 * kept["mean"] + 0.1 * jnp.mean(outputs)}

    return Model(init, None, train, lambda variables, inputs: 0.7 * inputs @ variables.params)


def trajectory(inputs, targets, num_steps, rate=0.1, start=0.5):
    """Weights before every step of full-batch gradient descent on half the mean squared error, and at the end."""
    inputs, targets = np.asarray(inputs, np.float64), np.asarray(targets, np.float64)
    seen = [np.broadcast_to(np.float64(start), inputs.shape[1:])]
    for _ in range(num_steps):
        seen.append(seen[-1] - rate * inputs.T @ (inputs @ seen[-1] - targets) / len(targets))
    return np.array(seen)


def weights_of(state):
    return np.asarray(state.variables.params)[:, 0]


def zeros_of(fit, *arguments):
    """What the loop passes before the first round: no state to continue from."""
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(fit, *arguments))


def diary(num_steps):
    """Writes down the gradients of every step, and moves nothing."""

    def update(gradients, state, params=None):
        number, pages = state
        pages = jax.tree.map(lambda page, leaf: page.at[number].set(leaf), pages, gradients)
        return jax.tree.map(jnp.zeros_like, gradients), (number + 1, pages)

    def init(params):
        return jnp.int32(0), jax.tree.map(lambda leaf: jnp.zeros((num_steps, *leaf.shape)), params)

    return optax.GradientTransformation(init, update)
