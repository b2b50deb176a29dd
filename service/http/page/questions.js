// Questions that wait for their labels, and how good their answers were, as GET /model has them.

import { element } from "./charts.js";
import { count } from "./words.js";

const byId = (id) => document.getElementById(id);
const MET = ["joined", "added", "corrected"];
const UNITS = [[86_400, "days"], [3_600, "hours"], [60, "minutes"], [1, "s"]];
const isKnown = (value) => value !== null && value !== undefined;
const percent = (share) => (isKnown(share) ? `${(100 * share).toFixed(1)} %` : "–");

// A time in its largest unit of which there are two or more.
function time(seconds) {
  if (!isKnown(seconds)) return "–";
  const [size, unit] = UNITS.find(([size]) => seconds >= 2 * size) ?? [1, "s"];
  return `${Number((seconds / size).toPrecision(2))} ${unit}`;
}

// questions: of GET /model; null if nothing was asked with ids. now: the present accuracy.
export function showQuestions(questions, now) {
  byId("questions").hidden = questions === null;
  if (questions === null) return;
  const { results } = questions;
  const entries = {
    "Accuracy of given answers": percent(questions.rolling_given_accuracy),
    "Accuracy when labels came": percent(now),
    "Questions with a label": percent(questions.coverage),
    "Median delay": time(questions.delay_seconds),
    "Open questions": count(questions.open_questions),
    "Oldest": time(questions.oldest_seconds),
  };
  byId("asked").replaceChildren(...Object.entries(entries).map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value))));
  const others = Object.entries(results).filter(([name, n]) => n && !MET.includes(name));
  const rest = others.map(([name, n]) => `${count(n)} ${name}`).join(", ");
  const met = MET.reduce((sum, name) => sum + (results[name] ?? 0), 0);
  byId("questions-summary").textContent = `${count(met)} labels have met their questions`
    + `${rest ? `; others: ${rest}` : ""}. Accuracies are of the last 1,000.`;
}
