"""The statistics of edgemed-bench: published tables, exact promises, and intervals that hold the truth."""

import math
import random
from statistics import fmean
from typing import Literal

import pytest
from edgemed_benchmarks import calibration, paired_stats, queueing, stats
from edgemed_benchmarks.paired_stats import Flips

LOOKS: tuple[Literal["each_sample", "once"], ...] = ("each_sample", "once")

# Medians, quantiles, rates and shares.


def test_the_median_has_the_order_statistics_as_interval_from_6_samples_on() -> None:
    chance = random.Random(3)
    values = [float(value) for value in range(1, 11)]
    chance.shuffle(values)
    assert stats.median(values)[:3] == (5.5, 2.0, 9.0)
    assert stats.median([1.0, 2.0, 3.0, 4.0, 5.0])[:3] == (3.0, None, None)
    assert stats.median([1.0, 2.0, 3.0, 4.0, 5.0]).reason == "the interval needs 6 samples"
    assert stats.median([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])[:3] == (3.5, 1.0, 6.0)


def test_no_p95_is_given_below_59_samples_and_the_reason_is() -> None:
    assert [stats.samples_for_quantile(share) for share in (0.9, 0.95, 0.99)] == [29, 59, 299]
    few = stats.quantile([1.0] * 57 + [7.25], 0.95)
    assert few.value is None and few.low is None and few.high is None
    assert few.reason == "not enough data: 58 of 59 samples, max = 7.25"
    enough = stats.quantile([float(value) for value in range(59)], 0.95)
    assert enough.value == pytest.approx(55.1) and enough.low == 51.0
    # 59 samples bound a p95 from one side only.
    assert enough.high is None and enough.reason == "the interval needs 72 samples"


def test_nothing_is_made_up_where_nothing_was_measured() -> None:
    for found in (
        stats.median([]),
        stats.quantile([], 0.95),
        stats.rate([], []),
        stats.rate([3.0], [0.0]),
        stats.mean_estimate([]),
        stats.wilson(0, 0),
    ):
        assert found[:3] == (None, None, None) and found.reason
    assert stats.upper_bound(0, 0) == 1.0
    assert stats.early_stopping([], 8.0) == ("undecided", 0, 0, 29)


def test_a_rate_is_the_sum_of_tokens_over_the_sum_of_time_and_never_the_mean_of_rates() -> None:
    # One short sample at 100 tokens/s among long ones at 10: the mean of rates would say 28.
    found = stats.rate([10, 100, 100, 100, 100], [0.1, 10, 10, 10, 10])
    assert found.value == pytest.approx(410 / 40.1)
    assert found.low is not None and found.high is not None and found.low < 410 / 40.1 < found.high


def test_bootstrap_intervals_hold_the_truth_where_plain_percentiles_are_too_narrow() -> None:
    hits = 0
    for run in range(400):
        chance = random.Random(run)
        values = [chance.gauss(10.0, 2.0) for _ in range(6)]
        found = stats.bootstrap(values, fmean, seed=run, resamples=400)
        assert found.low is not None and found.high is not None
        hits += found.low <= 10.0 <= found.high
    # Plain percentiles reach 0.85 here.
    assert hits / 400 >= 0.90


def test_items_of_one_document_count_as_one_in_an_interval() -> None:
    values = [float(group % 2) for group in range(10) for _ in range(20)]
    groups = [group for group in range(10) for _ in range(20)]
    alone, together = stats.mean_estimate(values), stats.mean_estimate(values, groups=groups)
    assert alone.low is not None and together.low is not None
    assert together.value == alone.value == 0.5
    assert 0.5 - together.low > 3.5 * (0.5 - alone.low)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = [float(value * value % 17) for value in range(20)]
    assert stats.mean_estimate(values, seed=4) == stats.mean_estimate(values, seed=4)
    assert stats.mean_estimate(values, seed=4) != stats.mean_estimate(values, seed=5)


def test_shares_have_wilsons_interval_and_zero_of_n_an_upper_bound() -> None:
    for samples, half_width in ((100, 9.4), (300, 5.5), (500, 4.3), (1000, 3.0), (2000, 2.1)):
        found = stats.wilson(round(0.6 * samples), samples)
        assert found.low is not None and found.high is not None
        assert 50 * (found.high - found.low) == pytest.approx(half_width, abs=0.05)
    assert stats.wilson(0, 20).low == 0.0 and stats.wilson(20, 20).high == 1.0
    bounds = {30: 0.095, 60: 0.0487, 100: 0.030, 300: 0.0099, 600: 0.005}
    for samples, bound in bounds.items():
        assert stats.upper_bound(0, samples) == pytest.approx(bound, abs=0.0006)
        assert (1 - stats.upper_bound(0, samples)) ** samples == pytest.approx(0.05)


