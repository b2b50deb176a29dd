// Line charts over examples learned, drawn by uPlot; each has a summary in words and values on request.

import { clock } from "./words.js";

const { uPlot } = window;
const MAX_POINTS = 600;
const TICK_GAP = 110;
const MARK_ROOM = 20;
const LABEL_GAP = 6;
const FONT = "11px system-ui, sans-serif";
const DASHES = [[], [6, 3], [2, 3], [9, 3, 2, 3], [12, 4]];

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

export function compact(number) {
  return number.toLocaleString("en", { notation: "compact", maximumFractionDigits: 1 });
}

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

export class Chart {
  // log: logarithmic vertical axis; floor, ceiling: limits of the axis, where they are fixed.
  constructor(parent, { id, title, format, height = 210, log = false, floor, ceiling }) {
    Object.assign(this, { format, height, log, floor, ceiling });
    this.plot = element("div", {
      class: "plot", role: "img", tabindex: 0, "aria-labelledby": `${id}-title`,
      "aria-describedby": `${id}-summary ${id}-readout`,
    });
    this.waiting = element("p", { class: "waiting" }, "waiting for examples …");
    this.legend = element("ul", { class: "legend" });
    this.summary = element("p", { class: "summary", id: `${id}-summary` });
    this.readout = element("p", { class: "readout", id: `${id}-readout`, role: "status" });
    this.title = element("h3", { id: `${id}-title` }, title);
    this.figure = element("figure", { class: "chart", id });
    const words = element("div", { class: "words" }, this.readout, this.summary);
    this.figure.append(this.title, this.plot, this.waiting, this.legend, words);
    parent.append(this.figure);
    this.data = { x: [], times: [], lines: [], bands: [], marks: [] };
    this.shape = null; // of the chart that uPlot has drawn
    this.drawn = null;
    new ResizeObserver(() => this.draw()).observe(this.plot);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      this.shape = null;
      this.draw();
    });
    this.plot.addEventListener("blur", () => this.moveTo(null));
    this.plot.addEventListener("keydown", (event) => this.step(event));
  }

  // x: numbers, ascending; times: seconds, of each; lines: {name, values, floor}; bands: {low, high};
  // marks: {x, kind, label}.
  show({ x, times, lines, bands = [], marks = [] }, words) {
    const stride = Math.max(1, Math.ceil(x.length / MAX_POINTS));
    const kept = [...x.keys()].filter((k) => (x.length - 1 - k) % stride === 0);
    const thin = (values) => kept.map((k) => values[k] ?? null);
    this.data = {
      x: thin(x),
      times: thin(times),
      lines: lines.map(({ name, values, floor }) => ({ name, values: thin(values), floor })),
      bands: bands.map(({ low, high }) => ({ low: thin(low), high: thin(high) })),
      marks,
    };
    if (this.summary.textContent !== words) this.summary.textContent = words;
    this.draw();
  }

  draw() {
    const width = this.plot.clientWidth, { x, lines, bands } = this.data;
    const isFlat = !x.length || x[0] === x.at(-1); // there is no line through one place
    this.waiting.hidden = !isFlat;
    this.plot.hidden = this.legend.hidden = isFlat;
    if (isFlat && x.at(-1)) this.waiting.textContent = "No example was learned in this time.";
    if (isFlat || !width) return;
    const shape = JSON.stringify([lines.map(({ name, floor }) => [name, floor]), bands.length]);
    const values = [x, ...bands.flatMap(({ low, high }) => [high, low]), ...lines.map((line) => line.values)];
    if (shape !== this.shape) {
      this.drawn?.destroy();
      this.shape = shape;
      this.drawn = new uPlot(this.options(width), values, this.plot);
      this.drawLegend();
      return;
    }
    if (this.drawn.width !== width) this.drawn.setSize({ width, height: this.height });
    this.drawn.setData(values);
  }

  options(width) {
    const { lines, bands } = this.data;
    const faint = color("faint"), rule = color("rule");
    const axis = { stroke: faint, font: FONT, grid: { stroke: rule, width: 1 }, ticks: { show: false } };
    const edge = { width: 0, points: { show: false } };
    return {
      width, height: this.height, legend: { show: false },
      cursor: { y: false, drag: { setScale: false, x: false }, points: { size: 6 } },
      scales: { x: { time: false, range: (_, low, high) => [low, high > low ? high : low + 1] }, y: this.vertical() },
      axes: [
        { ...axis, grid: { show: false }, space: TICK_GAP, size: 40,
          values: (_, ticks) => ticks.map((tick) => [compact(tick), this.clockAt(tick)].join("\n")) },
        { ...axis, size: 52, space: 36, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : this.format(tick))) },
      ],
      padding: [MARK_ROOM, 28, 0, 0],
      series: [
        {},
        ...bands.flatMap(() => [edge, edge]),
        ...lines.map(({ floor }, k) => ({
          stroke: floor ? faint : color(`line-${k % 5}`), width: floor ? 1 : 2,
          dash: DASHES[floor ? 1 + k % 4 : k % 5], points: { show: false },
        })),
      ],
      bands: bands.map((_, k) => ({ series: [2 * k + 1, 2 * k + 2], fill: `${color("line-0")}2e` })),
      hooks: { draw: [(drawn) => this.drawMarks(drawn)], setCursor: [(drawn) => this.say(drawn.cursor.idx)] },
    };
  }

  vertical() {
    if (!this.log) return { range: (_, low, high) => this.limits(low, high) };
    return { distr: 3, log: 10, range: (_, low, high) => [Math.min(low / 1.2, 0.8), Math.max(high * 1.2, 1.25)] };
  }

  limits(low, high) {
    const [from, to] = [this.floor ?? low ?? 0, this.ceiling ?? high ?? 1];
    return to > from ? [from, to] : [from, from + 1];
  }

  // The wall clock when so many examples had been learned.
  clockAt(examples) {
    const { x, times } = this.data;
    const k = x.findIndex((value) => value >= examples);
    return k < 0 ? "" : clock(times[k]);
  }

  drawLegend() {
    this.legend.replaceChildren(...this.data.lines.map(({ name, floor }, k) => {
      const look = floor ? `swatch floor dash-${1 + k % 4}` : `swatch color-${k % 5} dash-${k % 5}`;
      return element("li", {}, element("span", { class: look, "aria-hidden": "true" }), name);
    }));
  }

  // Marks lie as elements over the plot, with labels where these have room.
  drawMarks({ root, over, bbox, valToPos }) {
    this.layer ??= element("div", { class: "marks", "aria-hidden": "true" });
    if (this.layer.parentNode !== over) over.append(this.layer);
    const width = bbox.width / devicePixelRatio, left = over.offsetLeft;
    const within = this.data.marks.map((mark) => ({ ...mark, at: valToPos(mark.x, "x") }))
      .filter(({ at }) => at >= 0 && at <= width + 1);
    const taken = [];
    const made = within.reverse().map(({ at, kind, label }) => { // the newest labels have room first
      const mark = element("div", { class: `mark ${kind}` });
      mark.style.left = `${at}px`;
      const length = textWidth(label);
      const fits = (from) => from >= -left && from + length <= root.clientWidth - left
        && taken.every(([a, b]) => from > b + LABEL_GAP || from + length < a - LABEL_GAP);
      const from = label && [at + 3, at - 3 - length].find(fits);
      if (label && from !== undefined) {
        taken.push([from, from + length]);
        const text = element("span", {}, label);
        text.style.left = `${from - at}px`;
        mark.append(text);
      }
      return mark;
    });
    this.layer.replaceChildren(...made);
  }

  say(index) {
    const { x, times, lines, bands } = this.data;
    let words = "";
    if (index !== null && index !== undefined && index < x.length) {
      const show = (value) => (value === null ? "–" : this.format(value));
      const parts = lines.map(({ name, values }) => `${name} ${show(values[index])}`);
      if (bands.length) parts.push(`${show(bands[0].low[index])} … ${show(bands[0].high[index])}`);
      words = `At ${x[index].toLocaleString("en")}, ${clock(times[index])}: ${parts.join(", ")}`;
    }
    if (this.readout.textContent !== words) this.readout.textContent = words;
  }

  moveTo(index) {
    if (!this.drawn) return;
    const left = index === null ? -10 : this.drawn.valToPos(this.data.x[index], "x");
    this.drawn.setCursor({ left, top: index === null ? -10 : 0 });
  }

  step(event) {
    const last = this.data.x.length - 1;
    const from = this.drawn?.cursor.idx ?? last;
    const to = {
      ArrowLeft: from - 1, ArrowRight: from + 1, PageUp: from - 10, PageDown: from + 10,
      Home: 0, End: last, Escape: null,
    }[event.key];
    if (to === undefined || last < 1) return;
    event.preventDefault();
    this.moveTo(to === null ? null : Math.max(0, Math.min(last, to)));
  }
}

// The width of a label in pixels.
const canvas = document.createElement("canvas").getContext("2d");

function textWidth(words) {
  canvas.font = FONT;
  return canvas.measureText(words).width;
}
