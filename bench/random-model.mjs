// Random checkpoints, to measure time and memory at a size of one's choice.

import { closeSync, mkdirSync, openSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { serializeHeader } from '../dist/checkpoint/safetensors.js'
import { saveTokens } from '../dist/index.js'
import { familyOf } from '../dist/models/registry.js'

/** What a model has outside its blocks. */
const surroundings = {
  llama: ({ vocab_size: vocabulary, hidden_size: hidden }) => ({
    'model.embed_tokens.weight': [vocabulary, hidden],
    'model.norm.weight': [hidden],
    'lm_head.weight': [vocabulary, hidden],
  }),
  opt: ({ vocab_size: vocabulary, hidden_size: hidden, max_position_embeddings: positions }) => ({
    'model.decoder.embed_tokens.weight': [vocabulary, hidden],
    'model.decoder.embed_positions.weight': [positions + 2, hidden],
    'model.decoder.final_layer_norm.weight': [hidden],
    'model.decoder.final_layer_norm.bias': [hidden],
  }),
}

/**
 * Writes the model that `config` describes (as in config.json; model_type llama or opt), bfloat16, and random token ids in
 * tokens.safetensors. Returns the bytes of the weights.
 */
export async function writeRandomModel(folder, config, tokens) {
  const architecture = build(config)
  const shapes = { ...surroundings[config.model_type](config) }
  for (let i = 0; i < config.num_hidden_layers; i++) {
    const { prefix, linears, parameters } = architecture.block(i)
    for (const { name, rows, columns, bias } of linears) {
      shapes[`${prefix}${name}.weight`] = [rows, columns]
      if (bias) shapes[`${prefix}${name}.bias`] = [rows]
    }
    for (const { name, shape } of parameters) shapes[prefix + name] = shape
  }

  mkdirSync(folder, { recursive: true })
  writeFileSync(join(folder, 'config.json'), JSON.stringify({ ...config, torch_dtype: 'bfloat16' }, null, 2))
  // Normally distributed values, drawn once; every piece of a tensor is a stretch of them from a random place.
  const pool = new Uint16Array(1 << 22)
  const single = new Float32Array(1)
  const bits = new Uint32Array(single.buffer)
  for (let i = 0; i < pool.length; i++) {
    single[0] = 0.02 * Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random())
    pool[i] = bits[0] >>> 16
  }
  const list = Object.entries(shapes).map(([name, shape]) => ({ name, dtype: 'BF16', shape }))
  const { header, fileBytes } = serializeHeader(list, { format: 'pt' })
  const file = openSync(join(folder, 'model.safetensors'), 'w')
  writeSync(file, header)
  for (const { name, shape } of list) {
    if (shape.length === 1) {
      writeSync(file, new Uint16Array(shape[0]).fill(name.endsWith('bias') ? 0 : 0x3f80))
      continue
    }
    for (let left = shape[0] * shape[1]; left > 0;) {
      const count = Math.min(left, 1_000_003)
      const start = Math.floor(Math.random() * (pool.length - count))
      writeSync(file, pool.subarray(start, start + count))
      left -= count
    }
  }
  closeSync(file)
  const ids = Int32Array.from({ length: tokens }, () => Math.floor(Math.random() * config.vocab_size))
  await saveTokens(join(folder, 'tokens.safetensors'), ids)
  return fileBytes
}

/** The architecture of a checkpoint that has every tensor under its usual name. */
export function build(config) {
  const weights = { has: () => true, findPrefix: ([first]) => first }
  return familyOf(config).build(config, weights)
}
