"""How long people wait when several share one machine that answers one question at a time."""

import math
import random
from collections.abc import Sequence

_QUESTIONS = 20_000
_WARM_UP = 1_000
"""Questions that are simulated and left out: the queue begins empty."""


def waiting_seconds(
    service_seconds: Sequence[float], questions_per_hour: float, *, share: float = 0.95, seed: int = 0
) -> float:
    """Return how long a share of the askers waits at most: seconds from question to full answer.

    Questions come by chance, not one after the other's answer (Poisson arrivals), and are answered in turn;
    each takes as long as one of the measured answers, drawn by chance. A run that asks only after the last
    answer leaves out the waiting in the queue ("coordinated omission"). Source: Lindley's recursion, 1952.

    Returns:
        Infinite where the machine cannot keep up, or without a measured answer.
    """
    if not service_seconds or utilisation(service_seconds, questions_per_hour) >= 1:
        return math.inf
    return _waiting_seconds(_drawn(service_seconds, seed), 3600 / questions_per_hour, share)


def questions_per_hour(
    service_seconds: Sequence[float], wait_limit_seconds: float, *, share: float = 0.95, seed: int = 0
) -> float:
    """Return how many questions may come in an hour so that a share of the askers waits within the limit.

    0.0 where even an asker who never meets another waits too long.

    Args:
        service_seconds: of the measured answers, from question to full answer.
        wait_limit_seconds: from the question to its full answer.
        share: of the askers.
        seed: of arrivals and drawn answers; the same at all rates, so that more questions never wait less.
    """
    if not service_seconds:
        return 0.0
    drawn = _drawn(service_seconds, seed)
    low, high = 0.0, 3600 * len(service_seconds) / math.fsum(service_seconds)
    if _waiting_seconds(drawn, math.inf, share) > wait_limit_seconds:
        return 0.0
    for _ in range(20):
        middle = (low + high) / 2
        fits = _waiting_seconds(drawn, 3600 / middle, share) <= wait_limit_seconds
        low, high = (middle, high) if fits else (low, middle)
    return low


def utilisation(service_seconds: Sequence[float], questions_per_hour: float) -> float:
    """Return the share of the time in which the machine is busy; 1 and more: the queue grows without end."""
    mean_seconds = math.fsum(service_seconds) / len(service_seconds)
    return questions_per_hour * mean_seconds / 3600


def _drawn(service_seconds: Sequence[float], seed: int) -> list[tuple[float, float]]:
    """Return, for each question, the gap before it (in mean gaps) and how long its answer takes."""
    chance = random.Random(seed)
    return [(chance.expovariate(1.0), chance.choice(service_seconds)) for _ in range(_QUESTIONS)]


def _waiting_seconds(drawn: Sequence[tuple[float, float]], mean_gap_seconds: float, share: float) -> float:
    waits, queue, last = [], 0.0, 0.0
    for gap, service in drawn:
        queue = max(0.0, queue + last - gap * mean_gap_seconds)
        waits.append(queue + service)
        last = service
    waits = sorted(waits[_WARM_UP:])
    return waits[math.ceil(share * len(waits)) - 1]
