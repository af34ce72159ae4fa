"""Whether the statistics of edgemed-bench keep their promises: simulated runs whose truth is known.

    python -m tests.measurements.benchmark_statistics [--runs 2000]

Prints one line for each promise: how often the interval held the truth, how often the verdict was wrong.
Figures go to docs/experiments.md.
"""

import argparse
import functools
import math
import random
import sys
from collections.abc import Callable, Sequence
from typing import Literal

from edgemed_benchmarks import paired_stats, stats
from edgemed_benchmarks.stats import Estimate

SPREAD = 0.5
"""Of the logarithm of the times: p95 is 2.3 times the median."""
Z90, Z95 = 1.2815515655446004, 1.6448536269514722


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def coverage(runs: int, truth: float, draw: Callable[[random.Random], Estimate]) -> str:
    """Return how often the interval held the truth, and how often it lay below and above it."""
    below = above = unknown = 0
    for run in range(runs):
        found = draw(random.Random(run))
        unknown += found.low is None and found.high is None
        below += found.high is not None and found.high < truth
        above += found.low is not None and found.low > truth
    known = max(1, runs - unknown)
    return f"{1 - (below + above) / known:.3f} (below {below / known:.3f}, above {above / known:.3f})"


def times(chance: random.Random, samples: int) -> list[float]:
    return [math.exp(chance.gauss(0.0, SPREAD)) for _ in range(samples)]


def median_of(chance: random.Random, samples: int) -> Estimate:
    return stats.median(times(chance, samples))


def quantile_of(chance: random.Random, samples: int, share: float) -> Estimate:
    return stats.quantile(times(chance, samples), share)


def rate_of(chance: random.Random, samples: int) -> Estimate:
    """Answers of 20 to 200 tokens at 5 tokens/s, disturbed by 15 %."""
    tokens = [chance.randint(20, 200) for _ in range(samples)]
    seconds = [count / 5 * max(0.3, chance.gauss(1.0, 0.15)) for count in tokens]
    return stats.rate(tokens, seconds, seed=chance.getrandbits(30))


def wilson_of(chance: random.Random, samples: int, share: float) -> Estimate:
    return stats.wilson(sum(chance.random() < share for _ in range(samples)), samples)


def difference_of(chance: random.Random, groups: int, members: int) -> Estimate:
    """Two arms 3 points apart, on groups whose items share half of the variance of their difference."""
    before, after, keys = [], [], []
    for group in range(groups):
        shared = chance.gauss(0.0, 0.1)
        for _ in range(members):
            first = chance.gauss(0.5, 0.2)
            before.append(first)
            after.append(first + 0.03 + shared + chance.gauss(0.0, 0.1))
            keys.append(group)
    return paired_stats.paired_difference(before, after, groups=keys, seed=chance.getrandbits(30))


def verdicts(
    runs: int, miss_share: float, samples: Sequence[int], *, each: bool, wrong: str
) -> tuple[float, float]:
    """Return the shares of runs that end in the wrong verdict, and in none."""
    errors = undecided = 0
    for run in range(runs):
        chance = random.Random(run)
        drawn = [float(chance.random() < miss_share) for _ in range(samples[-1])]
        verdict = "undecided"
        for taken in samples:
            rule: Literal["once", "each_sample"] = "each_sample" if each else "once"
            verdict = stats.early_stopping(drawn[:taken], 0.5, looks=rule).verdict
            if verdict != "undecided":
                break
        errors += verdict == wrong
        undecided += verdict == "undecided"
    return errors / runs, undecided / runs


def false_alarms(runs: int, draw: Callable[[random.Random], float]) -> float:
    return sum(draw(random.Random(run)) < 0.05 for run in range(runs)) / runs


def mcnemar_of(chance: random.Random, samples: int, discordance: float, difference: float) -> float:
    lost, won = (discordance - difference) / 2, (discordance + difference) / 2
    drawn = [chance.random() for _ in range(samples)]
    changed = paired_stats.Flips(
        sum(value < lost for value in drawn), sum(lost <= value < lost + won for value in drawn), samples
    )
    return paired_stats.mcnemar(changed)


def sign_flip_of(chance: random.Random, groups: int, members: int) -> float:
    differences, keys = [], []
    for group in range(groups):
        shared = chance.gauss(0.0, 0.1)
        differences += [shared + chance.gauss(0.0, 0.1) for _ in range(members)]
        keys += [group] * members
    return paired_stats.sign_flip_test(differences, groups=keys, seed=chance.getrandbits(30))


def main() -> None:
    """Measure all of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=2000)
    runs = parser.parse_args().runs
    part = functools.partial
    for samples in (6, 10, 30, 100):
        say(f"median, n {samples}: {coverage(runs, 1.0, part(median_of, samples=samples))}")
    for share, z, counts in ((0.9, Z90, (29, 36, 60, 100)), (0.95, Z95, (59, 72, 100, 300))):
        for samples in counts:
            found = coverage(runs, math.exp(SPREAD * z), part(quantile_of, samples=samples, share=share))
            say(f"p{share * 100:.0f}, n {samples}: {found}")
    for hits, samples in ((0.6, 30), (0.6, 100), (0.95, 30), (0.95, 100)):
        found = coverage(runs, hits, part(wilson_of, samples=samples, share=hits))
        say(f"Wilson, share {hits}, n {samples}: {found}")
    once: tuple[tuple[bool, Sequence[int]], ...] = ((False, (30,)), (False, (46,)), (False, (100,)))
    for each, sizes in (*once, (False, range(1, 201)), (True, range(1, 201))):
        for miss_share, wrong in ((0.1, "yes"), (0.11, "yes"), (0.15, "yes"), (0.1, "no"), (0.09, "no")):
            many = runs if len(sizes) == 1 else max(200, runs // 2)
            error, open_ = verdicts(many, miss_share, sizes, each=each, wrong=wrong)
            looks = f"one look at {sizes[0]}" if len(sizes) == 1 else "a look after each of 200 samples"
            rule = "each_sample" if each else "once"
            say(
                f"verdict by {rule!r}, {looks}, misses {miss_share}: false {wrong} {error:.4f}, undecided {open_:.3f}"
            )
    for samples in (100, 500, 1000, 2000):
        null = false_alarms(runs, part(mcnemar_of, samples=samples, discordance=0.08, difference=0.0))
        power = false_alarms(runs, part(mcnemar_of, samples=samples, discordance=0.08, difference=0.02))
        say(f"McNemar, n {samples}, 8 % changed: false alarms {null:.4f}, sees 2 points in {power:.3f}")
    fewer = max(100, runs // 4)
    for groups, members in ((10, 1), (20, 3), (100, 1)):
        alarms = false_alarms(fewer, part(sign_flip_of, groups=groups, members=members))
        say(f"sign flips, {groups} groups of {members}: false alarms {alarms:.4f}")
    for samples in (6, 10, 30, 100):
        say(f"rate, n {samples}: {coverage(fewer, true_rate(), part(rate_of, samples=samples))}")
    for groups, members in ((10, 1), (20, 3), (100, 1), (100, 3)):
        found = coverage(fewer, 0.03, part(difference_of, groups=groups, members=members))
        say(f"paired difference, {groups} groups of {members}: {found}")


@functools.cache
def true_rate() -> float:
    """Return Σtokens ÷ Σseconds of endless samples: the disturbance is 1 in the mean (0.3 is 4.7 sigma away)."""
    return 5.0


if __name__ == "__main__":
    main()
