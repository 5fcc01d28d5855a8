#!/usr/bin/env node
// The solver (factorisation and pruning of one matrix) beside the reference's.
//
//   node bench/solver.mjs [--reference DIR --python BIN] [--sizes 768x768,…] [--device cpu|cuda] [--threads N] [--repeats 5]

import { benchCases } from '../dist/sdk/benchmark/case.js'
import { compare, parseOptions } from './frame.mjs'

const options = parseOptions({ sizes: { type: 'string' } })
await compare('rows × columns', benchCases('solver', ['float32'], 1, options.sizes?.split(',')), options)
