#!/usr/bin/env node
// Writes a checkpoint with random weights for a config.json, to measure time and memory at a size of one's choice.
//
//   node bench/random-model.mjs DIR <llama-1b | opt-175b-block | CONFIG.json>
//
// llama-1b: 1.1 billion parameters in 22 blocks; opt-175b-block: one block of OPT-175B with its embeddings. Prune it with token
// ids (there is no tokenizer): the line it prints shows how.

import { closeSync, mkdirSync, openSync, readFileSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { serializeHeader } from '../dist/files/safetensors.js'
import { saveTokens } from '../dist/index.js'
import { checkpointTensors } from '../dist/planning/planned-job.js'

const presets = {
  'llama-1b': {
    model_type: 'llama',
    vocab_size: 32000,
    hidden_size: 2048,
    intermediate_size: 5632,
    num_hidden_layers: 22,
    num_attention_heads: 32,
    num_key_value_heads: 4,
    max_position_embeddings: 2048,
    tie_word_embeddings: false,
    torch_dtype: 'bfloat16',
  },
  'opt-175b-block': {
    model_type: 'opt',
    vocab_size: 50272,
    hidden_size: 12288,
    ffn_dim: 49152,
    num_hidden_layers: 1,
    num_attention_heads: 96,
    max_position_embeddings: 2048,
    torch_dtype: 'float16',
  },
}

const [folder, name] = process.argv.slice(2)
if (!folder || !name) {
  console.error(`usage: node bench/random-model.mjs DIR <${Object.keys(presets).join(' | ')} | CONFIG.json>`)
  process.exit(2)
}
const config = presets[name] ?? JSON.parse(readFileSync(name, 'utf8'))
const tensors = checkpointTensors(config)

// The 16 or 32 bits of a number in the element type of the files. Numbers that float16 has no normal form for become 0.
const single = new Float32Array(1)
const word = new Uint32Array(single.buffer)
const encode = {
  F32: (value) => ((single[0] = value), word[0]),
  BF16: (value) => ((single[0] = value), word[0] >>> 16),
  F16: (value) => {
    single[0] = value
    const exponent = ((word[0] >>> 23) & 0xff) - 112
    return exponent < 1 ? 0 : ((word[0] >>> 16) & 0x8000) | (exponent << 10) | ((word[0] >>> 13) & 0x3ff)
  },
}[tensors[0].dtype]
const Elements = tensors[0].dtype === 'F32' ? Uint32Array : Uint16Array

// Normally distributed values, drawn once; every piece of a matrix is a stretch of them from a random place.
const pool = Elements.from({ length: 1 << 22 }, () =>
  encode(0.02 * Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random())),
)

mkdirSync(folder, { recursive: true })
writeFileSync(join(folder, 'config.json'), JSON.stringify(config, null, 2))
const { header, fileBytes } = serializeHeader(tensors, { format: 'pt' })
const file = openSync(join(folder, 'model.safetensors'), 'w')
writeSync(file, header)
for (const { name, shape } of tensors) {
  if (shape.length === 1) {
    // Norms start at 1, biases at 0.
    writeSync(file, new Elements(shape[0]).fill(encode(name.endsWith('.bias') ? 0 : 1)))
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

const tokens = Int32Array.from({ length: 40000 }, () => Math.floor(Math.random() * config.vocab_size))
await saveTokens(join(folder, 'tokens.safetensors'), tokens)
console.log(`${(fileBytes / 1e9).toFixed(2)} GB in ${folder}`)
console.log(
  `sparsegpt prune ${folder} --out OUT --calibration ${join(folder, 'tokens.safetensors')} --samples 8 --seqlen 512 --pattern 2:4`,
)
