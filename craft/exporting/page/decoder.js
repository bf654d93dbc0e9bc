"use strict";
// The two models, one id at a time: an id goes in, the logits of the next one come out. No page in here.
//
// Both have
//   start()            the state before the first id
//   within(ids)        as much of the end of a text as reaches its next id
//   due(id, state)     what to read so that `id` has been read: it alone, but where the positions run out
//   read(id, state)    changes the state; returns the logits [vocabulary], which the next call overwrites
//   look(state)        what there is to see inside: `view.layers` pictures of `view.rows` x `view.cols`

/** The tensors of the page by name, as Float32Array: those of 8 bits are multiplied by the scale of their row. */
function unpack(tensors, bytes) {
  const found = {};
  for (const { name, shape, at, scales } of tensors) {
    const size = shape.reduce((a, b) => a * b, 1);
    if (scales === null) {
      found[name] = new Float32Array(bytes.buffer, at, size);
      continue;
    }
    const rows = new Float32Array(bytes.buffer, scales, shape[0]);
    const cols = size / shape[0];
    found[name] = new Float32Array(new Int8Array(bytes.buffer, at, size));
    for (let n = 0; n < size; n++) found[name][n] *= rows[Math.floor(n / cols)];
  }
  return found;
}

/** out = W x + bias, with W [out.length, x.length]; in blocks of four rows and two columns, which is fastest. */
function multiply(W, x, out, bias) {
  const cols = x.length;
  const even = cols - (cols % 2);
  let row = 0;
  for (; row + 3 < out.length; row += 4) {
    let a = 0, b = 0, c = 0, d = 0;
    let i = row * cols, j = i + cols, k = j + cols, l = k + cols;
    for (let n = 0; n < even; n += 2) {
      const v = x[n], w = x[n + 1];
      a += W[i] * v + W[i + 1] * w;
      b += W[j] * v + W[j + 1] * w;
      c += W[k] * v + W[k + 1] * w;
      d += W[l] * v + W[l + 1] * w;
      i += 2;
      j += 2;
      k += 2;
      l += 2;
    }
    if (even < cols) {
      const v = x[even];
      a += W[i] * v;
      b += W[j] * v;
      c += W[k] * v;
      d += W[l] * v;
    }
    out[row] = a;
    out[row + 1] = b;
    out[row + 2] = c;
    out[row + 3] = d;
  }
  for (; row < out.length; row++) {
    let a = 0;
    for (let n = 0; n < cols; n++) a += W[row * cols + n] * x[n];
    out[row] = a;
  }
  if (bias) for (let n = 0; n < out.length; n++) out[n] += bias[n];
}

/** x divided by the root of its mean square, in place. */
function rmsNorm(x, eps) {
  let sum = 0;
  for (let n = 0; n < x.length; n++) sum += x[n] * x[n];
  const scale = 1 / Math.sqrt(sum / x.length + eps);
  for (let n = 0; n < x.length; n++) x[n] *= scale;
}

/** Norms as the config names them, from x to out; weight and bias where there are any. */
function norm(kind, x, out, eps, weight, bias) {
  let mean = 0;
  if (kind === "layernorm") for (let n = 0; n < x.length; n++) mean += x[n] / x.length;
  for (let n = 0; n < x.length; n++) out[n] = x[n] - mean;
  rmsNorm(out, eps);
  if (weight) for (let n = 0; n < x.length; n++) out[n] *= weight[n];
  if (bias) for (let n = 0; n < x.length; n++) out[n] += bias[n];
}

const sigmoid = (x) => 1 / (1 + Math.exp(-x));

/** Abramowitz and Stegun 7.1.26: within 1.5e-7. */
function erf(x) {
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
  return Math.sign(x) * (1 - series * Math.exp(-x * x));
}

const ACTIVATIONS = {
  relu2: (x) => (x > 0 ? x * x : 0),
  gelu: (x) => 0.5 * x * (1 + erf(x / Math.SQRT2)),
  swiglu: (x) => x * sigmoid(x),
};

/** One layer after the other: h, c = LSTM(x, h, c), then LayerNorm where the config wants one. */
class LSTM {
  constructor(config, weights) {
    const { hidden_size: width, num_hidden_layers: depth, vocab_size: vocabulary } = config;
    this.width = width;
    this.eps = config.layer_norm_eps;
    this.embedding = weights["model.embed_tokens.weight"];
    this.head = weights["lm_head.weight"] || this.embedding;
    this.layers = Array.from({ length: depth }, (_, n) => {
      const part = (name) => weights[`model.layers.${n}.${name}`];
      return {
        input: part("lstm.weight_ih_l0"),
        recurrent: part("lstm.weight_hh_l0"),
        inputBias: part("lstm.bias_ih_l0"),
        recurrentBias: part("lstm.bias_hh_l0"),
        normWeight: part("norm.weight"),
        normBias: part("norm.bias"),
      };
    });
    this.x = new Float32Array(width);
    this.fromInput = new Float32Array(4 * width);
    this.fromState = new Float32Array(4 * width);
    this.logits = new Float32Array(vocabulary);
    const cols = 2 ** Math.ceil(Math.log2(Math.sqrt(2 * width)));
    this.view = { unit: "cell", layers: depth, cols, rows: Math.ceil(width / cols), signed: true };
  }

