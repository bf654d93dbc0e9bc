"use strict";
// The page: reads and writes in slices of a few milliseconds, so that it answers at any time. Whatever comes from
// the model, the alphabet or the user becomes text by textContent alone.

const facts = JSON.parse($("facts").textContent);
const packed = atob($("weights").textContent.trim());
const weights = new Uint8Array(packed.length);
for (let n = 0; n < packed.length; n++) weights[n] = packed.charCodeAt(n);
$("weights").remove();
const tokenizer = new Tokenizer(facts);
const model = new ARCHITECTURES[facts.kind](facts.config, unpack(facts.tensors, weights));

const SLICE = 12; // milliseconds of work between two looks at what the user does
const KEPT = 10000; // of how many characters it is kept what was to be seen inside
const EXPECTED = 8; // how many next characters are shown

let job = 0; // the number of the newest task; older ones end at their next pause
let session; // what was read so far: the ids, the state after them, the logits that follow
let typed = null; // the session of what is being typed, which the next key goes on from
let marks = []; // each character of the text below: what it cost, what was expected, what was to be seen inside
let owners = []; // the mark of each id that was read
let painted = 0; // how many marks are on the page
let pinned = null; // the mark that the user looks at; else it is the newest
let picked = null; // the cell or head by which the text is coloured

// --- reading and writing, as generators that yield after each small step

function* feed(id) {
  session.whole = false; // until all that is due has been read
  const due = model.due(id, session.state);
  for (const [n, each] of due.entries()) {
    session.logits = model.read(each, session.state);
    if (n === due.length - 1) {
      session.ids.push(id);
      session.whole = true;
    }
    yield;
  }
}

/** -log2 of the probability of `id` as the next one, and what was likelier; nothing comes before the first. */
function judge(id) {
  if (!session.ids.length) return { bits: null, expected: [] };
  const chances = probabilities(session.logits);
  return { bits: -Math.log2(chances[id]), expected: likeliest(chances, EXPECTED) };
}

/** Puts a character on the page: `ids` were read for it, none if the model doesn't know it or needn't read it. */
function mark(text, kind, ids = [], costs = []) {
  const known = costs.length > 0 && costs.every((cost) => cost.bits !== null);
  ids.forEach(() => owners.push(marks.length));
  marks.push({
    text, kind, id: ids[0], last: owners.length - 1,
    bits: known ? costs.reduce((sum, cost) => sum + cost.bits, 0) : null,
    expected: costs.length ? costs[0].expected : [],
    seen: ids.length && marks.length < KEPT ? small(model.look(session.state)) : null,
  });
}

/** What is seen inside, in a byte a value. */
function small(values) {
  const kept = new Int8Array(values.length);
  for (let n = 0; n < kept.length; n++) kept[n] = Math.round(127 * values[n]);
  return kept;
}

/** Reads a text: all of it, or of a prompt the end that reaches what will be written. */
function* readText(text, whole) {
  const characters = Array.from(text, (character) => ({ character, ids: tokenizer.encode(character) }));
  const all = characters.flatMap(({ ids }) => ids);
  if (!all.length) {
    yield* feed(facts.first);
    owners.push(null);
  }
  let ahead = whole ? 0 : all.length - model.within(all).length;
  for (const { character, ids } of characters) {
    const read = ids.slice(ahead);
    ahead = Math.max(0, ahead - ids.length);
    const costs = [];
    for (const id of read) {
      costs.push(judge(id));
      yield* feed(id);
    }
    mark(character, ids.length ? "given" : "unknown", read, costs);
  }
}

function* writeText(settings) {
  const draw = random(settings.seed);
  const spell = tokenizer.writer();
  let ids = [], costs = [];
  for (let n = 0; n < settings.length; n++) {
    const id = choose(session.logits, settings, draw);
    if (id === facts.end) return;
    ids.push(id);
    costs.push(judge(id));
    yield* feed(id);
    const text = spell(id);
    if (!text) continue; // a byte of a character that isn't whole yet
    mark(text, "written", ids, costs);
    [ids, costs] = [[], []];
  }
}

