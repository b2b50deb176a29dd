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
    """Write the outputs of all rows: w z + b.

    Args:
        z: inputs, [n, d].
        w: weights, [R, d].
        b: biases, [R, 1].
        found: [R n].
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
            own, bias = found[r * n : r * n + n], b[r, 0]
            own[i], own[i1], own[i2], own[i3] = a00 + bias, a10 + bias, a20 + bias, a30 + bias
            own, bias = found[r1 * n : r1 * n + n], b[r1, 0]
            own[i], own[i1], own[i2], own[i3] = a01 + bias, a11 + bias, a21 + bias, a31 + bias
            own, bias = found[r2 * n : r2 * n + n], b[r2, 0]
            own[i], own[i1], own[i2], own[i3] = a02 + bias, a12 + bias, a22 + bias, a32 + bias
            own, bias = found[r3 * n : r3 * n + n], b[r3, 0]
            own[i], own[i1], own[i2], own[i3] = a03 + bias, a13 + bias, a23 + bias, a33 + bias


@reordered
def add_products(z: Floats, error: Floats, row: int, begin: int, end: int, g: Floats) -> None:
    """Add the products of inputs and errors of some examples to the gradient of a row.

    Args:
        z: inputs, [n, d].
        error: [R n].
        row: its number.
        begin: the first example.
        end: the example after the last.
        g: [R, d].
    """
    n, width = z.shape
    own, g0 = error[row * n : row * n + n], g[row]
    for i in range(begin, end, 4):
        i1, i2, i3 = min(i + 1, end - 1), min(i + 2, end - 1), min(i + 3, end - 1)
        z0, z1, z2, z3 = z[i], z[i1], z[i2], z[i3]
        m1, m2, m3 = np.float32(i + 1 < end), np.float32(i + 2 < end), np.float32(i + 3 < end)
        a0, a1, a2, a3 = own[i], own[i1] * m1, own[i2] * m2, own[i3] * m3
        for j in range(width):
            g0[j] += a0 * z0[j] + a1 * z1[j] + a2 * z2[j] + a3 * z3[j]


@reordered
def add_four(z: Floats, error: Floats, row: int, begin: int, end: int, g: Floats) -> None:
    """Do the same for four rows, of which ``row`` is the first."""
    n, width = z.shape
    at = row * n
    own0, own1 = error[at : at + n], error[at + n : at + 2 * n]
    own2, own3 = error[at + 2 * n : at + 3 * n], error[at + 3 * n : at + 4 * n]
    g0, g1, g2, g3 = g[row], g[row + 1], g[row + 2], g[row + 3]
    for i in range(begin, end, 4):
        i1, i2, i3 = min(i + 1, end - 1), min(i + 2, end - 1), min(i + 3, end - 1)
        z0, z1, z2, z3 = z[i], z[i1], z[i2], z[i3]
        m1, m2, m3 = np.float32(i + 1 < end), np.float32(i + 2 < end), np.float32(i + 3 < end)
        a0, a1, a2, a3 = own0[i], own0[i1] * m1, own0[i2] * m2, own0[i3] * m3
        b0, b1, b2, b3 = own1[i], own1[i1] * m1, own1[i2] * m2, own1[i3] * m3
        c0, c1, c2, c3 = own2[i], own2[i1] * m1, own2[i2] * m2, own2[i3] * m3
        d0, d1, d2, d3 = own3[i], own3[i1] * m1, own3[i2] * m2, own3[i3] * m3
        for j in range(width):
            x0, x1, x2, x3 = z0[j], z1[j], z2[j], z3[j]
            t0 = g0[j] + a0 * x0 + a1 * x1 + a2 * x2 + a3 * x3
            t1 = g1[j] + b0 * x0 + b1 * x1 + b2 * x2 + b3 * x3
            t2 = g2[j] + c0 * x0 + c1 * x1 + c2 * x2 + c3 * x3
            t3 = g3[j] + d0 * x0 + d1 * x1 + d2 * x2 + d3 * x3
            g0[j], g1[j], g2[j], g3[j] = t0, t1, t2, t3


@contracted
def softmax(
    logits: Floats, classes: int, labels: Ints, bits: Codes, powers: Floats, room: Floats,
    losses: Floats,
) -> None:  # fmt: skip
    """Let logits become probabilities, in place, and write the losses of the labels.

    Args:
        logits: [K C n].
        classes: C.
        labels: [n].
        bits, powers: room for as many numbers as there are logits (see `exponentials`).
        room: for n numbers.
        losses: cross-entropy of each expert and example, [K, n]; of none if it is not wanted.
    """
    n = len(labels)
    experts = len(logits) // (classes * n)
    for k in range(experts):
        first = k * classes
        row = logits[first * n : first * n + n]
        for i in range(n):
            room[i] = row[i]
        for c in range(first + 1, first + classes):
            row = logits[c * n : c * n + n]
            for i in range(n):
                room[i] = max(room[i], row[i])
        if len(losses) > 0:
            for i in range(n):
                losses[k, i] = room[i] - logits[(first + labels[i]) * n + i]
        for c in range(first, first + classes):
            row = logits[c * n : c * n + n]
            for i in range(n):
                row[i] -= room[i]
    exponentials(logits, bits, powers)
    for k in range(experts):
        first = k * classes
        for i in range(n):
            room[i] = _NONE
        for c in range(first, first + classes):
            row = logits[c * n : c * n + n]
            for i in range(n):
                room[i] += row[i]
        if len(losses) > 0:
            for i in range(n):
                losses[k, i] += np.float32(math.log(room[i]))
        for i in range(n):
            room[i] = _ONE / room[i]
        for c in range(first, first + classes):
            row = logits[c * n : c * n + n]
            for i in range(n):
                row[i] *= room[i]


@reordered
def dot(a: Floats, b: Floats) -> np.float32:
    """Return the inner product of two rows."""
    total = _NONE
    for j in range(len(a)):
        total += a[j] * b[j]
    return total


@reordered
def gradients(z: Floats, error: Floats, g: Floats, g_bias: Floats, squares: Floats) -> bool:
    """Write the gradients of all experts, and return whether their lengths are finite.

    Args:
        z: inputs, [n, d].
        error: gradients of the mean loss by the outputs, [K C n].
        g, g_bias: written: gradients, [K C, d] and [K C, 1].
        squares: written: squared length of the gradient of each expert's weights, and of its
            biases, [2, K].
    """
    n, rows, width, experts = z.shape[0], g.shape[0], z.shape[1], squares.shape[1]
    for r in range(rows):
        own = g[r]
        for j in range(width):
            own[j] = _NONE
    for begin in range(0, n, _TILE):
        end = min(begin + _TILE, n)
        for block in range(rows // 4):
            add_four(z, error, 4 * block, begin, end, g)
        for rest in range(rows % 4):
            add_products(z, error, rows - 1 - rest, begin, end, g)
    for k in range(experts):
        squares[0, k] = squares[1, k] = _NONE
    classes, sound = rows // experts, _NONE
    for r in range(rows):
        own, total, k = error[r * n : r * n + n], _NONE, r // classes
        for i in range(n):
            total += own[i]
        g_bias[r, 0] = total
        squares[1, k] += total * total
        squares[0, k] += dot(g[r], g[r])
    for k in range(experts):
        sound += (squares[0, k] + squares[1, k]) * _NONE
    return bool(sound == _NONE)


@contracted
def judge(
    probabilities: Floats, labels: Ints, importance: Floats, log_weights: Floats, rival: Floats,
    answers: Floats, chosen: Ints, mixed: Floats, losses: Floats, error: Floats,
) -> bool:  # fmt: skip
    """Score a batch; return whether all losses are finite.

    Args:
        probabilities: logits, [K C n]; changed: they become probabilities.
        labels: [n].
        importance: weights of the examples, [n]; of none for 1.
        log_weights: of experts, and of the answer of no change if it is mixed, [K] or [K + 1].
        rival: probabilities of that answer, [C]; of none without.
        answers: written: probabilities of the mixture, [n, C].
        chosen: written: the likeliest class, [n].
        mixed: written: losses of the mixture, [n].
        losses: written: losses of all that is mixed, [K or K + 1, n].
        error: written: gradients of the mean loss by the outputs, [K C n].
    """
    n, classes = answers.shape
    all_ = len(log_weights)
    experts = all_ - (1 if len(rival) > 0 else 0)
    bits = np.empty(len(probabilities), np.int32)
    powers, row = bits.view(np.float32), np.empty(n, np.float32)
    if experts == 1:  # equal probabilities may be of logits that are not
        for i in range(n):
            best = 0
            for c in range(1, classes):
                if probabilities[c * n + i] > probabilities[best * n + i]:
                    best = c
            chosen[i] = best
    softmax(probabilities, classes, labels, bits, powers, row, losses)
    share = _ONE / np.float32(n)
    for i in range(len(error)):
        error[i] = probabilities[i] * share
    for i in range(n):
        for k in range(experts):
            error[(k * classes + labels[i]) * n + i] -= share
    if len(importance) > 0:
        for r in range(experts * classes):
            found = error[r * n : r * n + n]
            for i in range(n):
                found[i] *= importance[i]
    if all_ == 1:
        for i in range(n):
            mixed[i] = losses[0, i]
            for c in range(classes):
                answers[i, c] = probabilities[c * n + i]
    else:
        if all_ > experts:
            for i in range(n):
                losses[experts, i] = -np.float32(math.log(rival[labels[i]]))
        log_total = log_sum(log_weights)
        weights = np.empty(all_, np.float32)
        for k in range(all_):
            weights[k] = np.float32(math.exp(log_weights[k] - log_total))
        for c in range(classes):
            base = weights[experts] * rival[c] if all_ > experts else _NONE
            for i in range(n):
                row[i] = base
            for k in range(experts):
                at, weight = (k * classes + c) * n, weights[k]
                own = probabilities[at : at + n]
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
        mix(losses, weights, bits, powers, np.empty(n, np.float32), mixed, row)
    sound = _NONE
    for i in range(n):
        sound += mixed[i] * _NONE
    for k in range(experts):
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
        weights: of each mixture, [A K].
        bits, powers: room for n numbers (see `exponentials`).
        least, row: room for n numbers.
        found: [A n].
    """
    all_, n = losses.shape
    mixtures = len(weights) // all_
    own = losses[0]
    for i in range(n):
        least[i] = own[i]
    for k in range(1, all_):
        own = losses[k]
        for i in range(n):
            least[i] = min(least[i], own[i])
    for i in range(len(found)):
        found[i] = _NONE
    for k in range(all_):
        own = losses[k]
        for i in range(n):
            row[i] = least[i] - own[i]
        exponentials(row, bits[:n], powers[:n])
        for a in range(mixtures):
            weight, mine = weights[a * all_ + k], found[a * n : a * n + n]
            for i in range(n):
                mine[i] += weight * row[i]
    for a in range(mixtures):
        mine = found[a * n : a * n + n]
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
        squares: as `gradients` wrote them.
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
        found, weights = np.empty(rates * n, np.float32), np.empty(rates * all_, np.float32)
        bits = np.empty(n, np.int32)
        least, row = np.empty(n, np.float32), np.empty(n, np.float32)
        for a in range(rates):
            log_total = log_sum(log_weights_at[a])
            for k in range(all_):
                weights[a * all_ + k] = np.float32(math.exp(log_weights_at[a, k] - log_total))
        mix(losses, weights, bits, bits.view(np.float32), least, found, row)
        for a in range(rates):
            total = 0.0
            for i in range(n):
                more = found[a * n + i]
                total += more * importance[i] if has_weights else more
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
def reach(log_gain: Floats, log_scale: Floats, lr: Floats, first: int, found: Floats) -> None:
    """Write s η p of the experts from ``first`` on.

    Args:
        log_gain: log p, [K C, d].
        log_scale: log s, [K].
        lr: η, [K].
        first: number of an expert.
        found: [k C, d].
    """
    width, classes = log_gain.shape[1], len(log_gain) // len(lr)
    bits = np.empty(width, np.int32)
    powers = bits.view(np.float32)
    for r in range(first * classes, len(log_gain)):
        own, mine, k = log_gain[r], found[r - first * classes], r // classes
        factor = np.float32(math.exp(log_scale[k])) * lr[k]
        for j in range(width):
            mine[j] = own[j]
        exponentials(mine, bits, powers)
        for j in range(width):
            mine[j] *= factor


