# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Statistics against published values."""

import math

import numpy as np
import pytest

from vla_prune_ros.evaluation.statistics import (
    Interval,
    PairedComparison,
    mcnemar_exact,
    percentiles,
    wilson_interval,
)


@pytest.mark.parametrize(
    ('successes', 'n', 'low', 'high'),
    [  # Newcombe, Stat. Med. 17:857 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_equals_newcombes_table(successes, n, low, high):
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_is_symmetric_in_success_and_failure():
    low, high = wilson_interval(37, 40)
    assert (1 - high, 1 - low) == pytest.approx(wilson_interval(3, 40))


def test_wilson_interval_at_certainty_ends_exactly_at_one_and_without_data_says_nothing():
    assert wilson_interval(50, 50).high == 1.0
    assert wilson_interval(50, 50).low == pytest.approx(50 / (50 + 1.959964**2), abs=1e-6)
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_wilson_interval_solves_the_score_equation():
    for end in wilson_interval(17, 60, confidence=0.9):
        assert abs(17 / 60 - end) / math.sqrt(end * (1 - end) / 60) == pytest.approx(1.644854)


@pytest.mark.parametrize('bad', [(3, 2), (-1, 2)])
def test_impossible_counts_are_refused(bad):
    with pytest.raises(ValueError, match='successes'):
        wilson_interval(*bad)
    with pytest.raises(ValueError, match='confidence'):
        wilson_interval(1, 2, confidence=95)
    with pytest.raises(ValueError, match='negative'):
        mcnemar_exact(-1, 2)


def test_mcnemar_equals_statsmodels_documented_example():
    # statsmodels user guide, contingency tables: [[101, 121], [59, 33]], exact binomial
    assert mcnemar_exact(121, 59) == pytest.approx(4.434e-06, rel=2e-4)


def test_mcnemar_equals_the_binomial_sum_by_hand_and_is_symmetric():
    assert mcnemar_exact(2, 12) == pytest.approx(2 * (1 + 14 + 91) / 2**14)
    assert mcnemar_exact(12, 2) == mcnemar_exact(2, 12)
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(4, 4) == 1.0


@pytest.mark.parametrize(
    ('table', 'low', 'high'),
    [  # Newcombe, Stat. Med. 17:2635 (1998), method 10
        ((36, 12, 2, 0), 0.0569, 0.3404),
        ((36, 14, 0, 0), 0.1528, 0.4167),
        ((36, 0, 0, 14), -0.0491, 0.0491),
        ((54, 0, 0, 0), -0.0664, 0.0664),
    ],
)
def test_paired_interval_equals_newcombes_method_10(table, low, high):
    assert PairedComparison(*table).interval() == pytest.approx((low, high), abs=5e-5)


def test_paired_comparison_counts_outcomes_in_both_directions():
    pairs = [(True, True)] * 5 + [(True, False)] * 3 + [(False, True)] + [(False, False)] * 2
    result = PairedComparison.from_outcomes(pairs)
    assert (result.both, result.only_first, result.only_second, result.neither) == (5, 3, 1, 2)
    assert result.difference == pytest.approx(2 / 11)
    assert result.p_value == pytest.approx(0.625)
    assert PairedComparison.from_outcomes([]).interval() == Interval(-1.0, 1.0)


def test_percentiles_interpolate_and_survive_no_samples():
    result = percentiles([4.0, 1.0, 3.0, 2.0], levels=(50, 95))
    assert result == {'n': 4, 'mean': 2.5, 'p50': 2.5, 'p95': pytest.approx(3.85)}
    assert result['p95'] == pytest.approx(np.percentile([1, 2, 3, 4], 95))
    assert percentiles([], levels=(50,)) == {'n': 0, 'mean': None, 'p50': None}
