"""Features of examples, read off a model that knows nothing of it: ``(state, inputs [B, …]) -> [B, D]``.

What selections from features read (``selection.k_center``, ``selection.badge`` …) is any such function, given to the
loop as ``features=``. Those of a network are :func:`last_hidden`, what its last weight layer reads;
:func:`last_layer_gradient`, the gradients of that layer; :func:`gradient`, that of everything, sketched: of the weights
of a fit, not of a draw. Embeddings of your own are ``lambda state, inputs: inputs["embedding"]``; :func:`encode` makes
them once, with any network. A network is refused with a ``ValueError`` when it is traced, if it stays random, has no
weight layer outside of loops and branches (for :func:`head`, one that is a matrix) or outputs of another shape.
"""

from baal_jax.features._encode import encode
from baal_jax.features._gradient import gradient
from baal_jax.features._last_layer import Head, head, hidden_and_outputs, last_hidden, last_layer_gradient

__all__ = ["Head", "encode", "gradient", "head", "hidden_and_outputs", "last_hidden", "last_layer_gradient"]
