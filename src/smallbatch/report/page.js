// Draws the figures of the page from its one copy of the data, and answers the reader's choices.
"use strict";

const read = (id) => JSON.parse(document.getElementById(id).textContent);
const KINDS = read("kinds"); // kind → {variants: {name: Vega-Lite specification}, facet}
const FIGURES = read("figures"); // name → {kind, tables: {table of the specification: [table, where]}}
const COLUMNS = read("tables"); // table → {column: values}
const MLFLOW = read("mlflow"); // data set/study → the address of its experiment, where a server is known

const DARK = matchMedia("(prefers-color-scheme: dark)");
// What the specifications have as colours for light pages, and its counterpart for dark ones.
const DARK_COLOURS = { "#0072b2": "#56b4e9", "#d62728": "#ff8a80", "#b8bcc2": "#5a6068", "#dfe1e5": "#3d4248",
                       "#bcd9ee": "#35566e", "#003a63": "#e4f3ff" };
const NONE = "–"; // in place of what a row does not have
const SMALLEST_FRAME = 140; // pixels, of one frame of several
const SHOWN_COLUMNS = {
  cells: { study: "study", m: "m", bn: "BN batch", base_lr_label: "η̃", lr_label: "η", accuracy: "accuracy (%)",
           seeds: "worst … best seed", outcome: "outcome", reliable: "reliable" },
  ranges: { study: "study", m: "m", fraction: "fraction", range: "reliable η̃", range_lr: "reliable η" },
  costs: { study: "study", model: "model", norm: "norm", m: "m", panel: "of what", value: "value", of: "of" },
  curves: { m: "m", epoch: "epoch", updates: "updates", accuracy: "accuracy (%)", loss: "loss" },
  budgets: { frame: "budget", amount_text: "of", m: "m", epochs_text: "epochs", accuracy: "accuracy (%)",
             interval: "95 % interval (%)", base_lr_label: "best learning rate", standing: "standing" },
};

const tables = {};
/** The rows of a table, made from its columns when they are first asked for. */
function rowsOf(table) {
  if (!tables[table]) {
    const columns = Object.entries(COLUMNS[table]);
    const length = columns.length ? columns[0][1].length : 0;
    tables[table] = Array.from({ length }, (_, i) =>
      Object.fromEntries(columns.map(([name, values]) => [name, values[i]])));
  }
  return tables[table];
}

const choice = (name) => document.querySelector(`input[name=${name}]:checked`)?.value;
const hidden = () => new Set([...document.querySelectorAll("input[name=study]:not(:checked)")].map((box) => box.value));

