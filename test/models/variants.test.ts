import { expect, test } from '@jest/globals'
import { loadModel } from '../../src/index.js'
import { temporaryFolder } from '../temporary.js'
import { variants, writeVariant } from './variants.js'

test.each(Object.entries(variants))('logits as transformers has them: %s', async (_, variant) => {
  const folder = await temporaryFolder()
  await writeVariant(folder, variant)
  const expected = new Float32Array(Uint8Array.from(Buffer.from(variant.logits, 'base64')).buffer)

  const model = await loadModel(folder, { dtype: 'float32' })
  const { data, shape } = await model.logits(variant.ids)
  await model.dispose()
  expect(shape).toEqual([variant.ids.length, variant.ids[0]!.length, 16])
  expect(data.length).toBe(expected.length)
  const range = Math.max(...expected) - Math.min(...expected)
  const worst = data.reduce((most, value, i) => Math.max(most, Math.abs(value - expected[i]!)), 0)
  expect(worst).toBeLessThan(1e-5 * range)
})
