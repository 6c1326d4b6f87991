"""What is special to rankings: ties, scores of −∞, and classes that are absent or alone."""

import jax
import numpy as np
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from baal_jax import metrics
from tests.fixtures import make_logits
from tests.oracles import metrics as oracle

cases = st.tuples(st.sampled_from([-np.inf, -3.0, -1.0, -0.5, 0.0]), st.sampled_from([-1, 0, 1]))


@jax.jit
def rankings(log_probs, targets):
    functions = (metrics.auroc, metrics.average_precision)
    return [[metric(log_probs, targets, average=average) for average in (None, "macro")] for metric in functions]


# In the example an unknown score equals the last known one, whose run it must not join.
@given(st.lists(cases, min_size=12, max_size=12))
@example([(0.0, 1), (-np.inf, 0), (-np.inf, -1), (-0.5, 0)] * 3)
@settings(phases=[Phase.explicit, Phase.generate])  # shrinking takes its time
def test_rankings_of_any_scores_equal_scikit_learn(cases):
    log_probs = np.array([[score, -1.0] for score, _ in cases], np.float32)
    targets = np.array([target for _, target in cases], np.int32)
    (auroc, _), (precise, _) = rankings(log_probs, targets)
    np.testing.assert_allclose(auroc, oracle.auroc(log_probs, targets), rtol=1e-6)
    np.testing.assert_allclose(precise, oracle.average_precision(log_probs, targets), rtol=1e-5)


def test_a_class_that_is_absent_or_alone_is_in_no_average():
    # Case 52.
    rng = np.random.default_rng(0)
    log_probs, two = make_logits((12, 4)) - 4, rng.integers(-1, 2, 12).astype(np.int32)
    one = np.where(two >= 0, 1, -1).astype(np.int32)
    for targets, nan_auroc, nan_precision in ((two, (0, 0, 1, 1), (0, 0, 1, 1)), (one, (1, 1, 1, 1), (1, 0, 1, 1))):
        for (each, mean), nan in zip(
            jax.device_get(rankings(log_probs, targets)), (nan_auroc, nan_precision), strict=True
        ):
            np.testing.assert_array_equal(np.isnan(each), nan)
            expected = np.nan if all(nan) else np.mean(each[np.array(nan) == 0])
            np.testing.assert_allclose(mean, expected, rtol=1e-6)