/** Works through the steps of a task, with a pause for the page whenever a slice of time is over. */
async function run(mine, steps, paint) {
  let until = performance.now() + SLICE;
  while (!steps.next().done) {
    if (performance.now() < until) continue;
    paint();
    await new Promise((wake) => setTimeout(wake, 0));
    if (job !== mine) return false;
    until = performance.now() + SLICE;
  }
  paint();
  return job === mine;
}

const fresh = () => ({ ids: [], state: model.start(), logits: null, whole: true });

function begin() {
  job += 1;
  $("stop").disabled = false;
  [session, marks, owners, painted, pinned] = [fresh(), [], [], 0, null];
  $("text").replaceChildren();
  return job;
}

function end(mine) {
  if (job !== mine) return;
  job += 1;
  $("stop").disabled = true;
}

const knob = (name) => Math.min(Math.max(Number($(name).value) || 0, Number($(name).min)), Number($(name).max) || Infinity);

async function write() {
  const mine = begin();
  $("text").className = "continued";
  const settings = { temperature: knob("temperature"), topK: knob("topk"), length: knob("length"), seed: knob("seed"),
    suppressed: facts.suppressed };
  if (!(await run(mine, readText($("prompt").value, false), () => paint("reading the text")))) return;
  const [started, before] = [performance.now(), marks.length];
  await run(mine, writeText(settings), () => {
    const written = marks.length - before;
    const speed = written / ((performance.now() - started) / 1000);
    paint(`${number(written)} characters written, ${number(speed)} a second`);
  });
  end(mine);
}

async function read() {
  const mine = begin();
  $("text").className = "";
  await run(mine, readText($("prompt").value, true), () => {
    const scored = marks.filter((mark) => mark.bits !== null);
    const bits = scored.reduce((sum, mark) => sum + mark.bits, 0) / scored.length;
    const strange = new Set(marks.filter((mark) => mark.kind === "unknown").map((mark) => shown(mark.text)));
    const left = strange.size ? `; not in the alphabet, so not read: ${Array.from(strange).join(" ")}` : "";
    paint(scored.length ? `${number(bits, 3)} bits per character over ${number(scored.length)} characters${left}` : left.slice(2));
  });
  end(mine);
}

/** While the user types: the next character, from the state after what was read already if the text goes on. */
async function follow() {
  const mine = ++job;
  $("stop").disabled = true;
  let ids = Array.from($("prompt").value).flatMap((character) => tokenizer.encode(character));
  if (!ids.length) ids = [facts.first];
  const goesOn = typed && typed.whole && typed.ids.every((id, n) => id === ids[typed.skipped + n]);
  if (!goesOn) typed = { ...fresh(), skipped: ids.length - model.within(ids).length };
  session = typed;
  const rest = ids.slice(typed.skipped + typed.ids.length);
  const steps = (function* () { for (const id of rest) yield* feed(id); })();
  if (!(await run(mine, steps, () => {}))) return;
  unpin();
  showNext(likeliest(probabilities(session.logits), EXPECTED));
  showInside(model.look(session.state));
}

/** Whether this browser computes what torch did when the page was made. */
function check() {
  const state = model.start();
  let logits;
  for (const id of facts.check.ids) logits = model.read(id, state);
  return Math.max(...facts.check.logits.map((logit, id) => Math.abs(logit - logits[id])));
}

function introduce() {
  $("name").textContent = facts.name;
  $("about").textContent = facts.about;
  const unit = model.view.unit;
  $("colour").options[1].textContent = `one ${unit}`;
  $("temperature").value = facts.temperature;
  $("length").value = facts.length;
  const away = check();
  const right = away < 1e-3;
  const notes = [...facts.notes, right
    ? `Checked in this browser: the logits are those of PyTorch within ${away.toExponential(0)}.`
    : `This browser computes something else than PyTorch (logits ${away.toPrecision(2)} apart): don't trust the text.`];
  $("notes").append(...notes.map((text) => element("p", text)));
  if (!right) $("notes").lastChild.className = "wrong";
}

introduce();
warm();
layOut();
$("write").onclick = write;
$("read").onclick = read;
$("stop").onclick = () => end(job);
$("another").onclick = () => { $("seed").value = (knob("seed") + 1) % 2 ** 32; write(); };
$("prompt").oninput = follow;
$("temperature").oninput = warm;
write();
