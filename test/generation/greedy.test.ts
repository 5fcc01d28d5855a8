import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { expect, test } from '@jest/globals'
import { Decoder } from '../../src/generation/decoder.js'
import { ResidentModel } from '../../src/generation/resident-model.js'
import { loadModel, type Model } from '../../src/index.js'
import { engineOf } from '../../src/sdk/model.js'
import { goldenModels } from '../models/golden-models.js'
import { describeWithShared } from '../shared.js'
import { longGolden, promptOf } from './golden.js'

const file = fileURLToPath(new URL('./greedy.json', import.meta.url))
const expected = JSON.parse(readFileSync(file, 'utf8')) as Record<
  string,
  { prompt: number; tokens: string }[]
>

/** The gap between two logits below which rounding decides which of them is the higher one. */
const tie = 1e-4

/** The last row of the logits of all of the ids, run at once. */
async function lastLogits(model: Model, ids: number[]): Promise<Float32Array> {
  const { data, shape } = await model.logits([ids])
  return data.subarray((ids.length - 1) * shape[2])
}

describeWithShared('greedy text of tiny models', () => {
  test('there are tokens of all models', () => {
    expect(Object.keys(expected)).toEqual(expect.arrayContaining(goldenModels))
  })

  test.each(Object.entries(expected))('%s, as transformers has it', async (name, rows) => {
    const { folder, vocabulary } = await longGolden(name)
    const model = await loadModel(folder, { device: 'cpu', dtype: 'float32' })
    for (const { prompt: length, tokens } of rows) {
      const golden = tokens.split(' ').map(Number)
      const prompt = promptOf(length, vocabulary)
      const { tokenIds, finishReason, text } = await model.generate(prompt, { maxTokens: golden.length })
        .result
      expect(finishReason).toBe('length')
      expect(text).toBe(tokenIds.map((id) => ` w${id}`).join(''))
      const parting = golden.findIndex((id, i) => id !== tokenIds[i])
      if (parting < 0) continue
      // Only where rounding decides may the two part ways.
      const logits = await lastLogits(model, [...prompt, ...golden.slice(0, parting)])
      const gap = Math.abs(logits[golden[parting]!]! - logits[tokenIds[parting]!]!)
      expect([length, parting, gap]).toEqual([length, parting, expect.closeTo(0, -Math.log10(2 * tie))])
    }
    await model.dispose()
  })

  test.each(Object.entries(expected))('%s, with the cache as without', async (name, rows) => {
    const { folder, vocabulary } = await longGolden(name)
    const model = await loadModel(folder, { device: 'cpu', dtype: 'float32' })
    const resident = new ResidentModel(engineOf(model))
    const { prompt: length, tokens } = rows[1]!
    const decoder = new Decoder(resident, 1, length + 64)
    const ids = promptOf(length, vocabulary)
    for (const id of tokens.split(' ').map(Number)) {
      const cached = await decoder.logits([ids])
      const whole = await lastLogits(model, ids)
      const range = Math.max(...whole) - Math.min(...whole)
      const apart = whole.reduce((most, logit, i) => Math.max(most, Math.abs(logit - cached[i]!)), 0)
      expect(apart / range).toBeLessThan(1e-5)
      ids.push(id)
    }
    decoder.dispose()
    resident.dispose()
    await model.dispose()
  })
})
