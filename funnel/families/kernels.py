"""Compiled loops of the families: plain loops over arrays, for numba.

Each has a twin of torch operators that gives the same bits (`funnel.compiled` chooses).
Sums of integers have the same bits in any order; sums of floats are taken in one order by both, and
nothing is contracted or reordered (no ``fastmath``).
"""

import numpy as np
import numpy.typing as npt

from funnel.compiled import compiled
from funnel.families.forests.forest import DEPTH, LEAVES, NODES
from funnel.families.forests.growing import (
    BINS,
    LARGEST_LEAF,
    LEAST_GAIN,
    LEAST_HESSIAN,
    RIDGE,
    SHIFT,
    UNIT,
)

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Small = npt.NDArray[np.int32]

_CODES = BINS - 1
_LEVELS = DEPTH
_ONE, _RIDGE = np.float32(1.0), np.float32(RIDGE)
_LEAST_HESSIAN, _LEAST_GAIN = np.float32(LEAST_HESSIAN), np.float32(LEAST_GAIN)
_UNIT = np.float32(UNIT)
_LARGEST = np.float32(LARGEST_LEAF)
_HALF = 1 << (SHIFT - 1)
_TENTH, _TINY, _LEAST = np.float32(0.1), np.float32(1e-6), np.float32(1e-30)
_BLOCK, _MOST = 32, np.int64((1 << 31) - 1)


@compiled
def count(
    bins: Bytes, packed: Ints, others: Ints, order: Small, begin: int, end: int, counts: Ints
) -> None:
    """Add examples of a node to its histograms, int64 [k, BINS, 1 + others]."""
    counts[:] = 0
    for f in range(bins.shape[0]):
        own, mine = bins[f], counts[f]
        if others.shape[0] == 0:
            for j in range(begin, end):
                i = order[j]
                mine[own[i], 0] += packed[i]
        else:
            first = others[0]
            for j in range(begin, end):
                i = order[j]
                code = own[i]
                mine[code, 0] += packed[i]
                mine[code, 1] += first[i]


@compiled
def best_split(
    counts: Ints, h_unit: np.float32, g_unit: np.float32, best: Floats, where: Ints
) -> None:
    """Find the split of the largest gain; the first one of several."""
    sums, slopes = np.empty(BINS, np.float32), np.empty((2, BINS), np.float32)
    gains = np.empty(_CODES, np.float32)
    is_twofold = counts.shape[2] > 1
    won, place = np.float32(-np.inf), 0
    for f in range(counts.shape[0]):
        both, other = np.int64(0), np.int64(0)
        for code in range(BINS):
            both += counts[f, code, 0]
            whole = (both + _HALF) >> SHIFT
            sums[code] = np.float32(whole) / h_unit
            slopes[0, code] = np.float32(both - (whole << SHIFT)) / g_unit
            if is_twofold:
                other += counts[f, code, 1]
                slopes[1, code] = np.float32(other) / g_unit
        all_h = sums[_CODES]
        for code in range(_CODES):
            gains[code] = np.float32(0.0)
        for j in range(counts.shape[2]):
            slope, all_g = slopes[j], slopes[j, _CODES]
            lost = all_g * all_g / (all_h + _RIDGE)
            for code in range(_CODES):
                left, right = slope[code], all_g - slope[code]
                gain = gains[code] + left * left / (sums[code] + _RIDGE)
                gain = gain + right * right / (all_h - sums[code] + _RIDGE)
                gains[code] = gain - lost
        for code in range(_CODES):
            gain = gains[code]
            if sums[code] < _LEAST_HESSIAN or all_h - sums[code] < _LEAST_HESSIAN:
                gain = -_ONE
            if gain > won:
                won, place = gain, f * _CODES + code
    best[0], where[0] = won, place


