#!/usr/bin/env node
// Whether time grows as the arithmetic does: a model of two LLaMA blocks pruned 2:4 in memory, with 1, 2, 4 and 8 times as many
// tokens and 1, 2 and 4 times as wide.
//
//   node bench/scaling.mjs [--hidden 512] [--tokens 2048] [--dtype float32|bfloat16] [--sequential block|layer]
//       [--device cpu|cuda] [--threads N] [--repeats 5]

import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { loadModel, prune } from '../dist/index.js'
import { median, parseOptions, printTable } from './frame.mjs'
import { writeRandomModel } from './random-model.mjs'

const text = (value) => ({ type: 'string', default: value })
const own = { hidden: text('512'), tokens: text('2048'), dtype: text('float32'), sequential: text('block') }
const options = parseOptions(own)
const { dtype, sequential, device, threads, repeats } = options
const sequenceLength = 512
const blocks = 2

/** Floating-point operations of the job. */
function flop(hidden, ffn, tokens) {
  // Rows of the matrices that share an input, and their columns.
  const groups = [
    { rows: 3 * hidden, columns: hidden },
    { rows: hidden, columns: hidden },
    { rows: 2 * ffn, columns: hidden },
    { rows: hidden, columns: ffn },
  ]
  const sum = (of) => groups.reduce((total, group) => total + of(group), 0)
  const pass =
    2 * tokens * sum(({ rows, columns }) => rows * columns) + 2 * tokens * (sequenceLength + 1) * hidden
  // Block by block, the last product of a block's first pass is left out, and all of the last block's second pass.
  const last = 2 * tokens * hidden * ffn
  const passes = sequential === 'block' ? (2 * blocks - 1) * pass - blocks * last : blocks * pass
  const statistics = sum(({ columns }) => tokens * columns * (columns + 1))
  const solve = sum(({ rows, columns }) => columns ** 3 / 3 + rows * columns ** 2)
  return passes + blocks * (statistics + solve)
}

const folder = mkdtempSync(join(tmpdir(), 'sparsegpt-bench-'))
process.on('exit', () => rmSync(folder, { recursive: true, force: true }))
const rows = []
for (const wider of [1, 2, 4]) {
  const hidden = Number(options.hidden) * wider
  const ffn = 3 * hidden
  const config = {
    model_type: 'llama',
    vocab_size: 1000,
    hidden_size: hidden,
    intermediate_size: ffn,
    num_hidden_layers: blocks,
    num_attention_heads: hidden / 64,
    max_position_embeddings: sequenceLength,
  }
  await writeRandomModel(folder, config, 100_000)
  for (const more of [1, 2, 4, 8]) {
    const tokens = Number(options.tokens) * more
    process.stderr.write(`hidden ${hidden}, ${tokens} tokens\n`)
    const calibration = {
      file: join(folder, 'tokens.safetensors'),
      samples: tokens / sequenceLength,
      sequenceLength,
    }
    const seconds = []
    for (let repeat = 0; repeat < repeats; repeat++) {
      const model = await loadModel(folder, { device, dtype, threads })
      seconds.push((await prune(model, { pattern: '2:4', sequential, calibration })).seconds)
      await model.dispose()
    }
    const work = flop(hidden, ffn, tokens)
    const time = median(seconds)
    rows.push([hidden, tokens, (work / 1e9).toFixed(0), time.toFixed(2), ((time / work) * 1e12).toFixed(2)])
  }
}
printTable(['hidden', 'tokens', 'GFLOP', `s, ${dtype}, ${sequential}`, 'ps per FLOP'], rows)
