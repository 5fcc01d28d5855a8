import { describe, expect, test } from '@jest/globals'
import { loglikelihoods, type Request } from '../../src/evaluation/loglikelihoods.js'
import { PackedBatch } from '../../src/evaluation/packed-batch.js'
import { prefixGroups } from '../../src/evaluation/prefix-groups.js'
import { engineOf, loadModel, type Model } from '../../src/sdk/model.js'
import { PythonRandom } from '../../src/text/python-random.js'
import { goldenModels } from '../models/golden-models.js'
import { describeWithShared, sharedPath } from '../shared.js'
import { expectError, temporaryFolder } from '../temporary.js'
import { vocabulary, writeTinyModel } from '../tiny-model.js'

const sequence = (text: string) => Int32Array.from(text, (letter) => letter.charCodeAt(0))
const text = (ids: Int32Array) => String.fromCharCode(...ids)

describe('sequences are grouped so that few tokens run', () => {
  test.each([
    ['choices of questions', ['abcX', 'abcYZ', 'defX', 'defY'], ['3 abcX abcYZ', '3 defX defY']],
    ['examples before all questions', ['eeeeeeaX', 'eeeeeeaY', 'eeeeeeb'], ['6 eeeeeeaX eeeeeeaY eeeeeeb']],
    ['one inside another', ['ab', 'abc'], ['2 ab abc']],
    ['nothing in common', ['ab', 'ba'], ['0 ab', '0 ba']],
    ['none', [], []],
  ])('%s', (_, sequences, expected) => {
    const groups = prefixGroups(sequences.map(sequence))
    expect(groups.map(({ prefix, members }) => [prefix, ...members.map(text)].join(' '))).toEqual(expected)
  })

  test('a batch has each prefix once', () => {
    const batch = new PackedBatch(prefixGroups(['abcX', 'abcYZ', 'd'].map(sequence)))
    expect(text(batch.ids)).toBe('abcXYZd')
    expect([...batch.positions]).toEqual([0, 1, 2, 3, 3, 4, 0])
  })
})

/** The log-likelihoods by the logits of each request alone. */
async function expected(model: Model, requests: readonly Request[]) {
  const results: { loglikelihood: number; greedy: boolean }[] = []
  for (const { context, continuation } of requests) {
    const { data, shape } = await model.logits([[...context, ...continuation].slice(0, -1)])
    let loglikelihood = 0
    let greedy = true
    for (const [t, id] of continuation.entries()) {
      const at = (context.length - 1 + t) * shape[2]
      const row = Array.from(data.subarray(at, at + shape[2]))
      const top = Math.max(...row)
      loglikelihood += row[id]! - top - Math.log(row.reduce((sum, logit) => sum + Math.exp(logit - top), 0))
      greedy &&= row[id] === top
    }
    results.push({ loglikelihood, greedy })
  }
  return results
}

/** Requests with common beginnings, equal inputs, and an input that is the beginning of another. */
function someRequests(size: number): Request[] {
  const random = new PythonRandom(1)
  const tokens = (length: number) => Int32Array.from({ length }, () => random.randint(3, size - 1))
  const examples = tokens(14)
  return [1, 2, 3].flatMap((length) => {
    const context = Int32Array.from([...examples, ...tokens(length)])
    const longer = tokens(4)
    const choices = [tokens(3), longer, longer.subarray(0, 2), tokens(1), tokens(1)]
    return [
      ...choices.map((continuation) => ({ context, continuation })),
      { context: tokens(length), continuation: tokens(2) },
    ]
  })
}

describeWithShared('log-likelihoods are those of the logits', () => {
  test.each(goldenModels)('%s', async (name) => {
    const model = await loadModel(sharedPath('golden', 'models', name)!, { device: 'cpu', threads: 2 })
    try {
      const engine = engineOf(model)
      const requests = someRequests(engine.vocabularySize)
      // The likeliest token behind a context, so that greedy is not always false.
      const { context } = requests[0]!
      const { data, shape } = await model.logits([[...context]])
      const last = data.subarray(-shape[2])
      requests.push({ context, continuation: Int32Array.of(last.indexOf(Math.max(...last))) })
      const wanted = await expected(model, requests)
      const own = await loglikelihoods(engine, requests, { greedy: true })
      expect(wanted.some(({ greedy }) => greedy)).toBe(true)
      for (const [i, { loglikelihood, greedy }] of own.entries()) {
        expect(loglikelihood).toBeCloseTo(wanted[i]!.loglikelihood, 3)
        expect(greedy).toBe(wanted[i]!.greedy)
      }
    } finally {
      await model.dispose()
    }
  })
})

test('what does not fit in the context is cut off at the left; a longer continuation is refused', async () => {
  const model = await loadModel(await writeTinyModel(await temporaryFolder()), { device: 'cpu', threads: 1 })
  try {
    const engine = engineOf(model)
    const random = new PythonRandom(2)
    const tokens = (length: number) => Int32Array.from({ length }, () => random.randint(0, vocabulary - 1))
    const [context, continuation] = [tokens(100), tokens(4)]
    // 64 positions read, and the last token only predicted.
    const [own] = await loglikelihoods(engine, [{ context, continuation }], { greedy: false })
    const [wanted] = await expected(model, [{ context: context.subarray(100 - 61), continuation }])
    expect(own!.loglikelihood).toBeCloseTo(wanted!.loglikelihood, 4)
    const long = { context, continuation: tokens(65) }
    await expectError(loglikelihoods(engine, [long], { greedy: false }), 'INVALID_TEXT', /65 tokens/)
  } finally {
    await model.dispose()
  }
})

test('many batches: the same as one by one; progress ends at 1; an abort is heard', async () => {
  const model = await loadModel(await writeTinyModel(await temporaryFolder()), { device: 'cpu', threads: 1 })
  try {
    const engine = engineOf(model)
    const random = new PythonRandom(3)
    const tokens = (length: number) => Int32Array.from({ length }, () => random.randint(0, vocabulary - 1))
    const prefix = tokens(20)
    const requests = Array.from({ length: 1200 }, (_, i) => ({
      context: Int32Array.from([...prefix, ...tokens(i % 17)]),
      continuation: tokens(1 + (i % 25)),
    }))
    const fractions: number[] = []
    const onProgress = (fraction: number) => fractions.push(fraction)
    const own = await loglikelihoods(engine, requests, { greedy: false, onProgress })
    expect(fractions.length).toBeGreaterThan(9)
    expect(fractions.at(-1)).toBeCloseTo(1, 10)
    const picked = [0, 1, 599, 1198, 1199]
    const wanted = await expected(
      model,
      picked.map((i) => requests[i]!),
    )
    picked.forEach((at, i) => expect(own[at]!.loglikelihood).toBeCloseTo(wanted[i]!.loglikelihood, 3))
    const signal = AbortSignal.abort()
    await expectError(loglikelihoods(engine, requests, { greedy: false, signal }), 'ABORTED', /./)
  } finally {
    await model.dispose()
  }
})
