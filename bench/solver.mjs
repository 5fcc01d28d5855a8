#!/usr/bin/env node
// The solver (factorisation and pruning of one matrix) beside the reference's.
//
//   node bench/solver.mjs [--reference DIR --python BIN] [--sizes 768x768,…] [--device cpu|cuda] [--threads N] [--repeats 5]

import { benchCases } from '../dist/benchmark/case.js'
import { compare, parseOptions } from './frame.mjs'

const sizes = '768x768,3072x768,768x3072,2048x2048,4096x4096,11008x4096,4096x11008'
const options = parseOptions({ sizes: { type: 'string', default: sizes } })
await compare('rows × columns', benchCases('solver', ['float32'], 1, options.sizes.split(',')), options)
