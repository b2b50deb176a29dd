"""Compiled loops of scores, floors and calibration: plain loops over arrays, for numba.

Each is what one step adds on a CPU, where an operator of torch costs more than its numbers. The
operators in the modules that call them are their twins, and give the same bits. So logarithms,
sigmoids, lengths, and sums whose order matters stay with torch, and nothing is contracted or
reordered (no ``fastmath``).
"""

import math

import numpy as np
import numpy.typing as npt

from funnel.compiled import compiled
from service.fold.scoring.classification import RING
from service.fold.scoring.regression import NORMAL_90

MOST = float(np.finfo(np.float32).max)
SMALLEST = float(np.finfo(np.float32).tiny)
LARGEST = float(np.finfo(np.float64).max)
HALF_LOG_TAU = 0.5 * math.log(2.0 * math.pi)
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@compiled
def score(
    ring: Floats, scored: Ints, probabilities: Floats, norms: Floats, predicted: Ints,
    labels: Ints, losses: Floats,
) -> None:  # fmt: skip
    """Write the outcomes of a batch of one learner into the ring, [1, RING, 5]."""
    at = int(scored[()]) % RING
    for i in range(len(labels)):
        confidence = probabilities[i, 0]
        for p in probabilities[i]:
            if p > confidence or p != p:
                confidence = p
            if confidence != confidence:
                break
        row = ring[0, at]
        row[0] = losses[i]
        row[1] = norms[i]
        row[2] = confidence
        row[3] = np.float32(labels[i])
        row[4] = np.float32(predicted[i])
        at = at + 1 if at + 1 < RING else 0
    scored[()] += len(labels)


@compiled
def divide(counts: Ints, last: Ints, tries: Ints, found: Floats) -> int:
    """Set the share of each class, and in the second row that of all but the last label; return
    the sum of the counts."""
    total = 0
    for count in counts:
        total += count
    for c in range(len(counts)):
        share = np.float32(counts[c]) / np.float32(total)
        found[0, c] = share
        found[1, c] = np.float32(0.0) if c == last[()] else share
    return total


@compiled
def persist(counts: Ints, last: Ints, tries: Ints, found: Floats, rest: float) -> None:
    """Give the last label its rate, and spread what is left over the others, whose sum is given."""
    rate = np.float32(tries[0]) / np.float32(tries[1])
    factor = (np.float32(1.0) - rate) / np.float32(rest)
    for c in range(len(counts)):
        found[1, c] = rate if c == last[()] else found[1, c] * factor


@compiled
def scale_down(found: Floats, total: float) -> None:
    """Divide the second row by its sum."""
    for c in range(found.shape[1]):
        found[1, c] /= np.float32(total)


@compiled
def divide_in_two(counts: Ints, last: Ints, tries: Ints, found: Floats) -> int:
    """Do all three for two classes, whose sum has one order; return the sum of the counts."""
    total = divide(counts, last, tries, found)
    persist(counts, last, tries, found, np.float64(found[1, 0] + found[1, 1]))
    scale_down(found, np.float64(found[1, 0] + found[1, 1]))
    return total


@compiled
def observe_floors(
    ring: Floats, outcomes: Ints, counts: Ints, last: Ints, tries: Ints, probabilities: Floats,
    labels: Ints, scored: bool, learned: bool, logs: Floats, norms: Floats, losses: Floats,
) -> None:  # fmt: skip
    """Compute the losses of floors, [K, n], write their outcomes into the ring, [K, RING, 5], and
    take the labels.

    All examples have the same probabilities, [K, classes]; their logarithms and lengths are given.
    """
    for k in range(len(probabilities)):
        guess = 0
        for c in range(probabilities.shape[1]):
            if probabilities[k, c] > probabilities[k, guess]:
                guess = c
        at = int(outcomes[()]) % RING
        for i in range(len(labels)):
            losses[k, i] = -logs[k, labels[i]]
            if scored:
                row = ring[k, at]
                row[0] = losses[k, i]
                row[1] = norms[k]
                row[2] = probabilities[k, guess]
                row[3] = np.float32(labels[i])
                row[4] = np.float32(guess)
                at = at + 1 if at + 1 < RING else 0
    if scored:
        outcomes[()] += len(labels)
    if learned:
        before = last[()]
        for label in labels:
            counts[label] += 1
            if label == before:
                tries[0] += 1
        if before >= 0:
            tries[1] += len(labels)
        last[()] = labels[-1]


