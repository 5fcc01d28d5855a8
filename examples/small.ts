// Makes a model as small as it gets: 2:4, 4 bits, without the zeros; then generates text with it.
//
//   npx tsx examples/small.ts MODEL CALIBRATION_TEXT OUT

import { inspect, loadModel, prune } from 'sparsegpt'

const [path, calibration, out] = process.argv.slice(2)
if (!path || !calibration || !out) {
  console.error('usage: small.ts MODEL CALIBRATION_TEXT OUT')
  process.exit(2)
}

const model = await loadModel(path)
await prune(model, {
  pattern: '2:4',
  bits: 4, // kept weights are rounded in the same sweep, which makes up for both errors
  symmetric: true,
  sequential: 'layer',
  target: 'dense',
  calibration: { file: calibration, samples: 64 },
  encoding: 'bitmask', // the file holds a bit for every weight and a code for every one that is not zero
  headBits: 8,
  out,
})
await model.dispose()

const { tensors } = await inspect(out)
const kept = tensors.filter(({ patterns }) => patterns.includes('2:4'))
console.log(`${kept.length} matrices are 2:4 after rounding`)

const small = await loadModel(out)
const stream = small.generate('Once upon a time', { maxTokens: 60 })
for await (const piece of stream) process.stdout.write(piece)
const { tokensPerSecond } = await stream.result
console.log(`\n${tokensPerSecond.toFixed(1)} tokens/s`)
await small.dispose()
