"""How informative a label would be: array functions from logits ``[S, N, …, C]`` to scores ``[N, …]``.

Contract: unnormalised log-probabilities in (log-probabilities are logits too), higher is more informative out, in nats
where the score is information. Everything is jitted, vmaps, and is differentiable where the mathematics is. What is not
one array of at least three axes and two classes is refused with a ``ValueError`` that names the cure, and so are draws,
weights and options that do not fit, noise that is not positive and, for means and log-variances, an odd last axis.
"""

from collections.abc import Callable

from jax import Array

from baal_jax.heuristics import _compose
from baal_jax.heuristics._compose import binary_logits, combine, from_baal_layout, multi_label, reduce_spatial
from baal_jax.heuristics._gaussian import gaussian_bald, gaussian_epig, gaussian_uncertainty
from baal_jax.heuristics._information import Uncertainty, bald, entropy, epig, expected_entropy, uncertainty
from baal_jax.heuristics._uncertainty import least_confidence, margin, mean_std, variance, variation_ratio

_OF_CLASSES = (bald, entropy, expected_entropy, least_confidence, margin, mean_std, variation_ratio)

REGISTRY: dict[str, Callable[..., Array]] = {known.__name__: known for known in _OF_CLASSES} | {"variance": variance}
"""Name → heuristic ``logits -> scores``, for scripts and conformance suites."""


def tasks_of(score_fn: Callable[..., Array]) -> tuple[str, ...] | None:
    """Names of the tasks (:mod:`baal_jax.training.tasks`) whose outputs a heuristic reads; None if not known."""
    if isinstance(score_fn, _compose.MultiLabel):
        return ("multi_label",)
    if score_fn is gaussian_bald or score_fn is gaussian_epig:
        return ("gaussian_regression",)
    return ("classification",) if any(score_fn is known for known in (*_OF_CLASSES, epig)) else None


__all__ = ["REGISTRY", "Uncertainty", "bald", "binary_logits", "combine", "entropy", "epig", "expected_entropy",
           "from_baal_layout", "gaussian_bald", "gaussian_epig", "gaussian_uncertainty", "least_confidence",
           "margin", "mean_std", "multi_label", "reduce_spatial", "tasks_of", "uncertainty", "variance",
           "variation_ratio"]  # fmt: skip
