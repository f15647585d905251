// Tables and lists of numbers; every text is inserted as text, never as HTML.

import { formatCount, formatName, formatShare } from "./text.js";

const MOST_CLASSES = 12; // of the confusion matrix

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// Fill a <dl> with [name, value, explanation].
export function fillList(list, rows) {
  list.replaceChildren(
    ...rows.flatMap(([name, value, title]) => [element("dt", name, title ? { title } : {}), element("dd", value)]),
  );
}

// Put a table in a place; the first cell of each row is its head.
export function fillTable(place, caption, heads, rows) {
  const table = element("table", undefined, { "aria-label": caption });
  const head = table.createTHead().insertRow();
  head.append(...heads.map((text) => element("th", text, { scope: "col" })));
  const body = table.createTBody();
  for (const [first, ...cells] of rows) {
    const row = body.insertRow();
    row.append(element("th", first, { scope: "row" }), ...cells.map((text) => element("td", text)));
  }
  place.replaceChildren(table);
  place.tabIndex = 0; // so that the keyboard can scroll a table that is larger than its place
  place.setAttribute("role", "group");
  place.setAttribute("aria-label", caption);
}

export function sum(values) {
  return values.reduce((total, value) => total + value, 0);
}

function ratio(part, whole) {
  return whole ? part / whole : null;
}

// Return the value of a class's name; own properties only, since a class may be called `constructor`.
export function pick(values, name) {
  return values !== undefined && Object.hasOwn(values, name) ? values[name] : undefined;
}

// Show predictions, precision, recall and F1 of each class, from the confusion counts {label: {predicted: rows}}.
export function fillClasses(place, classes, confusion, buckets) {
  const rows = classes.map((name) => {
    const right = pick(pick(confusion, name), name) ?? 0;
    const labels = sum(Object.values(pick(confusion, name) ?? {}));
    const decided = sum(Object.values(confusion).map((row) => pick(row, name) ?? 0));
    return [
      name,
      formatCount(sum(buckets.map((bucket) => pick(bucket.classes, name) ?? 0))),
      formatCount(labels),
      formatShare(ratio(right, decided)),
      formatShare(ratio(right, labels)),
      formatShare(ratio(2 * right, decided + labels)),
    ];
  });
  fillTable(place, "By class", ["class", "predicted", "labels", "precision", "recall", "F1"], rows);
}

// Show labels as rows, predicted classes as columns; `title` says how many classes are shown.
export function fillConfusion(place, title, classes, confusion) {
  const shown = classes.slice(0, MOST_CLASSES);
  const rows = shown.map((label) => [label, ...shown.map((name) => formatCount(pick(pick(confusion, label), name) ?? 0))]);
  const more = classes.length > shown.length ? `, the first ${MOST_CLASSES} of ${classes.length} classes` : "";
  title.textContent = `Confusion matrix${more}`;
  fillTable(place, title.textContent, ["label \\ predicted", ...shown.map(formatName)], rows);
}