@contracted
def walk(
    z: Floats, labels: Ints, importance: Floats, first: int, steps: int, factor: Floats,
    lr: Floats, has_sums: npt.NDArray[np.bool_], log_gain: Floats, log_gain_bias: Floats,
    log_scale: Floats, log_scale_bias: Floats, w: Floats, b: Floats, sums: Floats,
    sums_bias: Floats, total: Floats, total_bias: Floats,
) -> bool:  # fmt: skip
    """Walk through a batch, as `funnel.pool.walk` does; return whether Σ g̃ is finite.

    The first dimension of arrays that are changed counts the rows of the k experts that walk, and
    that of others those of all K.

    Args:
        z: inputs, [n, d].
        labels: [n].
        importance: weights of the examples, [n]; of none for 1.
        first: the first expert that walks; all after it do, too.
        steps: of the walk, at least 1.
        factor: of the gradients of each expert, [K].
        lr: η, [K].
        has_sums: which experts are AdaGrad, [K]; the others are SGD.
        log_gain, log_gain_bias: log p, [K C, d] and [K C, 1].
        log_scale, log_scale_bias: log s, [K].
        w, b: where the walk starts, [k C, d] and [k C, 1]; changed.
        sums, sums_bias: a; changed.
        total, total_bias: Σ g̃, from 0 on; changed.
    """
    walkers = len(factor) - first
    classes = len(w) // walkers
    g, scaled, scaled_bias = np.empty_like(w), np.empty_like(w), np.empty_like(b)
    reach(log_gain, log_scale, lr, first, scaled)
    reach(log_gain_bias, log_scale_bias, lr, first, scaled_bias)
    n, rows, width = z.shape[0], len(w), z.shape[1]
    count = min(steps, n)
    most = n // count + 1
    room, row = np.empty(rows * most, np.float32), np.empty(most, np.float32)
    bits = np.empty(rows * most, np.int32)
    powers = bits.view(np.float32)
    none, of_bias = np.empty((0, 0), np.float32), np.empty(1, np.float32)
    for piece in range(count):
        m = n // count + (1 if piece < n % count else 0)
        begin = piece * (n // count) + min(piece, n % count)
        some, own_labels = z[begin : begin + m], labels[begin : begin + m]
        error = room[: rows * m]
        outputs(some, w, b, error)
        softmax(error, classes, own_labels, bits, powers, row, none)
        for k in range(walkers):
            for i in range(m):
                error[(k * classes + own_labels[i]) * m + i] -= _ONE
            share_, at = factor[first + k] / np.float32(m), k * classes * m
            own = error[at : at + classes * m]
            for i in range(len(own)):
                own[i] *= share_
        if len(importance) > 0:
            for r in range(rows):
                for i in range(m):
                    error[r * m + i] *= importance[begin + i]
        for tile in range(0, m, _TILE):
            last = min(tile + _TILE, m)
            for block in range((rows + 3) // 4):
                begins, ends = 4 * block, min(4 * block + 4, rows)
                if tile == 0:
                    for r in range(begins, ends):
                        own = g[r]
                        for j in range(width):
                            own[j] = _NONE
                if ends == begins + 4:
                    add_four(some, error, begins, tile, last, g)
                else:
                    for r in range(begins, ends):
                        add_products(some, error, r, tile, last, g)
                for r in range(begins, ends if last == m else begins):
                    if has_sums[first + r // classes]:
                        walk_row(g[r], scaled[r], sums[r], total[r], w[r])
                    else:
                        walk_row_plainly(g[r], scaled[r], total[r], w[r])
        for r in range(rows):
            of_bias[0] = _NONE
            for i in range(m):
                of_bias[0] += error[r * m + i]
            if has_sums[first + r // classes]:
                walk_row(of_bias, scaled_bias[r], sums_bias[r], total_bias[r], b[r])
            else:
                walk_row_plainly(of_bias, scaled_bias[r], total_bias[r], b[r])
    sound = _NONE
    for r in range(rows):
        sound += dot(total[r], total[r]) * _NONE + dot(total_bias[r], total_bias[r]) * _NONE
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
def step_all(
    g: Floats, factor: Floats, rates: Floats, has_sums: npt.NDArray[np.bool_], first: int,
    total: Floats, ends: Floats, fades: float, bound: float, weights: Floats, pulls: Floats,
    w: Floats, sums: Floats, log_gain: Floats, velocity: Floats, ema: Floats, log_scale: Floats,
) -> None:  # fmt: skip
    """Take Funnel's step of a parameter of all experts, and pull them; see `update`."""
    experts, width = len(factor), g.shape[1]
    classes = len(g) // experts
    bits = np.empty(width, np.int32)
    powers = bits.view(np.float32)
    row, gains = np.empty(width, np.float32), np.empty(width, np.float32)
    for c in range(classes):
        for k in range(experts):
            r = k * classes + c
            precond = row
            if k >= first:
                at = r - first * classes
                precond, own, mine = total[at], ends[at], sums[r]
                for j in range(width):
                    mine[j] = own[j]
            elif has_sums[k]:
                precondition(g[r], factor[k], sums[r], row)
            else:
                own = g[r]
                for j in range(width):
                    row[j] = own[j] * factor[k]
            own = log_gain[r]
            learn_gain(g[r], factor[k], ema[r], rates[2, k], bound, own)
            for j in range(width):
                gains[j] = own[j]
            exponentials(gains, bits, powers)
            scale = np.float32(math.exp(log_scale[k]))
            step_row(
                precond, gains, rates[0, k], rates[1, k], np.float32(fades), scale, ema[r],
                velocity[r], w[r],
            )  # fmt: skip
        if len(pulls) > 0:
            pull_row(weights, pulls, w, c, classes, row)


@contracted
def update(
    factor: Floats, g: Floats, g_bias: Floats, squares: Floats, rates: Floats,
    has_sums: npt.NDArray[np.bool_], first: int, total: Floats, total_bias: Floats,
    ends: Floats, ends_bias: Floats, fades: float, gain_bound: float, scale_bound: float,
    log_weights: Floats, pulls: Floats, w: Floats, b: Floats, sums: Floats, sums_bias: Floats,
    log_gain: Floats, log_gain_bias: Floats, velocity: Floats, velocity_bias: Floats,
    ema: Floats, ema_bias: Floats, log_scale: Floats, log_scale_bias: Floats, found: Floats,
) -> None:  # fmt: skip
    """Take Funnel's step of all experts.

    Args:
        factor, g, g_bias, squares: as `gradients` and `decide` wrote them.
        rates: η, μ, γp and γs of the experts, [4, K].
        has_sums: which experts are AdaGrad, [K]; the others are SGD.
        first: the first expert that walks; all after it do, too.
        total, total_bias: Σ g̃ of these, as `walk` left them.
        ends, ends_bias: a of these, as `walk` left them.
        fades: 1 - β.
        gain_bound, scale_bound: bounds of |log p| and |log s|.
        log_weights: of the experts in the mixture, [K or K + 1].
        pulls: of the experts, [K]; of none if none is pulled.
        w, b: weights and biases, [K C, d] and [K C, 1]; and, of these, ``sums`` a of AdaGrad,
            ``log_gain`` log p, ``velocity`` ν and ``ema`` m̃; changed.
        log_scale, log_scale_bias: log s of weights and biases, [K]; changed.
        found: written: inner products, lengths and cosines, [2, 3, K] (see `cosines`).
    """
    experts = len(factor)
    cosines(g, velocity, factor, squares[0], found[0, 0], found[0, 1], found[0, 2])
    cosines(g_bias, velocity_bias, factor, squares[1], found[1, 0], found[1, 1], found[1, 2])
    most = np.float32(scale_bound)
    for k in range(experts):
        s = log_scale[k] + rates[3, k] * found[0, 2, k]
        log_scale[k] = min(max(s, -most), most)
        s = log_scale_bias[k] + rates[3, k] * found[1, 2, k]
        log_scale_bias[k] = min(max(s, -most), most)
    weights = np.empty(experts, np.float32)
    log_total = log_sum(log_weights[:experts]) if len(log_weights) > experts else _NONE
    for k in range(experts):
        weights[k] = np.float32(math.exp(log_weights[k] - log_total))
    step_all(
        g, factor, rates, has_sums, first, total, ends, fades, gain_bound, weights, pulls, w,
        sums, log_gain, velocity, ema, log_scale,
    )  # fmt: skip
    step_all(
        g_bias, factor, rates, has_sums, first, total_bias, ends_bias, fades, gain_bound,
        weights, pulls, b, sums_bias, log_gain_bias, velocity_bias, ema_bias, log_scale_bias,
    )  # fmt: skip