@compiled
def split(probabilities: Floats, predicted: Ints, others: Doubles, parts: Doubles) -> None:
    """Set the probabilities of the classes that are not predicted, [n, classes], and in ``parts``,
    [3, n], that of the predicted one, the first other one, and the largest other one.

    With two classes, the first other one is all of the rest; with more, their sum takes its place.
    """
    for i in range(len(predicted)):
        second = np.float64(0.0)
        for c in range(probabilities.shape[1]):
            p = np.float64(probabilities[i, c])
            if c == predicted[i]:
                parts[0, i] = p
                p = np.float64(0.0)
            elif c < 2:
                parts[1, i] = p
            others[i, c] = p
            if p > second or p != p:
                second = p
        parts[2, i] = second


@compiled
def scale(
    predicted: Ints, is_binary: bool, parts: Doubles, logs: Doubles, answer: Doubles, tiny: float,
    log_tiny: float, most: float, inputs: Doubles, scaled: Doubles,
) -> None:  # fmt: skip
    """Set the inputs of Platt scaling, x and 1, in the first two rows, and a x + b, [n].

    ``logs`` are those of the first two rows of the parts, which are taken as at least ``tiny``.
    """
    a, b = answer[0], answer[1]
    for i in range(len(predicted)):
        top = log_tiny if parts[0, i] < tiny else logs[0, i]
        odds = top - (log_tiny if parts[1, i] < tiny else logs[1, i])
        if odds > most:
            odds = most
        elif odds < -most:
            odds = -most
        if is_binary and predicted[i] != 1:
            odds = -odds
        inputs[0, i] = odds
        inputs[1, i] = 1.0
        scaled[i] = a * odds + b


@compiled
def keep_likeliest(
    q: np.float64, rest: np.float64, second: np.float64, is_turned: bool, tiny: float
) -> np.float64:
    """Return the probability of the predicted class after scaling, at least as much as keeps it the
    likeliest."""
    kept = 1.0 - q if is_turned else q
    both = second + rest
    least = second / (tiny if both < tiny else both)
    return least if least > kept or least != least else kept


@compiled
def scale_to(
    is_predicted: bool, given: np.float64, kept: np.float64, other: np.float64, rest: np.float64,
    tiny: float,
) -> np.float64:  # fmt: skip
    """Return the probability of a class after scaling, which keeps that of the predicted one."""
    if not rest > tiny:
        return given
    return kept if is_predicted else other * ((1.0 - kept) / rest)


@compiled
def calibrate(
    probabilities: Floats, predicted: Ints, is_binary: bool, others: Doubles, parts: Doubles,
    platt: Doubles, answer: Doubles, tiny: float, answered: Floats,
) -> None:  # fmt: skip
    """Set what is answered, [n, classes]; the arguments are those of `answer_all`."""
    weight = answer[2]
    rest_weight = 1.0 - weight
    for i in range(len(predicted)):
        rest, guess = parts[1, i], predicted[i]
        kept = keep_likeliest(platt[i], rest, parts[2, i], is_binary and guess != 1, tiny)
        for c in range(probabilities.shape[1]):
            given = np.float64(probabilities[i, c])
            scaled = scale_to(c == guess, given, kept, others[i, c], rest, tiny)
            answered[i, c] = np.float32(weight * scaled + rest_weight * given)


@compiled
def answer_all(
    probabilities: Floats, predicted: Ints, labels: Ints, importance: Floats, is_binary: bool,
    others: Doubles, parts: Doubles, platt: Doubles, answer: Doubles, tiny: float, edge: float,
    inputs: Doubles, answered: Floats, own: Doubles, slopes: Doubles, off: Doubles,
) -> None:  # fmt: skip
    """Set what is answered, [n, classes]; of the label its probability in the answer, after scaling
    and before, at least ``tiny``, and the odds of the weight, [3 n + 1]; and the terms of the
    Newton step, as many rows as there are inputs, and [n]."""
    weight, n = answer[2], len(labels)
    rest_weight = 1.0 - weight
    inner = edge if weight < edge else (1.0 - edge if weight > 1.0 - edge else weight)
    own[3 * n] = inner / (1.0 - inner)
    calibrate(probabilities, predicted, is_binary, others, parts, platt, answer, tiny, answered)
    for i in range(n):
        q, rest, guess, label = platt[i], parts[1, i], predicted[i], labels[i]
        kept = keep_likeliest(q, rest, parts[2, i], is_binary and guess != 1, tiny)
        given = np.float64(probabilities[i, label])
        scaled = scale_to(label == guess, given, kept, others[i, label], rest, tiny)
        mixed = weight * scaled + rest_weight * given
        own[i] = tiny if mixed < tiny else mixed
        own[n + i] = tiny if scaled < tiny else scaled
        own[2 * n + i] = tiny if given < tiny else given
        came = 1.0 if label == (1 if is_binary else guess) else 0.0
        off[i] = (q - came) * importance[i]
        slope = (q * (1.0 - q)) * importance[i]
        for k in range(len(inputs)):
            slopes[k, i] = slope * inputs[k, i]


