// The page at /: ask the server every few seconds and draw its answers.

import { drawHistory, drawRate, drawScores, dropCharts } from "./charts.js";
import { fillClasses, fillConfusion, fillList } from "./tables.js";
import {
  formatBytes, formatCount, formatDuration, formatPercent, formatMoment, formatShare, judge, sortNames,
} from "./text.js";

const POLL_SECONDS = 5;
const PATIENCE_SECONDS = 10;

const at = (id) => document.getElementById(id);

// What the reader has chosen; an empty version stands for the server's default version.
const chosen = Object.fromEntries(
  ["model", "version", "window"].map((name) => [name, new URLSearchParams(location.search).get(name) ?? ""]),
);

let shown = {}; // the result that is drawn, with its counts and its history
let lastAnswer = null; // when the server last answered

async function ask(path, parameters = {}) {
  const query = new URLSearchParams(parameters).toString();
  const signal = AbortSignal.timeout(PATIENCE_SECONDS * 1000);
  const answer = await fetch(query ? `${path}?${query}` : path, { signal }).catch((error) => {
    throw new Error(`${path}: ${error.message}`);
  });
  if (!answer.ok) throw new Error(`${path} is answered ${answer.status}`);
  return answer.headers.get("content-type").startsWith("application/json") ? answer.json() : answer.text();
}

// Ask the server once, and draw health, log and summary. Return the chosen result and its version, if that is served.
async function look() {
  const [models, quality, health, metrics] = await Promise.all(["models", "quality", "health", "metrics"].map((path) => ask(path)));
  drawHealth(health);
  drawLabels(health.labels);
  drawLog(metrics);
  const result = choose(models, quality.results);
  const served = models.models.find((model) => model.name === result?.model && model.version === result?.model_version);
  if (result) drawSummary(result, served);
  else drawNothing();
  return { result, served };
}

// Fill the three selects and return the result that they name. A chosen version stays chosen when it no longer exists:
// the reader would take the numbers of another version for its numbers.
function choose(models, results) {
  const model = chosen.model || models.default_model;
  const names = new Set([model, ...models.models.map((one) => one.name), ...results.map((result) => result.model)]);
  const standard = models.models.find((one) => one.name === model && one.default)?.version;
  const version = chosen.version || standard;
  const known = results.filter((result) => result.model === model).map((result) => result.model_version);
  const versions = sortNames(new Set(chosen.version ? [...known, chosen.version] : known));
  const found = results.filter((result) => result.model === model && result.model_version === version);
  const windows = found.map((result) => result.window);
  const window = windows.includes(chosen.window) ? chosen.window : windows[0];
  fillSelect("model", sortNames(names).map((name) => [name, name]), model);
  const pinned = models.pins[model];
  const choices = versions.map((name) => [name, name === pinned ? `${name} (pinned)` : name]);
  const marks = standard && standard === pinned ? "default, pinned" : "default";
  fillSelect("version", [["", `${standard ?? "none"} (${marks})`], ...choices], chosen.version);
  fillSelect("window", windows.map((name) => [name, name]), window);
  return found.find((result) => result.window === window);
}

function fillSelect(id, choices, value) {
  const select = at(id);
  const wanted = JSON.stringify(choices);
  if (select.dataset.choices !== wanted) {
    select.replaceChildren(...choices.map(([key, text]) => new Option(text, key)));
    select.dataset.choices = wanted;
  }
  select.value = value;
}

function drawNothing() {
  at("summary-title").textContent = "F1";
  at("f1").textContent = formatShare(null);
  at("bounds").textContent = "";
  show("state", "unknown", "badge warn");
  at("verdict").textContent =
    "There are no quality numbers for this version: it is not served and not in any window, or the job has not run yet.";
  at("numbers").replaceChildren();
  at("about").textContent = "";
  forgetDetails();
}

