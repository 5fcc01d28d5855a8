import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { beforeAll, describe, expect, test } from '@jest/globals'
import {
  benchmarkDecode,
  compare,
  distill,
  inspect,
  loadModel,
  pack,
  perplexity,
  plan,
  prune,
  saveTokens,
  type DistillationProgress,
  type Model,
  type PruneProgress,
} from '../../src/index.js'
import { readTensors } from '../safetensors-file.js'
import { expectError, temporaryFolder } from '../temporary.js'
import { randomTokens, writeTinyModel } from '../tiny-model.js'

const calibration = { tokens: randomTokens(600), samples: 8, sequenceLength: 32 }
const text = { tokens: randomTokens(300, 5), sequenceLength: 32 }

let folder: string
beforeAll(async () => {
  folder = await writeTinyModel(await temporaryFolder())
})

async function withModel<T>(path: string | URL, body: (model: Model) => Promise<T>): Promise<T> {
  const model = await loadModel(path, { threads: 1, device: 'cpu' })
  try {
    return await body(model)
  } finally {
    await model.dispose()
  }
}

const weightsOf = (path: string) => readTensors(join(path, 'model.safetensors'))
const zeros = (values: Float32Array) => values.filter((value) => value === 0).length

describe('a model that is saved', () => {
  test('has what every call pruned in memory, and nothing else has changed', async () => {
    const out = join(await temporaryFolder(), 'out')
    await withModel(folder, async (model) => {
      const first = await prune(model, { calibration, include: 'mlp', maxBlock: 1 })
      const second = await prune(model, { calibration, pattern: '2:4', minBlock: 1 })
      const third = await prune(model, { method: 'magnitude', sparsity: 0.25, include: 'layers.0.self_attn' })
      const inMemory = await perplexity(model, text)
      await model.save(out)
      expect(model.folder).toBe(out)
      expect((await readdir(out)).sort()).toEqual(['config.json', 'model.safetensors', 'tokenizer.json'])
      const [before, after] = [await weightsOf(folder), await weightsOf(out)]
      const shares = new Map(
        [...first.layers, ...second.layers, ...third.layers].map(({ name, sparsity }) => [name, sparsity]),
      )
      expect(shares.size).toBe(14)
      for (const [name, { values, shape }] of after) {
        const original = before.get(name)!
        expect(shape).toEqual(original.shape)
        const share = shares.get(name.replace(/\.weight$/, ''))
        if (share === undefined) expect(values).toEqual(original.values)
        else expect([name, zeros(values) / values.length]).toEqual([name, share])
      }
      // It goes on from the folder, as a model does that is loaded from there.
      expect(await perplexity(model, text)).toEqual(inMemory)
      expect(await withModel(out, (saved) => perplexity(saved, text))).toEqual(inMemory)
    })
  })

  test('can be packed at once', async () => {
    const out = join(await temporaryFolder(), 'out')
    const [inMemory, weights] = await withModel(folder, async (model) => {
      await prune(model, { calibration, sparsity: 0.7 })
      const measured = await perplexity(model, text)
      await model.save(out, { encoding: 'bitmask' })
      return [measured, (await inspect(out)).sparsity] as const
    })
    expect(await readdir(out)).toContain('packed.safetensors')
    expect(weights).toBeGreaterThan(0.5)
    expect(await withModel(out, (saved) => perplexity(saved, text))).toEqual(inMemory)
  })

  test('is written complete or not at all, and over nothing that is not to be lost', async () => {
    const parent = await temporaryFolder()
    const out = join(parent, 'out')
    await withModel(folder, async (model) => {
      await prune(model, { calibration })
      await expectError(model.save(out, { signal: AbortSignal.abort() }), 'ABORTED', /stopped/)
      await expectError(model.save(folder, { force: true }), 'INVALID_OPTION', /folder of the source model/)
      await expectError(model.save(out, { depth: 1 } as never), 'INVALID_OPTION', /^save: unknown option/)
      await expectError(model.save(7 as never), 'INVALID_OPTION', /^save: the folder: .*given: 7/)
      expect(await readdir(parent)).toEqual([])
      await model.save(out)
    })
    await withModel(folder, async (model) => {
      await expectError(model.save(out), 'OUTPUT_EXISTS', /out exists/)
      await model.save(out, { force: true })
    })
    expect(await weightsOf(out)).toEqual(await weightsOf(folder))
    expect(await readdir(parent)).toEqual(['out'])
  })
})

test('a model is disposed of at the end of its scope', async () => {
  const model = await loadModel(folder, { threads: 1 })
  await model[Symbol.asyncDispose]()
  await expectError(model.logits([[1]]), 'INVALID_OPTION', /has been disposed of/)
  await expectError(model.save('anywhere'), 'INVALID_OPTION', /has been disposed of/)
})

