// Whether the model is learning, in words and colour, with what to do when it is not.

import { told, isLive } from "./events.js";
import { count } from "./words.js";

const STALE_MS = 5000;
const LEARNING_SECONDS = 10;
const byId = (id) => document.getElementById(id);

// By condition: how urgent it is, what it means, and what to do.
const CONDITIONS = {
  starting: ["quiet", "The learner is starting."],
  replaying: ["quiet", "The learner is replaying the log to catch up. Answers are of an older model until it is done."],
  standby: ["quiet", "This service stands by: another one learns, and this one takes over if it fails."],
  following: ["quiet", "This process only answers, with the snapshots of the one that learns."],
  paused: ["warning", "Learning is paused", "Answers are served by the model as it is, and examples wait in the log."],
  waiting: ["warning", "Learning waits for the log", "Check that the log's server runs and can be reached. Answers are still served."],
  halted: ["bad", "Learning is halted", "Answers are still served, by the model as it was. The runbook, docker/prometheus/runbook.md, has what to do."],
};

export function showConnection() {
  const age = performance.now() - told.newsAt;
  let state = "live", words = "live";
  if (!isLive()) [state, words] = ["lost", "reconnecting …"];
  else if (age > STALE_MS) [state, words] = ["stale", `stale: no event for ${Math.round(age / 1000)} s`];
  const shown = byId("connection");
  shown.dataset.state = state;
  if (shown.textContent !== words) shown.textContent = words;
}

// model: of GET /model; null before it is known.
export function showState(model) {
  const [kind, words] = isLive() ? ofModel(model) : ["bad", sayGone()];
  const shown = byId("state");
  shown.dataset.kind = kind;
  if (shown.textContent !== words) shown.textContent = words;
}

function sayGone() {
  const age = (performance.now() - told.newsAt) / 1000;
  const since = told.newsAt ? ` for ${span(age)}: it has ended, or the way to it is cut` : "";
  return `The service cannot be reached${since}. What is shown is as it was. The page reconnects by itself.`;
}

function ofModel(model) {
  if (model === null) return ["quiet", "Loading …"];
  const known = CONDITIONS[model.condition];
  if (known) {
    const [kind, meaning, advice] = known;
    return [kind, advice ? `${meaning}: ${model.reason}. ${advice}` : meaning];
  }
  const newest = told.points.at(-1);
  if (!newest || !newest.examples) return ["quiet", "Ready to learn. No example has come yet."];
  const rate = Math.round(newest.throughput ?? 0);
  const since = told.points.findLast((point) => point.examples < newest.examples)?.time ?? newest.time;
  if (newest.time - since > LEARNING_SECONDS && !newest.backlog) {
    return ["quiet", `Ready to learn. No example has come for ${span(newest.time - since)}.`];
  }
  const waiting = newest.backlog ? `${count(newest.backlog)} wait, the oldest for ${span(newest.lag)}.` : "None wait.";
  return ["good", `Learning: ${count(rate)} examples a second. ${waiting}`];
}

function span(seconds) {
  if (seconds < 1) return "less than a second";
  const [size, unit] = [[3600, "hour"], [60, "minute"], [1, "second"]].find(([size]) => seconds >= size);
  const n = Math.round(seconds / size);
  return `${n} ${unit}${n === 1 ? "" : "s"}`;
}
