"""Fitting a network to the labelled part of a data set: the trainer, what it reads, and what may change a batch.

:mod:`~baal_jax.training.tasks` knows what is learnt and looks at data, :mod:`~baal_jax.training.augmentation` changes
batches, :mod:`~baal_jax.training.semi_supervised` reads inputs without targets.
"""

from baal_jax.training import augmentation, semi_supervised, tasks
from baal_jax.training._trainer import TrainState, trainer

__all__ = ["TrainState", "augmentation", "semi_supervised", "tasks", "trainer"]
