// Numbers and times as the page writes them.

export const percent = (share) => `${(100 * share).toFixed(1)} %`;
export const count = (value) => value.toLocaleString("en");
export const short = (value) => Number(value.toPrecision(3)).toString();

// The wall clock of a Unix time in seconds, where the reader is.
export function clock(seconds) {
  return new Date(1000 * seconds).toLocaleTimeString("en-GB");
}

// A number of any size, as an error in the unit of the labels.
export function amount(value) {
  const isLarge = Math.abs(value) >= 1000;
  return isLarge ? value.toLocaleString("en", { notation: "compact", maximumFractionDigits: 1 }) : short(value);
}