function rowsFor([table, where], without = new Set()) {
  const wanted = Object.entries(where);
  return rowsOf(table).filter((row) =>
    wanted.every(([name, value]) => row[name] === value) && !without.has(`${row.dataset} ${row.study}`));
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function look() {
  const [ink, soft, line] = ["ink", "soft", "line"].map(colour);
  const font = getComputedStyle(document.body).fontFamily;
  return {
    font, background: "transparent", view: { stroke: line },
    axis: { labelColor: ink, titleColor: ink, gridColor: line, domainColor: soft, tickColor: soft, titleFontWeight: "normal" },
    legend: { labelColor: ink, titleColor: ink, titleFontWeight: "normal",
      layout: { bottom: { direction: "vertical", anchor: "start" } } }, // several, on a narrow page
    header: { labelColor: ink, labelFont: font }, text: { color: ink },
  };
}

/** The specification of a figure as it fits the page now. */
function specOf(name, width) {
  const figure = FIGURES[name];
  const kind = KINDS[figure.kind];
  const variant = [choice("rate"), choice("time")].find((it) => it in kind.variants) ?? Object.keys(kind.variants)[0];
  let text = JSON.stringify(kind.variants[variant]);
  if (DARK.matches) for (const [light, dark] of Object.entries(DARK_COLOURS)) text = text.replaceAll(light, dark);
  const spec = JSON.parse(text);
  spec.datasets = {};
  // A study has its own place on the page; only figures over several leave some out.
  const without = figure.kind.startsWith("best") || figure.kind.startsWith("all") ? hidden() : new Set();
  for (const [table, of] of Object.entries(figure.tables)) spec.datasets[table] = rowsFor(of, without);
  if (kind.facet) {
    const table = Object.keys(figure.tables)[0];
    const frames = new Set(spec.datasets[table].map((row) => row[kind.facet])).size || 1;
    const most = Math.max(1, Math.min(frames, 6, Math.floor((width - 60) / SMALLEST_FRAME)));
    spec.columns = Math.ceil(frames / Math.ceil(frames / most)); // rows of equal length, if it can be
    const axes = spec.resolve ? 45 : 0; // each frame has an axis of its own
    const room = Math.floor((width - 70 - axes) / spec.columns) - 22;
    spec.spec.width = Math.max(80, Math.min(room, 320));
    spec.spec.height = Math.min(150, spec.spec.width);
  } else {
    if (spec.height.step) {
      const rows = new Set(spec.datasets.cells.map((row) => row[`${variant}_label`])).size;
      spec.height = Math.max(rows * spec.height.step, 110) + 45; // room for the title, and the axis below
    }
    spec.autosize = { type: "fit", contains: "padding" };
  }
  return spec;
}

const ERRORS = 1; // of Vega's log levels: it would warn of every layer that has no rows

function options() {
  const tooltip = { theme: DARK.matches ? "dark" : "light" };
  return { actions: false, renderer: "svg", config: look(), logLevel: ERRORS, tooltip };
}

const views = new Map(); // element → {view, width}
async function draw(element) {
  const width = element.clientWidth;
  const name = element.dataset.figure;
  views.get(element)?.view?.finalize();
  views.set(element, { width }); // until it is drawn
  const { view } = await vegaEmbed(element, specOf(name, width), options());
  views.set(element, { view, width });
  element.classList.add("drawn");
  if (FIGURES[name].kind.startsWith("heat-map")) listen(view, element);
}

const redraw = () => Promise.all([...views.keys()].map(draw));
const sight = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (isIntersecting && !views.has(target)) draw(target);
  }
}, { rootMargin: "300px" });
const charts = () => document.querySelectorAll(".chart[data-figure]");
charts().forEach((element) => sight.observe(element));

// What is folded is part of the print, and shown when a link leads into it.
addEventListener("beforeprint", () => {
  document.querySelectorAll("details.study").forEach((details) => { details.open = true; });
});
function unfold() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const details = target?.closest("details.study");
  if (details && !details.open) {
    details.open = true;
    target.scrollIntoView();
  }
}
addEventListener("hashchange", unfold);
unfold();

addEventListener("beforeprint", () => charts().forEach((element) => views.has(element) || draw(element)));
DARK.addEventListener("change", redraw);
let settled;
addEventListener("resize", () => {
  clearTimeout(settled);
  settled = setTimeout(() => {
    for (const [element, { width }] of views) if (Math.abs(element.clientWidth - width) > 8) draw(element);
  }, 150);
});

// Printing takes what is out of sight as it is. So all is drawn before.
document.getElementById("print").addEventListener("click", async () => {
  document.querySelectorAll("details.study").forEach((details) => { details.open = true; });
  await Promise.all([...charts()].filter((element) => !views.has(element)).map(draw));
  print();
});

// One cell of a study: hover or tap its place in the heat map, or press its button in the table.

const pinned = new Map(); // panel → key of the cell that stays
const shown = new Map(); // panel → draws its curves again
DARK.addEventListener("change", () => shown.forEach((again) => again()));