@compiled
def compare(
    ring: Floats, scored: Ints, predicted: Ints, labels: Ints, importance: Floats, finite: bool,
    answered: Floats, norms: Floats, logs: Doubles, losses: Floats, gains: Doubles,
) -> None:  # fmt: skip
    """Set how much less scaling loses than what it is given, [n]; and score what is answered."""
    n = len(losses)
    for i in range(n):
        losses[i] = -np.float32(logs[i])
        gains[i] = (logs[n + i] - logs[2 * n + i]) * importance[i]
    if finite:
        score(ring, scored, answered, norms, predicted, labels, losses)


@compiled
def take_step(
    answer: Doubles, curvature: Doubles, more: Doubles, slope: Doubles, weight: Doubles,
    dealt: float, bounds: Doubles,
) -> None:  # fmt: skip
    """Add to the curvature, take the Newton step within bounds, and deal a share of the weight."""
    for j in range(2):
        for k in range(2):
            curvature[j, k] += more[j, k]
    aa, ab, bb = curvature[0, 0], curvature[0, 1], curvature[1, 1]
    det = aa * bb - ab * ab
    a = answer[0] - (bb * slope[0] - ab * slope[1]) / det
    b = answer[1] - (aa * slope[1] - ab * slope[0]) / det
    answer[0] = bounds[0, 0] if a < bounds[0, 0] else (bounds[0, 1] if a > bounds[0, 1] else a)
    answer[1] = bounds[1, 0] if b < bounds[1, 0] else (bounds[1, 1] if b > bounds[1, 1] else b)
    answer[2] = (1.0 - dealt) * weight[0] + dealt / 2


@compiled
def take_level_step(
    answer: Doubles, curvature: Doubles, more: Doubles, slope: Doubles, weight: Doubles,
    dealt: float, bounds: Doubles,
) -> None:  # fmt: skip
    """Do the same with three inputs, by steps of at most ``bounds[5]``; where the third coefficient
    would not be above 0, it is 0, and the others take the step of two."""
    for j in range(3):
        for k in range(3):
            curvature[j, k] += more[j, k]
    aa, ab, ac = curvature[0, 0], curvature[0, 1], curvature[0, 2]
    bb, bc, cc = curvature[1, 1], curvature[1, 2], curvature[2, 2]
    d_a, d_b, d_c = slope[0], slope[1], slope[2]
    of_aa, of_ab, of_ac = bb * cc - bc * bc, ac * bc - ab * cc, ab * bc - ac * bb
    of_bb, of_bc, of_cc = aa * cc - ac * ac, ab * ac - aa * bc, aa * bb - ab * ab
    det = aa * of_aa + ab * of_ab + ac * of_ac
    step_a = (of_aa * d_a + of_ab * d_b + of_ac * d_c) / det
    step_b = (of_ab * d_a + of_bb * d_b + of_bc * d_c) / det
    step_c = (of_ac * d_a + of_bc * d_b + of_cc * d_c) / det
    most = max(abs(step_a), abs(step_b), abs(step_c))
    share = bounds[5] / most if most > bounds[5] else 1.0
    c, least = answer[3] - share * step_c, bounds[0]
    a, b = answer[0] - share * step_a, answer[1] - share * step_b
    if not c > 0.0:
        c, least = 0.0, bounds[6]
        a = answer[0] - (bb * d_a - ab * d_b) / of_cc
        b = answer[1] - (aa * d_b - ab * d_a) / of_cc
    answer[0] = least if a < least else (bounds[1] if a > bounds[1] else a)
    answer[1] = bounds[2] if b < bounds[2] else (bounds[3] if b > bounds[3] else b)
    answer[2] = (1.0 - dealt) * weight[0] + dealt / 2
    answer[3] = bounds[4] if c > bounds[4] else c


@compiled
def expect(stds: Doubles, safe: Doubles) -> None:
    """Set deviations that a logarithm can be taken of, [n], as a clamp above 0 does."""
    for i in range(len(safe)):
        std = stds[i]
        if std != std:
            std = 1.0
        safe[i] = SMALLEST if std < SMALLEST else (LARGEST if std > LARGEST else std)


@compiled
def as_float(number: float) -> np.float32:
    """Return a number as fp32, and its largest number for one beyond it."""
    return np.float32(-MOST if number < -MOST else (MOST if number > MOST else number))