@compiled
def split(
    bins: Bytes,
    packed: Ints,
    others: Ints,
    h_unit: np.float32,
    g_unit: np.float32,
    chosen: Ints,
    edges: Floats,
    total: np.float32,
    features: Ints,
    thresholds: Floats,
    gains: Floats,
    node: Ints,
) -> None:
    """Split level by level, as `funnel.families.forests.growing` says; the last four are written.

    Histograms of the smaller child are counted, those of the larger one are the rest.
    """
    k, m = bins.shape
    parts = 1 + others.shape[0]
    order, spare = np.arange(m).astype(np.int32), np.empty(m, np.int32)
    starts, after = np.zeros(LEAVES + 1, np.int64), np.zeros(LEAVES + 1, np.int64)
    is_open, opens = np.zeros(LEAVES, np.bool_), np.zeros(LEAVES, np.bool_)
    now = np.empty((LEAVES // 2, k, BINS, parts), np.int64)
    then = np.empty((LEAVES // 2, k, BINS, parts), np.int64)
    best, where = np.empty(1, np.float32), np.empty(1, np.int64)
    starts[1], is_open[0] = m, True
    count(bins, packed, others, order, 0, m, now[0])
    for level in range(_LEVELS):
        nodes = 1 << level
        for p in range(nodes):
            begin, end, at = starts[p], starts[p + 1], nodes - 1 + p
            features[at], thresholds[at], gains[at] = 0, np.inf, 0.0
            middle, splits = end, False
            if is_open[p]:
                best_split(now[p], h_unit, g_unit, best, where)
                splits = best[0] > _LEAST_GAIN
            if splits:
                feature, code = where[0] // _CODES, where[0] % _CODES
                features[at], thresholds[at] = chosen[feature], edges[feature, code]
                gains[at] = best[0] / total
                own, middle, rest = bins[feature], begin, 0
                for j in range(begin, end):
                    i = order[j]
                    if own[i] > code:
                        spare[rest] = i
                        rest += 1
                    else:
                        order[middle] = i
                        middle += 1
                order[middle:end] = spare[:rest]
                if level < _LEVELS - 1:
                    left, right = then[2 * p], then[2 * p + 1]
                    if middle - begin <= end - middle:
                        count(bins, packed, others, order, begin, middle, left)
                        right[:] = now[p] - left
                    else:
                        count(bins, packed, others, order, middle, end, right)
                        left[:] = now[p] - right
            after[2 * p], after[2 * p + 1], after[2 * p + 2] = begin, middle, end
            opens[2 * p], opens[2 * p + 1] = splits, splits
        starts, after = after, starts
        is_open, opens = opens, is_open
        now, then = then, now
    for leaf in range(LEAVES):
        for j in range(starts[leaf], starts[leaf + 1]):
            node[order[j]] = leaf


@compiled
def unit_of(values: Floats) -> np.float32:
    """Return the integers that stand for 1, for numbers [a, m]."""
    most = np.float32(0.0)
    for a in range(values.shape[0]):
        for i in range(values.shape[1]):
            most = max(most, abs(values[a, i]))
    return _UNIT / max(most, _LEAST)


@compiled
def grow(
    gradient: Floats,
    curvature: Floats,
    projected: Floats,
    hessian: Floats,
    bins: Bytes,
    chosen: Ints,
    edges: Floats,
    total: np.float32,
    rate: float,
    features: Ints,
    thresholds: Floats,
    leaves: Floats,
    gains: Floats,
) -> None:
    """Grow a tree, as `funnel.families.forests.growing` says; the last four are written."""
    outputs, m = gradient.shape
    h_unit, g_unit = unit_of(hessian.reshape(1, m)), unit_of(projected)
    packed, others = np.empty(m, np.int64), np.empty((len(projected) - 1, m), np.int64)
    for i in range(m):
        whole = np.int64(np.rint(hessian[i] * h_unit))
        packed[i] = (whole << SHIFT) + np.int64(np.rint(projected[0, i] * g_unit))
    for d in range(1, len(projected)):
        for i in range(m):
            others[d - 1, i] = np.int64(np.rint(projected[d, i] * g_unit))
    node = np.empty(m, np.int64)
    split(
        bins, packed, others, h_unit, g_unit, chosen, edges, np.float32(total),
        features, thresholds, gains, node,
    )  # fmt: skip
    g_unit, h_unit = unit_of(gradient), unit_of(curvature)
    slopes, curves = np.empty(LEAVES, np.int64), np.empty(LEAVES, np.int64)
    for c in range(outputs):
        slopes[:], curves[:] = 0, 0
        for i in range(m):
            slopes[node[i]] += np.int64(np.rint(gradient[c, i] * g_unit))
            curves[node[i]] += np.int64(np.rint(curvature[c, i] * h_unit))
        for leaf in range(LEAVES):
            step = np.float32(slopes[leaf]) / g_unit
            step = step / (np.float32(curves[leaf]) / h_unit + _RIDGE)
            leaves[leaf, c] = min(max(step * np.float32(rate), -_LARGEST), _LARGEST)


@compiled
def move(columns: Floats, sources: Ints, targets: Ints, slots: Ints, rows: Floats) -> None:
    """Copy the numbers of examples to other slots, then those of rows."""
    for d in range(len(columns)):
        own = columns[d]
        for j in range(len(sources)):
            own[targets[j]] = own[sources[j]]
    for first in range(0, len(columns), _BLOCK):  # parts of rows that stay in the cache
        last = min(len(columns), first + _BLOCK)
        for j in range(len(slots)):
            for d in range(first, last):
                columns[d, slots[j]] = rows[j, d]


@compiled
def take(bins: Bytes, slots: Ints, chosen: Ints, found: Bytes) -> None:
    """Write the bins of some numbers of some examples."""
    for f in range(len(chosen)):
        own, mine = bins[chosen[f]], found[f]
        for j in range(len(slots)):
            mine[j] = own[slots[j]]


@compiled
def refit(
    fitted: Floats,
    columns: Floats,
    slots: Ints,
    has_old: bool,
    old_features: Ints,
    old_thresholds: Floats,
    old_leaves: Floats,
    features: Ints,
    thresholds: Floats,
    leaves: Floats,
) -> None:
    """Take a tree's leaves from the logits of examples, and add those of the one in its place."""
    classes = fitted.shape[1]
    for j in range(len(slots)):
        slot = slots[j]
        node = 0
        for _ in range(_LEVELS):
            node = 2 * node + 1 + (columns[features[node], slot] > thresholds[node])
        node -= NODES
        if has_old:
            old = 0
            for _ in range(_LEVELS):
                old = 2 * old + 1 + (columns[old_features[old], slot] > old_thresholds[old])
            old -= NODES
            for c in range(classes):
                fitted[slot, c] = fitted[slot, c] - old_leaves[old, c] + leaves[node, c]
        else:
            for c in range(classes):
                fitted[slot, c] += leaves[node, c]


@compiled
def logits(
    features: Ints, thresholds: Floats, leaves: Floats, trees: int, rows: Floats, found: Floats
) -> None:
    """Add the leaves of trees, in their order."""
    classes = found.shape[1]
    for t in range(trees):
        own, bounds, mine = features[t], thresholds[t], leaves[t]
        for i in range(len(rows)):
            node = 0
            for _ in range(_LEVELS):
                node = 2 * node + 1 + (rows[i, own[node]] > bounds[node])
            node -= NODES
            for c in range(classes):
                found[i, c] += mine[node, c]


@compiled
def bin_numbers(columns: Floats, slots: Ints, chosen: Ints, edges: Floats, found: Bytes) -> None:
    """Write how many quantiles of its column lie below each number, uint8 [k, m]."""
    for f in range(len(chosen)):
        column, own = columns[chosen[f]], edges[chosen[f]]
        for j in range(len(slots)):
            value, low, step = column[slots[j]], 0, BINS >> 1
            while step > 0:
                low += step * (not own[low + step - 1] >= value)  # a branch would be mispredicted
                step >>= 1
            found[f, j] = low


@compiled
def set_apart(
    products: Floats | Small, mine: Floats, theirs: Floats, halves: Floats | Small
) -> None:
    """Take half the squared distance of codes from the products of inputs and examples."""
    none = halves.dtype.type(0)
    for i in range(len(products)):
        row = products[i]
        for f in range(len(halves)):
            code, half, column = mine[i, f], halves[f], theirs[f]
            for j in range(len(row)):
                row[j] -= half if column[j] != code else none


@compiled
def insert(keys: Ints, held: int, key: np.int64) -> int:
    """Insert a key into ascending ones, of which the largest falls out if they are full."""
    place = held
    if held == len(keys):
        place -= 1
    else:
        held += 1
    while place > 0 and keys[place - 1] > key:
        keys[place] = keys[place - 1]
        place -= 1
    keys[place] = key
    return held


@compiled
def _nearest(bits: Small, begin: int, end: int, step: int, most: int, keys: Ints, held: int) -> int:
    """Insert the smallest numbers, with their places, into keys; return how many are held."""
    worst = np.int32(_MOST if held < most else keys[held - 1] >> 32)
    for j in range(begin, end, step):
        if bits[j] <= worst:
            key = (np.int64(bits[j]) << 32) | j
            if held < most or key < keys[held - 1]:
                held = insert(keys, held, key)
            if held == most:
                worst = np.int32(keys[held - 1] >> 32)
    return held


@compiled
def nearest(
    products: Floats | Small,
    norms: Floats | Small,
    own: Floats | Small,
    newest: Ints,
    weights: Floats,
    counts: Ints,
    is_newest: npt.NDArray[np.bool_],
    slots: Ints,
    votes: Floats,
) -> None:
    """Write the nearest examples of each expert and their votes, as `funnel.families.neighbours`
    says; [E, n, k] both.

    A key is the squared distance, whose bits rise with it, and the slot, so that no two are equal.
    """
    n, m = products.shape
    most, most_newest = 0, 0
    for e in range(len(counts)):
        if is_newest[e]:
            most_newest = max(most_newest, counts[e])
        else:
            most = max(most, counts[e])
    factor = products.dtype.type(-2)
    blocks = m // _BLOCK
    far, least = np.empty(m, products.dtype), np.empty(blocks, np.int32)
    bits, last = far.view(np.int32), blocks * _BLOCK
    all_keys, new_keys = np.empty(most, np.int64), np.empty(most_newest, np.int64)
    bounds = np.empty(most, np.int64)
    near = np.empty(max(most, most_newest), np.float32)
    for i in range(n):
        mine, row = own[i], products[i]
        for j in range(m):
            far[j] = factor * row[j] + norms[j] + mine
        for j in range(m):
            bits[j] = max(bits[j], np.int32(0))  # rounding gives less than 0
        held = 0
        if most > 0:
            least[:] = bits[:blocks]
            for u in range(1, _BLOCK):
                part = bits[u * blocks : (u + 1) * blocks]
                for b in range(blocks):
                    least[b] = min(least[b], part[b])
            is_full = _nearest(least, 0, blocks, 1, most, bounds, 0) == most
            bound = bounds[most - 1] >> 32 if is_full else _MOST
            for b in range(blocks):
                if least[b] <= bound:
                    held = _nearest(bits, b, last, blocks, most, all_keys, held)
            held = _nearest(bits, last, m, 1, most, all_keys, held)
        held_new = 0
        if most_newest > 0:
            worst = np.int32(_MOST)
            for j in range(len(newest)):
                slot = newest[j]
                if bits[slot] <= worst:
                    key = (np.int64(bits[slot]) << 32) | slot
                    if held_new < most_newest or key < new_keys[held_new - 1]:
                        held_new = insert(new_keys, held_new, key)
                    if held_new == most_newest:
                        worst = np.int32(new_keys[held_new - 1] >> 32)
        for e in range(len(counts)):
            keys, k = all_keys, min(counts[e], held)
            if is_newest[e]:
                keys, k = new_keys, min(counts[e], held_new)
            total = np.float32(0.0)
            for j in range(k):
                slot = keys[j] & 0xFFFFFFFF
                squared = far[slot]
                near[j] = np.sqrt(np.float32(squared))
                total += near[j]
            tenth = _TENTH * (total / np.float32(k))
            for j in range(k):
                slot = keys[j] & 0xFFFFFFFF
                slots[e, i, j] = slot
                votes[e, i, j] = weights[slot] / (near[j] + tenth + _TINY)


@compiled
def tally(
    labels: Ints, slots: Ints, votes: Floats, prior: Floats, counts: Ints, found: Floats
) -> None:
    """Write the shares of the votes for classes, [E, n, C], shrunk to the prior."""
    for e in range(len(counts)):
        share = np.float32(1.0 / (counts[e] + 1))
        for i in range(found.shape[1]):
            said, whole = found[e, i], np.float32(0.0)
            for j in range(votes.shape[2]):
                said[labels[slots[e, i, j]]] += votes[e, i, j]
                whole += votes[e, i, j]
            whole = max(whole, _LEAST)
            for c in range(len(prior)):
                mean = said[c] / whole
                said[c] = mean + (prior[c] - mean) * share