# Verdicts.


@pytest.mark.parametrize(
    ("share", "confidence", "table"),
    [
        (0.9, 0.95, [29, 46, 61, 76]),
        (0.9, 0.99, [44, 64, 81, 97]),
        (0.95, 0.95, [59, 93, 124, 153]),
    ],
)
def test_a_yes_needs_as_many_samples_as_mlperfs_table_says(
    share: float, confidence: float, table: list[int]
) -> None:
    for misses, needed in enumerate(table):
        values = [9.0] * misses + [8.0] * (needed - misses)
        found = stats.early_stopping(values, 8.0, share=share, confidence=confidence)
        assert found == ("yes", needed, misses, 0)
        fewer = stats.early_stopping(values[:-1], 8.0, share=share, confidence=confidence)
        assert fewer == ("undecided", needed - 1, misses, 1)
        assert stats.samples_for_yes(misses, share=share, confidence=confidence) == needed


def test_an_answer_that_never_came_is_a_miss_and_many_misses_are_a_no() -> None:
    assert stats.early_stopping([math.inf] * 2, 8.0).verdict == "no"
    assert stats.early_stopping([math.nan] * 2, 8.0).misses == 2
    assert stats.early_stopping([1.0] * 20 + [9.0] * 5, 8.0).verdict == "undecided"
    assert stats.early_stopping([1.0] * 20 + [9.0] * 6, 8.0).verdict == "no"


def test_who_looks_after_each_sample_says_yes_wrongly_in_less_than_5_percent_of_runs() -> None:
    """By MLPerf's table, which is made for one look, such a runner is wrong three times as often."""
    wrong = {"each_sample": 0, "once": 0}
    for run in range(600):
        chance = random.Random(run)
        drawn = [float(chance.random() < 0.1) for _ in range(150)]
        for looks in LOOKS:
            verdicts = (
                stats.early_stopping(drawn[:taken], 0.5, looks=looks).verdict for taken in range(1, 151)
            )
            wrong[looks] += next((verdict for verdict in verdicts if verdict != "undecided"), "") == "yes"
    assert wrong["each_sample"] / 600 < 0.05
    assert wrong["once"] / 600 > 0.09


def test_there_and_back_takes_even_drift_out_of_a_difference() -> None:
    assert stats.abba_order(2, 4) == [0, 1, 1, 0, 0, 1, 1, 0]
    assert stats.abba_order(3, 2) == [0, 1, 2, 2, 1, 0]
    order = stats.abba_order(3, 4)
    places = [fmean(place for place, arm in enumerate(order) if arm == wanted) for wanted in range(3)]
    assert places == [5.5, 5.5, 5.5]


# Two arms.


def test_mcnemar_is_the_exact_binomial() -> None:
    # 7 and 4 changed answers of 200: no difference, and yet 11 answers changed.
    changed = Flips(7, 4, 200)
    assert paired_stats.mcnemar(changed) == pytest.approx(0.5488, abs=1e-4)
    assert paired_stats.mcnemar(Flips(6, 0, 100)) == pytest.approx(2 / 64)
    assert paired_stats.mcnemar(Flips(0, 0, 100)) == 1.0
    assert changed.discordance == pytest.approx(0.055)
    assert paired_stats.flips([True, True, False, False], [True, False, True, False]) == Flips(1, 1, 4)


def test_sign_flips_agree_with_mcnemar_and_know_groups() -> None:
    differences = [-1.0] * 9 + [1.0] * 3 + [0.0] * 40
    exact = paired_stats.mcnemar(Flips(9, 3, 52))
    assert paired_stats.sign_flip_test(differences) == pytest.approx(exact)
    drawn = paired_stats.sign_flip_test([-1.0] * 18 + [1.0] * 6)
    assert drawn == pytest.approx(paired_stats.mcnemar(Flips(18, 6, 24)), abs=0.005)
    # Sixteen items that are one document prove nothing.
    assert paired_stats.sign_flip_test([1.0] * 16) < 0.001
    assert paired_stats.sign_flip_test([1.0] * 16, groups=["one"] * 16) == 1.0


def test_holm_corrects_for_the_number_of_tests_and_keeps_their_order() -> None:
    assert paired_stats.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert paired_stats.holm([0.9, 0.8]) == [1.0, 1.0]
    assert paired_stats.holm([]) == []


