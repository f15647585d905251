// The three charts, with Chart.js; each has a text for screen readers.

import { fillTable, pick, sum } from "./tables.js";
import { formatCount, formatName, formatRate, formatShare, formatTime } from "./text.js";

const MOST_CLASSES = 8; // there is a colour for each; the last is for all others
const OTHERS = "all others";

const charts = {};

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

// Remove all charts: the next draw rebuilds them, with the colours of the current theme.
export function dropCharts() {
  for (const [id, chart] of Object.entries(charts)) {
    chart.destroy();
    delete charts[id];
  }
}

function draw(id, words, type, data, makeOptions) {
  const canvas = document.getElementById(id);
  canvas.setAttribute("aria-label", words);
  const options = { animation: false, maintainAspectRatio: false, ...makeOptions() };
  if (charts[id]) {
    charts[id].data = data;
    charts[id].options = options;
    charts[id].update();
  } else {
    charts[id] = new Chart(canvas, { type, data, options });
  }
}

function makeAxis(more) {
  const { ticks, ...rest } = more;
  return { grid: { color: colour("rule") }, ticks: { color: colour("quiet"), maxRotation: 0, ...ticks }, ...rest };
}

function makePlugins(callbacks, unnamed) {
  const labels = { color: colour("ink"), usePointStyle: true, boxHeight: 8, filter: (item) => item.text !== unnamed };
  return { legend: { position: "bottom", labels }, tooltip: { callbacks } };
}

const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1440, 2880, 7200, 14400, 43200].map((minutes) => minutes * 60e3);

// Return a time axis with ticks at round times of the reader's clock.
function makeTimeAxis(since, until) {
  const period = until - since;
  const most = Math.min(7, innerWidth / 130); // on a phone there is no room for more
  const step = STEPS.find((length) => period / length <= most) ?? period / 2;
  const offset = new Date(until).getTimezoneOffset() * 60e3;
  const first = Math.ceil((since - offset) / step) * step + offset;
  const count = Math.max(0, Math.floor((until - first) / step) + 1);
  const values = Array.from({ length: count }, (_, at) => ({ value: first + at * step }));
  return makeAxis({
    type: "linear",
    min: since,
    max: until,
    afterBuildTicks: (axis) => {
      axis.ticks = values;
    },
    ticks: { autoSkip: true, callback: (at) => formatTime(at, period) },
  });
}

const INTERACTION = { mode: "index", intersect: false, axis: "x" };

function makeLine(label, points, more) {
  const colours = { borderColor: colour("ink"), backgroundColor: "transparent" };
  return { label, data: points, borderWidth: 1.5, pointRadius: 0, pointStyle: "line", ...colours, ...more };
}

// Draw F1 with its bounds and the objective; `past` has the results, oldest first.
export function drawHistory(past, result) {
  const since = Date.parse(result.since);
  const until = Math.max(Date.parse(result.until), past.at(-1)?.at ?? 0); // the job may have run since `result`
  const known = past.filter((row) => row.at >= since);
  const rows = withGaps(known);
  const series = (name) => rows.map((row) => ({ x: row.at, y: row[name] }));
  const band = { borderWidth: 0, pointStyle: "rect", backgroundColor: colour("band") };
  const isKnown = (row) => Number.isFinite(row?.f1);
  const isDot = ({ dataIndex: at }) => at === rows.length - 1 || !(isKnown(rows[at - 1]) || isKnown(rows[at + 1]));
  const dots = {
    pointRadius: (point) => (isDot(point) ? 3 : 0), // the newest point, and points that no line reaches
    pointStyle: (point) => (isDot(point) ? "circle" : "line"),
    clip: 5,
  };
  const datasets = [
    makeLine("upper bound", series("f1_upper"), band),
    makeLine("bounds (95 %)", series("f1_lower"), { ...band, fill: "-1", word: "lower bound" }),
    makeLine("F1", series("f1"), { borderColor: colour("accent"), borderWidth: 2.5, ...dots }),
    makeLine("corrected F1", series("corrected_f1"), { borderDash: [2, 3] }),
  ];
  if (result.objective !== null) {
    const ends = [since, until].map((x) => ({ x, y: result.objective }));
    datasets.push(makeLine("objective", ends, { borderColor: colour("bad"), borderDash: [8, 3] }));
  }
  const words = `F1 is ${formatShare(result.f1)}, between ${formatShare(result.f1_lower)} and ${formatShare(result.f1_upper)}`;
  draw("history", `${words}; ${known.length} past results are shown, the table has the newest`, "line", { datasets }, () => ({
    interaction: INTERACTION,
    scales: {
      x: makeTimeAxis(since, until),
      y: makeAxis({ max: 1, suggestedMin: Math.max(0, (result.objective ?? 1) - 0.05), ticks: { callback: formatTick } }),
    },
    plugins: makePlugins(
      {
        title: ([item]) => (item ? formatTime(item.parsed.x, until - since) : ""),
        label: ({ dataset, parsed }) => `${dataset.word ?? dataset.label}: ${formatShare(parsed.y)}`,
      },
      "upper bound",
    ),
  }));
  fillHistoryTable(known, until - since);
}

function formatTick(value) {
  return Number(value.toFixed(3));
}

