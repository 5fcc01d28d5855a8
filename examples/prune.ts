// Prunes a model from a TypeScript app.
//
//   npx tsx examples/prune.ts MODEL CALIBRATION_TEXT TEST_TEXT OUT

import { loadModel, perplexity, prune, SparseGptError } from 'sparsegpt'

const [path, calibration, evaluation, out] = process.argv.slice(2)
if (!path || !calibration || !evaluation || !out) {
  console.error('usage: prune.ts MODEL CALIBRATION_TEXT TEST_TEXT OUT')
  process.exit(2)
}

const stop = new AbortController()
process.once('SIGINT', () => stop.abort())
const { signal } = stop

try {
  const model = await loadModel(path)
  try {
    const test = { file: evaluation, windows: 40, signal }
    const before = await perplexity(model, test)
    const report = await prune(model, {
      pattern: '2:4',
      sequential: 'layer',
      calibration: { file: calibration, samples: 64 },
      out,
      signal,
      onProgress: ({ fraction, block, blocks, phase }) => {
        process.stderr.write(`\r${Math.round(fraction * 100)} %, block ${block + 1}/${blocks}: ${phase}   `)
      },
    })
    process.stderr.write('\n')
    const after = await perplexity(model, test)
    const worst = report.layers.reduce((a, b) => ((b.loss ?? 0) > (a.loss ?? 0) ? b : a))
    console.log(
      `${out}: ${report.layers.length} layers, ${(report.sparsity.achieved * 100).toFixed(1)} % zeros`,
    )
    console.log(`perplexity ${before.perplexity.toFixed(2)} -> ${after.perplexity.toFixed(2)}`)
    console.log(`largest loss: ${worst.name}`)
  } finally {
    await model.dispose()
  }
} catch (error) {
  if (!(error instanceof SparseGptError)) throw error
  console.error(`${error.code}: ${error.message}`)
  process.exitCode = error.code === 'ABORTED' ? 130 : 1
}
