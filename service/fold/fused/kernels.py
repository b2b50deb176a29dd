"""The standardizer as compiled loops, for numba; `service.fold.standardizer` defines what they do.

They agree with the operators there up to rounding. Loops run along features, and each has few
arrays: only then does the compiler see that these do not overlap.
"""

import math

import numpy as np
import numpy.typing as npt

from funnel.compiled import contracted
from funnel.pool.fused.kernels import exponentials
from service.fold.standardizer import (
    DEPTH,
    DRIFT,
    FAR,
    HORIZON,
    LIMIT,
    MAX_DISTANCE,
    MAX_RATIO,
    MAX_STEP,
    MEMORY,
    PATIENCE,
    ROWS,
    STEP,
    TINY,
    WINDOW,
    WINSOR,
)

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int32]

_NONE, _ONE, _HALF = np.float32(0.0), np.float32(1.0), np.float32(0.5)
_LN2, _ROOT = np.float32(0.6931471805599453), np.float32(0.70710678)
_L0, _L1, _L2, _L3, _L4, _L5, _L6, _L7, _L8 = (
    np.float32(x)
    for x in (
        7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
        -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
    )
)  # fmt: skip
_LIMIT, _WINSOR, _STEP = np.float32(LIMIT), np.float32(WINSOR), np.float32(STEP)
_DEPTH, _TINY, _FAR = np.float32(DEPTH), np.float32(TINY), np.float32(FAR)
_FAR_DEPTH = np.float32(FAR * DEPTH)
_MAX_STEP, _MAX_RATIO = np.float32(MAX_STEP), np.float32(MAX_RATIO)
_MAX_DISTANCE, _HORIZON = np.float32(MAX_DISTANCE), np.float32(HORIZON)
_SHORT, _LONG = np.float32(PATIENCE[0]), np.float32(PATIENCE[1])
_MEMORY, _WINDOW = np.float32(MEMORY), np.float32(WINDOW)


@contracted
def standardize(x: Floats, mean: Floats, deviation: Floats, magnitude: Floats, z: Floats) -> None:
    """Write standardized inputs, [n, d].

    Args:
        x: [n, d].
        mean, deviation, magnitude: of the statistics, [d].
        z: [n, d].
    """
    inverse = np.empty_like(mean)
    for j in range(len(mean)):
        inverse[j] = _ONE / max(max(deviation[j], magnitude[j] * _DEPTH), _TINY)
    for i in range(len(x)):
        own, found = x[i], z[i]
        for j in range(len(own)):
            t = (own[j] - mean[j]) * inverse[j]
            t = _LIMIT if t > _LIMIT else t  # NaN stays
            found[j] = -_LIMIT if t < -_LIMIT else t


@contracted
def logarithms(bits: Codes, found: Floats) -> None:
    """Write the logarithms of positive numbers, given as bits, to 2 units in the last place.

    S. L. Moshier's polynomial of the Cephes library. The logarithm of infinity is about 89.
    """
    mantissas = np.empty(len(bits), np.int32)
    numbers = mantissas.view(np.float32)
    for j in range(len(bits)):
        mantissas[j] = (bits[j] & np.int32(0x7FFFFF)) | np.int32(0x3F000000)
    for j in range(len(bits)):
        m, e = numbers[j], np.float32((bits[j] >> np.int32(23)) - np.int32(126))
        is_low = m < _ROOT
        e = e - _ONE if is_low else e
        x = (m + m if is_low else m) - _ONE
        y = _L0 * x + _L1
        y = y * x + _L2
        y = y * x + _L3
        y = y * x + _L4
        y = y * x + _L5
        y = y * x + _L6
        y = y * x + _L7
        y = y * x + _L8
        square = x * x
        found[j] = e * _LN2 + (x + (y * x - _HALF) * square)


@contracted
def middle(a: Floats, b: Floats, c: Floats, found: Floats) -> None:
    """Write the medians of three numbers each."""
    for j in range(len(found)):
        low, high = min(a[j], b[j]), max(a[j], b[j])
        found[j] = max(low, min(high, c[j]))


@contracted
def moments(x: Floats, center: Floats, inverse: Floats, mean: Floats, variance: Floats) -> None:
    """Write mean and variance of (x - center) · inverse within ±WINSOR."""
    for j in range(len(mean)):
        mean[j], variance[j] = _NONE, _NONE
    for i in range(len(x)):
        own = x[i]
        for j in range(len(own)):
            t = (own[j] - center[j]) * inverse[j]
            t = _WINSOR if t > _WINSOR else t  # NaN stays
            t = -_WINSOR if t < -_WINSOR else t
            mean[j] += t
            variance[j] += t * t
    share = _ONE / np.float32(len(x))
    for j in range(len(mean)):
        mean[j] *= share
        v = variance[j] * share - mean[j] * mean[j]
        variance[j] = _NONE if v < _NONE else v


