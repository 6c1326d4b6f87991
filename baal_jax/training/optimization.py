"""Steps of any optax transformation, with what some of them ask for beyond a gradient."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from baal_jax.training import averaging
from baal_jax.typing import Array, PyTree, TrainState, Variables


class Optimizer(NamedTuple):
    """An optimizer for one fit.

    Attributes:
        given: an optax transformation, or a function of the number of steps that makes one.
        transform: chained behind it, or None; its ``update`` is told ``total_steps``.
        total: number of steps, ``int`` or ``int32[]``.
    """

    given: Any
    transform: Any
    total: Array | int

    @property
    def own(self) -> Any:
        """The optimizer that was asked for."""
        return self.given if hasattr(self.given, "update") else self.given(self.total)

    def init(self, params: PyTree) -> PyTree:
        """State before the first step, in a pair with that of the transform."""
        own = self.own.init(params)
        return own if self.transform is None else (own, self.transform.init(params))

    def step(self, objective: Callable[[PyTree], tuple[tuple[Array, PyTree], PyTree]], state: TrainState) -> TrainState:
        """One update of ``params -> ((loss, collections), gradients)``."""
        import optax

        params = state.variables.params
        (value, collections), gradients = objective(params)
        told = {"value": value, "grad": gradients, "value_fn": lambda params: objective(params)[0][0]}
        own = self.own if isinstance(self.own, optax.MultiSteps) else optax.with_extra_args_support(self.own)
        opt_state = state.opt_state if self.transform is None else state.opt_state[0]
        with jax.numpy_dtype_promotion("standard"):  # optax mixes Python floats and integer counts
            updates, opt_state = own.update(gradients, opt_state, params, **told)
            if self.transform is not None:
                last = state.opt_state[1]
                behind = optax.with_extra_args_support(self.transform)
                updates, last = behind.update(updates, last, params, total_steps=self.total)
                opt_state = (opt_state, last)
            params = optax.apply_updates(params, updates)
        steps = state.steps + 1
        share = jnp.maximum(1.0 / steps.astype(jnp.float32), 0.02)
        new = TrainState(Variables(params, collections), opt_state, steps, state.loss + share * (value - state.loss))
        return averaging.cast_like(new, state)

    def finish(self, state: TrainState) -> TrainState:
        """Applies what gradients are gathered still, and gives the weights to evaluate."""
        import optax

        own = self.own
        gathers = own if isinstance(own, optax.MultiSteps) else getattr(own.update, "__self__", None)
        if isinstance(gathers, optax.MultiSteps):
            mean = gathers._use_grad_mean

            def one(carry: tuple[PyTree, Any]) -> tuple[PyTree, Any]:
                params, left = carry
                # The mean of what there is, again and again, leaves that mean; a sum is left by zeros.
                gradients = left.acc_grads if mean else jax.tree.map(jnp.zeros_like, left.acc_grads)
                updates, left = gathers.update(gradients, left, params)
                return averaging.cast_like((optax.apply_updates(params, updates), left), carry)

            first = state.opt_state if self.transform is None else state.opt_state[0]
            with jax.numpy_dtype_promotion("standard"):
                params, last = jax.lax.while_loop(
                    lambda carry: carry[1].mini_step > 0, one, (state.variables.params, first)
                )
            opt_state = last if self.transform is None else (last, state.opt_state[1])
            state = state._replace(variables=state.variables._replace(params=params), opt_state=opt_state)
        return state._replace(variables=self.evaluated(state))

    def evaluated(self, state: TrainState) -> Variables:
        """The weights to evaluate, which a schedule-free optimizer has beside those of training."""
        from optax.contrib import ScheduleFreeState, schedule_free_eval_params

        nodes = jax.tree.leaves(state.opt_state, is_leaf=lambda node: isinstance(node, ScheduleFreeState))
        for node in nodes:
            if isinstance(node, ScheduleFreeState):
                with jax.numpy_dtype_promotion("standard"):
                    params = schedule_free_eval_params(node, state.variables.params)
                return state.variables._replace(params=averaging.cast_like(params, state.variables.params))
        return state.variables
