// Puts the page together and keeps it drawn.

function drawAll() {
  drawTime();
  drawTraining();
}

/** Four runs from the fastest vanishing to the fastest exploding; where no slope is known, the first ones. */
function firstSelection() {
  const slope = (run) => (run.metrics["dE_dh/slope"] ?? []).map(number).find(Number.isFinite);
  const known = DATA.runs.filter((run) => slope(run) !== undefined).sort((a, b) => slope(a) - slope(b));
  if (known.length < 2) return DATA.runs.slice(0, 4);
  return [...new Set([0, 1, 2, 3].map((k) => known[Math.round((k / 3) * (known.length - 1))]))];
}

function describe(list, entries) {
  for (const [name, text] of entries) if (text) list.append(node("dt", {}, name), node("dd", {}, text));
}

function tally() {
  const counts = new Map();
  for (const { status } of DATA.runs) counts.set(status, (counts.get(status) ?? 0) + 1);
  const parts = [...counts].map(([status, count]) => `${count} ${status}`).join(", ");
  byId("tally").textContent = `${DATA.runs.length} run${DATA.runs.length === 1 ? "" : "s"}: ${parts}`;
}

const isDark = () => document.documentElement.dataset.theme === "dark" || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);

function themed() {
  byId("theme").textContent = isDark() ? "Light" : "Dark";
  byId("theme").setAttribute("aria-label", `switch to ${isDark() ? "light" : "dark"} colours`);
  drawAll();
}

function resized() {
  for (const host of document.querySelectorAll(".chart")) host.plot?.setSize({ width: host.clientWidth, height: host.clientHeight });
}

function build() {
  tally();
  const series = [...new Set(DATA.runs.flatMap((run) => Object.keys(run.series)))];
  byId("series").append(...series.map((name) => node("option", { value: name }, NAMES[name] ?? name)));
  buildTraining();
  buildTable();
  for (const id of ["series", "layer", "axis"]) byId(id).addEventListener("change", drawTime);
  byId("step").addEventListener("input", moveTo);
  byId("play").addEventListener("click", play);
  byId("theme").addEventListener("click", () => { document.documentElement.dataset.theme = isDark() ? "light" : "dark"; themed(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", themed);
  byId("figures").append(...DATA.figures.map(({ name, source }) => node("figure", {}, node("img", { src: source, alt: `figure ${name}`, loading: "lazy" }), node("figcaption", {}, name))));
  byId("figures-section").hidden = DATA.figures.length === 0;
  describe(byId("origin"), Object.entries(DATA.origin));
  byId("ids").textContent = DATA.runs.map(({ id }) => id).join(" ");
  describe(byId("config"), Object.entries(DATA.config));
  const thinned = DATA.every > 1 ? ` To keep the file small it holds every ${DATA.every}th record of each run and the last; the table is not touched by that.` : "";
  byId("made").textContent = `Written by analysis/report.py of rnn_lab; charts by uPlot (MIT licence, in this file).${thinned}`;
  themed();
  table.listeners.push(drawAll);
  select(firstSelection());
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; resized(); } });
}

build();
