"""A step of linear experts as compiled loops over arrays, for numba.

Unlike `funnel.families.kernels`, they round otherwise than the operators of torch that are their
twins: sums are taken in the order of vector instructions. They agree with them to 1e-5 a batch.

Rows are outputs: that of class c of expert k is row k C + c. All loops that matter run along
features or examples, so that vectors of any width fit them. Four rows times four examples are
computed at once, which keeps all their sums in registers.
"""

import math

import numpy as np
import numpy.typing as npt

from funnel.compiled import contracted, reordered

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int32]

_NONE, _ONE = np.float32(0.0), np.float32(1.0)
_LOG2E = np.float32(1.44269504)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_EXP = tuple(
    map(
        np.float32,
        (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5),
    )
)
_P0, _P1, _P2, _P3, _P4, _P5 = _EXP
_LEAST, _MOST = np.float32(-87.3), np.float32(88.3)
_TILE = 128
"""Examples whose inputs stay in the cache while all rows pass."""


@contracted
def exponentials(x: Floats, bits: Codes, powers: Floats) -> None:
    """Let numbers x become exp(x), to 2 units in the last place; less than -87.3 exp(-87.3).

    S. L. Moshier's polynomial of the Cephes library.

    Args:
        x: [m].
        bits, powers: room for m numbers, one memory seen as integers and as fp32.
    """
    for j in range(len(x)):
        t = x[j]
        t = _MOST if t > _MOST else t  # NaN stays
        t = _LEAST if t < _LEAST else t
        whole = np.floor(t * _LOG2E + np.float32(0.5))
        r = t - whole * _LN2_HIGH
        r = r - whole * _LN2_LOW
        p = _P0 * r + _P1
        p = p * r + _P2
        p = p * r + _P3
        p = p * r + _P4
        p = p * r + _P5
        x[j] = p * (r * r) + (r + _ONE)
        bits[j] = (np.int32(whole) + np.int32(127)) << np.int32(23)
    for j in range(len(x)):
        x[j] *= powers[j]


@reordered
def outputs(z: Floats, w: Floats, b: Floats, found: Floats) -> None:
    """Write the outputs of all rows, [R, n]: w z + b.

    Args:
        z: inputs, [n, d].
        w: weights, [R, d].
        b: biases, [R].
        found: [R, n].
    """
    n, rows, width = z.shape[0], w.shape[0], z.shape[1]
    for i in range(0, n, 4):
        i1, i2, i3 = min(i + 1, n - 1), min(i + 2, n - 1), min(i + 3, n - 1)
        z0, z1, z2, z3 = z[i], z[i1], z[i2], z[i3]
        for r in range(0, rows, 4):
            r1, r2, r3 = min(r + 1, rows - 1), min(r + 2, rows - 1), min(r + 3, rows - 1)
            w0, w1, w2, w3 = w[r], w[r1], w[r2], w[r3]
            a00 = a01 = a02 = a03 = a10 = a11 = a12 = a13 = _NONE
            a20 = a21 = a22 = a23 = a30 = a31 = a32 = a33 = _NONE
            for j in range(width):
                x0, x1, x2, x3 = z0[j], z1[j], z2[j], z3[j]
                u = w0[j]
                a00 += x0 * u
                a10 += x1 * u
                a20 += x2 * u
                a30 += x3 * u
                u = w1[j]
                a01 += x0 * u
                a11 += x1 * u
                a21 += x2 * u
                a31 += x3 * u
                u = w2[j]
                a02 += x0 * u
                a12 += x1 * u
                a22 += x2 * u
                a32 += x3 * u
                u = w3[j]
                a03 += x0 * u
                a13 += x1 * u
                a23 += x2 * u
                a33 += x3 * u
            b0, b1, b2, b3 = b[r], b[r1], b[r2], b[r3]
            found[r, i], found[r, i1], found[r, i2], found[r, i3] = (
                a00 + b0, a10 + b0, a20 + b0, a30 + b0,
            )  # fmt: skip
            found[r1, i], found[r1, i1], found[r1, i2], found[r1, i3] = (
                a01 + b1, a11 + b1, a21 + b1, a31 + b1,
            )  # fmt: skip
            found[r2, i], found[r2, i1], found[r2, i2], found[r2, i3] = (
                a02 + b2, a12 + b2, a22 + b2, a32 + b2,
            )  # fmt: skip
            found[r3, i], found[r3, i1], found[r3, i2], found[r3, i3] = (
                a03 + b3, a13 + b3, a23 + b3, a33 + b3,
            )  # fmt: skip


