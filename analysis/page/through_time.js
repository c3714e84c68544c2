// Norms through time of the selected runs at one update, and heatmaps of all updates.

const VIRIDIS = ["440154", "472d7b", "3b528b", "2c728e", "21918c", "28ae80", "5ec962", "addc30", "fde725"]
  .map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));
const FLOAT32 = [-46, 39]; // decades: what lies beyond has the colour of the end
const HEAT_ROWS = 200;
const time = { steps: [], curves: [], plot: null, timer: null, drawn: 0 };

const updateNow = () => time.steps[byId("step").valueAsNumber] ?? 0;

/** All that is drawn follows from the selection and the three choices; decoding is asynchronous, the last call wins. */
async function drawTime() {
  const call = ++time.drawn, name = byId("series").value, keep = updateNow();
  byId("through-time").setAttribute("aria-busy", true);
  offerLayers();
  const layerOf = (run) => (byId("layer").value === "top" ? run.layers : Number(byId("layer").value)) - 1;
  const having = selected().filter(({ run }) => name in run.series && layerOf(run) < run.layers);
  const curves = await Promise.all(having.map(async ({ run, slot }) => ({ run, slot, layer: layerOf(run), ...(await norms(run, name)) })));
  if (call !== time.drawn) return;
  time.curves = curves;
  time.steps = union(curves.map(({ run }) => run.steps));
  byId("step").max = Math.max(time.steps.length - 1, 0);
  byId("step").value = Math.max(lastUpTo(time.steps, keep), 0);
  byId("step").disabled = byId("play").disabled = time.steps.length < 2;
  drawCurves(name);
  drawHeatmaps(name);
  moveTo();
  byId("through-time").setAttribute("aria-busy", false);
}

function offerLayers() {
  const most = Math.max(1, ...selected().map(({ run }) => run.layers)), before = byId("layer").value;
  const values = ["top", ...Array.from({ length: most }, (_, layer) => String(layer + 1))];
  byId("layer").replaceChildren(...values.map((value) => node("option", { value }, value === "1" ? "1 (nearest the input)" : value)));
  byId("layer").value = values.includes(before) ? before : "top";
  byId("layer").parentElement.hidden = most < 2;
}

/** Place of a record's value in `values`. */
const placeOf = ({ run, layer }, record, place) => (record * run.layers + layer) * run.T + place;

/** By how much the values of a record may be off. */
const offBy = ({ run, layer, off }, record) => off[record * run.layers + layer];

/** A curve's record at an update: the last one that is not later. */
const recordAt = ({ run }, update) => lastUpTo(run.steps, update);

function valueAt(curve, record, index) {
  const { run, values } = curve, length = run.lengths[record] ?? 0;
  const lag = byId("axis").value === "lag" ? index : length - 1 - index;
  return record < 0 || lag < 0 || lag >= length ? NaN : values[placeOf(curve, record, run.T - 1 - lag)];
}

const onScale = (value) => (Number.isNaN(value) ? undefined : Number.isFinite(value) ? value : null);

/** A quantised value with as many decimals as its error leaves. */
function toldWithin(value, off) {
  return Number.isFinite(value) ? value.toFixed(off > 0 ? Math.min(Math.max(Math.ceil(-Math.log10(2 * off)), 0), 4) : 4) : told(value);
}

/** The smallest and the largest finite value of all curves at all updates. */
function extent() {
  let low = Infinity, high = -Infinity;
  for (const curve of time.curves)
    for (let record = 0; record < curve.run.steps.length; record++)
      for (let place = 0; place < curve.run.T; place++) {
        const value = curve.values[placeOf(curve, record, place)];
        if (Number.isFinite(value)) { low = Math.min(low, value); high = Math.max(high, value); }
      }
  return [low, high];
}

function drawCurves(name) {
  const lag = byId("axis").value === "lag", T = Math.max(0, ...time.curves.map(({ run }) => run.T));
  const xs = Array.from({ length: T }, (_, index) => index + (lag ? 0 : 1));
  const now = (curve, index) => valueAt(curve, recordAt(curve, updateNow()), index);
  const lines = time.curves.map((curve) => ({
    slot: curve.slot, now: (index) => now(curve, index), ys: xs.map((_, index) => onScale(now(curve, index))),
    told: (index) => {
      const value = now(curve, index);
      return Number.isNaN(value) ? "" : toldWithin(value, offBy(curve, recordAt(curve, updateNow())));
    },
  }));
  time.plot = drawChart(byId("curves"), {
    xs, lines, label: NAMES[name] ?? name, xLabel: lag ? "lag T \u2212 t (loss at the right end)" : "time step t", reverse: lag, range: span(extent(), 0.02),
    numbersAt: lag ? "last" : "first", head: (index) => (lag ? `lag ${xs[index]}` : `t = ${xs[index]}`),
    zeros: (line) => [...xs.keys()].filter((index) => line.now(index) === -Infinity),
    empty: selected().length ? "These runs have recorded nothing through time." : "Select runs in the table above.",
  });
  if (time.plot) time.plot.lines = lines;
}

/** Follows the slider: new ordinates, the lines in the heatmaps, the words. */
function moveTo() {
  const update = updateNow();
  byId("update").textContent = time.steps.length ? String(update) : "\u2013";
  byId("step").setAttribute("aria-valuetext", `update ${update}`);
  if (time.plot) {
    for (const line of time.plot.lines) line.ys = time.plot.data[0].map((_, index) => onScale(line.now(index)));
    time.plot.setData([time.plot.data[0], ...time.plot.lines.map(({ ys }) => ys)]);
  }
  for (const heat of byId("heatmaps").querySelectorAll(".heat")) heat.follow(update);
  byId("time-note").replaceChildren(noteOn(update));
}

