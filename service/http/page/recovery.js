// What a shift did to a learner, from the points that are kept.

const CLOSE = 0.02; // "back" is within two points of the accuracy before

// Returns {before, lowest, after}: accuracies, and the examples until it was back; null if unknown.
export function recovery(points, learner, start, end) {
  const score = (point) => point.learners[learner]?.rolling_accuracy ?? null;
  const earlier = points.filter((p) => p.examples <= start && score(p) !== null);
  if (!earlier.length) return null;
  const before = score(earlier[earlier.length - 1]);
  const later = points.filter((p) => p.examples > start && p.examples <= end && score(p) !== null);
  const fall = later.findIndex((p) => score(p) < before - CLOSE);
  if (fall < 0) return { before, lowest: null, after: null };
  const back = later.findIndex((p, k) => k > fall && score(p) >= before - CLOSE);
  const span = back < 0 ? later : later.slice(0, back);
  const lowest = Math.min(...span.map(score));
  return { before, lowest, after: back < 0 ? null : later[back].examples - start };
}
