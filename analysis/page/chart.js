// One chart: lines of runs over a common x, read by the pointer or by the arrow keys.

/** A colour of the style sheet as the canvas understands it, in the theme of this moment. */
function colour(name) {
  const probe = byId("theme");
  const before = probe.style.color;
  probe.style.color = `var(${name})`;
  const found = getComputedStyle(probe).color;
  probe.style.color = before;
  return found;
}

/** The range of the finite values with a little air. */
function span(values, least = 0) {
  let low = Infinity, high = -Infinity;
  for (const value of values) if (Number.isFinite(value)) { low = Math.min(low, value); high = Math.max(high, value); }
  if (low > high) return [0, 1];
  const air = Math.max(0.05 * (high - low), least, high === low ? Math.abs(high) * 0.05 || 0.5 : 0);
  return [low - air, high + air];
}

/**
 * Draws into `host` and returns the uPlot, or null where there is nothing to draw.
 *
 * label       of the y axis; xLabel, of the x axis; tick(value), how it numbers y
 * xs, lines   ascending numbers, and for each line {slot, dashed, ys, told(index)}; ys has undefined where the line has no
 *             point of its own and null where it is interrupted
 * range       [low, high] of y
 * reverse     whether x grows to the left; numbersAt "first" or "last": the end of a line that carries its run's number
 * rules       y of dotted lines; crosses [{slot, x}]; zeros(line), the indices of exact zeros; head(index), the tip's first line
 */
