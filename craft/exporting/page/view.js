"use strict";
// What is drawn: the coloured text, the next characters, the cells or heads. Text is set by textContent alone.

const MOST_BITS = 8; // the surprise from which on a colour gets no stronger
const $ = (id) => document.getElementById(id);
const number = (value, digits = 0) =>
  value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });

function element(tag, text = "", name = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = name;
  return made;
}

/** The text so far and what the newest character says; called between two slices of work. */
function paint(status) {
  $("status").textContent = status;
  const fresh = marks.slice(painted).map((mark, n) => {
    mark.span = element("span", mark.text, mark.kind);
    mark.span.mark = painted + n;
    return mark.span;
  });
  $("text").append(...fresh);
  marks.slice(painted).forEach(colour);
  painted = marks.length;
  if (pinned === null && session.logits) {
    showNext(likeliest(probabilities(session.logits), EXPECTED));
    showInside(model.look(session.state));
  }
}

/** From -1 (cold) over 0 (nothing) to 1 (hot). */
const tint = (value) => `rgb(var(--${value < 0 ? "cold" : "hot"}) / ${Math.min(Math.abs(value), 1) * 0.85})`;

function colour(mark) {
  const by = $("colour").value;
  let value = 0;
  if (by === "surprise" && mark.bits !== null) value = mark.bits / MOST_BITS;
  if (by === "unit" && picked) value = model.view.signed ? mark.seen && mark.seen[picked.at] / 127 : looked(mark);
  mark.span.style.backgroundColor = value ? tint(value) : "";
}

/** How much the picked head looked at a mark from the one the user looks at, the most as 1. */
function looked(mark) {
  const from = marks[pinned === null ? marks.length - 1 : pinned];
  if (!from.seen || mark.span.mark > from.span.mark) return 0;
  const { cols } = model.view;
  const row = from.seen.subarray(picked.at, picked.at + cols); // the newest id last
  const most = row.reduce((a, b) => Math.max(a, b), 1);
  let sum = 0;
  for (let age = 0; age < cols; age++) if (owners[from.last - age] === mark.span.mark) sum += row[cols - 1 - age];
  return sum / most;
}

function recolour() {
  marks.slice(0, painted).forEach(colour);
  const by = $("colour").value;
  const { unit, signed } = model.view;
  const scale = element("span", "", `scale ${by === "unit" && signed ? "both" : "surprise"}`);
  const words = {
    none: [],
    surprise: ["expected", scale, `${MOST_BITS} bits or more. Touch a character to see what the model expected there.`],
    unit: signed
      ? ["−1", scale, `1, the tanh of the ${unit}. Pick another inside.`]
      : ["not looked at", scale, `most, from the character you touch. Pick another ${unit} inside.`],
  };
  $("legend").replaceChildren(...words[by]);
}

function showNext(expected, came = null, where = "Next character") {
  $("before").textContent = where;
  const written = expected.filter(({ id }) => tokenizer.label(id));
  const bars = written.map(({ id, chance }) => {
    const [item, button, rod] = [element("li", "", id === came ? "came" : ""), element("button"), element("span", "", "rod")];
    rod.style.width = `${100 * chance}%`;
    const percent = chance < 0.001 ? "<0.1 %" : `${number(100 * chance, 1)} %`;
    button.append(element("span", tokenizer.label(id), "sign"), rod, element("span", percent, "chance"));
    const text = tokenizer.writer()(id);
    button.disabled = came !== null || !text || text === "\ufffd";
    button.onclick = () => { $("prompt").value += text; follow(); };
    item.append(button);
    return item;
  });
  $("bars").replaceChildren(...bars);
}

