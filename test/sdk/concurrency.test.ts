import { expect, test } from '@jest/globals'
import { loadModel, prune } from '../../src/index.js'
import { temporaryFolder } from '../temporary.js'
import { randomTokens, writeTinyModel } from '../tiny-model.js'

test('calls on one model at once, of ever longer sequences, do not take each other’s tensors', async () => {
  const model = await loadModel(await writeTinyModel(await temporaryFolder()), { threads: 2 })
  try {
    const lengths = Array.from({ length: 24 }, (_, i) => i + 1)
    const ids = lengths.map((length) => [randomTokens(length)])
    const alone: Float32Array[] = []
    for (const batch of ids) alone.push((await model.logits(batch)).data)
    const other = await loadModel(model.folder, { threads: 2 })
    const together = await Promise.all(ids.map((batch) => other.logits(batch)))
    together.forEach(({ data }, i) => expect(data).toEqual(alone[i]))

    const tokens = randomTokens(200)
    const calibration = { tokens, samples: 6, sequenceLength: 12 }
    const pruning = prune(other, { sequential: 'layer', calibration })
    await Promise.all([pruning, ...ids.map((batch) => other.logits(batch))])
    await other.dispose()
  } finally {
    await model.dispose()
  }
})