function listen(view, element) {
  const panel = element.closest(".answer").querySelector(".cell");
  view.signal("frame", colour("frame"));
  view.signal("picked", pinned.get(panel) ?? "").runAsync();
  view.addEventListener("mouseover", (_, item) => {
    if (item?.datum?.key && !pinned.has(panel)) show(panel, item.datum, view);
  });
  view.addEventListener("click", (_, item) => {
    if (item?.datum?.key) pin(panel, item.datum, view);
  });
}

function pin(panel, cell, view) {
  if (pinned.get(panel) === cell.key) pinned.delete(panel);
  else pinned.set(panel, cell.key);
  show(panel, cell, view);
}

/** A cell's η̃ and η; under AdamW there is no η̃. */
function ratesOf(cell) {
  const eta = `η = ${cell.lr_label}`;
  return cell.base_lr_label === NONE ? [eta] : [`η̃ = ${cell.base_lr_label}`, eta];
}

function show(panel, cell, view) {
  view?.signal("picked", cell.key).runAsync();
  const runs = rowsOf("runs").filter((run) => run.key === cell.key);
  const lines = [
    make("h4", [`m = ${cell.m}`, ...ratesOf(cell)].join(", ")),
    make("p", `${cell.outcome}; ${cell.reliable ? "reliable" : "not reliable"}`),
    make("ul", "", runs.map((run) => make("li", `seed ${run.seed}: ${run.said}`))),
    make("div"),
  ];
  const known = MLFLOW[`${cell.dataset}/${cell.study}`];
  if (known) {
    const link = make("a", "Its runs in MLflow");
    const filter = `params.study = '${cell.study}' and params.batch_size = '${cell.m}' and params.base_lr = '${cell.base_lr_text}'`;
    // With an order MLflow lists the runs themselves, not their column's own run, which folds them away.
    const order = "&orderByKey=metrics.%60reported_accuracy%60&orderByAsc=false";
    link.href = `${known}&searchFilter=${encodeURIComponent(filter)}${order}`;
    link.target = "_blank";
    link.rel = "noopener noreferrer";
    lines.push(make("p", "", [link]));
  }
  lines.push(make("p", pinned.get(panel) === cell.key ? "Click the cell again to let go of it." : "Click a cell to keep it here."));
  lines[3].className = "curves";
  panel.replaceChildren(...lines);
  curves(lines[3], runs);
  shown.set(panel, () => lines[3].isConnected && curves(lines[3], runs));
}

function curves(place, runs) {
  const spec = structuredClone(Object.values(KINDS.cell.variants)[0]);
  const points = runs.flatMap((run) => run.epochs.map((epoch, i) => ({ seed: run.seed, epoch, accuracy: run.accuracies[i] })));
  if (!points.some((point) => point.accuracy !== null)) return;
  spec.datasets = { runs: points };
  // Whole epochs, also where a run had only one or two.
  const last = Math.max(...points.map((point) => point.epoch));
  const step = Math.ceil(last / 10);
  spec.encoding.x.axis.values = Array.from({ length: Math.floor(last / step) }, (_, i) => (i + 1) * step);
  spec.autosize = { type: "fit", contains: "padding" };
  vegaEmbed(place, spec, options());
}

function make(tag, text = "", children = []) {
  const element = document.createElement(tag);
  element.textContent = text;
  element.append(...children);
  return element;
}

// The table of a figure is made when it is opened.

for (const details of document.querySelectorAll("details[data-rows]")) {
  details.addEventListener("toggle", () => {
    if (!details.open || details.querySelector("table")) return;
    const [table, of] = Object.entries(FIGURES[details.dataset.rows].tables)[0];
    const rows = rowsFor(of).filter((row) => row.part !== "dot"); // its range has a row
    const columns = Object.entries(SHOWN_COLUMNS[table]).filter(([name]) =>
      rows.some((row) => row[name] !== undefined && row[name] !== NONE) && (name !== "study" || ["ranges", "costs"].includes(table) || new Set(rows.map((row) => row.study)).size > 1));
    const head = make("tr", "", columns.map(([, title]) => Object.assign(make("th", title), { scope: "col" })));
    const body = rows.map((row) => make("tr", "", columns.map(([name], i) => bodyCell(row, name, i, details))));
    const made = make("table", "", [make("thead", "", [head]), make("tbody", "", body)]);
    const box = make("div", "", [made]);
    box.className = "scroll";
    box.tabIndex = 0;
    details.append(box);
    sortable(made);
  });
}

