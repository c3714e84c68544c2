// The table of runs: sorted by a click on a column, filtered by words, and what is selected in it.

const slots = new Array(MOST).fill(null); // slot -> run: its colour and number as long as it is selected
const table = { order: null, descending: false, listeners: [] };

const selected = () => slots.flatMap((run, slot) => (run ? [{ run, slot }] : []));
const shownRuns = () => [...byId("runs").tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.run);

function changed() {
  const full = selected().length === MOST;
  for (const row of byId("runs").tBodies[0].rows) {
    const box = row.querySelector("input"), is = slots.includes(row.run);
    box.checked = is;
    box.disabled = full && !is;
    row.classList.toggle("on", is);
  }
  byId("selected").replaceChildren(...selected().map(({ run, slot }) => {
    const drop = node("button", { type: "button", "aria-label": `remove run ${slot + 1}, ${run.label}`, onclick: () => toggle(run) }, "\u00d7");
    const state = run.status === "completed" ? "" : ` (${run.status})`;
    return node("li", {}, key(slot), node("span", {}, run.label + state), drop);
  }));
  table.listeners.forEach((listener) => listener());
}

/** A run's number over a bar of its colour. */
function key(slot) {
  const made = node("b", { class: "key" }, String(slot + 1));
  made.style.borderColor = `var(--run-${slot + 1})`;
  return made;
}

function toggle(run) {
  const at = slots.indexOf(run), free = slots.indexOf(null);
  if (at >= 0) slots[at] = null;
  else if (free >= 0) slots[free] = run;
  else return;
  changed();
}

function select(runs) {
  slots.fill(null);
  runs.slice(0, MOST).forEach((run, slot) => (slots[slot] = run));
  changed();
}

/** Of two cells; what is missing comes last either way. */
function compare(a, b, descending) {
  if (a === null || b === null) return (a === null) - (b === null);
  const [x, y] = [Number(a), Number(b)];
  const order = Number.isNaN(x) || Number.isNaN(y) ? String(a).localeCompare(String(b), "en", { numeric: true }) : x - y || 0;
  return descending ? -order : order;
}

function sortBy(column) {
  table.descending = table.order === column && !table.descending;
  table.order = column;
  const body = byId("runs").tBodies[0];
  body.append(...[...body.rows].sort((a, b) => compare(a.run.cells[column], b.run.cells[column], table.descending)));
  [...byId("runs").tHead.rows[0].cells].slice(1).forEach((head, at) => {
    if (at === column) head.setAttribute("aria-sort", table.descending ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  });
}

const CONDITION = /^([^<>=!]+)(>=|<=|!=|=|<|>)(.+)$/;
const HOLDS = {
  "=": (order) => order === 0, "!=": (order) => order !== 0, "<": (order) => order < 0,
  ">": (order) => order > 0, "<=": (order) => order <= 0, ">=": (order) => order >= 0,
};

/** The column that a word of the filter means: init.scale or scale, clip.name or clip, eval/error or error. */
function columnOf(word) {
  const names = DATA.columns.map(({ key }) => key.toLowerCase());
  const tests = [(name) => name === word, (name) => name.replace(/\.name$/, "").split(/[./]/).pop() === word, (name) => name.includes(word)];
  for (const test of tests) if (names.some(test)) return names.findIndex(test);
  return -1;
}

/** Every word must hold: "scale>=4" of its column, any other text somewhere in the row. */
function filter() {
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const conditions = words.map((word) => {
    const [, name, relation, value] = word.match(CONDITION) ?? [];
    const column = name === undefined ? -1 : columnOf(name);
    if (column < 0) return (row) => row.textContent.toLowerCase().includes(word) || row.run.id.includes(word);
    return ({ run: { cells } }) => cells[column] !== null && HOLDS[relation](compare(String(cells[column]).toLowerCase(), value, false));
  });
  for (const row of byId("runs").tBodies[0].rows) row.hidden = !conditions.every((holds) => holds(row));
  const count = shownRuns().length;
  byId("shown").textContent = count ? `${count} of ${DATA.runs.length} runs` : "no run matches";
}

/** The order of the sweep: by its axes, one after the other. */
function byAxes(a, b) {
  return DATA.axes.reduce((order, _, at) => order || compare(a.cells[at], b.cells[at], false), 0);
}

function buildTable() {
  DATA.runs.sort(byAxes);
  const numeric = DATA.columns.map((_, at) => DATA.runs.some(({ cells }) => typeof cells[at] === "number"));
  const heads = DATA.columns.map(({ name, note }, at) => {
    const button = node("button", { type: "button", title: note, onclick: () => sortBy(at) }, name);
    return node("th", { scope: "col", class: numeric[at] ? "number" : "" }, button);
  });
  const rows = DATA.runs.map((run) => {
    const box = node("input", { type: "checkbox", "aria-label": `select ${run.label}` });
    const cells = run.cells.map((cell, at) => {
      const text = numeric[at] ? told(number(cell)) : (cell ?? "");
      return node("td", { class: numeric[at] ? "number" : String(text).length > 40 ? "long" : "" }, text);
    });
    return Object.assign(node("tr", { onclick: () => toggle(run) }, node("td", {}, box), ...cells), { run });
  });
  byId("runs").tHead.append(node("tr", {}, node("th", { scope: "col" }, "#"), ...heads));
  byId("runs").tBodies[0].append(...rows);
  byId("filter").addEventListener("input", filter);
  byId("first").addEventListener("click", () => select(shownRuns()));
  byId("clear").addEventListener("click", () => select([]));
  filter();
}