function noteOn(update) {
  if (!time.curves.length) return "";
  const records = time.curves.map((curve) => [curve, recordAt(curve, update)]).filter(([, record]) => record >= 0);
  const worst = Math.max(0, ...records.map(([curve, record]) => offBy(curve, record)));
  const other = records.filter(([{ run }, record]) => run.steps[record] !== update).map(([{ run, slot }, record]) => `${slot + 1} at ${run.steps[record]}`);
  const zeros = records.some(([curve, record]) => Array.from({ length: curve.run.T }, (_, index) => valueAt(curve, record, index)).includes(-Infinity));
  return [
    `Stored in 8 bits a value: here off by at most ${told(worst, 2)} decades.`,
    zeros ? "Triangles: an exact zero." : "",
    other.length ? `Without a record at update ${update}, the last before it: run ${other.join(", ")}.` : "",
  ].filter(Boolean).join(" ");
}

function play() {
  const on = time.timer === null, slider = byId("step");
  if (on && slider.value === slider.max) slider.value = 0;
  if (on) time.timer = setInterval(() => (slider.value === slider.max ? play() : (slider.stepUp(), moveTo())), 120);
  else time.timer = clearInterval(time.timer) ?? null;
  byId("play").textContent = on ? "Pause" : "Play";
  byId("play").setAttribute("aria-pressed", on);
  if (on) moveTo();
}

// ------------------------------------------------------------------------------------------------------------- heatmaps

function heatColour(share) {
  const at = Math.min(Math.max(share, 0), 1) * (VIRIDIS.length - 1), low = Math.min(Math.floor(at), VIRIDIS.length - 2);
  return VIRIDIS[low].map((channel, k) => Math.round(channel + (at - low) * (VIRIDIS[low + 1][k] - channel)));
}

function drawHeatmaps(name) {
  const drawn = time.curves.filter(({ run }) => run.steps.length), [least, most] = extent();
  const low = Math.max(least, FLOAT32[0]), high = Math.max(Math.min(most, FLOAT32[1]), low + 1e-6);
  byId("heatmaps").replaceChildren(...drawn.map((curve) => heatmap(curve, low, high)));
  byId("scale").replaceChildren();
  if (!drawn.length || least > most) return;
  const from = (least < low ? "\u2264 " : "") + told(low, 3), to = (most > high ? "\u2265 " : "") + told(high, 3);
  const bar = node("canvas", { width: 256, height: 1, role: "img", "aria-label": `colours from ${from} to ${to}` });
  paint(bar, (x) => heatColour(x / 255));
  byId("scale").append(node("span", {}, from), bar, node("span", {}, to), node("span", {}, NAMES[name] ?? name));
}

/** Every pixel of a canvas; a colour of undefined leaves it transparent. */
function paint(canvas, colourAt) {
  const context = canvas.getContext("2d"), image = context.createImageData(canvas.width, canvas.height);
  for (let y = 0; y < canvas.height; y++)
    for (let x = 0; x < canvas.width; x++) {
      const found = colourAt(x, y);
      if (found) image.data.set([...found, 255], 4 * (y * canvas.width + x));
    }
  context.putImageData(image, 0, 0);
}

/** Time to the right, updates upwards, each row the last record that is not later. */
function heatmap(curve, low, high) {
  const { run, slot } = curve, first = run.steps[0], last = run.steps.at(-1);
  const updateAt = (share) => first + (1 - share) * (last - first);
  const canvas = node("canvas", { width: run.T, height: HEAT_ROWS, role: "img", "aria-label": `run ${slot + 1}, ${run.label}: updates ${first} to ${last} upwards, time steps 1 to ${run.T} to the right` });
  paint(canvas, (place, y) => {
    const value = curve.values[placeOf(curve, recordAt(curve, updateAt(y / (HEAT_ROWS - 1))), place)];
    if (Number.isNaN(value)) return undefined;
    return value === -Infinity ? [120, 120, 120] : value === Infinity ? [214, 39, 40] : heatColour((value - low) / (high - low));
  });
  const byLag = byId("axis").value === "lag" || run.lengths.some((length) => length !== run.T); // shorter records: t = 1 is not at the left
  const named = (place) => (byLag ? `lag ${run.T - 1 - place}` : `t = ${place + 1}`);
  const now = node("div", { class: "now" }), read = node("span", { class: "dash" });
  const heat = node("div", { class: "heat" }, canvas, now);
  heat.follow = (update) => (now.style.bottom = `${last > first ? (100 * (Math.min(Math.max(update, first), last) - first)) / (last - first) : 50}%`);
  const under = (event) => {
    const box = canvas.getBoundingClientRect(), share = (event.clientY - box.top) / box.height;
    const record = Math.max(recordAt(curve, updateAt(Math.min(Math.max(share, 0), 1))), 0);
    return [record, Math.min(Math.max(Math.floor(((event.clientX - box.left) / box.width) * run.T), 0), run.T - 1)];
  };
  heat.onpointermove = (event) => {
    const [record, place] = under(event), value = curve.values[placeOf(curve, record, place)];
    read.textContent = `update ${run.steps[record]}, ${named(place)}: ${toldWithin(value, offBy(curve, record))}`;
  };
  heat.onpointerleave = () => (read.textContent = "");
  heat.onclick = (event) => {
    byId("step").value = time.steps.indexOf(run.steps[under(event)[0]]);
    moveTo();
  };
  return node("figure", {},
    node("figcaption", {}, key(slot), node("span", {}, run.label)),
    node("div", { class: "ends" }, node("span", {}, `update ${last}`), read),
    heat,
    node("div", { class: "ends" }, node("span", {}, `update ${first}, ${named(0)}`), node("span", {}, named(run.T - 1))));
}