// Return the results with an empty one in each gap, so that no line crosses a time without results. There is one result
// per minute, or per run if the job runs less often; of results older than a day, one per hour is kept.
function withGaps(rows) {
  const dayAgo = (rows.at(-1)?.at ?? 0) - 86400e3;
  const steps = rows.slice(1).map((row, at) => row.at - rows[at].at).sort((a, b) => a - b);
  const usual = steps[Math.floor(steps.length / 2)];
  return rows.flatMap((row, at) => {
    const before = rows[at - 1];
    const step = before && before.at < dayAgo ? 3600e3 : 60e3;
    return before && row.at - before.at > 2.5 * Math.max(step, usual) ? [{ at: before.at + 1 }, row] : [row];
  });
}

function fillHistoryTable(rows, period) {
  fillTable(
    document.getElementById("history-table"),
    "F1 over time, newest first",
    ["time", "F1", "from", "to", "corrected", "labelled", "state"],
    rows.slice(-200).reverse().map((row) => [
      formatTime(row.at, period),
      ...[row.f1, row.f1_lower, row.f1_upper, row.corrected_f1].map(formatShare),
      formatCount(row.labelled),
      row.state,
    ]),
  );
}

// Return [name, classes] pairs. With too many classes: the most frequent ones first, the rest as one.
function groupClasses(buckets, classes) {
  if (classes.length <= MOST_CLASSES) return classes.map((name) => [name, [name]]);
  const totals = new Map(classes.map((name) => [name, sum(buckets.map((bucket) => pick(bucket.classes, name) ?? 0))]));
  const names = [...classes].sort((a, b) => totals.get(b) - totals.get(a));
  return [...names.slice(0, MOST_CLASSES - 1).map((name) => [name, [name]]), [OTHERS, names.slice(MOST_CLASSES - 1)]];
}

// Draw predictions per minute, one colour per class.
export function drawRate(counts, classes) {
  const [since, until] = [Date.parse(counts.since), Date.parse(counts.until)];
  const buckets = counts.by_time.map((bucket) => {
    const [start, end] = [Date.parse(bucket.since), Date.parse(bucket.until)];
    return { ...bucket, at: (start + end) / 2, minutes: (end - start) / 60e3 };
  });
  const complete = buckets.filter((bucket) => bucket.minutes >= 1 / 2); // in a short one, rows are still missing
  const datasets = groupClasses(complete, classes).map(([group, names], at) =>
    makeLine(
      formatName(group),
      complete.map((bucket) => ({ x: bucket.at, y: sum(names.map((name) => pick(bucket.classes, name) ?? 0)) / bucket.minutes })),
      { ...paint(colour(`class-${at}`)), fill: at ? "-1" : "origin" },
    ),
  );
  const total = sum(buckets.map((bucket) => bucket.predictions));
  const words = `${formatCount(total)} predictions in the window, by class and time; the table has the counts by time`;
  draw("rate", words, "line", { datasets }, () => ({
    interaction: INTERACTION,
    scales: {
      x: makeTimeAxis(since, until),
      y: makeAxis({ stacked: true, min: 0, suggestedMax: 1, ticks: { callback: formatRate } }),
    },
    plugins: makePlugins({
      title: ([item]) => (item ? formatTime(item.parsed.x, until - since) : ""),
      label: (item) => `${item.dataset.label}: ${formatRate(item.parsed.y)} per minute`,
    }),
  }));
  fillRateTable(complete, until - since);
}

function paint(fill) {
  return { stack: "all", borderColor: fill, backgroundColor: fill, pointStyle: "rect" };
}

function fillRateTable(buckets, period) {
  fillTable(
    document.getElementById("rate-table"),
    "Predictions over time, newest first",
    ["from", "predictions", "per minute", "labelled", "correct"],
    [...buckets].reverse().map((bucket) => [
      formatTime(Date.parse(bucket.since), period),
      formatCount(bucket.predictions),
      formatRate(bucket.predictions / bucket.minutes),
      formatCount(bucket.labelled),
      formatCount(bucket.correct),
    ]),
  );
}

// Draw how many predictions had which score, and whether their labels were the same class.
export function drawScores(bars) {
  const names = bars.map((bar) => `${bar.lower.toFixed(2)}–${bar.upper.toFixed(2)}`);
  const parts = [
    ["correct", "class-0", (bar) => bar.correct],
    ["wrong", "class-1", (bar) => bar.labelled - bar.correct],
    ["not labelled", "unlabelled", (bar) => bar.predictions - bar.labelled],
  ];
  const datasets = parts.map(([label, name, count]) => ({
    label,
    data: bars.map(count),
    ...paint(colour(name)),
    barPercentage: 1,
    categoryPercentage: 0.94,
  }));
  draw("scores", "Predictions by score: correct, wrong, not labelled; the table has the counts", "bar", { labels: names, datasets }, () => ({
    interaction: INTERACTION,
    scales: {
      x: makeAxis({ stacked: true, ticks: { maxTicksLimit: 6, callback: (at) => bars[at].lower.toFixed(2) } }),
      y: makeAxis({ stacked: true, min: 0, suggestedMax: 1, ticks: { callback: formatRate } }),
    },
    plugins: makePlugins({ label: (item) => `${item.dataset.label}: ${formatCount(item.parsed.y)}` }),
  }));
  fillTable(
    document.getElementById("scores-table"),
    "Predictions by score",
    ["score", "predictions", "correct", "wrong", "not labelled"],
    bars.map((bar, at) => [names[at], formatCount(bar.predictions), ...parts.map(([, , count]) => formatCount(count(bar)))]),
  );
}
