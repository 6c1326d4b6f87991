"""Networks of any library."""

from collections.abc import Callable

from baal_jax.models import _flags, _pretrained
from baal_jax.models._common import model_of
from baal_jax.typing import Key, Model, PyTree, Variables


def from_functions(
    init: Callable[[Key, PyTree], PyTree] | None,
    apply: Callable[[PyTree, PyTree, Key], PyTree],
    deterministic: Callable[[PyTree, PyTree], PyTree] | None = None,
    *,
    variables: PyTree = None,
    outputs: Callable[[PyTree], PyTree] | None = None,
) -> Model:
    """A network from the functions of any library (Haiku, Equinox, your own).

    Args:
        init: ``(key, inputs [B, …]) -> params``; None where ``variables`` has them all.
        apply: ``(params, inputs [B, …], key) -> outputs [B, …, C]``, with dropout on. Training calls it with a batch;
            prediction calls it with one example at a time under ``vmap``, so that one key is one function.
        deterministic: ``(params, inputs [B, …]) -> outputs [B, …, C]``, with dropout off, for what reads the network
            in evaluation mode (``features``). Not needed for an ``apply`` that does not use its key.
        variables: pretrained params, from which every fit starts: all of them, or a part of their tree.
        outputs: what to take of what ``apply`` and ``deterministic`` return, such as ``lambda out: out["logits"]``.

    Returns:
        A :class:`~baal_jax.typing.Model`, which raises ``ValueError`` where ``variables`` do not fit the network, and
        in ``deterministic`` where ``apply`` is random and nothing else was given.

    Example:
        >>> import baal_jax as baal
        >>> def init(key, inputs):
        ...     return jax.random.normal(key, (inputs.shape[-1], 3))
        >>> def apply(params, inputs, key):
        ...     return (inputs * jax.random.bernoulli(key, 0.5, inputs.shape)) @ params
        >>> model = baal.from_functions(init, apply)
        >>> variables = model.init(jax.random.key(0), jnp.ones((1, 4)))
        >>> model.apply(variables, jnp.ones((2, 4)), jax.random.key(1)).shape
        (2, 3)
    """

    def run(variables: Variables, inputs: PyTree, key: Key, mode: _flags.Mode) -> tuple[PyTree, PyTree]:
        if mode is _flags.Mode.EVALUATE and deterministic is not None:
            return deterministic(variables.params, inputs), variables.collections
        return apply(variables.params, inputs, key), variables.collections

    def fresh(key: Key, inputs: PyTree) -> Variables:
        return Variables(variables if init is None else init(key, inputs), {})

    cure = "pass from_functions(…, deterministic=(params, inputs) -> outputs), the network with dropout off"
    start = fresh if variables is None else _pretrained.starting_from(fresh, Variables(variables, {}))
    return model_of(start, run, outputs, cure)
