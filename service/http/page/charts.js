// Line charts as SVG: redrawn at each change, with a summary in words and values on request.

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { top: 20, right: 10, bottom: 20, left: 46 };
const HEIGHT = 210;
const MAX_POINTS = 600;
const FONT = "11px system-ui, sans-serif";
const LABEL_GAP = 6;

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function shape(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

export function compact(number) {
  return number.toLocaleString("en", { notation: "compact", maximumFractionDigits: 1 });
}

export class Chart {
  // log: logarithmic vertical axis; floor, ceiling: limits of the axis, where they are fixed.
  constructor(parent, { id, title, format, log = false, floor, ceiling }) {
    Object.assign(this, { title, format, log, floor, ceiling });
    this.svg = shape("svg", {
      role: "img", tabindex: 0, height: HEIGHT, "aria-labelledby": `${id}-title`,
      "aria-describedby": `${id}-summary ${id}-readout`,
    });
    this.legend = element("ul", { class: "legend" });
    this.summary = element("p", { class: "summary", id: `${id}-summary` });
    this.readout = element("p", { class: "readout", id: `${id}-readout`, role: "status" });
    const heading = element("h3", { id: `${id}-title` }, title);
    this.figure = element("figure", { class: "chart", id });
    const words = element("div", { class: "words" }, this.readout, this.summary);
    this.figure.append(heading, this.svg, this.legend, words);
    parent.append(this.figure);
    this.data = { x: [], lines: [], bands: [], marks: [] };
    this.cursor = null;
    new ResizeObserver(() => this.draw()).observe(this.svg);
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.moveTo(null));
    this.svg.addEventListener("blur", () => this.moveTo(null));
    this.svg.addEventListener("keydown", (event) => this.step(event));
  }

  // x: numbers, ascending; lines: {name, values, floor}; bands: {low, high}; marks: {x, kind, label}.
  show({ x, lines, bands = [], marks = [] }, words) {
    const stride = Math.max(1, Math.ceil(x.length / MAX_POINTS));
    const kept = [...x.keys()].filter((k) => (x.length - 1 - k) % stride === 0);
    const thin = (values) => kept.map((k) => values[k] ?? null);
    this.data = {
      x: thin(x),
      lines: lines.map(({ name, values, floor }) => ({ name, values: thin(values), floor })),
      bands: bands.map(({ low, high }) => ({ low: thin(low), high: thin(high) })),
      marks,
    };
    if (this.summary.textContent !== words) this.summary.textContent = words;
    this.drawLegend();
    this.draw();
  }

  drawLegend() {
    const names = this.data.lines.map((line) => line.name);
    if (names.join("\n") === this.names) return;
    this.names = names.join("\n");
    this.legend.replaceChildren(...names.map((name, k) => {
      const stroke = shape("line", { x1: 0, x2: 29, y1: 6, y2: 6, class: this.lookOf(k) });
      return element("li", {}, shape("svg", { "aria-hidden": "true" }, stroke), name);
    }));
  }

  draw() {
    const width = this.svg.clientWidth;
    if (!width) return;
    this.width = width;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    if (this.data.x.length < 2) {
      const text = shape("text", { x: width / 2, y: HEIGHT / 2, "text-anchor": "middle" });
      text.append("waiting for examples …");
      this.svg.replaceChildren(text);
      return;
    }
    const { x, lines, bands, marks } = this.data;
    const across = linear(x[0], x[x.length - 1], MARGIN.left, width - MARGIN.right);
    const up = this.vertical();
    this.across = across;
    const axes = shape("g", { "aria-hidden": "true" });
    for (const value of up.ticks) {
      const y = up.at(value);
      axes.append(shape("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y, y2: y }));
      axes.append(label(MARGIN.left - 5, y + 4, this.format(value), "end"));
    }
    for (const value of steps(x[0], x[x.length - 1], width / 110)) {
      axes.append(label(across(value), HEIGHT - 5, compact(value), "middle"));
    }
    const areas = bands.map(({ low, high }) =>
      shape("path", { class: "band", d: area(x, low, high, across, up.at) }));
    const strokes = lines.map(({ values }, k) =>
      shape("path", { class: `line ${this.lookOf(k)}`, d: path(x, values, across, up.at) }));
    this.svg.replaceChildren(axes, ...areas, ...strokes.reverse(), ...this.drawMarks(marks, across));
    this.drawCursor();
  }

  // Floors are thin, so that the lines of learners stand out.
  lookOf(k) {
    return this.data.lines[k].floor ? `floor dash-${1 + k % 4}` : look(k);
  }

  vertical() {
    const { lines, bands } = this.data;
    const all = [...lines.map((l) => l.values), ...bands.flatMap((b) => [b.low, b.high])]
      .flat().filter((v) => v !== null && (!this.log || v > 0));
    let low = this.floor ?? Math.min(...all), high = this.ceiling ?? Math.max(...all);
    if (!all.length) [low, high] = [this.log ? 0.1 : 0, 1];
    if (this.log) {
      [low, high] = [Math.min(low / 1.2, 0.8), Math.max(high * 1.2, 1.25)];
      const scaled = linear(Math.log(low), Math.log(high), HEIGHT - MARGIN.bottom, MARGIN.top);
      return { at: (v) => scaled(Math.log(Math.max(v, low))), ticks: decades(low, high) };
    }
    if (high === low) high = low + 1;
    return { at: linear(low, high, HEIGHT - MARGIN.bottom, MARGIN.top), ticks: steps(low, high, 5) };
  }

  drawMarks(marks, across) {
    const right = this.width - MARGIN.right;
    const within = marks.filter(({ x }) => across(x) >= MARGIN.left && across(x) <= right + 1);
    const taken = [];
    return within.reverse().map(({ x, kind, label: words }) => {  // the newest labels have room first
      const at = across(x);
      const group = shape("g", { class: `mark ${kind}` });
      group.append(shape("line", { x1: at, x2: at, y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom }));
      if (kind === "drift") {
        group.append(shape("path", { d: `M${at - 5} ${MARGIN.top - 7}h10l-5 7z` }));
      } else {
        const length = textWidth(words), spots = [[at + 3, "start"], [at - 3 - length, "end"]];
        const fits = ([from]) => from >= 0 && from + length <= this.width
          && taken.every(([a, b]) => from > b + LABEL_GAP || from + length < a - LABEL_GAP);
        const spot = spots.find(fits);
        if (spot) {
          taken.push([spot[0], spot[0] + length]);
          group.append(label(spot[1] === "start" ? at + 3 : at - 3, MARGIN.top - 8, words, spot[1]));
        }
      }
      return group;
    });
  }

  drawCursor() {
    this.svg.querySelector(".cursor")?.remove();
    const { x, lines, bands } = this.data;
    if (this.cursor === null || !x.length) return;
    this.cursor = Math.max(0, Math.min(x.length - 1, this.cursor));
    const at = this.across(x[this.cursor]);
    this.svg.append(shape("line", { class: "cursor", x1: at, x2: at, y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom }));
    const parts = lines.map(({ name, values }) => `${name} ${this.say(values[this.cursor])}`);
    if (bands.length) {
      parts.push(`${this.say(bands[0].low[this.cursor])} … ${this.say(bands[0].high[this.cursor])}`);
    }
    const words = `At ${x[this.cursor].toLocaleString("en")}: ${parts.join(", ")}`;
    if (this.readout.textContent !== words) this.readout.textContent = words;
  }

  say(value) {
    return value === null ? "–" : this.format(value);
  }

  moveTo(index) {
    this.cursor = index;
    if (index === null) this.readout.textContent = "";
    this.drawCursor();
  }

  point(event) {
    const { x } = this.data;
    if (x.length < 2) return;
    const place = event.clientX - this.svg.getBoundingClientRect().left;
    const distances = x.map((value) => Math.abs(this.across(value) - place));
    this.moveTo(distances.indexOf(Math.min(...distances)));
  }

  step(event) {
    const last = this.data.x.length - 1;
    const from = this.cursor ?? last;
    const to = {
      ArrowLeft: from - 1, ArrowRight: from + 1, PageUp: from - 10, PageDown: from + 10,
      Home: 0, End: last, Escape: null,
    }[event.key];
    if (to === undefined || last < 1) return;
    event.preventDefault();
    this.moveTo(to === null ? null : Math.max(0, Math.min(last, to)));
  }
}

// The width of a label in pixels: a shape that is not drawn yet has none.
const canvas = document.createElement("canvas").getContext("2d");

function textWidth(words) {
  canvas.font = FONT;
  return canvas.measureText(words).width;
}

function look(k) {
  return `color-${k % 5} dash-${k % 5}`;
}

function label(x, y, words, anchor) {
  return shape("text", { x, y, "text-anchor": anchor }, words);
}

function linear(low, high, from, to) {
  const factor = (to - from) / (high - low || 1);
  return (value) => from + (value - low) * factor;
}

function steps(low, high, about) {
  const raw = (high - low) / Math.max(1, about);
  const power = 10 ** Math.floor(Math.log10(raw));
  const size = power * [1, 2, 5, 10].find((k) => k * power >= raw);
  const found = [];
  for (let k = Math.ceil(low / size); k * size <= high; k++) found.push(k * size);
  return found;
}

function decades(low, high) {
  if (high / low < 4) return steps(low, high, 4);
  const [from, to] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  const digits = high / low < 100 ? [1, 2, 5] : [1];
  const found = [];
  for (let k = from; k <= to; k++) found.push(...digits.map((digit) => digit * 10 ** k));
  return found.filter((value) => value >= low && value <= high);
}

function path(x, values, across, up) {
  let pen = "M";
  return values.map((value, k) => {
    if (value === null) {
      pen = "M";
      return "";
    }
    const piece = `${pen}${across(x[k]).toFixed(1)} ${up(value).toFixed(1)}`;
    pen = "L";
    return piece;
  }).join("");
}

function area(x, low, high, across, up) {
  const known = [...x.keys()].filter((k) => low[k] !== null && high[k] !== null);
  if (!known.length) return "";
  const corner = (values) => (k) => `${across(x[k]).toFixed(1)} ${up(values[k]).toFixed(1)}`;
  return `M${known.map(corner(high)).join("L")}L${known.reverse().map(corner(low)).join("L")}Z`;
}
