import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { chooseToken, type Sampling } from '../../src/generation/sampling.js'
import { PythonRandom } from '../../src/text/python-random.js'
import { expectError } from '../temporary.js'

/** The probabilities that transformers' warpers leave: temperature, then top-k, then top-p, each written out plainly. */
function probabilities(logits: Float32Array, { temperature, topK, topP }: Sampling): number[] {
  const scaled = [...logits].map((logit) => logit / temperature)
  const softmax = (scores: number[]) => {
    const top = Math.max(...scores)
    const weights = scores.map((score) => Math.exp(score - top))
    const sum = weights.reduce((a, b) => a + b)
    return weights.map((weight) => weight / sum)
  }
  const descending = [...scaled].sort((a, b) => b - a)
  const lowest = descending[Math.min(topK ?? Infinity, scaled.length) - 1]!
  const kept = scaled.map((score) => (score >= lowest ? score : -Infinity))
  if (topP === undefined || topP === 1) return softmax(kept)
  const before = softmax(kept)
  const order = [...before.keys()].sort((a, b) => kept[b]! - kept[a]! || a - b)
  let sum = 0
  for (const id of order) {
    // A token stays where those that are likelier do not make up the share by themselves.
    if (sum >= topP) kept[id] = -Infinity
    sum += before[id]!
  }
  return softmax(kept)
}

/** How often each token is chosen. */
function frequencies(logits: Float32Array, sampling: Sampling, draws: number): number[] {
  const random = new PythonRandom(3)
  const counts = new Array<number>(logits.length).fill(0)
  for (let i = 0; i < draws; i++) counts[chooseToken(logits, sampling, random)]!++
  return counts.map((count) => count / draws)
}

const logits = Float32Array.from([1, 3.5, -2, 3, 0, 2.5, 2.5, -1])

describe('chooseToken', () => {
  test('temperature 0: the highest logit, of equal ones the first', () => {
    const random = new PythonRandom(0)
    expect(chooseToken(logits, { temperature: 0 }, random)).toBe(1)
    expect(chooseToken(Float32Array.from([1, 2, 2]), { temperature: 0 }, random)).toBe(1)
  })

  test.each<Sampling>([
    { temperature: 1 },
    { temperature: 0.5 },
    { temperature: 2 },
    { temperature: 1, topK: 1 },
    { temperature: 1, topK: 2 },
    // The third and the fourth are equal.
    { temperature: 1, topK: 3 },
    { temperature: 1, topK: 100 },
    { temperature: 1, topP: 0.3 },
    { temperature: 1.5, topP: 0.8 },
    { temperature: 1, topP: 1 },
    { temperature: 0.7, topK: 4, topP: 0.9 },
  ])('%j', (sampling) => {
    const expected = probabilities(logits, sampling)
    const draws = 20_000
    frequencies(logits, sampling, draws).forEach((share, id) => {
      // Never what is cut; else within five standard deviations.
      const deviation = Math.sqrt((expected[id]! * (1 - expected[id]!)) / draws)
      expect(Math.abs(share - expected[id]!)).toBeLessThanOrEqual(5 * deviation)
    })
  })

  test('with any logits only tokens are chosen that the plain reference leaves', () => {
    const logit = fc.double({ min: -40, max: 40, noNaN: true })
    const sampling = fc.record({
      temperature: fc.constantFrom(0.1, 1, 3),
      topK: fc.option(fc.integer({ min: 1, max: 30 }), { nil: undefined }),
      topP: fc.option(fc.double({ min: 0.01, max: 1, noNaN: true }), { nil: undefined }),
    })
    fc.assert(
      fc.property(fc.array(logit, { minLength: 1, maxLength: 40 }), sampling, fc.nat(), (list, how, seed) => {
        const values = Float32Array.from(list)
        const allowed = probabilities(values, how)
        return allowed[chooseToken(values, how, new PythonRandom(seed))]! > 0
      }),
      { numRuns: 500 },
    )
  })

  test('a seed gives the same tokens again', () => {
    const tokens = (seed: number) => {
      const random = new PythonRandom(seed)
      return Array.from({ length: 20 }, () => chooseToken(logits, { temperature: 1 }, random))
    }
    expect(tokens(4)).toEqual(tokens(4))
    expect(tokens(4)).not.toEqual(tokens(5))
  })

  test.each([NaN, Infinity])('a logit that is %p', async (value) => {
    const choose = async () =>
      chooseToken(Float32Array.from([0, value, 1]), { temperature: 0 }, new PythonRandom(0))
    await expectError(choose(), 'NON_FINITE', /not finite/)
  })
})
