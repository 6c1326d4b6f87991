"""Networks of any module system as four pure functions, :class:`~baal_jax.typing.Model`.

The only folder that knows flax. No network has to be edited, whatever its training flag is called. In prediction
dropout is on, normalisation rests, and one key is one function. In evaluation mode, dropout is off and needs no key.
"""

from baal_jax.models._common import from_functions, require_stochastic, sown_losses
from baal_jax.models._linen import from_linen
from baal_jax.models._nnx import from_nnx
from baal_jax.models._pretrained import frozen

__all__ = ["from_functions", "from_linen", "from_nnx", "frozen", "require_stochastic", "sown_losses"]
