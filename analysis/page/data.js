"use strict";
// The data of the page, and how numbers are read, told and compared. What comes from a run is set as text, never as HTML.

const DATA = JSON.parse(document.getElementById("data").textContent);
const DIGITS = 5; // significant, as many as are stored
const MOST = 8; // runs that can be told apart by colour
const NAMES = {
  "dE_dh/log10_norm": "log\u2081\u2080 \u2016dE/dh\u209c\u2016 (total)",
  "delta/log10_norm": "log\u2081\u2080 \u2016\u03b4\u209c\u2016 = \u2016dE/da\u209c\u2016 (total)",
  "dW/log10_norm": "log\u2081\u2080 \u2016term t of dE/dW\u2016",
  "dU/log10_norm": "log\u2081\u2080 \u2016term t of dE/dU\u2016",
};

const byId = (id) => document.getElementById(id);

/** An element; attributes that begin with "on" are listeners. */
function node(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** null is a missing number or NaN; "Infinity" and "-Infinity" are numbers that JSON has no word for. */
const number = (value) => (value === null || value === undefined ? NaN : Number(value));

/** A number in at most `digits` significant digits, as Python's %g; a whole number in full. */
function told(value, digits = DIGITS) {
  if (Number.isNaN(value)) return "\u2013";
  if (!Number.isFinite(value)) return value > 0 ? "\u221e" : "\u2212\u221e";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e9) return String(value);
  if (size < 1e-4 || size >= 10 ** digits) {
    const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
    return `${Number(mantissa)}e${Number(exponent)}`;
  }
  return String(Number(value.toPrecision(digits)));
}

/** Index of the last entry of an ascending list that is <= `value`; -1 if there is none. */
function lastUpTo(list, value) {
  let low = 0, high = list.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (list[middle] <= value) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

const union = (lists) => [...new Set(lists.flat())].sort((a, b) => a - b);

async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/**
 * A run's norms through time: values[(record * layers + layer) * T + place], right-aligned, and by how much each record's
 * may be off. A record is its smallest and largest value as float32 and a byte a step: the change of the code, modulo 256.
 * Code 0: nothing there; 1: log of an exact zero; 2: overflow; 3..255: from the smallest to the largest.
 */
async function norms(run, name) {
  run.norms ??= {};
  return (run.norms[name] ??= (async () => {
    const bytes = await unpacked(run.series[name]);
    const records = run.steps.length * run.layers, values = new Float32Array(records * run.T), off = new Float32Array(records);
    const view = new DataView(bytes.buffer);
    for (let record = 0; record < records; record++) {
      const start = record * (8 + run.T), low = view.getFloat32(start, true), high = view.getFloat32(start + 4, true);
      const level = (high - low) / 252;
      off[record] = level / 2;
      let code = 0;
      for (let place = 0; place < run.T; place++) {
        code = (code + bytes[start + 8 + place]) & 255;
        values[record * run.T + place] = code > 2 ? low + (code - 3) * level : [NaN, -Infinity, Infinity][code];
      }
    }
    return { values, off };
  })());
}