describe('URLs', () => {
  test('file: URLs serve wherever a path does', async () => {
    const parent = await temporaryFolder()
    const url = (name: string) => pathToFileURL(join(parent, name))
    const source = pathToFileURL(folder)
    await saveTokens(url('tokens.safetensors'), Int32Array.from(calibration.tokens))
    const fromFile = { file: url('tokens.safetensors'), samples: 8, sequenceLength: 32 }
    await withModel(source, async (model) => {
      const more = { target: 'dense', dense: source, offload: pathToFileURL(parent) } as const
      const again = { ...fromFile, saveTokens: url('again.safetensors') }
      await prune(model, { calibration: again, out: url('pruned'), ...more })
      await perplexity(model, { file: url('again.safetensors'), against: source })
      await distill(model, { dense: source, calibration: fromFile, out: url('distilled') })
      await model.save(url('saved'))
    })
    const { out } = await pack(url('saved'), { out: url('packed') })
    expect(out).toBe(join(parent, 'packed'))
    expect((await inspect(url('packed'))).sparsity).toBeGreaterThan(0.4)
    expect((await plan(source, { samples: 2, sequenceLength: 16 })).model).toBe(
      folder.slice(folder.lastIndexOf('/') + 1),
    )
    const missing = /nowhere does not exist/
    await expectError(compare([url('nowhere')]), 'FILE_NOT_FOUND', missing)
    await expectError(benchmarkDecode({ model: url('nowhere') }), 'FILE_NOT_FOUND', missing)
  })

  test('other protocols are refused, and say where', async () => {
    const web = new URL('https://huggingface.co/gpt2')
    await expectError(
      loadModel(web),
      'INVALID_OPTION',
      /^the model: must be a path or a file: URL.*huggingface/,
    )
    await expectError(inspect(web), 'INVALID_OPTION', /file: URL/)
    await withModel(folder, async (model) => {
      const message = /^prune: option out: must be a path or a file: URL: .*given: https:/
      await expectError(prune(model, { calibration, out: web }), 'INVALID_OPTION', message)
      await expectError(model.save(web.href), 'INVALID_OPTION', /must be a path or a file: URL/)
      const file = /option calibration\.file: must be a path or a file: URL/
      await expectError(prune(model, { calibration: { file: web } }), 'INVALID_OPTION', file)
      await expectError(
        perplexity(model, { ...text, against: web }),
        'INVALID_OPTION',
        /option against: must be a path or a file: URL/,
      )
    })
  })
})

describe('progress as a loop', () => {
  test('a loop gets what the callback gets, from the beginning to the end', async () => {
    await withModel(folder, async (model) => {
      const [called, looped]: [PruneProgress[], PruneProgress[]] = [[], []]
      const job = prune(model, {
        calibration,
        reconstruct: 1,
        distill: 1,
        onProgress: (progress) => called.push(progress),
      })
      for await (const progress of job) looped.push(progress)
      expect(looped).toEqual(called)
      const fractions = looped.map(({ fraction }) => fraction)
      expect(fractions).toEqual([...fractions].sort((a, b) => a - b))
      expect(fractions[0]).toBeGreaterThan(0)
      expect(fractions.at(-1)).toBe(1)
      expect((await job).layers).toHaveLength(14)
    })
  })

  test('a loop is enough for the shares to be right, and leaving it does not stop the work', async () => {
    await withModel(folder, async (model) => {
      const job = prune(model, { calibration })
      for await (const { fraction, block } of job) {
        expect([block, fraction]).toEqual([0, expect.closeTo(0.1, 0)])
        break
      }
      expect((await job).layers).toHaveLength(14)
    })
  })

  test('it throws what stops the work', async () => {
    await withModel(folder, async (model) => {
      const controller = new AbortController()
      const job = prune(model, { calibration, signal: controller.signal })
      const loop = async () => {
        for await (const { layer } of job) if (layer) controller.abort()
      }
      await expectError(loop(), 'ABORTED', /stopped/)
      await expectError(Promise.resolve(job), 'ABORTED', /stopped/)
      const wrong = async () => {
        for await (const progress of prune(model, { calibration, sparsity: 2 })) expect(progress).toBeNull()
      }
      await expectError(wrong(), 'INVALID_OPTION', /option sparsity/)
    })
  })

  test('of distill and pack', async () => {
    const parent = await temporaryFolder()
    await withModel(folder, async (model) => {
      await prune(model, { calibration })
      const steps: DistillationProgress[] = []
      for await (const progress of distill(model, { dense: folder, calibration })) steps.push(progress)
      expect(steps.at(-1)!.step).toBe(steps.at(-1)!.steps)
      const packing = pack(model, { out: join(parent, 'packed') })
      const fractions: number[] = []
      for await (const { fraction } of packing) fractions.push(fraction)
      expect(fractions).toHaveLength(14)
      expect(fractions.at(-1)).toBe(1)
      expect((await packing).packed).toEqual({ before: 0, after: 14 })
    })
  })
})