@compiled
def score_values(
    ring: Floats, scored: Ints, target_sum: Doubles, values: Doubles, stds: Doubles, safe: Doubles,
    logs: Doubles, targets: Doubles, losses: Doubles, keep: bool, rows: Floats,
) -> None:  # fmt: skip
    """Set what is summed of each example, [n, 8], and write the newest into the ring."""
    before, at = scored[()], int(scored[()]) % RING
    mean = target_sum[()] / np.float64(1 if before < 1 else before)
    has_mean = 1.0 if before > 0 else 0.0
    for i in range(len(targets)):
        error, row = values[i] - targets[i], rows[i]
        size, square, around = abs(error), error * error, targets[i] - mean
        known = 1.0 if abs(stds[i]) <= LARGEST else 0.0
        far = error / safe[i]
        row[0] = as_float(losses[i])
        row[1] = as_float(size)
        row[2] = as_float(square)
        row[3] = as_float(has_mean * square)
        row[4] = as_float(has_mean * (around * around))
        row[5] = known
        row[6] = known * (1.0 if size <= NORMAL_90 * safe[i] else 0.0)
        row[7] = as_float(known * ((HALF_LOG_TAU + logs[i]) + 0.5 * (far * far)))
        if keep:
            ring[at] = row
            at = at + 1 if at + 1 < RING else 0
    if keep:
        scored[()] += len(targets)


@compiled
def miss(levels: Doubles, given: Doubles, targets: Doubles, both: Doubles) -> None:
    """Set the two numbers of which the larger one is the pinball loss, [2, n, Q]; which zero is the
    larger one is left to an operator of torch."""
    for i in range(len(targets)):
        for k in range(len(levels)):
            above = targets[i] - given[i, k]
            both[0, i, k], both[1, i, k] = levels[k] * above, (levels[k] - 1.0) * above


@compiled
def score_quantiles(
    ring: Floats, scored: Ints, given: Doubles, targets: Doubles, losses: Doubles, keep: bool,
    pinball: Doubles, rows: Floats,
) -> None:  # fmt: skip
    """Set what is summed of each example, [n, 2 Q + 3], and write the newest into the ring."""
    at, q = int(scored[()]) % RING, pinball.shape[1]
    for i in range(len(targets)):
        row, target = rows[i], targets[i]
        for k in range(q):
            row[k] = as_float(pinball[i, k])
            row[q + k] = 1.0 if target - given[i, k] <= 0.0 else 0.0
        row[2 * q] = as_float(given[i, q - 1] - given[i, 0])
        row[2 * q + 1] = 1.0 if given[i, 0] <= target and target <= given[i, q - 1] else 0.0
        row[2 * q + 2] = as_float(losses[i])
        if keep:
            ring[at] = row
            at = at + 1 if at + 1 < RING else 0
    if keep:
        scored[()] += len(targets)


@compiled
def predict_numbers(
    moments: Doubles, changes: Doubles, last: Doubles, targets: Doubles, normal: Doubles,
    levels: Doubles, values: Doubles, stds: Doubles, given: Doubles, both: Doubles,
) -> None:  # fmt: skip
    """Set what the floors predict for each example: values and deviations, [2, n], or quantiles,
    [2, n, Q]; and the two numbers of which the larger one is the loss, [2, 2, max(1, Q), n]."""
    variances = (moments[2] / moments[0], changes[1] / changes[0])
    for k in range(2):
        value = moments[1] if k == 0 else last[()]
        std = np.sqrt(variances[k])
        if not std > 0.0:
            std = np.nan
        spread = 0.0 if std != std else min(std, LARGEST)
        for i in range(len(targets)):
            missed = targets[i] - value
            values[k, i], stds[k, i] = value, std
            if len(levels) == 0:
                both[0, k, 0, i] = abs(missed)
            for j in range(len(levels)):
                given[k, i, j] = value + normal[j] * spread
                above = missed - spread * normal[j]
                both[0, k, j, i], both[1, k, j, i] = levels[j] * above, (levels[j] - 1.0) * above


@compiled
def square_distances(
    targets: Doubles, last: Doubles, total: float, around: Doubles, changes: Doubles
) -> None:
    """Set the squared distances of numbers from their mean, and from the last one, [n]."""
    n = len(targets)
    mean = total / n
    for i in range(n):
        far, changed = targets[i] - mean, targets[i] - last[()]
        around[i], changes[i] = far * far, changed * changed


@compiled
def learn_numbers(
    moments: Doubles, changes: Doubles, last: Doubles, targets: Doubles, total: float,
    around: float, changed: float,
) -> None:  # fmt: skip
    """Take the targets of a batch, whose sums are given."""
    n, count = len(targets), moments[0]
    more, step = count + n, total / n - moments[1]
    has_last = 1.0 if count > 0 else 0.0
    changes[0] += has_last * n
    changes[1] += changed if count > 0 else 0.0
    moments[0] = more
    moments[1] += step * n / more
    moments[2] = moments[2] + around + step * step * count * n / more
    last[()] = targets[n - 1]
