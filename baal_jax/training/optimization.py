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
        own = _for(self.own, params).init(params)
        return own if self.transform is None else (own, self.transform.init(params))

    def step(self, objective: Callable[[PyTree], tuple[tuple[Array, PyTree], PyTree]], state: TrainState) -> TrainState:
        """One update of ``params -> ((loss, collections), gradients)``."""
        import optax

        params = state.variables.params
        (value, collections), gradients = objective(params)
        told = {"value": value, "grad": gradients, "value_fn": lambda params: objective(params)[0][0]}
        own = _for(self.own, params)
        own = own if isinstance(own, optax.MultiSteps) else optax.with_extra_args_support(own)
        opt_state = state.opt_state if self.transform is None else state.opt_state[0]
        with jax.numpy_dtype_promotion("standard"):  # optax mixes Python floats and integer counts
            updates, opt_state = own.update(gradients, opt_state, params, **told)
            if self.transform is not None:
                behind = optax.with_extra_args_support(self.transform)
                updates, last = behind.update(updates, state.opt_state[1], params, total_steps=self.total)
                opt_state = (opt_state, last)
            params = optax.apply_updates(params, updates)
        steps = state.steps + 1
        share = jnp.maximum(1.0 / steps.astype(jnp.float32), 0.02)
        new = TrainState(Variables(params, collections), opt_state, steps, state.loss + share * (value - state.loss))
        new = averaging.cast_like(new, state)
        if isinstance(self.total, int):
            return new
        # Under vmap some fits end before others. The state of the transform, which may be large, is its own affair.
        held = jax.tree.map(lambda new, old: jnp.where(state.steps < self.total, new, old), new, state)
        return held if self.transform is None else held._replace(opt_state=(held.opt_state[0], new.opt_state[1]))

    def finish(self, state: TrainState) -> TrainState:
        """Applies what gradients are gathered still, and gives the weights to evaluate."""
        import optax

        gathers = getattr(self.own.update, "__self__", None)
        if isinstance(gathers, optax.MultiSteps):
            params, last = state.variables.params, state.opt_state if self.transform is None else state.opt_state[0]
            with jax.numpy_dtype_promotion("standard"):
                gradients = averaging.cast_like(last.acc_grads, params)
                updates, inner = gathers.inner_opt.update(gradients, last.inner_opt_state, params, value=state.loss)
                moved = optax.apply_updates(params, updates)
            rest = jax.tree.map(jnp.zeros_like, {"mini_step": last.mini_step, "acc_grads": last.acc_grads})
            done = last._replace(gradient_step=last.gradient_step + 1, inner_opt_state=inner, **rest)
            some, now = last.mini_step > 0, averaging.cast_like((moved, done), (params, last))
            params, last = jax.tree.map(lambda new, old: jnp.where(some, new, old), now, (params, last))
            opt_state = last if self.transform is None else (last, state.opt_state[1])
            state = state._replace(variables=state.variables._replace(params=params), opt_state=opt_state)
        return state._replace(variables=self.evaluated(state))

    def evaluated(self, state: TrainState) -> Variables:
        """The weights to evaluate, which a schedule-free optimizer has beside those of training."""
        from optax.contrib import ScheduleFreeState, schedule_free_eval_params

        for node in jax.tree.leaves(state.opt_state, is_leaf=lambda node: isinstance(node, ScheduleFreeState)):
            if isinstance(node, ScheduleFreeState):
                with jax.numpy_dtype_promotion("standard"):
                    params = schedule_free_eval_params(node, state.variables.params)
                return state.variables._replace(params=averaging.cast_like(params, state.variables.params))
        return state.variables


def _for(own: Any, params: PyTree) -> Any:
    """``own``; applied to means and deviations one by one where it holds a tree (labels, a mask) for the network's."""
    if not isinstance(params, dict) or {*params} != {"mean", "raw_std"}:
        return own
    try:
        jax.eval_shape(own.init, params)
    except (TypeError, ValueError):
        import optax

        def update(updates: PyTree, state: PyTree, params: Any = None, **told: Any) -> tuple[PyTree, PyTree]:
            each = optax.with_extra_args_support(own).update
            parts = {name: each(updates[name], state[name], params[name], **told) for name in params}
            return {name: part[0] for name, part in parts.items()}, {name: part[1] for name, part in parts.items()}

        init = lambda params: {name: own.init(part) for name, part in params.items()}  # noqa: E731
        return optax.GradientTransformationExtraArgs(init, update)
    return own