  start() {
    const zeros = () => this.layers.map(() => new Float32Array(this.width));
    return { hidden: zeros(), cell: zeros() };
  }

  within(ids) {
    return ids;
  }

  due(id) {
    return [id];
  }

  read(id, state) {
    const { x, width, fromInput, fromState } = this;
    x.set(this.embedding.subarray(id * width, (id + 1) * width));
    this.layers.forEach((layer, n) => {
      const hidden = state.hidden[n];
      const cell = state.cell[n];
      multiply(layer.input, x, fromInput, layer.inputBias);
      multiply(layer.recurrent, hidden, fromState, layer.recurrentBias);
      const gate = (which, i) => fromInput[which * width + i] + fromState[which * width + i];
      for (let i = 0; i < width; i++) {
        cell[i] = sigmoid(gate(1, i)) * cell[i] + sigmoid(gate(0, i)) * Math.tanh(gate(2, i));
        hidden[i] = sigmoid(gate(3, i)) * Math.tanh(cell[i]);
      }
      if (layer.normWeight) norm("layernorm", hidden, x, this.eps, layer.normWeight, layer.normBias);
      else x.set(hidden);
    });
    multiply(this.head, x, this.logits);
    return this.logits;
  }

  /** tanh of each cell, from -1 to 1. */
  look(state) {
    const { layers, rows, cols } = this.view;
    const seen = new Float32Array(layers * rows * cols);
    state.cell.forEach((cell, n) => cell.forEach((c, i) => (seen[n * rows * cols + i] = Math.tanh(c))));
    return seen;
  }
}

/** x + attention(norm(x)), then x + mlp(norm(x)). Keys and values of position p lie in slot p % size. */
class Transformer {
  constructor(config, weights) {
    const { hidden_size: width, num_hidden_layers: depth, num_attention_heads: heads, head_dim: dim } = config;
    this.config = config;
    this.embedding = weights["model.embed_tokens.weight"];
    this.positions = weights["model.embed_positions.weight"]; // learned ones, else none
    this.head = weights["lm_head.weight"] || this.embedding;
    this.shared = config.num_key_value_heads;
    this.size = config.sliding_window || config.max_position_embeddings;
    this.layers = Array.from({ length: depth }, (_, n) => {
      const layer = {};
      for (const name of ["input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
        "self_attn.o_proj", "post_attention_layernorm", "mlp.up_proj", "mlp.gate_proj", "mlp.down_proj"]) {
        const [weight, bias] = ["weight", "bias"].map((end) => weights[`model.layers.${n}.${name}.${end}`]);
        layer[name.split(".").pop()] = { weight, bias };
      }
      return layer;
    });
    this.norm = { weight: weights["model.norm.weight"], bias: weights["model.norm.bias"] };
    this.x = new Float32Array(width);
    this.normed = new Float32Array(width);
    this.query = new Float32Array(heads * dim);
    this.attended = new Float32Array(heads * dim);
    this.added = new Float32Array(width);
    this.up = new Float32Array(config.intermediate_size);
    this.gate = new Float32Array(config.intermediate_size);
    this.logits = new Float32Array(config.vocab_size);
    this.view = { unit: "head", layers: depth, rows: heads, cols: Math.min(this.size, 128), signed: false };
  }

  start() {
    const empty = (size) => Array.from(this.layers, () => new Float32Array(size));
    const kept = this.shared * this.size * this.config.head_dim;
    const looks = this.config.num_attention_heads * this.size;
    return { length: 0, text: [], keys: empty(kept), values: empty(kept), looks: empty(looks) };
  }

  within(ids) {
    const layers = this.config.num_hidden_layers;
    return ids.slice(-(this.positions ? this.config.max_position_embeddings : layers * (this.size - 1) + 1));
  }

  /** Learned positions that run out begin again with the last half of the text. */
  due(id, state) {
    const room = this.config.max_position_embeddings;
    if (!this.positions || state.length < room) return [id];
    const last = [...state.text, id].slice(-1 - Math.floor((room - 1) / 2));
    state.length = 0;
    state.text = [];
    return last;
  }

