import { expect, test } from '@jest/globals'
import { loadModel, perplexity } from '../../src/index.js'
import { expectError, temporaryFolder } from '../temporary.js'
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

test('how far a model is from another: not at all from itself, as the logits say from another', async () => {
  const [folder, other] = [await temporaryFolder(), await temporaryFolder()]
  const dense = await writeTinyModel(folder)
  const changed = await writeTinyModel(other, 'llama', (name, values) => {
    if (name.includes('mlp')) values.fill(0.01)
  })
  const text = { tokens: randomTokens(96), sequenceLength: 32 }
  const model = await loadModel(changed, { device: 'cpu', threads: 1 })
  try {
    expect(await perplexity(model, text)).not.toHaveProperty('against')
    const { against: itself } = await perplexity(model, { ...text, against: changed })
    expect(itself).toEqual({ divergence: expect.closeTo(0, 6), top1Agreement: 1, perplexityRatio: 1 })
    const windows = [0, 32, 64].map((at) => text.tokens.slice(at, at + 32))
    const ours = await model.logits(windows)
    const reference = await loadModel(dense, { device: 'cpu', threads: 1 })
    const theirs = await reference.logits(windows)
    const { perplexity: theirPerplexity } = await perplexity(reference, text)
    await reference.dispose()
    const width = ours.shape[2]
    let [sum, agreed] = [0, 0]
    for (let row = 0; row < 96; row++) {
      const [p, q] = [theirs, ours].map(({ data }) => {
        const scores = data.subarray(row * width, (row + 1) * width)
        const total = Math.log(scores.reduce((all, score) => all + Math.exp(score), 0))
        return Array.from(scores, (score) => score - total)
      }) as [number[], number[]]
      if (p.indexOf(Math.max(...p)) === q.indexOf(Math.max(...q))) agreed++
      sum += p.reduce((all, log, i) => all + Math.exp(log) * (log - q[i]!), 0)
    }
    const { against, perplexity: ourPerplexity } = await perplexity(model, { ...text, against: dense })
    expect(against!.divergence / (sum / 96)).toBeCloseTo(1, 4)
    expect(agreed).toBeGreaterThan(0)
    expect(against!.top1Agreement).toBe(agreed / 96)
    expect(against!.perplexityRatio).toBeCloseTo(ourPerplexity / theirPerplexity, 6)
  } finally {
    await model.dispose()
  }
})

test('a dense model of another family is refused', async () => {
  const model = await loadModel(await writeTinyModel(await temporaryFolder()), { threads: 1 })
  const dense = await writeTinyModel(await temporaryFolder(), 'gpt2')
  const job = perplexity(model, { tokens: randomTokens(64), sequenceLength: 32, against: dense })
  await expectError(job, 'INVALID_OPTION', /option against.*"gpt2"/)
  await model.dispose()
})
