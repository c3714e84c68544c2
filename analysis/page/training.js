// What was recorded against updates: a chart for each of these, and one whose metric the reader chooses.

const CHARTS = [
  { title: "Loss", solid: "train/loss", dashed: "eval/loss", baseline: "loss", words: "solid: mini-batch, dashed: fresh sequences" },
  { title: "Error", solid: "train/error", dashed: "eval/error", baseline: "error", share: true, words: "fraction wrong; solid: mini-batch, dashed: fresh sequences" },
  { title: "Gradient norm", solid: "grad/norm", dashed: "grad/norm_clipped", log: true, words: "all parameters; solid: before, dashed: after clipping" },
  { title: "Fraction of updates clipped", solid: "grad/clipped_fraction", share: true, words: "since the record before" },
];
const MOST_OF_BASELINE = 2.5; // a loss beyond is cut off, so that one exploding run hides no other

/** The curve of a metric, or of a series' mean over t ("h/norm, mean over t, layer 1"). */
function metricOf(run, name) {
  const [series, layer] = name.split(", mean over t, layer ");
  return layer === undefined ? run.metrics[name] : run.means[series]?.[layer - 1];
}

function metricNames() {
  const names = new Set();
  for (const run of DATA.runs) {
    Object.keys(run.metrics).forEach((name) => names.add(name));
    for (const [series, layers] of Object.entries(run.means)) layers.forEach((_, layer) => names.add(`${series}, mean over t, layer ${layer + 1}`));
  }
  const drawn = new Set(CHARTS.flatMap(({ solid, dashed }) => [solid, dashed]));
  return [...names].filter((name) => !drawn.has(name));
}

/** 10^y of an axis of logarithms. */
const power = (y) => (Number.isInteger(y) ? (Math.abs(y) < 4 ? told(10 ** y) : `1e${y}`) : told(10 ** y, 2));

function drawTraining() {
  for (const figure of byId("training").children) drawMetric(figure, figure.chart ?? chosenChart(figure));
}

function chosenChart(figure) {
  const solid = figure.querySelector("select")?.value ?? "";
  const values = selected().flatMap(({ run }) => metricOf(run, solid) ?? []).map(number).filter(Number.isFinite);
  const low = values.reduce((a, b) => Math.min(a, b), Infinity), high = values.reduce((a, b) => Math.max(a, b), -Infinity);
  return { title: solid, solid, log: low > 0 && high > 1000 * low };
}

function drawMetric(figure, { title, solid, dashed, baseline, share, log }) {
  const scale = (value) => (Number.isNaN(value) ? undefined : !log ? (Number.isFinite(value) ? value : null) : value > 0 && Number.isFinite(value) ? Math.log10(value) : null);
  const runs = selected().filter(({ run }) => metricOf(run, solid) || metricOf(run, dashed ?? ""));
  const xs = union(runs.map(({ run }) => run.steps));
  const lines = runs.flatMap((one) => [solid, dashed].filter((name) => name && worthDrawing(one.run, name, solid)).map((name) => line(one, name, xs, scale, dashed)));
  const rules = baseline ? [...new Set(runs.map(({ run }) => number(run.baseline[baseline])).filter(Number.isFinite))] : [];
  let range = share ? [-0.03, 1.03] : span([...lines.flatMap(({ ys }) => ys), ...rules], log ? 0.1 : 0);
  const most = MOST_OF_BASELINE * Math.max(...rules);
  if (!share && rules.length && range[1] > most && range[0] < most) range = [Math.max(range[0], -0.05 * most), most];
  const crosses = runs.filter(({ run }) => run.divergedAt !== null).map(({ run, slot }) => ({ slot, x: run.divergedAt }));
  drawChart(figure.querySelector(".chart"), {
    xs, lines, range, rules, crosses, label: title, xLabel: "updates", numbersAt: "last", tick: log ? power : undefined, head: (index) => `update ${xs[index]}`,
  });
}

/** A curve after clipping that is the curve before it, again, would say nothing. */
function worthDrawing(run, name, solid) {
  const own = metricOf(run, name), other = run.metrics[solid];
  return own !== undefined && (name === solid || name !== "grad/norm_clipped" || own.some((value, at) => value !== other?.[at]));
}

function line({ run, slot }, name, xs, scale, dashed) {
  const at = new Map(run.steps.map((step, record) => [step, number(metricOf(run, name)[record])]));
  const word = dashed ? { "train": "mini-batch ", "eval": "fresh ", "grad": name.endsWith("clipped") ? "after " : "before " }[name.split("/")[0]] : "";
  return {
    slot, dashed: name === dashed,
    ys: xs.map((x) => scale(at.get(x) ?? NaN)),
    told: (index) => (at.has(xs[index]) && !Number.isNaN(at.get(xs[index])) ? word + told(at.get(xs[index])) : ""),
  };
}

function buildTraining() {
  const figures = CHARTS.map((chart) => {
    const caption = node("figcaption", {}, node("b", {}, chart.title), node("span", { class: "dash" }, chart.words));
    return Object.assign(node("figure", {}, caption, node("div", { class: "chart" })), { chart });
  });
  const names = metricNames();
  if (names.length) {
    const choice = node("select", { id: "metric", onchange: drawTraining }, ...names.map((name) => node("option", {}, name)));
    choice.value = names.includes("dE_dh/slope") ? "dE_dh/slope" : names[0];
    figures.push(node("figure", {}, node("figcaption", {}, node("label", {}, node("b", {}, "Any other "), choice)), node("div", { class: "chart" })));
  }
  byId("training").append(...figures);
}
