import { expect, test } from '@jest/globals'
import { loadModel } from '../../src/index.js'
import { readTensors } from '../safetensors-file.js'
import { goldenModels } from './golden-models.js'
import { describeWithShared, sharedPath } from '../shared.js'

describeWithShared('logits of tiny models, against transformers', () => {
  test.each(goldenModels)('%s', async (name) => {
    const folder = sharedPath('golden', 'models', name) ?? ''
    const golden = await readTensors(`${folder}/expected.safetensors`)
    const { values: flat, shape } = golden.get('input_ids')!
    const [batch = 0, sequence = 0] = shape
    const ids = Array.from({ length: batch }, (_, i) => [...flat.subarray(i * sequence, (i + 1) * sequence)])
    const expected = golden.get('logits')!
    const range = Math.max(...expected.values) - Math.min(...expected.values)

    const model = await loadModel(folder, { device: 'cpu', dtype: 'float32' })
    const logits = await model.logits(ids)
    await model.dispose()
    expect(logits.shape).toEqual(expected.shape)
    expect(largestDifference(logits.data, expected.values)).toBeLessThan(1e-4 * range)

    // bfloat16 keeps 8 bits: the logits stay near, and are not those of float32.
    const half = await loadModel(folder, { dtype: 'bfloat16' })
    const rounded = await half.logits(ids)
    await half.dispose()
    const difference = largestDifference(rounded.data, expected.values)
    expect(difference).toBeLessThan(0.05 * range)
    expect(difference).toBeGreaterThan(1e-5 * range)
  })
})

function largestDifference(a: Float32Array, b: Float32Array): number {
  return a.reduce((worst, value, i) => Math.max(worst, Math.abs(value - b[i]!)), 0)
}
