// Scores of all learners and floors over the last 1,000 examples, as GET /model has them.

import { element } from "./charts.js";
import { percent } from "./words.js";

const WINDOW = "1000";
const CLASSES = 15, MATRIX = 12;
const byId = (id) => document.getElementById(id);
const nats = (value) => value.toFixed(3);
const COLUMNS = [
  ["Accuracy", "accuracy", percent],
  ["Balanced", "balanced_accuracy", percent],
  ["Log loss", "log_loss", nats],
  ["Brier", "brier", nats],
  ["AUC", "auc", nats],
  ["PR-AUC", "pr_auc", nats],
  ["ECE", "ece", nats],
];
const number = (value) => Number(value.toPrecision(4)).toLocaleString("en");
const OF_NUMBERS = [
  ["Absolute error", "mae", number],
  ["RMSE", "rmse", number],
  ["R²", "r2", nats],
  ["Pinball loss", "pinball", number],
  ["Coverage", "coverage", percent],
];
const isKnown = (value) => value !== null && value !== undefined;

// model: of GET /model.
export function showScores(model) {
  const { scores, numbers, below_floors: below, classes, by_class: byClass } = model;
  showBelow(below);
  const found = { ...scores, ...numbers };
  const rows = Object.entries(found).map(([name, windows]) => [name, windows[WINDOW]]);
  byId("scores").hidden = !rows.length || !model.examples_learned;
  if (byId("scores").hidden) return;
  const columns = Object.keys(scores).length ? COLUMNS : OF_NUMBERS;
  const known = columns.filter(([, key]) => rows.some(([, own]) => isKnown(own[key])));
  const table = byId("learners");
  table.tHead.replaceChildren(element("tr", {}, ...["Learner", ...known.map(([title]) => title)]
    .map((title) => element("th", { scope: "col" }, title))));
  table.tBodies[0].replaceChildren(...rows.map(([name, own]) => element("tr", {},
    element("th", { scope: "row" }, name),
    ...known.map(([, key, form]) => element("td", {}, isKnown(own[key]) ? form(own[key]) : "–")))));
  byId("classes").parentElement.hidden = classes.length === 0;
  if (columns === OF_NUMBERS) {
    byId("floors").textContent = "mean always predicts the mean of the numbers so far, no_change the last "
      + "known number. R² is against the mean; coverage is of the interval that should hold 90 %, or of the outer quantiles.";
  }
  const shown = byClass[WINDOW];
  const isMatrix = classes.length > 1 && classes.length <= MATRIX && shown?.confusion.length > 0;
  byId("confusion").closest(".panel").hidden = !isMatrix;
  if (classes.length) showClasses(classes, shown);
  if (isMatrix) showConfusion(classes, shown);
}

function showBelow(below) {
  const shown = byId("below");
  const words = below.length
    ? `Over the last 1,000 examples the model is ${below.join("; it is ")}. A rule without a model does better.`
    : "";
  shown.hidden = !words;
  if (shown.textContent !== words) shown.textContent = words;
}

// A row is a label, a column what was predicted; darker cells hold more of the label's examples.
function showConfusion(classes, { confusion }) {
  const table = byId("confusion"), names = classes.slice(0, confusion.length);
  table.tHead.replaceChildren(element("tr", {}, element("th", { scope: "col" }, "Label"),
    ...names.map((name) => element("th", { scope: "col" }, name))));
  table.tBodies[0].replaceChildren(...names.map((name, k) => {
    const all = confusion[k].reduce((sum, n) => sum + n, 0);
    const cells = confusion[k].slice(0, names.length).map((n, j) => {
      const cell = element("td", { class: j === k ? "right" : "wrong-cell" }, n ? n.toLocaleString("en") : "·");
      cell.style.setProperty("--share", all ? n / all : 0);
      return cell;
    });
    return element("tr", {}, element("th", { scope: "row" }, name), ...cells);
  }));
}

function showClasses(classes, { recall, precision }) {
  const known = classes.map((name, k) => [name, recall[k], precision[k]])
    .filter(([, share]) => share !== null).sort((a, b) => a[1] - b[1]).slice(0, CLASSES);
  const say = (share) => (share === null ? "–" : percent(share));
  byId("classes").tBodies[0].replaceChildren(...known.map(([name, found, right]) => element("tr", {},
    element("th", { scope: "row" }, name), element("td", {}, say(found)), element("td", {}, say(right)))));
}
