// Prunes the small model in memory and prints the result: the same on every system, but for the rounding of sums.

import { fileURLToPath } from 'node:url'
import { loadModel, prune } from '../../dist/index.js'

const model = await loadModel(fileURLToPath(new URL('../../models/sotu-3m', import.meta.url)))
const tokens = Int32Array.from({ length: 2048 }, (_, i) => (i * i) % 997)
const report = await prune(model, { sparsity: 0.5, calibration: { tokens, samples: 8, sequenceLength: 64 } })
const { data } = await model.logits([[...tokens.subarray(0, 64)]])
await model.dispose()
console.log(
  JSON.stringify({
    system: `${process.platform}-${process.arch}`,
    node: process.version,
    sparsity: report.sparsity.achieved,
    logits: Math.hypot(...data.subarray(0, 10000)),
  }),
)