function drawChart(host, spec) {
  host.plot?.destroy();
  host.plot = null;
  host.replaceChildren();
  if (!spec.lines.some(({ ys }) => ys.some(isPoint))) {
    host.removeAttribute("tabindex");
    host.append(node("p", { class: "empty" }, spec.empty ?? "Nothing recorded."));
    return null;
  }
  const ink = colour("--ink"), faint = colour("--faint"), rule = colour("--rule");
  const axis = { stroke: faint, grid: { stroke: rule, width: 1 }, ticks: { stroke: rule, width: 1 }, font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif", labelSize: 18 };
  const colours = spec.lines.map(({ slot }) => colour(`--run-${slot + 1}`));
  const tip = node("div", { class: "tip", hidden: "", role: "status" });
  const plot = new uPlot({
    width: host.clientWidth, height: host.clientHeight, legend: { show: false },
    scales: { x: { time: false, dir: spec.reverse ? -1 : 1, range: (_, low, high) => beside(low, high) }, y: { range: () => spec.range } },
    axes: [
      { ...axis, label: spec.xLabel, size: 34, incrs: WHOLE },
      { ...axis, label: spec.label, size: 52, values: (_, ticks) => ticks.map(spec.tick ?? ((y) => told(y))) },
    ],
    series: [{}, ...spec.lines.map(({ dashed, ys }, at) => ({
      stroke: colours[at], width: dashed ? 1.5 : 2, dash: dashed ? [6, 4] : undefined, points: { size: 4, ...(hasOne(ys) && { show: true }) },
    }))],
    cursor: { points: { size: 7 }, drag: { x: false, y: false } },
    hooks: {
      draw: [(u) => annotate(u, spec, colours, faint)],
      setCursor: [(u) => tell(u, spec, tip)],
    },
  }, [spec.xs, ...spec.lines.map(({ ys }) => ys)], host);
  host.append(tip);
  host.plot = plot;
  host.tabIndex = 0;
  host.setAttribute("role", "group");
  host.setAttribute("aria-label", `${spec.label} against ${spec.xLabel}; arrow keys read values`);
  host.onkeydown = (event) => walk(event, plot, spec.xs, spec.reverse);
  host.onblur = () => plot.setCursor({ left: -10, top: -10 });
  return plot;
}

const WHOLE = Array.from({ length: 12 }, (_, power) => [1, 2, 5].map((first) => first * 10 ** power)).flat(); // steps of the x axis
const isPoint = (y) => y !== null && y !== undefined;
const hasOne = (ys) => ys.filter(isPoint).length === 1; // a line of one point would not be seen

/** Room for the numbers at both ends. */
function beside(low, high) {
  const room = 0.03 * (high - low) || 1;
  return [low - room, high + room];
}

/** Arrow keys, Home and End move the cursor from point to point. */
function walk(event, plot, xs, reverse) {
  const last = xs.length - 1, at = plot.cursor.left >= 0 ? plot.cursor.idx : null;
  const to = { ArrowRight: reverse ? -1 : 1, ArrowLeft: reverse ? 1 : -1 }[event.key];
  let index = { Home: reverse ? last : 0, End: reverse ? 0 : last }[event.key];
  if (to !== undefined) index = at === null ? (to > 0 ? 0 : last) : Math.min(Math.max(at + to, 0), last);
  if (index === undefined) return;
  event.preventDefault();
  plot.setCursor({ left: plot.valToPos(xs[index], "x"), top: plot.over.clientHeight / 2 });
}

/** The numbers under the cursor. */
function tell(plot, spec, tip) {
  const { idx, left, top } = plot.cursor;
  const lines = left < 0 || idx === null || idx === undefined ? [] : spec.lines.map((line) => [line, line.told(idx)]).filter(([, text]) => text);
  tip.hidden = lines.length === 0;
  if (tip.hidden) return;
  tip.replaceChildren(node("div", {}, spec.head(idx)), ...lines.map(([line, text]) => node("div", {}, key(line.slot), node("span", {}, text))));
  const x = plot.over.offsetLeft + left, width = tip.offsetWidth;
  tip.style.left = `${Math.max(0, Math.min(x + 14 + width < plot.width ? x + 14 : x - 14 - width, plot.width - width))}px`;
  tip.style.top = `${Math.max(0, Math.min(plot.over.offsetTop + top + 10, plot.height - tip.offsetHeight))}px`;
}

/** Dotted rules, crosses where runs diverged, triangles at exact zeros, and the runs' numbers at the ends of their lines. */
function annotate(plot, spec, colours, faint) {
  const { ctx, bbox } = plot, pixel = devicePixelRatio;
  ctx.save();
  ctx.font = `600 ${11 * pixel}px system-ui, sans-serif`;
  ctx.textBaseline = "middle";
  ctx.textAlign = "center";
  for (const y of spec.rules ?? []) {
    const at = plot.valToPos(y, "y", true);
    ctx.setLineDash([2 * pixel, 3 * pixel]);
    ctx.strokeStyle = faint;
    ctx.beginPath();
    ctx.moveTo(bbox.left, at);
    ctx.lineTo(bbox.left + bbox.width, at);
    ctx.stroke();
  }
  for (const { slot, x } of spec.crosses ?? []) {
    ctx.fillStyle = colour(`--run-${slot + 1}`);
    ctx.fillText("\u2715", plot.valToPos(x, "x", true), bbox.top + 6 * pixel);
  }
  const labels = [];
  spec.lines.forEach((line, at) => {
    ctx.fillStyle = colours[at];
    for (const index of spec.zeros?.(line) ?? []) ctx.fillText("\u25be", plot.valToPos(spec.xs[index], "x", true), bbox.top + bbox.height - 5 * pixel);
    const index = spec.numbersAt === "first" ? line.ys.findIndex(isPoint) : line.ys.findLastIndex(isPoint);
    if (index < 0 || line.dashed) return;
    const y = Math.min(Math.max(plot.valToPos(line.ys[index], "y", true), bbox.top), bbox.top + bbox.height);
    labels.push({ text: String(line.slot + 1), x: plot.valToPos(spec.xs[index], "x", true), y, colour: colours[at] });
  });
  const columns = Object.groupBy(labels, ({ x }) => Math.round(x / (24 * pixel)));
  for (const column of Object.values(columns)) placeLabels(ctx, column, bbox, 13 * pixel, spec.numbersAt === "first" ? -8 * pixel : 8 * pixel);
  ctx.restore();
}

/** Numbers beside their points, moved down where they would cover one another, and up again from the lower edge. */
function placeLabels(ctx, labels, bbox, gap, aside) {
  labels.sort((a, b) => a.y - b.y);
  labels.forEach((label, at) => { if (at) label.y = Math.max(label.y, labels[at - 1].y + gap); });
  labels.reverse().forEach((label, at) => { label.y = Math.min(label.y, at ? labels[at - 1].y - gap : bbox.top + bbox.height); });
  for (const label of labels) {
    const x = Math.min(Math.max(label.x + aside, bbox.left + Math.abs(aside)), bbox.left + bbox.width - Math.abs(aside));
    ctx.lineWidth = 3 * devicePixelRatio;
    ctx.strokeStyle = colour("--paper");
    ctx.setLineDash([]);
    ctx.strokeText(label.text, x, label.y);
    ctx.fillStyle = label.colour;
    ctx.fillText(label.text, x, label.y);
  }
}
