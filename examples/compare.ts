// Compares methods at the same sparsity: what each leaves of the model, and how long it takes.
//
//   npx tsx examples/compare.ts MODEL CALIBRATION_TEXT TEST_TEXT

import { loadModel, perplexity, prune } from 'sparsegpt'

const [path, calibration, evaluation] = process.argv.slice(2)
if (!path || !calibration || !evaluation) {
  console.error('usage: compare.ts MODEL CALIBRATION_TEXT TEST_TEXT')
  process.exit(2)
}

const test = { file: evaluation, windows: 40 }
const dense = await loadModel(path)
const rows = [{ method: 'dense', perplexity: (await perplexity(dense, test)).perplexity, seconds: 0 }]
await dense.dispose()

for (const method of ['magnitude', 'wanda', 'sparsegpt'] as const) {
  // A model that is pruned in memory stays so: every method begins with a fresh one.
  const model = await loadModel(path)
  const { seconds } = await prune(model, {
    method,
    sparsity: 0.5,
    calibration: { file: calibration, samples: 64 },
  })
  rows.push({ method, perplexity: (await perplexity(model, test)).perplexity, seconds })
  await model.dispose()
}
console.table(rows)
