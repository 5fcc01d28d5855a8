import { expect, test } from '@jest/globals'
import { Decoder } from '../../src/generation/decoder.js'
import { ResidentModel } from '../../src/generation/resident-model.js'
import { chooseToken } from '../../src/generation/sampling.js'
import { loadModel, type Model } from '../../src/index.js'
import { engineOf } from '../../src/sdk/model.js'
import { PythonRandom } from '../../src/text/python-random.js'
import { goldenModels } from '../models/golden-models.js'
import { describeWithShared } from '../shared.js'
import { greedy, longGolden, promptOf } from './golden.js'

/** One more has frequencies that depend on the length of a sequence. */
const models = [...new Set([...goldenModels, 'phi3-longrope'])]

/** The gap between two logits below which rounding decides which of them is the higher one. */
const tie = 1e-4

const golden = (tokens: string) => tokens.split(' ').map(Number)

/** The last row of the logits of all of the ids, run at once without a cache. */
async function lastLogits(model: Model, ids: number[]): Promise<Float32Array> {
  const { data, shape } = await model.logits([ids])
  return data.subarray((ids.length - 1) * shape[2])
}

/** Expects the tokens that transformers generates; only where rounding decides may the two part ways. */
async function expectTokens(model: Model, prompt: number[], tokens: number[], expected: number[]) {
  expect(tokens).toHaveLength(expected.length)
  const parting = expected.findIndex((id, i) => id !== tokens[i])
  if (parting < 0) return
  const logits = await lastLogits(model, [...prompt, ...expected.slice(0, parting)])
  const gap = Math.abs(logits[expected[parting]!]! - logits[tokens[parting]!]!)
  expect({ prompt: prompt.length, parting, tie: gap < tie }).toEqual({
    prompt: prompt.length,
    parting,
    tie: true,
  })
}

describeWithShared('greedy tokens of tiny models, against transformers', () => {
  test.each(models)('%s, with the cache as without', async (name) => {
    const { folder, vocabulary } = await longGolden(name)
    const model = await loadModel(folder, { device: 'cpu', dtype: 'float32' })
    const resident = await ResidentModel.load(engineOf(model), 1)
    const random = new PythonRandom(0)
    for (const { prompt: length, tokens } of greedy[name]!.texts) {
      const expected = golden(tokens)
      const prompt = promptOf(length, vocabulary)
      const ids = [...prompt]
      const decoder = new Decoder(resident, 1, length + expected.length)
      while (ids.length < length + expected.length) {
        const logits = await decoder.logits([ids])
        if (length === 7) {
          const whole = await lastLogits(model, ids)
          const range = Math.max(...whole) - Math.min(...whole)
          const apart = whole.reduce((most, logit, i) => Math.max(most, Math.abs(logit - logits[i]!)), 0)
          expect(apart / range).toBeLessThan(1e-5)
        }
        ids.push(chooseToken(logits, { temperature: 0 }, random))
      }
      decoder.dispose()
      await expectTokens(model, prompt, ids.slice(length), expected)
    }
    resident.dispose()
    await model.dispose()
  })

  test('as model.generate gives them', async () => {
    const { folder, vocabulary } = await longGolden('mistral')
    const model = await loadModel(folder, { device: 'cpu', dtype: 'float32' })
    for (const { prompt: length, tokens } of greedy['mistral']!.texts) {
      const prompt = promptOf(length, vocabulary)
      const { tokenIds, text, finishReason } = await model.generate(prompt, { maxTokens: 64 }).result
      await expectTokens(model, prompt, tokenIds, golden(tokens))
      expect(text).toBe(tokenIds.map((id) => ` w${id}`).join(''))
      expect(finishReason).toBe('length')
    }
    await model.dispose()
  })
})