/** A canvas for each layer: a square for each cell, or a row for each head with the characters it looks at. */
function layOut() {
  const { layers, rows, signed } = model.view;
  $("key").textContent = signed
    ? "The state of each cell, its tanh from −1 to 1."
    : "How much each head looks at each character: the newest on the right, those before it to the left.";
  for (let n = 0; n < layers; n++) {
    const canvas = element("canvas");
    canvas.setAttribute("aria-label", `layer ${n + 1}`);
    canvas.style.height = `${rows * (signed ? 9 : 13)}px`;
    canvas.onclick = ({ offsetX, offsetY }) => pick(n, offsetX / canvas.clientWidth, offsetY / canvas.clientHeight);
    $("layers").append(element("p", `Layer ${n + 1}`), canvas);
  }
  $("text").onclick = ({ target }) => pin(target.mark === pinned ? null : target.mark ?? null);
  $("text").onpointerover = ({ target, pointerType }) => {
    if (pointerType === "mouse" && pinned === null && target.mark !== undefined) showMark(marks[target.mark]);
  };
  $("text").onpointerleave = () => pinned === null && paint($("status").textContent);
  $("colour").onchange = recolour;
  matchMedia("(prefers-color-scheme: dark)").onchange = () => showInside(seen);
  onresize = () => showInside(seen);
  recolour();
}

let seen = null; // what is shown inside

function showInside(values) {
  seen = values;
  if (!values) return;
  const { layers, rows, cols, signed, unit } = model.view;
  const scale = values instanceof Int8Array ? 127 : 1; // as a mark keeps it
  const style = getComputedStyle(document.documentElement);
  const [hot, cold, ink] = ["--hot", "--cold", "--ink"].map((name) => style.getPropertyValue(name).trim());
  $("layers").querySelectorAll("canvas").forEach((canvas, n) => {
    const [width, height] = [canvas.clientWidth, canvas.clientHeight].map((side) => side * devicePixelRatio);
    [canvas.width, canvas.height] = [width, height];
    const [w, h] = [width / cols, height / rows];
    const gap = Math.min(w, h) > 4 ? 1 : 0;
    const pen = canvas.getContext("2d");
    for (let i = 0; i < rows * cols; i++) {
      const value = values[n * rows * cols + i] / scale;
      const strength = signed ? Math.abs(value) : Math.sqrt(value);
      pen.fillStyle = `rgb(${value < 0 ? cold : hot} / ${0.04 + 0.96 * strength})`;
      pen.fillRect((i % cols) * w, Math.floor(i / cols) * h, w - gap, h - 1);
    }
    if (!picked || picked.layer !== n) return;
    pen.strokeStyle = ink;
    pen.lineWidth = 2;
    pen.strokeRect(signed ? picked.col * w : 1, picked.row * h, signed ? w - gap : width - 2, h - 1);
  });
  const value = picked && signed ? `: ${number(values[picked.at] / scale, 2)}` : "";
  $("picked").textContent = picked ? `${picked.name}${value}` : `Touch a ${unit} to colour the text by it.`;
}

function pick(layer, x, y) {
  const { rows, cols, signed, unit } = model.view;
  const [row, col] = [Math.min(rows - 1, Math.floor(y * rows)), signed ? Math.min(cols - 1, Math.floor(x * cols)) : 0];
  const index = signed ? row * cols + col : row;
  if (signed && index >= model.width) return;
  picked = { layer, row, col, at: (layer * rows + row) * cols + col, name: `Layer ${layer + 1}, ${unit} ${index + 1}` };
  $("colour").value = "unit";
  recolour();
  showInside(seen);
}

function showMark(mark) {
  if (mark.seen) showInside(mark.seen);
  const bits = mark.bits === null ? "" : ` (${number(mark.bits, 1)} bits) it expected`;
  showNext(mark.expected, mark.id ?? -1, `Before “${shown(mark.text)}”${bits}`);
}

function unpin() {
  if (pinned !== null) marks[pinned].span.classList.remove("pinned");
  pinned = null;
}

/** Keeps to the mark that the user touched; to the newest again if it is null. */
function pin(mark) {
  unpin();
  pinned = mark;
  if (mark === null) return paint($("status").textContent);
  marks[mark].span.classList.add("pinned");
  showMark(marks[mark]);
  if ($("colour").value === "unit" && !model.view.signed) recolour();
}

function warm() {
  const value = Number($("temperature").value);
  $("warmth").textContent = value === 0 ? "0: the likeliest" : number(value, 2);
}