function drawSummary(result, served) {
  const [badge, verdict, colour] = judge(result);
  at("summary-title").textContent = `F1 of ${result.model} version ${result.model_version}, last ${result.window}`;
  at("f1").textContent = formatShare(result.f1);
  at("bounds").textContent =
    result.f1 === null ? "" : `between ${formatShare(result.f1_lower)} and ${formatShare(result.f1_upper)} with 95 % confidence`;
  show("state", badge, `badge ${colour}`);
  at("verdict").textContent = verdict;
  document.title = `${result.model} – Scorekeeper`; // without numbers: in a hidden tab they would be old
  fillList(at("numbers"), [
    ["Predictions", formatCount(result.predictions)],
    ["Labelled (coverage)", `${formatCount(result.labelled)} (${formatPercent(result.coverage)})`],
    ["Label delay", formatDuration(result.label_delay_seconds), "Average time from a prediction to its label"],
    ["Baseline F1", formatShare(result.baseline_f1), "F1 of always predicting one class"],
    ["Corrected F1", formatShare(result.corrected_f1), "Labels are weighted to stand for all predictions with a similar score"],
    ...(Number.isFinite(served?.training_f1) ? [["F1 in training", formatShare(served.training_f1), "As the model's file says"]] : []),
    ["Precision", formatShare(result.precision)],
    ["Recall", formatShare(result.recall)],
    ["Accuracy", formatShare(result.accuracy)],
    ...(result.auc === null ? [] : [["AUC", formatShare(result.auc)]]),
    ["Calibration error", formatShare(result.ece), "ECE: how far scores are from frequencies"],
    ...(result.best_threshold === null
      ? []
      : [["Best threshold", `${result.best_threshold.toFixed(2)} (F1 ${formatShare(result.best_threshold_f1)})`, result.regret_is_certain ? "Highest F1, and not by chance" : "Highest F1 in hindsight: chance may explain the difference"]]),
  ]);
  const loaded = served ? `Served since ${formatMoment(served.loaded_at)}, sha256 ${served.sha256.slice(0, 12)}. ` : "Not served now. ";
  at("about").textContent = `${loaded}Average of F1: ${result.average}. Computed at ${formatMoment(result.computed_at)}.`;
}

// Draw charts and tables again if the job has run or another result is chosen.
async function drawDetails(result, served) {
  const key = JSON.stringify([result.model, result.model_version, result.window]);
  if (shown.key === key && shown.computedAt === result.computed_at) return;
  const names = { model: result.model, version: result.model_version, window: result.window };
  if (shown.key !== key) forgetDetails();
  const past = shown.past ?? [];
  const since = past.at(-1)?.minute ?? result.since;
  const [counts, { history }] = await Promise.all([ask("quality/counts", names), ask("quality/history", { ...names, since })]);
  const news = history.reverse().map((row) => ({ ...row, at: Date.parse(row.until) }));
  const first = news[0]?.minute; // the last minute's result is replaced until the minute is over
  shown = {
    key,
    computedAt: result.computed_at,
    past: [...past.filter((row) => row.minute !== first && row.at >= Date.parse(result.since)), ...news],
    result,
    counts,
    classes: listClasses(result, served, counts),
  };
  hideDetails(false);
  redraw();
}

// Hide charts and tables: they show another result.
function forgetDetails() {
  shown = {};
  hideDetails(true);
}

function hideDetails(hidden) {
  for (const section of document.querySelectorAll("section.detail")) section.hidden = hidden;
}

// Return all classes of the version as text; last, those that only the database knows.
function listClasses(result, served, counts) {
  const found = [...Object.keys(result.confusion), ...Object.values(result.confusion).flatMap(Object.keys)];
  const predicted = counts.by_time.flatMap((bucket) => Object.keys(bucket.classes));
  return [...new Set([...(served?.classes ?? []).map(String), ...found, ...predicted])];
}

function redraw() {
  const { past, result, counts, classes } = shown;
  if (!result) return;
  drawHistory(past, result);
  drawRate(counts, classes);
  drawScores(counts.by_score);
  fillClasses(at("classes-table"), classes, result.confusion, counts.by_time);
  fillConfusion(at("confusion-table"), at("confusion-title"), classes, result.confusion);
}