@reordered
def add_products(
    z: Floats, error: Floats, begin: int, end: int, row: int, count: int, g: Floats
) -> None:
    """Add the products of inputs and errors to the gradients of four rows, or of one.

    Args:
        z: inputs, [n, d].
        error: [R, n].
        begin: the first example.
        end: the example after the last.
        row: the first row, both of errors and of gradients.
        count: 4 rows or 1.
        g: gradients, [R, d].
    """
    width = z.shape[1]
    for i in range(begin, end, 4):
        i1, i2, i3 = min(i + 1, end - 1), min(i + 2, end - 1), min(i + 3, end - 1)
        z0, z1, z2, z3 = z[i], z[i1], z[i2], z[i3]
        m1, m2, m3 = np.float32(i + 1 < end), np.float32(i + 2 < end), np.float32(i + 3 < end)
        own = error[row]
        a0, a1, a2, a3 = own[i], own[i1] * m1, own[i2] * m2, own[i3] * m3
        if count == 1:
            g0 = g[row]
            for j in range(width):
                g0[j] += a0 * z0[j] + a1 * z1[j] + a2 * z2[j] + a3 * z3[j]
            continue
        own = error[row + 1]
        b0, b1, b2, b3 = own[i], own[i1] * m1, own[i2] * m2, own[i3] * m3
        own = error[row + 2]
        c0, c1, c2, c3 = own[i], own[i1] * m1, own[i2] * m2, own[i3] * m3
        own = error[row + 3]
        d0, d1, d2, d3 = own[i], own[i1] * m1, own[i2] * m2, own[i3] * m3
        g0, g1, g2, g3 = g[row], g[row + 1], g[row + 2], g[row + 3]
        for j in range(width):
            x0, x1, x2, x3 = z0[j], z1[j], z2[j], z3[j]
            t0 = g0[j] + a0 * x0 + a1 * x1 + a2 * x2 + a3 * x3
            t1 = g1[j] + b0 * x0 + b1 * x1 + b2 * x2 + b3 * x3
            t2 = g2[j] + c0 * x0 + c1 * x1 + c2 * x2 + c3 * x3
            t3 = g3[j] + d0 * x0 + d1 * x1 + d2 * x2 + d3 * x3
            g0[j], g1[j], g2[j], g3[j] = t0, t1, t2, t3


@contracted
def standardize(
    x: Floats, mean: Floats, scale: Floats, limit: float, inverse: Floats, z: Floats
) -> None:
    """Write the inputs of the experts, as `service.fold.standardizer.standardized` does.

    Args:
        x: [n, d].
        mean, scale: [d].
        limit: bound of what is written.
        inverse: room for d numbers.
        z: [n, d].
    """
    most = np.float32(limit)
    for j in range(len(scale)):
        inverse[j] = _ONE / scale[j]
    for i in range(len(x)):
        own, found = x[i], z[i]
        for j in range(len(own)):
            t = (own[j] - mean[j]) * inverse[j]
            t = most if t > most else t  # NaN stays
            found[j] = -most if t < -most else t


