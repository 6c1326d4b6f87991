"""Builders of :class:`~baal_jax.Posterior`: what to do with labels, what a draw is, what a draw predicts.

A new one is a file here, a name in ``REGISTRY`` where it is built from ``(model, trainer)``, by which commands know it,
and, where it needs options, a line in ``SETTINGS`` of tests/contracts/test_posteriors.py: the suite runs over it. All
are fitted, drawn from and asked alike, as the example of :func:`mc_dropout` shows. Arguments out of range are refused.
"""

from baal_jax.posteriors import kernels
from baal_jax.posteriors._adapters import ChainState, from_blackjax
from baal_jax.posteriors._bayes_by_backprop import VariationalState, bayes_by_backprop, bayesian_layers
from baal_jax.posteriors._deep_ensemble import EnsembleState, deep_ensemble
from baal_jax.posteriors._dropout_gp import DropoutGPState, dropout_gp
from baal_jax.posteriors._epinet import EpinetState, epinet
from baal_jax.posteriors._gaussian_process import GaussianProcessState, gaussian_process, gaussian_process_moments
from baal_jax.posteriors._laplace import LaplaceState, Moments, laplace, laplace_moments, probit
from baal_jax.posteriors._logistic_regression import LogisticState, logistic_regression
from baal_jax.posteriors._mc_dropout import mc_dropconnect, mc_dropout
from baal_jax.posteriors._swag import SwagMoments, SwagState, swag

_BUILDERS = (bayes_by_backprop, deep_ensemble, dropout_gp, epinet, laplace, mc_dropconnect, mc_dropout, swag)

REGISTRY = {builder.__name__: builder for builder in _BUILDERS}
"""Name → builder ``(model, trainer) -> Posterior``."""

__all__ = ["REGISTRY", "ChainState", "DropoutGPState", "EnsembleState", "EpinetState", "GaussianProcessState",
           "LaplaceState", "LogisticState", "Moments", "SwagMoments", "SwagState", "VariationalState",
           "bayes_by_backprop", "bayesian_layers", "deep_ensemble", "dropout_gp", "epinet", "from_blackjax",
           "gaussian_process", "gaussian_process_moments", "kernels", "laplace", "laplace_moments",
           "logistic_regression", "mc_dropconnect", "mc_dropout", "probit", "swag"]  # fmt: skip