function drawHealth(health) {
  show("server", `Server ${health.status}`, health.status === "ok" ? "badge good" : "badge warn");
  at("reasons").hidden = health.reasons.length === 0;
  at("reasons").replaceChildren(
    ...health.reasons.map(({ code, detail }) => Object.assign(document.createElement("li"), { textContent: `${code}: ${detail}` })),
  );
}

// Draw how many labels wait and were rejected; the server leaves them out when there are none.
function drawLabels(labels) {
  const { pending, pending_since, rejected, rejected_at } = labels ?? { pending: 0, rejected: 0 };
  fillList(at("labels"), [
    ["Waiting for their prediction", formatCount(pending), "Pending: applied when the prediction is stored, dropped after 30 days"],
    ...(pending ? [["The oldest since", formatMoment(pending_since)]] : []),
    ["Rejected in 24 hours", formatCount(rejected), "No class of the model fits them"],
    ...(rejected ? [["The last at", formatMoment(rejected_at)]] : []),
  ]);
}

// Sum a metric over its labels; undefined without a sample.
function readMetric(text, name) {
  const samples = [...text.matchAll(new RegExp(`^${name}(?:\\{.*\\})? (\\S+)`, "gm"))];
  return samples.length ? samples.reduce((sum, sample) => sum + Number(sample[1]), 0) : undefined;
}

function drawLog(metrics) {
  const read = (name) => readMetric(metrics, `prediction_log_${name}`);
  const limit = read("spool_max_bytes");
  fillList(at("log"), [
    ["Answered", formatCount(read("answered_rows_total")), "Rows whose request was answered 200: each is promised"],
    ["Stored in PostgreSQL", formatCount(read("stored_rows_total")), "Including rows that earlier processes promised"],
    ["Waiting to be stored", formatCount(read("pending_rows")), "Safe, but not in PostgreSQL yet"],
    ["Longest wait", formatDuration(read("lag_seconds")), "Age of the oldest row that is not stored yet"],
    ["Refused (503)", formatCount(read("refused_rows_total")), "Never promised"],
    ["Dead", formatCount(read("dead_rows_total")), "Rows that PostgreSQL refuses for their content, kept in the spool"],
    ["Failed attempts", formatCount(read("failures_total") ?? 0), "Attempts to store a batch"],
    ...(limit === undefined ? [] : [["Spool", `${formatBytes(read("spool_bytes"))} of ${formatBytes(limit)}`, "Stored rows are kept for a while"]]),
  ]);
}

// Set a text that screen readers read aloud, only when it changes: they would repeat it each time.
function show(id, text, style) {
  if (at(id).textContent !== text) at(id).textContent = text;
  at(id).className = style;
}

async function poll() {
  if (document.hidden) return;
  let trouble = "";
  try {
    const { result, served } = await look();
    lastAnswer = Date.now();
    if (result) trouble = await drawDetails(result, served).then(() => "", (error) => `No new charts and tables: ${error.message}.`);
  } catch (error) {
    const since = lastAnswer ? `the page shows its state at ${formatMoment(lastAnswer)}` : "there is nothing to show yet";
    trouble = `The server does not answer as expected: ${since} (${error.message}).`;
    show("server", "Server unknown", "badge bad");
    show("state", "unknown", "badge warn");
    at("verdict").textContent = "";
  }
  show("unreachable", trouble, "");
  at("unreachable").hidden = !trouble;
}

let polling = Promise.resolve();

// Poll again, after the current poll.
function lookAgain() {
  polling = polling.then(poll);
  return polling;
}

for (const name of ["model", "version", "window"]) {
  at(name).addEventListener("change", () => {
    chosen[name] = at(name).value;
    if (name === "model") chosen.version = "";
    const query = new URLSearchParams(Object.entries(chosen).filter(([, value]) => value));
    history.replaceState(null, "", query.size ? `?${query}` : location.pathname);
    lookAgain();
  });
}
document.addEventListener("visibilitychange", () => document.hidden || lookAgain());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  dropCharts();
  redraw();
});

async function run() {
  await lookAgain();
  setTimeout(run, POLL_SECONDS * 1000);
}

run();
