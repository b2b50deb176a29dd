// Shifts that the sender announced, changes that the service detected, and recoveries from both.

import { element } from "./charts.js";
import { clock, count, percent } from "./words.js";

const MAX_LINES = 20;
const SERVED = "served";
const byId = (id) => document.getElementById(id);

// told: as in events.js.
export function marks({ shifts, drifts }) {
  const known = [...shifts.values()].map(({ example, what }) => ({ x: example, kind: "shift", label: what }));
  const found = [...drifts.values()].map((d) => ({ x: d.examples, kind: d.direction, label: "" }));
  return [...known, ...found].sort((a, b) => a.x - b.x);
}

// of: names the predictions whose shares changes show; empty if they are those that are right.
export function showShifts({ points, shifts, drifts }, of) {
  const first = points[0].examples, when = (examples) => timeOf(points, examples);
  const known = [...shifts.values()].filter(({ example }) => example >= first && example > 0)
    .map((shift) => ({ at: shift.example, time: when(shift.example), words: sayShift(shift) }));
  const found = [...drifts.values()].filter(({ examples }) => examples >= first)
    .map((drift) => ({ at: drift.examples, time: drift.time, words: sayDrift(drift, of), kind: drift.direction }));
  fill("shifts", "no-shifts", known);
  fill("drifts", "no-drifts", found);
}

function fill(list, none, events) {
  const newest = events.sort((a, b) => b.at - a.at).slice(0, MAX_LINES);
  byId(none).hidden = newest.length > 0;
  const shown = byId(list);
  while (shown.children.length > newest.length) shown.lastChild.remove();
  while (shown.children.length < newest.length) shown.append(element("li"));
  newest.forEach(({ at, time, words, kind }, k) => {
    const line = `${count(at)}${time === null ? "" : ` (${clock(time)})`}: ${words}`;
    if (shown.children[k].textContent !== line) shown.children[k].textContent = line;
    shown.children[k].className = kind ?? "";
  });
}

// The time in seconds at which so many examples had been learned; null if it is not kept.
function timeOf(points, examples) {
  return points.find((point) => point.examples >= examples)?.time ?? null;
}

// A shift and the recoveries from it, as the service measured them.
function sayShift({ what, end, goal, recovery_examples }) {
  const learners = Object.entries(recovery_examples);
  if (goal === null) return end === null ? what : `${what}; too short to measure`;
  if (!learners.length) return what;
  const waits = end === null ? "not yet" : "never";
  const each = learners.map(([name, taken]) => `${name} ${taken === null ? waits : `after ${count(taken)} examples`}`);
  return `${what}; within 2 points of ${percent(goal)}: ${each.join(", ")}${sayLead(learners)}`;
}

// By how many times the served learner was sooner than the next, in words; empty if that is unknown.
function sayLead(learners) {
  const taken = Object.fromEntries(learners), served = taken[SERVED];
  const others = learners.filter(([name, one]) => name !== SERVED && one !== null).map(([, one]) => one);
  const next = Math.min(...others);
  if (!served || !others.length || next === 0 || next === served) return "";
  const [ratio, word] = next > served ? [next / served, "sooner"] : [served / next, "later"];
  return `: ${ratio.toFixed(1)} times ${word}`;
}

function sayDrift(drift, of) {
  const accuracies = [drift.accuracy_before, drift.accuracy_after].map((a) => (a == null ? "–" : percent(a)));
  const watched = drift.detector.endsWith("excess_loss") ? "loss against the floor's, accuracy " : "";
  const back = drift.recovery_examples == null ? "" : `, recovered after ${count(drift.recovery_examples)} examples`;
  return `${drift.detector} detected a change for the ${drift.direction}: ${watched}${accuracies.join(" → ")}${of}${back}`;
}

// What the last shift with a recovery cost each learner; empty without one.
export function sayLastRecovery(shifts) {
  const measured = [...shifts.values()].filter(({ goal, recovery_examples: taken }) =>
    goal !== null && taken[SERVED] !== null && taken[SERVED] !== undefined);
  if (!measured.length) return "";
  const { what, recovery_examples: taken, end } = measured.at(-1);
  const waits = end === null ? "has not recovered yet" : "did not recover";
  const others = Object.entries(taken).filter(([name]) => name !== SERVED)
    .map(([name, one]) => (one === null ? `${name} ${waits}` : `${name} ${count(one)}`));
  const lead = sayLead(Object.entries(taken));
  return `After the last shift that it recovered from (${what}), the served model needed ${count(taken[SERVED])} examples`
    + `${others.length ? `, ${others.join(", ")}` : ""}${lead}.`;
}
