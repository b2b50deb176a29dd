// What the service has told: its points, shifts and drifts, kept as /events sends them.

const MAX_POINTS = 3600;
const SPACING_SECONDS = 0.9; // as in history.py
const RETRY_MS = 2000;

export const told = { points: [], shifts: new Map(), drifts: new Map(), newsAt: 0 };
// newsAt: when the newest event came, in milliseconds of the page's clock; 0 before the first.

let source = null;

export function isLive() {
  return source !== null && source.readyState === EventSource.OPEN;
}

// on.open is called when the service can be reached, on.news after each event, on.lost otherwise.
export function connect(on) {
  source = new EventSource("/events");
  source.addEventListener("open", () => {
    told.newsAt = performance.now();
    on.open();
  });
  source.addEventListener("error", () => {
    if (source.readyState === EventSource.CLOSED) setTimeout(() => connect(on), RETRY_MS);
    on.lost();
  });
  const listen = (kind, take) => source.addEventListener(kind, (event) => {
    take(event.data ? JSON.parse(event.data) : null);
    told.newsAt = performance.now();
    on.news();
  });
  listen("reset", () => Object.assign(told, { points: [], shifts: new Map(), drifts: new Map() }));
  listen("point", take);
  listen("shift", (shift) => told.shifts.set(shift.id, shift));
  listen("drift", (drift) => told.drifts.set(drift.id, drift));
}

function take(point) {
  const { points } = told;
  const [before, newest] = points.slice(-2);
  const standsStill = newest?.version === point.version && before.version === point.version;
  if (newest && (standsStill || newest.time - before.time < SPACING_SECONDS)) points.pop();
  points.push(point);
  if (points.length > MAX_POINTS) points.shift();
}