def test_what_can_be_seen_is_what_the_formulas_of_the_literature_say() -> None:
    needed = [paired_stats.paired_samples_needed(0.02, changed) for changed in (0.03, 0.05, 0.08, 0.12, 0.2)]
    assert needed == [586, 979, 1567, 2352, 3922]
    assert paired_stats.paired_samples_needed(0.1, 0.05) is None
    for samples, points in ((100, 7.83), (500, 3.54), (1567, 2.0)):
        found = paired_stats.paired_detectable_difference(samples, 0.08)
        assert found is not None and 100 * found == pytest.approx(points, abs=0.005)
    # None of 100 answers changed: still only 7 points and more would have shown.
    unchanged = paired_stats.paired_detectable_difference(100, 0.0)
    assert unchanged is not None and 0.06 < unchanged < 0.08
    assert paired_stats.paired_detectable_difference(3, 0.5) is None
    assert [paired_stats.samples_needed(5, spread, paired=False) for spread in (3, 5, 10)] == [6, 16, 63]
    least = paired_stats.detectable_difference(16, 5.0, paired=False)
    assert least is not None and least == pytest.approx(5.0, abs=0.1)
    assert paired_stats.detectable_difference(1, 5.0) is None


def test_a_paired_ratio_of_times_is_their_geometric_mean() -> None:
    found = paired_stats.paired_ratio([1.0, 2.0, 4.0, 8.0], [2.0, 4.0, 8.0, 16.0])
    assert found[:3] == pytest.approx((2.0, 2.0, 2.0))
    swapped = paired_stats.paired_ratio([1.0, 1.0, 1.0], [2.0, 0.5, 1.0])
    assert swapped.value == pytest.approx(1.0)


# Calibration.


def test_a_perfectly_calibrated_model_stays_inside_the_null_band() -> None:
    outside = 0
    for run in range(60):
        chance = random.Random(run)
        confidences = [chance.uniform(0.25, 1.0) for _ in range(100)]
        found = calibration.calibration_error(
            confidences, [chance.random() < value for value in confidences], seed=run, draws=200
        )
        assert found is not None and 0.05 < found.null_mean < found.null_high < 0.2
        outside += found.value > found.null_high
    assert outside <= 8


def test_a_model_that_is_always_too_sure_leaves_the_null_band() -> None:
    chance = random.Random(0)
    found = calibration.calibration_error([0.95] * 100, [chance.random() < 0.6 for _ in range(100)])
    assert found is not None and found.value > 0.25 > found.null_high
    assert calibration.calibration_error([], []) is None


def test_brier_and_reliability_are_what_their_definitions_say() -> None:
    assert calibration.brier([[0.25] * 4] * 8, [0, 1, 2, 3] * 2).value == pytest.approx(0.75)
    assert calibration.brier([[1.0, 0.0], [0.0, 1.0]], [0, 0]).value == pytest.approx(1.0)
    assert calibration.option_probabilities([-1000.0, -1000.0]) == [0.5, 0.5]
    bins = calibration.reliability_bins([0.31, 0.39, 1.0], [True, False, True])
    assert [(found.samples, found.accuracy) for found in bins] == [(2, 0.5), (1, 1.0)]
    assert bins[0].confidence == pytest.approx(0.35) and bins[1].high == 1.0


def test_selective_accuracy_does_not_depend_on_the_order_of_equally_sure_answers() -> None:
    surest_are_right = calibration.selective_accuracy([0.9] * 8 + [0.3] * 2, [True] * 8 + [False] * 2)
    assert surest_are_right.value == 1.0
    all_alike = [True, False] * 10
    forwards = calibration.selective_accuracy([0.5] * 20, all_alike)
    backwards = calibration.selective_accuracy([0.5] * 20, sorted(all_alike))
    assert forwards.value == backwards.value == 0.5


# Waiting.


def test_people_wait_as_queueing_theory_says() -> None:
    # One server, exponential service: the time in the system is exponential with mean 1 / (rate - arrivals).
    chance = random.Random(2)
    service = [chance.expovariate(1 / 40) for _ in range(20_000)]
    for use in (0.2, 0.5):
        an_hour = use * 3600 / fmean(service)
        wanted = -math.log(0.05) * fmean(service) / (1 - use)
        assert queueing.waiting_seconds(service, an_hour) == pytest.approx(wanted, rel=0.06)
    an_hour = 0.5 * 3600 / fmean(service)
    limit = queueing.waiting_seconds(service, an_hour)
    assert queueing.questions_per_hour(service, limit) == pytest.approx(an_hour, rel=0.01)


def test_a_machine_that_is_too_slow_serves_nobody_in_time() -> None:
    assert queueing.questions_per_hour([50.0] * 10, 40.0) == 0.0
    assert queueing.questions_per_hour([], 40.0) == 0.0
    assert queueing.waiting_seconds([60.0], 60.0) == math.inf
    assert queueing.waiting_seconds([], 1.0) == math.inf
    assert queueing.utilisation([60.0], 30.0) == 0.5
