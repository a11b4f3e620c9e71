"""The slope of log time over log work: 1 when twice the work takes twice the time."""

from __future__ import annotations

import math
import statistics
from typing import Any


def slope(record: dict[str, Any]) -> tuple[float, float, float]:
    """Fit a line to the median times at each amount of work; the interval comes from the rounds.

    Returns
    -------
    slope, low, high : float
        Least squares over the medians of all rounds, and the 2.5 and 97.5 % points of the same fit over
        2000 resamplings of the rounds (Efron 1979, doi:10.1214/aos/1176344552). A round holds all amounts of
        work, so what slows one round down moves the line and not its slope.
    """
    import random

    works = [math.log(row["work"]) for row in record["rows"]]
    rounds = min(len(row["seconds"]) for row in record["rows"])
    times = [[math.log(row["seconds"][i]) for row in record["rows"]] for i in range(rounds)]
    drawn = random.Random(0)
    slopes = sorted(_fit(works, [times[drawn.randrange(rounds)] for _ in range(rounds)]) for _ in range(2000))
    return _fit(works, times), slopes[50], slopes[1949]


def _fit(works: list[float], times: list[list[float]]) -> float:
    middle = [statistics.median(values) for values in zip(*times, strict=True)]
    mean_w, mean_t = statistics.fmean(works), statistics.fmean(middle)
    above = sum((w - mean_w) * (t - mean_t) for w, t in zip(works, middle, strict=True))
    return above / sum((w - mean_w) ** 2 for w in works)
