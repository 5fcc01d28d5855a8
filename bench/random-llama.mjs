#!/usr/bin/env node
// Writes a random checkpoint of LLaMA's architecture, to measure time and memory at a size of one's choice.
//
//   node bench/random-llama.mjs DIR [BLOCKS=22] [HIDDEN=2048] [FFN=5632]
//
// bfloat16, vocabulary 32000, 32 heads with 4 key/value heads; the defaults give 1.1 billion parameters, 2.2 GB. Prune it with
// token ids (there is no tokenizer): the line it prints shows how.

import { closeSync, mkdirSync, openSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { serializeHeader } from '../dist/checkpoint/safetensors.js'

const [folder, ...sizes] = process.argv.slice(2)
const [blocks = 22, hidden = 2048, ffn = 5632] = sizes.map(Number)
if (!folder || ![blocks, hidden, ffn].every((size) => Number.isInteger(size) && size > 0)) {
  console.error('usage: node bench/random-llama.mjs DIR [BLOCKS] [HIDDEN] [FFN]')
  process.exit(2)
}
const vocabulary = 32000
const heads = 32
const kvHeads = 4
const kv = (hidden / heads) * kvHeads

const shapes = { 'model.embed_tokens.weight': [vocabulary, hidden] }
for (let i = 0; i < blocks; i++) {
  const p = `model.layers.${i}.`
  Object.assign(shapes, {
    [`${p}input_layernorm.weight`]: [hidden],
    [`${p}self_attn.q_proj.weight`]: [hidden, hidden],
    [`${p}self_attn.k_proj.weight`]: [kv, hidden],
    [`${p}self_attn.v_proj.weight`]: [kv, hidden],
    [`${p}self_attn.o_proj.weight`]: [hidden, hidden],
    [`${p}post_attention_layernorm.weight`]: [hidden],
    [`${p}mlp.gate_proj.weight`]: [ffn, hidden],
    [`${p}mlp.up_proj.weight`]: [ffn, hidden],
    [`${p}mlp.down_proj.weight`]: [hidden, ffn],
  })
}
Object.assign(shapes, { 'model.norm.weight': [hidden], 'lm_head.weight': [vocabulary, hidden] })

mkdirSync(folder, { recursive: true })
const config = {
  architectures: ['LlamaForCausalLM'],
  model_type: 'llama',
  vocab_size: vocabulary,
  hidden_size: hidden,
  intermediate_size: ffn,
  num_hidden_layers: blocks,
  num_attention_heads: heads,
  num_key_value_heads: kvHeads,
  max_position_embeddings: 2048,
  tie_word_embeddings: false,
  torch_dtype: 'bfloat16',
}
writeFileSync(join(folder, 'config.json'), JSON.stringify(config, null, 2))

// Normally distributed values, drawn once; every piece of a tensor is a stretch of them from a random place.
const pool = new Uint16Array(1 << 22)
const single = new Float32Array(1)
const bits = new Uint32Array(single.buffer)
for (let i = 0; i < pool.length; i++) {
  single[0] = 0.02 * Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random())
  pool[i] = bits[0] >>> 16
}
const ones = new Uint16Array(hidden).fill(0x3f80)

const tensors = Object.entries(shapes).map(([name, shape]) => ({ name, dtype: 'BF16', shape }))
const { header, fileBytes } = serializeHeader(tensors, { format: 'pt' })
const file = openSync(join(folder, 'model.safetensors'), 'w')
writeSync(file, header)
for (const { shape } of tensors) {
  if (shape.length === 1) {
    writeSync(file, ones)
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

const tokens = Int32Array.from({ length: 20000 }, () => Math.floor(Math.random() * vocabulary))
const { saveTokens } = await import('../dist/index.js')
await saveTokens(join(folder, 'tokens.safetensors'), tokens)
console.log(`${(fileBytes / 1e9).toFixed(2)} GB in ${folder}`)
console.log(
  `sparsegpt prune ${folder} --out OUT --calibration ${join(folder, 'tokens.safetensors')} --samples 8 --seqlen 512 --pattern 2:4`,
)