@contracted
def update(x: Floats, statistics: Floats, recent: Floats) -> None:
    """Update the statistics, [6, d], and the newest examples, [9, d], with a batch that is learned.

    Args:
        x: [n, d].
        statistics, recent: as `service.fold.standardizer.Standardizer` has them; changed.
    """
    n, width = x.shape
    window = len(recent)
    rows = np.empty((window, width), np.float32)
    every = max(1, n // window)
    first = (n - 1) % every + ((n - 1) // every + 1 - window) * every
    for q in range(window):
        at, mine = first + q * every, rows[q]
        own = x[at] if at >= 0 else recent[n + q]
        for j in range(width):
            mine[j] = own[j]
    mean, deviation, count = statistics[0], statistics[1], statistics[2]
    magnitude, evidence, away = statistics[3], statistics[4], statistics[5]
    thirds, center = np.empty((3, width), np.float32), np.empty(width, np.float32)
    for q in range(3):
        middle(rows[q], rows[3 + q], rows[6 + q], thirds[q])
    middle(thirds[0], thirds[1], thirds[2], center)

    unit, inverse = np.empty(width, np.float32), np.empty(width, np.float32)
    for j in range(width):
        unit[j] = abs(magnitude[j])
        inverse[j] = _ONE / unit[j]
    relative, logs = np.empty(width, np.float32), np.empty(width, np.float32)
    nonzero = np.empty(width, np.float32)
    found, shown = np.zeros(width, np.float32), np.zeros(width, np.float32)
    log_sum, steps = np.zeros(width, np.float32), np.zeros(width, np.float32)
    for q in range(window):
        own = rows[q]
        for j in range(width):
            r = abs(own[j] - center[j]) * inverse[j]
            nonzero[j] = _ONE if r > _NONE else _NONE
            relative[j] = r if r > _NONE else _ONE
        logarithms(relative.view(np.int32), logs)
        for j in range(width):
            found[j] += nonzero[j]
            log_sum[j] += logs[j]
        if q >= window - n:
            for j in range(width):
                shown[j] += nonzero[j]
                steps[j] += min(max(logs[j], -_STEP), _STEP)

    new = min(n, window)
    weight, drift = np.float32(n / new), np.float32(DRIFT * n / new)
    slowest = np.float32(ROWS * n / new)
    is_alarm, restarts = np.empty(width, np.bool_), np.empty(width, np.bool_)
    patience, seen = np.empty(width, np.float32), np.empty(width, np.float32)
    for j in range(width):
        moved, allowed = evidence[j] + steps[j] * weight, shown[j] * drift
        seen[j] = moved - min(max(moved, -allowed), allowed)
        patience[j] = min(max(count[j], _SHORT), _LONG)
        is_alarm[j] = abs(seen[j]) > max(patience[j], slowest) * np.float32(STEP - DRIFT)
        restarts[j] = is_alarm[j] or magnitude[j] < _NONE
    for j in range(width):
        fast = log_sum[j] / max(found[j], _ONE)
        slow = steps[j] / max(shown[j], _MEMORY)
        logs[j] = min(fast if restarts[j] else slow, _MAX_STEP)
    bits = np.empty(width, np.int32)
    exponentials(logs, bits, bits.view(np.float32))
    for j in range(width):
        unit[j] = max(logs[j] * unit[j], _TINY)
        inverse[j] = _ONE / unit[j]
    shift, variance = np.empty(width, np.float32), np.empty(width, np.float32)
    moments(x, center, inverse, shift, variance)
    row_shift, row_variance = shift, variance
    if n < window:
        row_shift, row_variance = np.empty(width, np.float32), np.empty(width, np.float32)
        moments(rows, center, inverse, row_shift, row_variance)
    size = np.float32(n)
    for j in range(width):
        old = (mean[j] - center[j]) * inverse[j]
        old = min(max(old, -_MAX_DISTANCE), _MAX_DISTANCE)
        wide = min(deviation[j] * inverse[j], _MAX_RATIO)
        bound = wide * _FAR + _FAR_DEPTH
        far = away[j] + size if abs(old) > bound else _NONE
        starts = restarts[j] or far > patience[j]
        before = _NONE if starts else count[j]
        whole = before + size
        rate = _ONE - before / whole
        own, spread = shift[j], variance[j]
        if n < window:
            starts = before < _WINDOW
            rate = _ONE if starts else rate
            own, spread = (row_shift[j], row_variance[j]) if starts else (own, spread)
        old = own if starts else old
        change = min(max(own - old, -bound), bound)
        between = change * change * (_ONE - rate) + spread
        squared = wide * wide
        rest = between - squared
        squared = squared + rate * rest if rate < _HALF else between - (_ONE - rate) * rest
        new_deviation = np.sqrt(squared) * unit[j]
        if not math.isfinite(new_deviation):
            continue
        mean[j] = center[j] + unit[j] * (old + change * rate)
        deviation[j] = new_deviation
        count[j] = min(whole, _HORIZON)
        magnitude[j] = unit[j] if found[j] > _NONE else magnitude[j]
        evidence[j] = _NONE if is_alarm[j] else seen[j]
        away[j] = _NONE if starts else far
        for q in range(window):
            recent[q, j] = rows[q, j]