@contracted
def softmax(
    logits: Floats, classes: int, labels: Ints, begin: int, bits: Codes, powers: Floats,
    most: Floats, total: Floats, losses: Floats, is_scored: bool,
) -> None:  # fmt: skip
    """Let logits become probabilities, in place, and write the losses of the labels.

    Args:
        logits: [R, n] of examples from ``begin`` on.
        classes: C.
        labels: of all examples.
        begin: number of the first example.
        bits, powers: room for as many numbers as there are logits (see `exponentials`).
        most, total: room for n numbers.
        losses: cross-entropy of each expert and example, [K, n]; untouched unless ``is_scored``.
        is_scored: whether losses are written.
    """
    n = logits.shape[1]
    for k in range(logits.shape[0] // classes):
        first = k * classes
        most[:n] = logits[first]
        for c in range(first + 1, first + classes):
            row = logits[c]
            for i in range(n):
                most[i] = max(most[i], row[i])
        if is_scored:
            for i in range(n):
                losses[k, i] = most[i] - logits[first + labels[begin + i], i]
        for c in range(first, first + classes):
            row = logits[c]
            for i in range(n):
                row[i] -= most[i]
    exponentials(logits.reshape(logits.size), bits, powers)
    for k in range(logits.shape[0] // classes):
        first = k * classes
        total[:n] = _NONE
        for c in range(first, first + classes):
            row = logits[c]
            for i in range(n):
                total[i] += row[i]
        if is_scored:
            for i in range(n):
                losses[k, i] += np.float32(math.log(total[i]))
        for i in range(n):
            total[i] = _ONE / total[i]
        for c in range(first, first + classes):
            row = logits[c]
            for i in range(n):
                row[i] *= total[i]


@reordered
def dot(a: Floats, b: Floats) -> np.float32:
    """Return the inner product of two rows."""
    total = _NONE
    for j in range(len(a)):
        total += a[j] * b[j]
    return total


@reordered
def gradients(z: Floats, error: Floats, g: Floats, g_bias: Floats) -> None:
    """Write the gradients of all rows.

    Args:
        z: inputs, [n, d].
        error: gradients of the mean loss by the outputs, [R, n].
        g: [R, d].
        g_bias: [R].
    """
    n, rows = z.shape[0], g.shape[0]
    g[:] = _NONE
    whole = rows - rows % 4
    for begin in range(0, n, _TILE):
        end = min(begin + _TILE, n)
        for r in range(0, whole, 4):
            add_products(z, error, begin, end, r, 4, g)
        for r in range(whole, rows):
            add_products(z, error, begin, end, r, 1, g)
    for r in range(rows):
        own, total = error[r], _NONE
        for i in range(n):
            total += own[i]
        g_bias[r] = total


@contracted
def score(
    z: Floats, labels: Ints, importance: Floats, w: Floats, b: Floats, log_weights: Floats,
    rival: Floats, answers: Floats, chosen: Ints, mixed: Floats, losses: Floats,
    probabilities: Floats, error: Floats, g: Floats, g_bias: Floats, squares: Floats,
) -> bool:  # fmt: skip
    """Score and differentiate a batch; return whether it can be learned: labels are
    classes, and losses and gradients finite.

    Args:
        z: inputs, [n, d].
        labels: [n].
        importance: weights of the examples, [n]; of none for 1.
        w, b: weights and biases, [K C, d] and [K C].
        log_weights: of experts, and of the answer of no change if it is mixed, [K] or [K + 1].
        rival: probabilities of that answer, [C].
        answers: written: probabilities of the mixture, [n, C].
        chosen: written: the likeliest class, [n].
        mixed: written: losses of the mixture, [n].
        losses: written: losses of all that is mixed, [K or K + 1, n].
        probabilities: written: [K C, n].
        error: written: gradients of the mean loss by the outputs, [K C, n].
        g, g_bias: written: gradients, [K C, d] and [K C].
        squares: written: squared length of the gradient of each expert's weights, and of its
            biases, [2, K].
    """
    n, classes = z.shape[0], answers.shape[1]
    experts, all_ = w.shape[0] // classes, len(log_weights)
    for i in range(n):
        if labels[i] < 0 or labels[i] >= classes:
            return False
    outputs(z, w, b, probabilities)
    bits = np.empty(probabilities.size, np.int32)
    powers = bits.view(np.float32)
    most, total = np.empty(n, np.float32), np.empty(n, np.float32)
    if experts == 1:  # equal probabilities may be of logits that are not
        for i in range(n):
            best = 0
            for c in range(1, classes):
                if probabilities[c, i] > probabilities[best, i]:
                    best = c
            chosen[i] = best
    softmax(probabilities, classes, labels, 0, bits, powers, most, total, losses, True)
    share = _ONE / np.float32(n)
    for r in range(len(w)):
        own, found = probabilities[r], error[r]
        for i in range(n):
            found[i] = own[i] * share
    for i in range(n):
        for k in range(experts):
            error[k * classes + labels[i], i] -= share
    if len(importance) > 0:
        for r in range(len(w)):
            found = error[r]
            for i in range(n):
                found[i] *= importance[i]
    if all_ == 1:
        for i in range(n):
            mixed[i] = losses[0, i]
            for c in range(classes):
                answers[i, c] = probabilities[c, i]
    else:
        if all_ > experts:
            for i in range(n):
                losses[experts, i] = -np.float32(math.log(rival[labels[i]]))
        log_total = log_sum(log_weights)
        weights = np.empty(all_, np.float32)
        for k in range(all_):
            weights[k] = np.float32(math.exp(log_weights[k] - log_total))
        row = np.empty(n, np.float32)
        for c in range(classes):
            row[:] = weights[experts] * rival[c] if all_ > experts else _NONE
            for k in range(experts):
                own, weight = probabilities[k * classes + c], weights[k]
                for i in range(n):
                    row[i] += weight * own[i]
            for i in range(n):
                answers[i, c] = row[i]
        if experts > 1:
            for i in range(n):
                best = 0
                for c in range(1, classes):
                    if answers[i, c] > answers[i, best]:
                        best = c
                chosen[i] = best
        mix(losses, weights[None], bits, powers, most, mixed[None], row)
    gradients(z, error, g, g_bias)
    sound = _NONE
    for i in range(n):
        sound += mixed[i] * _NONE
    for k in range(experts):
        first, own, of_bias = k * classes, _NONE, _NONE
        for r in range(first, first + classes):
            own += dot(g[r], g[r])
            of_bias += g_bias[r] * g_bias[r]
        squares[0, k], squares[1, k] = own, of_bias
        sound += (own + of_bias) * _NONE
        row = losses[k]
        for i in range(n):
            sound += row[i] * _NONE
    return bool(sound == _NONE)


@contracted
def log_sum(x: Floats) -> np.float32:
    """Return log Σ exp(x) of a few numbers."""
    most = x[0]
    for k in range(1, len(x)):
        most = max(most, x[k])
    total = _NONE
    for k in range(len(x)):
        total += np.float32(math.exp(x[k] - most))
    return np.float32(most + np.float32(math.log(total)))


@contracted
def mix(
    losses: Floats, weights: Floats, bits: Codes, powers: Floats, least: Floats, found: Floats,
    row: Floats,
) -> None:  # fmt: skip
    """Write the losses of mixtures, -log Σ weight exp(-loss).

    Args:
        losses: [K, n].
        weights: of each mixture, [A, K].
        bits, powers: room for n numbers (see `exponentials`).
        least, row: room for n numbers.
        found: [A, n].
    """
    n = losses.shape[1]
    least[:n] = losses[0]
    for k in range(1, len(losses)):
        own = losses[k]
        for i in range(n):
            least[i] = min(least[i], own[i])
    found[:] = _NONE
    for k in range(len(losses)):
        own = losses[k]
        for i in range(n):
            row[i] = least[i] - own[i]
        exponentials(row, bits, powers)
        for a in range(len(weights)):
            weight, mine = weights[a, k], found[a]
            for i in range(n):
                mine[i] += weight * row[i]
    for a in range(len(weights)):
        mine = found[a]
        for i in range(n):
            mine[i] = least[i] - np.float32(math.log(mine[i]))


@contracted
def share(log_weights: Floats, log_kept: float, log_dealt: Floats) -> None:
    """Normalize weights and share them, as `funnel.pool.mixing` does, in place.

    Args:
        log_weights: [K].
        log_kept: log(1 - α).
        log_dealt: logarithms of the shares that are dealt, [K].
    """
    total, dealt = log_sum(log_weights), math.log(-math.expm1(log_kept))
    for k in range(len(log_weights)):
        a, b = log_weights[k] - total + np.float32(log_kept), np.float32(dealt) + log_dealt[k]
        most = max(a, b)
        log_weights[k] = most + np.float32(math.log1p(math.exp(-abs(a - b))))


@contracted
def decide(
    losses: Floats, importance: Floats, classes: int, rate: float, log_kept: Floats,
    log_rates_kept: float, log_dealt: Floats, log_rates_dealt: Floats, log_weights: Floats,
    log_weights_at: Floats, log_rate_weights: Floats, renews: npt.NDArray[np.bool_],
    excess: Floats, limit: float, level: Floats, squares: Floats, up: float, down: float,
    log_cap: float, last: Floats, memory: float, labels: Ints, factor: Floats,
) -> bool:  # fmt: skip
    """Learn weights, renewal, norms and persistence from a batch of which every expert is healthy.

    Args:
        losses: of all that is mixed, [K or K + 1, n].
        importance: weights of the examples, [n]; of none for 1.
        classes: C.
        rate, log_kept, log_rates_kept, log_dealt, log_rates_dealt, log_weights, log_weights_at,
            log_rate_weights: of `funnel.pool.mixing.FixedShare`.
        renews, excess, limit: of `funnel.pool.renewal.Renewal`.
        level, up, down, log_cap: of `funnel.pool.clipping.NormCap`.
        squares: as `score` wrote them.
        last, memory: of `funnel.pool.persistence`; ``last`` is of none without.
        labels: [n].
        factor: written: of the gradients, [K]; NaN where an expert is due for renewal.

    Returns:
        Whether all experts learn the batch.
    """
    n, all_, experts = losses.shape[1], len(losses), len(factor)
    has_weights = len(importance) > 0
    own, ignorant = np.empty(all_, np.float32), np.float32(math.log(classes))
    whole = np.float32(n)
    if has_weights:
        whole = _NONE
        for i in range(n):
            whole += importance[i]
    for k in range(all_):
        row, total = losses[k], 0.0
        for i in range(n):
            total += row[i] * importance[i] if has_weights else row[i]
        own[k] = np.float32(total)
    all_learn = True
    for k in range(experts):
        row, sum_ = losses[k], 0.0
        for i in range(n):
            more = row[i] - ignorant
            sum_ += more * importance[i] if has_weights else more
        worse = np.float32(sum_)
        if renews[k] and (excess[k] >= _NONE or worse < _NONE):
            excess[k] = max(excess[k] + worse, _NONE)
        is_due = excess[k] > np.float32(limit)
        log_norm = np.float32(0.5 * math.log(squares[0, k] + squares[1, k]))
        factor[k] = np.float32(math.exp(min(level[k] + np.float32(log_cap) - log_norm, _NONE)))
        if is_due:
            factor[k] = np.nan
            all_learn = False
        elif squares[0, k] + squares[1, k] > _NONE:
            if math.isinf(level[k]):
                level[k] = log_norm
            else:
                level[k] += np.float32(up) if log_norm > level[k] else -np.float32(down)
    if all_ > 1:
        rates = len(log_kept)
        found, weights = np.empty((rates, n), np.float32), np.empty((rates, all_), np.float32)
        bits = np.empty(n, np.int32)
        least, row = np.empty(n, np.float32), np.empty(n, np.float32)
        for a in range(rates):
            log_total = log_sum(log_weights_at[a])
            for k in range(all_):
                weights[a, k] = np.float32(math.exp(log_weights_at[a, k] - log_total))
        mix(losses, weights, bits, bits.view(np.float32), least, found, row)
        for a in range(rates):
            total = 0.0
            for i in range(n):
                total += found[a, i] * importance[i] if has_weights else found[a, i]
            log_rate_weights[a] -= np.float32(rate * total)
            for k in range(all_):
                log_weights_at[a, k] -= np.float32(rate) * own[k]
            share(log_weights_at[a], n * log_kept[a], log_dealt)
        share(log_rate_weights, n * log_rates_kept, log_rates_dealt)
        terms = np.empty(rates, np.float32)
        for k in range(all_):
            for a in range(rates):
                terms[a] = log_rate_weights[a] + log_weights_at[a, k]
            log_weights[k] = log_sum(terms)
    if len(last) > 0:
        right, newest = _NONE, last[2]
        for i in range(n):
            weight = importance[i] if has_weights else _ONE
            if np.float32(labels[i]) == last[2]:
                right += weight
            if weight > _NONE:
                newest = np.float32(labels[i])
        kept = np.float32((1.0 - 1.0 / memory) ** n)
        learns = not all_learn
        for k in range(experts):
            learns = learns and math.isnan(factor[k])
        if not learns:  # some expert learns
            last[0] = right + last[0] * kept
            last[1] = whole - right + last[1] * kept
            last[2] = newest
    return all_learn


@reordered
def walk_row(g: Floats, scaled: Floats, sums: Floats, total: Floats, w: Floats) -> None:
    """Take a step of AdaGrad in a row: g̃ = g / √(a + g²), in place of a, Σ g̃ and w."""
    for j in range(len(g)):
        x = g[j]
        a = sums[j] + x * x
        sums[j] = a
        x = x / np.sqrt(a)
        total[j] += x
        w[j] -= scaled[j] * x


@reordered
def walk_row_plainly(g: Floats, scaled: Floats, total: Floats, w: Floats) -> None:
    """Take a step of SGD in a row: g̃ = g, in place of Σ g̃ and w."""
    for j in range(len(g)):
        x = g[j]
        total[j] += x
        w[j] -= scaled[j] * x


@contracted
def walk(
    z: Floats, labels: Ints, importance: Floats, classes: int, steps: int, factor: Floats,
    has_sums: npt.NDArray[np.bool_], w: Floats, b: Floats, scaled: Floats, scaled_bias: Floats,
    sums: Floats, sums_bias: Floats, total: Floats, total_bias: Floats, g: Floats,
) -> bool:  # fmt: skip
    """Walk through a batch, as `funnel.pool.walk` does; return whether Σ g̃ is finite.

    Args:
        z: inputs, [n, d].
        labels: [n].
        importance: weights of the examples, [n]; of none for 1.
        classes: C.
        steps: of the walk, at least 1.
        factor: of the gradients of each expert that walks, [k].
        has_sums: which of them are AdaGrad; the others are SGD.
        w, b: where the walk starts, [k C, d] and [k C]; changed.
        scaled, scaled_bias: s η p.
        sums, sums_bias: a; changed.
        total, total_bias: Σ g̃, from 0 on; changed.
        g: room for [k C, d].
    """
    n, rows = z.shape[0], len(w)
    count = min(steps, n)
    room = n // count + 1
    of_error = np.empty(rows * room, np.float32)
    bits = np.empty(rows * room, np.int32)
    powers = bits.view(np.float32)
    most, sum_ = np.empty(room, np.float32), np.empty(room, np.float32)
    none, of_bias = np.empty((0, 0), np.float32), np.empty(1, np.float32)
    begin = 0
    for piece in range(count):
        m = n // count + (1 if piece < n % count else 0)
        some = z[begin : begin + m]
        error = of_error[: rows * m].reshape(rows, m)
        outputs(some, w, b, error)
        softmax(error, classes, labels, begin, bits, powers, most, sum_, none, False)
        for k in range(len(factor)):
            for i in range(m):
                error[k * classes + labels[begin + i], i] -= _ONE
            share_ = factor[k] / np.float32(m)
            for r in range(k * classes, (k + 1) * classes):
                own = error[r]
                for i in range(m):
                    own[i] *= share_
        if len(importance) > 0:
            for r in range(rows):
                own = error[r]
                for i in range(m):
                    own[i] *= importance[begin + i]
        whole = rows - rows % 4
        for first in range(0, m, _TILE):
            last = min(first + _TILE, m)
            r = 0
            while r < rows:
                part = 4 if r < whole else 1
                if first == 0:
                    g[r : r + part] = _NONE
                add_products(some, error, first, last, r, part, g)
                for q in range(r, r + part if last == m else r):
                    if has_sums[q // classes]:
                        walk_row(g[q], scaled[q], sums[q], total[q], w[q])
                    else:
                        walk_row_plainly(g[q], scaled[q], total[q], w[q])
                r += part
        for r in range(rows):
            of_bias[0] = _NONE
            for i in range(m):
                of_bias[0] += error[r, i]
            one = slice(r, r + 1)
            if has_sums[r // classes]:
                walk_row(of_bias, scaled_bias[one], sums_bias[one], total_bias[one], b[one])
            else:
                walk_row_plainly(of_bias, scaled_bias[one], total_bias[one], b[one])
        begin += m
    sound = _NONE
    for r in range(rows):
        sound += dot(total[r], total[r]) * _NONE + total_bias[r] * total_bias[r] * _NONE
    return bool(sound == _NONE)


@contracted
def learn_gain(
    g: Floats, factor: np.float32, ema: Floats, gain_lr: np.float32, bound: float, log_gain: Floats
) -> None:
    """Move log p of a row towards agreement of the signs of g and m̃ (`funnel.update`, eq. 11)."""
    most = np.float32(bound)
    for j in range(len(g)):
        x, m = g[j] * factor, ema[j]
        x = np.float32(x > _NONE) - np.float32(x < _NONE)
        m = np.float32(m > _NONE) - np.float32(m < _NONE)
        p = log_gain[j] + gain_lr * (x * m)
        p = most if p > most else p
        log_gain[j] = -most if p < -most else p


@reordered
def precondition(g: Floats, factor: np.float32, sums: Floats, found: Floats) -> None:
    """Take AdaGrad's step of a row: a ← a + g², and write g̃ = g / √a."""
    for j in range(len(g)):
        x = g[j] * factor
        a = sums[j] + x * x
        sums[j] = a
        found[j] = x / np.sqrt(a)


@contracted
def step_row(
    precond: Floats, gains: Floats, lr: np.float32, momentum: np.float32, fades: np.float32,
    scale: np.float32, ema: Floats, velocity: Floats, w: Floats,
) -> None:  # fmt: skip
    """Take Funnel's step of a row: m, ν and w move (`funnel.update`, eq. 3)."""
    for j in range(len(precond)):
        x = precond[j]
        ema[j] += fades * (x - ema[j])
        velocity[j] = momentum * velocity[j] + lr * (gains[j] * x)
    for j in range(len(w)):
        w[j] -= scale * velocity[j]


@contracted
def pull_row(
    weights: Floats, pulls: Floats, w: Floats, first: int, every: int, mean: Floats
) -> None:
    """Draw experts to their weighted mean in a row of a class.

    Args:
        weights, pulls: of the experts, [K].
        w: rows of all experts.
        first: row of the first expert.
        every: rows between two experts.
        mean: room for a row.
    """
    mean[:] = _NONE
    for k in range(len(weights)):
        own, weight = w[first + k * every], weights[k]
        for j in range(len(mean)):
            mean[j] += weight * own[j]
    for k in range(len(weights)):
        if pulls[k] > _NONE:
            own, part = w[first + k * every], pulls[k]
            for j in range(len(mean)):
                own[j] += part * (mean[j] - own[j])


@contracted
def cosines(
    g: Floats, velocity: Floats, factor: Floats, squares: Floats, products: Floats,
    norms: Floats, found: Floats,
) -> None:  # fmt: skip
    """Compare the capped gradients of each expert with its velocity (`funnel.update.align`).

    Args:
        g, velocity: [K C, d].
        factor: of the gradients, [K].
        squares: squared lengths of the gradients, [K].
        products, norms, found: written: inner products, lengths of gradients, cosines; [K].
    """
    classes = len(g) // len(factor)
    for k in range(len(factor)):
        product, square = _NONE, _NONE
        for r in range(k * classes, (k + 1) * classes):
            product += dot(g[r], velocity[r])
            square += dot(velocity[r], velocity[r])
        norm = np.sqrt(squares[k]) * factor[k]
        cosine = product * factor[k] / norm / np.sqrt(square)
        if not math.isfinite(cosine):
            cosine = _NONE
        products[k], norms[k] = product * factor[k], norm
        found[k] = min(max(cosine, -_ONE), _ONE)


@contracted
def update(
    z: Floats, labels: Ints, importance: Floats, factor: Floats, g: Floats, g_bias: Floats,
    squares: Floats, rates: Floats, has_sums: npt.NDArray[np.bool_], first: int, steps: int,
    fades: float, gain_bound: float, scale_bound: float, log_weights: Floats, pulls: Floats,
    w: Floats, b: Floats, sums: Floats, sums_bias: Floats, log_gain: Floats,
    log_gain_bias: Floats, velocity: Floats, velocity_bias: Floats, ema: Floats,
    ema_bias: Floats, log_scale: Floats, log_scale_bias: Floats, found: Floats,
) -> bool:  # fmt: skip
    """Learn a batch that all experts learn; return False, with nothing changed, if a walk ends
    where numbers are not finite.

    Args:
        z: inputs, [n, d].
        labels: [n].
        importance: weights of the examples, [n]; of none for 1.
        factor, g, g_bias, squares: as `score` and `decide` wrote them.
        rates: η, μ, γp and γs of the experts, [4, K].
        has_sums: which experts are AdaGrad, [K]; the others are SGD.
        first: the first expert that walks; all after it do, too.
        steps: of the walks.
        fades: 1 - β.
        gain_bound, scale_bound: bounds of |log p| and |log s|.
        log_weights: of the experts in the mixture, [K or K + 1].
        pulls: of the experts, [K]; of none if none is pulled.
        w, b: weights and biases, [K C, d] and [K C]; and, of these, ``sums`` a of AdaGrad,
            ``log_gain`` log p, ``velocity`` ν and ``ema`` m̃; changed.
        log_scale, log_scale_bias: log s of weights and biases, [K]; changed.
        found: written: inner products, lengths and cosines, [2, 3, K] (see `cosines`).
    """
    experts, rows, width = len(factor), len(w), z.shape[1]
    classes = rows // experts
    place, walkers = first * classes, experts - first
    bits = np.empty(max(width, rows), np.int32)
    powers = bits.view(np.float32)
    row, gains = np.empty(width, np.float32), np.empty(width, np.float32)
    ends_w, ends_b = np.empty((0, 0), np.float32), np.empty(0, np.float32)
    ends_a, ends_a_bias, total, total_bias = ends_w, ends_b, ends_w, ends_b
    if walkers > 0:
        ends_w, ends_b = w[place:].copy(), b[place:].copy()
        ends_a, ends_a_bias = sums[place:].copy(), sums_bias[place:].copy()
        total, total_bias = np.zeros_like(ends_w), np.zeros_like(ends_b)
        scaled, scaled_bias = np.empty_like(ends_w), np.empty_like(ends_b)
        for r in range(place, rows):
            k = r // classes
            factor_ = np.float32(math.exp(log_scale[k])) * rates[0, k]
            mine = scaled[r - place]
            own = log_gain[r]
            for j in range(width):
                mine[j] = own[j]
            exponentials(mine, bits, powers)
            for j in range(width):
                mine[j] *= factor_
            factor_ = np.float32(math.exp(log_scale_bias[k])) * rates[0, k]
            scaled_bias[r - place] = np.float32(math.exp(log_gain_bias[r])) * factor_
        room = np.empty_like(ends_w)
        if not walk(
            z, labels, importance, classes, steps, factor[first:], has_sums[first:], ends_w,
            ends_b, scaled, scaled_bias, ends_a, ends_a_bias, total, total_bias, room,
        ):  # fmt: skip
            return False
    cosines(g, velocity, factor, squares[0], found[0, 0], found[0, 1], found[0, 2])
    as_rows = (rows, 1)
    cosines(
        g_bias.reshape(as_rows), velocity_bias.reshape(as_rows), factor, squares[1],
        found[1, 0], found[1, 1], found[1, 2],
    )  # fmt: skip
    most = np.float32(scale_bound)
    for k in range(experts):
        s = log_scale[k] + rates[3, k] * found[0, 2, k]
        log_scale[k] = min(max(s, -most), most)
        s = log_scale_bias[k] + rates[3, k] * found[1, 2, k]
        log_scale_bias[k] = min(max(s, -most), most)
    weights = np.empty(experts, np.float32)
    if len(pulls) > 0:
        log_total = log_sum(log_weights[:experts]) if len(log_weights) > experts else _NONE
        for k in range(experts):
            weights[k] = np.float32(math.exp(log_weights[k] - log_total))
    slow = np.float32(fades)
    for c in range(classes):
        for k in range(experts):
            r = k * classes + c
            precond = row
            if k >= first:
                precond = total[r - place]
                mine, own = sums[r], ends_a[r - place]
                for j in range(width):
                    mine[j] = own[j]
            elif has_sums[k]:
                precondition(g[r], factor[k], sums[r], row)
            else:
                own = g[r]
                for j in range(width):
                    row[j] = own[j] * factor[k]
            learn_gain(g[r], factor[k], ema[r], rates[2, k], gain_bound, log_gain[r])
            own = log_gain[r]
            for j in range(width):
                gains[j] = own[j]
            exponentials(gains, bits, powers)
            step_row(
                precond, gains, rates[0, k], rates[1, k], slow,
                np.float32(math.exp(log_scale[k])), ema[r], velocity[r], w[r],
            )  # fmt: skip
        if len(pulls) > 0:
            pull_row(weights, pulls, w, c, classes, row)
    one = row[:1]
    for c in range(classes):
        for k in range(experts):
            r = k * classes + c
            at = slice(r, r + 1)
            precond = one
            if k >= first:
                precond = total_bias[r - place : r - place + 1]
                sums_bias[r] = ends_a_bias[r - place]
            elif has_sums[k]:
                precondition(g_bias[at], factor[k], sums_bias[at], one)
            else:
                one[0] = g_bias[r] * factor[k]
            learn_gain(
                g_bias[at], factor[k], ema_bias[at], rates[2, k], gain_bound, log_gain_bias[at]
            )
            gains[0] = np.float32(math.exp(log_gain_bias[r]))
            step_row(
                precond, gains[:1], rates[0, k], rates[1, k], slow,
                np.float32(math.exp(log_scale_bias[k])), ema_bias[at], velocity_bias[at], b[at],
            )  # fmt: skip
        if len(pulls) > 0:
            pull_row(weights, pulls, b.reshape(as_rows), c, classes, one)
    return True
