#!/usr/bin/env node
// Writes a random checkpoint of LLaMA's architecture, to measure time and memory at a size of one's choice.
//
//   node bench/random-llama.mjs DIR [BLOCKS=22] [HIDDEN=2048] [FFN=5632]
//
// bfloat16, vocabulary 32000, 32 heads with 4 key/value heads; the defaults give 1.1 billion parameters, 2.2 GB. Prune it with
// token ids (there is no tokenizer): the line it prints shows how.

import { join } from 'node:path'
import { writeRandomModel } from './random-model.mjs'

const [folder, ...sizes] = process.argv.slice(2)
const [blocks = 22, hidden = 2048, ffn = 5632] = sizes.map(Number)
if (!folder || ![blocks, hidden, ffn].every((size) => Number.isInteger(size) && size > 0)) {
  console.error('usage: node bench/random-llama.mjs DIR [BLOCKS] [HIDDEN] [FFN]')
  process.exit(2)
}
const config = {
  architectures: ['LlamaForCausalLM'],
  model_type: 'llama',
  vocab_size: 32000,
  hidden_size: hidden,
  intermediate_size: ffn,
  num_hidden_layers: blocks,
  num_attention_heads: 32,
  num_key_value_heads: 4,
  max_position_embeddings: 2048,
  tie_word_embeddings: false,
}
const bytes = await writeRandomModel(folder, config, 20000)
console.log(`${(bytes / 1e9).toFixed(2)} GB in ${folder}`)
console.log(
  `sparsegpt prune ${folder} --out OUT --calibration ${join(folder, 'tokens.safetensors')} --samples 8 --seqlen 512 --pattern 2:4`,
)