function bodyCell(row, name, index, details) {
  const value = row[name];
  const text = value === null || value === undefined ? "–" : value === true ? "yes" : value === false ? "no"
    : name === "accuracy" ? value.toFixed(1) : String(value);
  const element = make(index ? "td" : "th", text);
  if (index) return element;
  element.scope = "row";
  const answer = details.closest(".answer");
  if (!answer || !row.key) return element;
  const button = make("button", text);
  button.setAttribute("aria-label", `Show the cell m = ${row.m}, ${ratesOf(row)[0]}`);
  button.addEventListener("click", () => {
    const panel = answer.querySelector(".cell");
    pin(panel, row, views.get(answer.querySelector(".chart"))?.view);
    panel.scrollIntoView({ block: "nearest" }); // it may be far below a long table
  });
  element.replaceChildren(button);
  return element;
}

// Tables are sorted by a click on a header: numbers by value, the rest as text.

/** The number a cell stands for: 2⁻⁸, −3.5, 84.0 %, 2 … 8 by its beginning; NaN if it is none. */
function numberIn(text) {
  const power = /^2([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)/.exec(text);
  if (power) return 2 ** Number([...power[1]].map((c) => (c === "⁻" ? "-" : "⁰¹²³⁴⁵⁶⁷⁸⁹".indexOf(c))).join(""));
  const plain = /^[+−-]?[\d.,]+(e[+-]?\d+)?/.exec(text);
  return plain ? Number(plain[0].replace("−", "-").replaceAll(",", "")) : NaN;
}

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, index) => {
    const button = make("button", head.textContent);
    button.type = "button";
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const text = (row) => row.cells[index].textContent.trim();
      const order = (a, b) => {
        const [x, y] = [numberIn(text(a)), numberIn(text(b))];
        if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1; // what has no value is last
        const least = Number.isNaN(x) ? text(a).localeCompare(text(b)) : x - y;
        return down ? -least : least;
      };
      const body = table.tBodies[0];
      body.append(...[...body.rows].sort(order));
    });
  });
}
document.querySelectorAll("table.sortable").forEach(sortable);

// Claims by verdict.

for (const button of document.querySelectorAll(".filters button")) {
  button.addEventListener("click", () => {
    const on = button.getAttribute("aria-pressed") === "true";
    for (const other of button.parentElement.children) other.setAttribute("aria-pressed", "false");
    button.setAttribute("aria-pressed", String(!on));
    for (const row of document.querySelectorAll("#claims-table tbody tr")) {
      row.hidden = !on && row.dataset.verdict !== button.value;
    }
  });
}

// The reader's choices of what is shown.

document.querySelectorAll(".view input").forEach((input) =>
  input.addEventListener("change", () => {
    if (input.name === "study") {
      const own = document.querySelectorAll(`[data-study="${CSS.escape(input.value)}"]`);
      own.forEach((element) => { element.hidden = !input.checked; });
      document.getElementById("none").hidden = document.querySelector("input[name=study]:checked") !== null;
    }
    redraw();
  }));

// On a narrow page the contents are folded.
const contents = document.querySelector(".contents details");
const narrow = matchMedia("(max-width: 62rem)");
const fold = () => { contents.open = !narrow.matches; };
narrow.addEventListener("change", fold);
fold();
contents.addEventListener("click", (event) => { if (event.target.tagName === "A" && narrow.matches) contents.open = false; });
