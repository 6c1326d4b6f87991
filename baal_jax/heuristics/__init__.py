"""How informative a label would be: array functions from logits ``[S, N, …, C]`` to scores ``[N, …]``.

Contract: unnormalised log-probabilities in (log-probabilities are logits too), higher is more informative out, in nats
where the score is information. Everything is jitted, vmaps, and is differentiable where the mathematics is. What is not
one array of at least three axes and two classes is refused with a ``ValueError`` that names the cure.
"""

from collections.abc import Callable

from jax import Array

from baal_jax.heuristics._compose import binary_logits, combine, from_baal_layout, reduce_spatial
from baal_jax.heuristics._gaussian import gaussian_bald, gaussian_epig, gaussian_uncertainty
from baal_jax.heuristics._information import Uncertainty, bald, entropy, epig, expected_entropy, uncertainty
from baal_jax.heuristics._uncertainty import least_confidence, margin, mean_std, variance, variation_ratio

REGISTRY: dict[str, Callable[..., Array]] = {
    "bald": bald,
    "entropy": entropy,
    "expected_entropy": expected_entropy,
    "least_confidence": least_confidence,
    "margin": margin,
    "mean_std": mean_std,
    "variance": variance,
    "variation_ratio": variation_ratio,
}
"""Name → heuristic ``logits -> scores``, for scripts and conformance suites."""

__all__ = [
    "REGISTRY",
    "Uncertainty",
    "bald",
    "binary_logits",
    "combine",
    "entropy",
    "epig",
    "expected_entropy",
    "from_baal_layout",
    "gaussian_bald",
    "gaussian_epig",
    "gaussian_uncertainty",
    "least_confidence",
    "margin",
    "mean_std",
    "reduce_spatial",
    "uncertainty",
    "variance",
    "variation_ratio",
]
