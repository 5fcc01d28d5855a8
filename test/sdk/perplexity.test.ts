import { expect, test } from '@jest/globals'
import { loadModel, perplexity } from '../../src/index.js'
import { temporaryFolder } from '../temporary.js'
import { randomTokens, writeTinyModel } from '../tiny-model.js'

test('progress grows in equal steps and is 1 at the end only, over several chunks of windows', async () => {
  const model = await loadModel(await writeTinyModel(await temporaryFolder()), { threads: 1 })
  const fractions: number[] = []
  // 1125 windows; 512 of them go through the model together.
  const { windows } = await perplexity(model, {
    tokens: randomTokens(72_000),
    sequenceLength: 64,
    onProgress: (fraction) => fractions.push(fraction),
  })
  await model.dispose()
  expect(windows).toBe(1125)
  // Two blocks and the head, for each of three chunks at least.
  expect(fractions.length).toBeGreaterThanOrEqual(9)
  fractions.forEach((fraction, i) => expect(fraction).toBeCloseTo((i + 1) / fractions.length, 10))
})
