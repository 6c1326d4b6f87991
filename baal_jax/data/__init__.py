"""Data sets as arrays. Nothing above imports this; whatever a loader needs is imported where it is used."""

from baal_jax._util.sources import View
from baal_jax.data._adapters import digits, from_arrays, from_huggingface, shard
from baal_jax.data._cifar10 import cifar10
from baal_jax.data._open import Opened, open
from baal_jax.data._tfds import CIFAR10_CLASSES, class_names, from_tfds

__all__ = ["CIFAR10_CLASSES", "Opened", "View", "cifar10", "class_names", "digits", "from_arrays",
           "from_huggingface", "from_tfds", "open", "shard"]  # fmt: skip
