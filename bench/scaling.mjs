#!/usr/bin/env node
// Whether time grows as the arithmetic does: a model of two LLaMA blocks pruned 2:4 in memory, with 1, 2, 4 and 8 times as many
// tokens and 1, 2 and 4 times as wide.
//
//   node bench/scaling.mjs [--hidden 512] [--tokens 2048] [--dtype float32|bfloat16] [--sequential block|layer]
//       [--device cpu|cuda] [--threads N] [--repeats 5]

import { join } from 'node:path'
import { loadModel, plan, prune } from '../dist/index.js'
import { median, parseOptions, printTable, temporaryFolder, writeRandomModel } from './frame.mjs'

const text = (value) => ({ type: 'string', default: value })
const own = { hidden: text('512'), tokens: text('2048'), dtype: text('float32'), sequential: text('block') }
const options = parseOptions(own)
const { dtype, sequential, device, threads, repeats } = options
const sequenceLength = 512

const folder = temporaryFolder()
const rows = []
for (const wider of [1, 2, 4]) {
  const hidden = Number(options.hidden) * wider
  const ffn = 3 * hidden
  const config = {
    model_type: 'llama',
    vocab_size: 1000,
    hidden_size: hidden,
    intermediate_size: ffn,
    num_hidden_layers: 2,
    num_attention_heads: hidden / 64,
    max_position_embeddings: sequenceLength,
    torch_dtype: 'bfloat16',
  }
  writeRandomModel(folder, config)
  for (const more of [1, 2, 4, 8]) {
    const tokens = Number(options.tokens) * more
    process.stderr.write(`hidden ${hidden}, ${tokens} tokens\n`)
    const samples = tokens / sequenceLength
    const job = { pattern: '2:4', sequential }
    const calibration = {
      file: join(folder, 'tokens.safetensors'),
      samples,
      sequenceLength,
    }
    const seconds = []
    for (let repeat = 0; repeat < repeats; repeat++) {
      const model = await loadModel(folder, { device, dtype, threads })
      seconds.push((await prune(model, { ...job, calibration })).seconds)
      await model.dispose()
    }
    const work = (await plan(folder, { ...job, dtype, samples, sequenceLength })).flop.total
    const time = median(seconds)
    rows.push([hidden, tokens, (work / 1e9).toFixed(0), time.toFixed(2), ((time / work) * 1e12).toFixed(2)])
  }
}
printTable(['hidden', 'tokens', 'GFLOP', `s, ${dtype}, ${sequential}`, 'ps per FLOP'], rows)
