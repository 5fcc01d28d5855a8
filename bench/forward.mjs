#!/usr/bin/env node
// The forward pass of one block of a model beside that of transformers, which the reference runs.
//
//   node bench/forward.mjs [--reference DIR --python BIN] [--sizes opt-125m,llama-1b,llama-7b] [--seqlen 2048]
//       [--device cpu|cuda] [--threads N] [--repeats 5]

import { benchCases } from '../dist/sdk/benchmark/case.js'
import { compare, parseOptions } from './frame.mjs'

const options = parseOptions({ sizes: { type: 'string' }, seqlen: { type: 'string', default: '2048' } })
const cases = benchCases(
  'forward',
  ['float32', 'bfloat16'],
  Number(options.seqlen),
  options.sizes?.split(','),
)
await compare('block', cases, options)
