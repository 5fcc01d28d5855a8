#!/usr/bin/env node
// Matrix products beside PyTorch's, and Gram matrices beside the reference's, which adds up both triangles in float32.
//
//   node bench/gemm.mjs [--reference DIR --python BIN] [--sizes 2048x2048x2048,4096x576,…] [--device cpu|cuda] [--threads N] [--repeats 5]

import { benchCases } from '../dist/sdk/benchmark/case.js'
import { compare, parseOptions } from './frame.mjs'

const options = parseOptions({ sizes: { type: 'string' } })
const cases = benchCases('gemm', ['float32', 'bfloat16'], 1, options.sizes?.split(','))
await compare('tokens × inputs (× outputs)', cases, options)
