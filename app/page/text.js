// Numbers, times and states in words.

const NONE = "–"; // for a value that is undefined or unknown

export const STATES = {
  no_predictions: ["no predictions", "Nothing was predicted in this window."],
  no_labels: ["no labels", "No true label has come for this window yet."],
  no_positives: ["no positives", "F1 is undefined: no labelled row is positive, by label or by prediction."],
  one_class: ["one class", "All labels are of one class: F1 says nothing about telling classes apart."],
  too_few_labels: ["too few labels", "Trust the bounds, not the value."],
  stale: ["stale", "These numbers are old: the quality job fails, or PostgreSQL is unreachable."],
  ok: ["ok", ""],
};

// Return [badge, sentence, colour] for the state or, if it is ok, for the bounds: ok says that the numbers are reliable,
// not that the model is good. Only what chance does not explain is red.
export function judge(result) {
  const [badge, sentence] = STATES[result.state];
  if (result.state !== "ok") return [badge, sentence, "warn"];
  const [word, words, colour] = compare(result, badge);
  return [word, [words, offerThreshold(result)].filter(Boolean).join(" "), colour];
}

// Compare the bounds with the baseline and with the objective.
function compare({ f1_lower: lower, f1_upper: upper, baseline_f1: baseline, objective }, badge) {
  const constant = "always predicting one class", goal = formatShare(objective);
  if (upper < baseline) return ["poor", `Worse than ${constant}, and not by chance.`, "bad"];
  if (objective !== null && upper < objective) return ["objective missed", `Worse than the objective of ${goal}, and not by chance.`, "bad"];
  if (lower <= baseline) {
    return ["near the baseline", `The F1 of ${constant}, ${formatShare(baseline)}, lies within the bounds: chance may explain the difference.`, "warn"];
  }
  if (objective === null) return [badge, "No objective is set.", ""];
  if (lower >= objective) return ["objective met", `The objective of ${goal} is met, and not by chance.`, "good"];
  return ["near the objective", `The objective of ${goal} lies within the bounds: chance may explain the difference.`, "warn"];
}

// Offer the better threshold where it is certain that it is better.
function offerThreshold({ regret_is_certain: certain, best_threshold: threshold, best_threshold_f1: f1 }) {
  return certain ? `With a threshold of ${threshold.toFixed(2)} F1 would be ${formatShare(f1)}, and not by chance.` : "";
}

const NATURAL = new Intl.Collator("en", { numeric: true });

// Sort names, the numbers in them as numbers: 9 before 10.
export function sortNames(names) {
  return [...names].sort(NATURAL.compare);
}

// Shorten a long name.
export function formatName(name) {
  return name.length > 24 ? `${name.slice(0, 23)}…` : name;
}

export function formatShare(value) {
  return value === null || value === undefined ? NONE : value.toFixed(3);
}

export function formatPercent(value) {
  return value === null || value === undefined ? NONE : `${(100 * value).toFixed(1)} %`;
}

export function formatCount(value) {
  return value === null || value === undefined ? NONE : value.toLocaleString("en");
}

export function formatRate(value) {
  return value.toLocaleString("en", { maximumSignificantDigits: 3 });
}

export function formatBytes(value) {
  if (value === undefined) return NONE;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = Math.min(Math.floor(Math.log2(Math.max(value, 1)) / 10), units.length - 1);
  return `${formatRate(value / 1024 ** power)} ${units[power]}`;
}

export function formatDuration(seconds) {
  if (seconds === null || seconds === undefined) return NONE;
  for (const [unit, length] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (seconds >= 2 * length) return `${formatRate(seconds / length)} ${unit}`;
  }
  return `${formatRate(seconds)} s`;
}

const CLOCK = new Intl.DateTimeFormat("en", { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const SECONDS = new Intl.DateTimeFormat("en", { timeStyle: "medium", hourCycle: "h23" });
const DAY = new Intl.DateTimeFormat("en", { day: "numeric", month: "short" });

// Format a time of a chart by the reader's clock; add the day if the period, in milliseconds, is over 1.5 days.
export function formatTime(at, period) {
  const date = new Date(at);
  return period > 86400e3 * 1.5 ? `${DAY.format(date)} ${CLOCK.format(date)}` : CLOCK.format(date);
}

// Format a moment to the second; add the day if it is not today.
export function formatMoment(at) {
  const date = new Date(at);
  return date.toDateString() === new Date().toDateString() ? SECONDS.format(date) : `${DAY.format(date)}, ${SECONDS.format(date)}`;
}