  read(id, state) {
    const { config, x, normed, added } = this;
    const width = x.length;
    const eps = config.norm_eps;
    for (let n = 0; n < width; n++) {
      x[n] = this.embedding[id * width + n] + (this.positions ? this.positions[state.length * width + n] : 0);
    }
    if (this.positions) state.text.push(id);
    this.layers.forEach((layer, n) => {
      const { input_layernorm: before, post_attention_layernorm: between } = layer;
      norm(config.norm, x, normed, eps, before.weight, before.bias);
      this.attend(layer, state, n);
      multiply(layer.o_proj.weight, this.attended, added, layer.o_proj.bias);
      for (let i = 0; i < width; i++) x[i] += added[i];
      norm(config.norm, x, normed, eps, between.weight, between.bias);
      this.think(layer);
      multiply(layer.down_proj.weight, this.up, added, layer.down_proj.bias);
      for (let i = 0; i < width; i++) x[i] += added[i];
    });
    state.length += 1;
    norm(config.norm, x, normed, eps, this.norm.weight, this.norm.bias);
    multiply(this.head, normed, this.logits);
    return this.logits;
  }

  /** Every head looks at what it may see and adds up the values there: `normed` -> `attended`. */
  attend(layer, state, n) {
    const { config, size, query, attended, normed } = this;
    const { num_attention_heads: heads, head_dim: dim } = config;
    const slot = state.length % size;
    const filled = Math.min(state.length + 1, size);
    const at = (head, place) => (head * size + place) * dim; // of keys and values
    multiply(layer.q_proj.weight, normed, query, layer.q_proj.bias);
    const key = new Float32Array(this.shared * dim);
    const value = new Float32Array(this.shared * dim);
    multiply(layer.k_proj.weight, normed, key, layer.k_proj.bias);
    multiply(layer.v_proj.weight, normed, value, layer.v_proj.bias);
    for (let head = 0; head < heads; head++) this.turn(query.subarray(head * dim, (head + 1) * dim), state.length);
    for (let head = 0; head < this.shared; head++) {
      const own = key.subarray(head * dim, (head + 1) * dim);
      this.turn(own, state.length);
      state.keys[n].set(own, at(head, slot));
      state.values[n].set(value.subarray(head * dim, (head + 1) * dim), at(head, slot));
    }
    attended.fill(0);
    const [keys, values] = [state.keys[n], state.values[n]];
    for (let head = 0; head < heads; head++) {
      const from = Math.floor((head * this.shared) / heads); // whose keys and values it shares
      const weights = state.looks[n].subarray(head * size, head * size + filled);
      let largest = -Infinity;
      for (let place = 0; place < filled; place++) {
        let product = 0;
        for (let i = 0, k = at(from, place), q = head * dim; i < dim; i++) product += query[q++] * keys[k++];
        weights[place] = product * config.attention_scale;
        largest = Math.max(largest, weights[place]);
      }
      let sum = 0;
      for (let place = 0; place < filled; place++) sum += weights[place] = Math.exp(weights[place] - largest);
      for (let place = 0; place < filled; place++) {
        const weight = (weights[place] /= sum);
        for (let i = 0, v = at(from, place), o = head * dim; i < dim; i++) attended[o++] += weight * values[v++];
      }
    }
  }

  /** A query or key of one head, made ready for the product: RMS norm, rotary position. */
  turn(part, position) {
    const { qk_norm, norm_eps, frequencies, rope_scale } = this.config;
    if (qk_norm) rmsNorm(part, norm_eps);
    if (!frequencies) return;
    const half = part.length / 2;
    for (let i = 0; i < half; i++) {
      const cos = Math.cos(position * frequencies[i]) * rope_scale;
      const sin = Math.sin(position * frequencies[i]) * rope_scale;
      const [low, high] = [part[i], part[i + half]];
      part[i] = low * cos - high * sin;
      part[i + half] = high * cos + low * sin;
    }
  }

  /** What down_proj reads: `normed` -> `up`. */
  think(layer) {
    const { up, gate, normed } = this;
    const activate = ACTIVATIONS[this.config.mlp];
    multiply(layer.up_proj.weight, normed, up, layer.up_proj.bias);
    if (this.config.mlp === "swiglu") {
      multiply(layer.gate_proj.weight, normed, gate, layer.gate_proj.bias);
      for (let n = 0; n < up.length; n++) up[n] *= activate(gate[n]);
    } else {
      for (let n = 0; n < up.length; n++) up[n] = activate(up[n]);
    }
  }

  /** How much each head looks at each character, the one just read on the right, those before it to the left. */
  look(state) {
    const { layers, rows, cols } = this.view;
    const seen = new Float32Array(layers * rows * cols);
    const back = Math.min(cols, state.length, this.size);
    for (let n = 0; n < layers; n++) {
      for (let head = 0; head < rows; head++) {
        for (let age = 0; age < back; age++) {
          const slot = (state.length - 1 - age) % this.size;
          seen[(n * rows + head + 1) * cols - 1 - age] = state.looks[n][head * this.size + slot];
        }
      }
    }
    return seen;
  }
}

const ARCHITECTURES = { char_lstm: LSTM, char_transformer: Transformer };
