"use strict";
// From text to ids and back, and from logits to the next id. No page in here either.

/** The tokenizer of the model: an id for each character of its alphabet, bytes or <unk> for others. */
class Tokenizer {
  constructor({ alphabet, unknown, added }) {
    const utf8 = new TextEncoder();
    this.unknown = unknown;
    this.byteIds = unknown === "bytes" ? 4 : null; // the id of byte 0
    const characters = Array.from(alphabet);
    const bytes = unknown === "bytes" ? Array.from({ length: 256 }, (_, b) => Uint8Array.of(b)) : [];
    // What each id stands for: nothing for <pad> <bos> <eos>, U+FFFD for <unk>.
    this.spelled = [...["", "", "", "\ufffd"].map((s) => utf8.encode(s)), ...bytes];
    this.ids = new Map(characters.map((character, n) => [character, this.spelled.length + n]));
    this.spelled.push(...[...characters, ...added].map((s) => utf8.encode(s)));
    this.utf8 = utf8;
  }

  /** The ids of one character; none if the model doesn't know it. */
  encode(character) {
    if (this.ids.has(character)) return [this.ids.get(character)];
    if (this.unknown === "bytes") return Array.from(this.utf8.encode(character), (b) => b + this.byteIds);
    return this.unknown === "unk" ? [3] : [];
  }

  /** Turns ids into text one by one; it gives "" until all bytes of a character are there. */
  writer() {
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    return (id) => decoder.decode(this.spelled[id], { stream: true });
  }

  /** An id for people; "" for those that never stand in a text. */
  label(id) {
    const bytes = this.spelled[id];
    if (this.byteIds !== null && id >= 4 && id < 260) {
      if (bytes[0] < 128) return shown(String.fromCharCode(bytes[0]));
      return `byte ${bytes[0].toString(16).toUpperCase()}`;
    }
    return id === 3 ? "unknown" : shown(new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes));
  }
}

/** A character that leaves no mark on paper, by a sign that does. */
function shown(character) {
  const signs = { " ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍", "\u00a0": "⍽", "\u3000": "␣" };
  if (character in signs) return signs[character];
  const code = character.codePointAt(0);
  return /^[\p{C}\p{Z}\p{M}]$/u.test(character) ? `U+${code.toString(16).toUpperCase().padStart(4, "0")}` : character;
}

/** Random numbers from 0 to 1 that follow from a seed: Tommy Ettinger's mulberry32. */
function random(seed) {
  let a = seed >>> 0;
  return () => {
    a = (a + 0x6d2b79f5) >>> 0;
    let t = Math.imul(a ^ (a >>> 15), a | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/** softmax(logits / temperature), of the `topK` likeliest (0: of all) that aren't suppressed; others get 0. */
function probabilities(logits, { temperature = 1, topK = 0, suppressed = [] } = {}) {
  const scores = Float64Array.from(logits, (logit) => logit / temperature);
  for (const id of suppressed) scores[id] = -Infinity;
  if (topK > 0 && topK < scores.length) {
    const least = Float64Array.from(scores).sort()[scores.length - topK];
    scores.forEach((score, id) => { if (score < least) scores[id] = -Infinity; });
  }
  const largest = scores.reduce((a, b) => Math.max(a, b));
  const weights = scores.map((score) => Math.exp(score - largest));
  const sum = weights.reduce((a, b) => a + b);
  return weights.map((weight) => weight / sum);
}

/** The next id: the likeliest at temperature 0, else drawn with the next random number. */
function choose(logits, { temperature, topK, suppressed }, draw) {
  if (temperature === 0) {
    const scores = Float32Array.from(logits);
    for (const id of suppressed) scores[id] = -Infinity;
    return scores.indexOf(scores.reduce((a, b) => Math.max(a, b)));
  }
  const chances = probabilities(logits, { temperature, topK, suppressed });
  let left = draw();
  const id = chances.findIndex((chance) => (left -= chance) < 0);
  return id >= 0 ? id : likeliest(chances, 1)[0].id; // rounding left a rest
}

/** The `count` likeliest ids with their probabilities, likeliest first. */
function likeliest(chances, count) {
  const found = [];
  chances.forEach((chance, id) => {
    if (found.length === count && chance <= found[count - 1].chance) return;
    let place = found.length;
    while (place > 0 && found[place - 1].chance < chance) place--;
    found.splice(place, 0, { id, chance });
    found.length = Math.min(found.length, count);
  });
  return found;
}
