import { prune, type PruneOptions } from '../loose-options.js'
import { existsSync } from 'node:fs'
import { readdir } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { beforeAll, describe, expect, test } from '@jest/globals'
import { distill, loadModel, perplexity, plan, type Model } from '../../src/index.js'
import { readTensors } from '../safetensors-file.js'
import { expectError, temporaryFolder } from '../temporary.js'
import { randomTokens, writeTinyModel } from '../tiny-model.js'

const calibration = { tokens: randomTokens(1200), samples: 8, sequenceLength: 32 }
const [evaluation, fitted] = [
  { tokens: randomTokens(640, 7), sequenceLength: 32 },
  { epochs: 2, batch: 1 },
]

let source: string
beforeAll(async () => {
  source = await writeTinyModel(await temporaryFolder(), 'llama')
})

async function withModel<T>(folder: string, body: (model: Model) => Promise<T>): Promise<T> {
  const model = await loadModel(folder, { device: 'cpu', threads: 1 })
  try {
    return await body(model)
  } finally {
    await model.dispose()
  }
}

const pruned = (options: PruneOptions, from = source) => withModel(from, (model) => prune(model, options))

const newFolder = async () => join(await temporaryFolder(), 'out')

async function matrices(folder: string): Promise<Map<string, number[]>> {
  const tensors = await readTensors(join(folder, 'model.safetensors'))
  const blocks = [...tensors].filter(([name]) => /layers\.\d.*_proj\.weight$/.test(name))
  return new Map(blocks.map(([name, { values }]) => [name, Array.from(values)]))
}

const share = (values: readonly number[]) => values.filter((value) => value === 0).length / values.length

describe('a schedule', () => {
  test('ends where the folders of its steps, pruned one from the other by hand, end', async () => {
    const folders = [await newFolder(), await newFolder(), await newFolder()] as const
    const rest = { calibration, target: 'dense', reconstruct: fitted, refit: true } as const
    const report = await pruned({ ...rest, schedule: [0.3, 0.6], out: folders[0] })
    await pruned({ ...rest, sparsity: 0.3, dense: source, out: folders[1] })
    await pruned({ ...rest, sparsity: 0.6, dense: source, out: folders[2] }, folders[1])
    expect(report.sparsity.target).toBe(0.6)
    const [scheduled, first, second] = await Promise.all(folders.map(matrices))
    for (const [name, values] of scheduled!) {
      expect([name, values]).toEqual([name, second!.get(name)])
      expect(Math.abs(share(values) - 0.6)).toBeLessThan(0.5 / 24)
      // What was a zero stays one.
      first!.get(name)!.forEach((value, i) => value === 0 && expect(values[i]).toBe(0))
    }
  })

  test('tells the step, and the whole work from 0 to 1', async () => {
    const seen: [step: number, steps: number, fraction: number][] = []
    await pruned({
      calibration,
      schedule: [0.3, 0.5, 0.6],
      onProgress: ({ scheduleStep, scheduleSteps, fraction }) =>
        seen.push([scheduleStep, scheduleSteps, fraction]),
    })
    expect(new Set(seen.map(([step]) => step))).toEqual(new Set([0, 1, 2]))
    expect(new Set(seen.map(([, steps]) => steps))).toEqual(new Set([3]))
    const fractions = seen.map(([, , fraction]) => fraction)
    expect([...fractions].sort((a, b) => a - b)).toEqual(fractions)
    expect(fractions.at(-1)).toBeGreaterThan(0.95)
    expect(fractions.filter((fraction) => fraction < 0.34).length).toBeGreaterThan(fractions.length / 4)
  })

  test('that is stopped in its second step leaves the model as it was, and no folder', async () => {
    const [out, controller] = [await newFolder(), new AbortController()]
    await withModel(source, async (model) => {
      const before = await perplexity(model, evaluation)
      const job = prune(model, {
        calibration,
        schedule: [0.3, 0.6],
        out,
        signal: controller.signal,
        onProgress: ({ scheduleStep }) => scheduleStep === 1 && controller.abort(),
      })
      await expectError(job, 'ABORTED', /stopped/)
      expect(await perplexity(model, evaluation)).toEqual(before)
    })
    expect(existsSync(out)).toBe(false)
    expect(await readdir(dirname(out))).toEqual([])
  })

  test.each([
    [{ schedule: [0.6, 0.5] }, /schedule.*grow/],
    [{ schedule: [0.5, 1] }, /schedule/],
    [{ schedule: [] }, /schedule/],
    [{ schedule: [0.5], sparsity: 0.5 }, /one of sparsity, schedule/],
    [{ schedule: [0.5], pattern: '2:4' }, /one of sparsity, schedule/],
    [{ schedule: [0.5], allocation: { default: { sparsity: 0.5 } } }, /allocation.*schedule/],
    [{ schedule: [0.5, 0.6], resume: true, out: 'x' }, /resume.*schedule/],
    [{ distill: true, resume: true, out: 'x' }, /resume.*distill/],
    [{ reconstruct: 1, bits: 4 }, /reconstruct.*bits/],
    [{ distill: 1, bits: 4 }, /distill.*bits/],
    [{ quality: 'superb' as 'best' }, /quality/],
    [{ quality: 'good', bits: 4 }, /reconstruct.*bits.*quality "good"/],
    [{ quality: 'best', resume: true, out: 'x' }, /resume.*distill.*quality "best"/],
    [{ alpha: 0.3 }, /alpha.*target "dense"/],
    [{ dense: './nowhere' }, /dense.*reconstruct or distill/],
    [{ reconstruct: 1.5 }, /reconstruct: .*expected int.*given: 1.5/],
    [{ reconstruct: { epochs: 1.5 } }, /reconstruct.epochs: .*expected int.*given: 1.5/],
    [{ reconstruct: { rate: 1 } as object }, /unknown option rate/],
    [{ distill: 'long' as never }, /distill: must be .*given: "long"/],
    [{ calibration: undefined, method: 'magnitude', reconstruct: 1 } as never, /needed for reconstruct/],
    [{ calibration: undefined, method: 'magnitude', target: 'dense' } as never, /needed for target "dense"/],
    [{ calibration: undefined, method: 'magnitude', refit: true } as never, /needed for refit/],
    [{ calibration: undefined, refit: true } as never, /needed for method "sparsegpt"/],
  ] satisfies [PruneOptions, RegExp][])('%j is refused', async (options, message) => {
    await expectError(pruned({ calibration, ...options }), 'INVALID_OPTION', message)
  })
})

describe('distill as a stage of prune', () => {
  const settings = { epochs: 3, learningRate: 2e-2, batch: 4 }

  test('gives what prune and then distill give', async () => {
    const [whole, first, second] = [await newFolder(), await newFolder(), await newFolder()]
    const report = await pruned({ calibration, pattern: '2:4', distill: settings, out: whole })
    await pruned({ calibration, pattern: '2:4', out: first })
    const { samples: _, ...text } = calibration
    const { losses } = await withModel(first, (model) =>
      distill(model, { dense: source, calibration: text, out: second, ...settings }),
    )
    expect(report.distillation).toEqual([losses])
    expect(losses.bestStep).toBeGreaterThan(0)
    expect(await readTensors(join(whole, 'model.safetensors'))).toEqual(
      await readTensors(join(second, 'model.safetensors')),
    )
  })

  test('comes after every step of a schedule, and keeps the zeros; in memory too', async () => {
    const out = await newFolder()
    const options = { calibration, schedule: [0.4, 0.7], distill: settings }
    const { distillation, sparsity } = await pruned({ ...options, out })
    expect(distillation).toHaveLength(2)
    expect(sparsity.achieved).toBeCloseTo(0.7, 1)
    for (const values of (await matrices(out)).values()) expect(share(values)).toBeCloseTo(0.7, 1)
    const inMemory = await withModel(source, async (model) => {
      await prune(model, options)
      return perplexity(model, evaluation)
    })
    expect(await withModel(out, (model) => perplexity(model, evaluation))).toEqual(inMemory)
  })

  test('a model that was pruned in memory is trained towards its files', async () => {
    await withModel(source, async (model) => {
      await prune(model, { calibration, sparsity: 0.5 })
      const { distillation } = await prune(model, { calibration, sparsity: 0.5, distill: settings })
      const [losses] = distillation!
      // Against itself there would be nothing to gain.
      expect(losses!.heldOut[0]!.loss).toBeGreaterThan(0)
      expect(losses!.bestStep).toBeGreaterThan(0)
    })
  })

  test('the text is saved where only the training reads it', async () => {
    const saveTokens = join(await temporaryFolder(), 'tokens.safetensors')
    const text = { ...calibration, saveTokens }
    await pruned({ calibration: text, method: 'magnitude', sparsity: 0.5, distill: settings })
    expect(existsSync(saveTokens)).toBe(true)
  })

  test('the folder of the dense model is not replaced', async () => {
    const [dense, student] = [await temporaryFolder(), await newFolder()]
    await writeTinyModel(dense, 'llama')
    await pruned({ calibration, pattern: '2:4', out: student }, dense)
    const before = await readTensors(join(dense, 'model.safetensors'))
    const replacing = { dense, out: dense, force: true }
    await expectError(
      withModel(student, (model) => distill(model, { calibration, ...replacing, ...settings })),
      'INVALID_OPTION',
      /out: .* is the folder of the dense model/,
    )
    await expectError(
      pruned({ calibration, sparsity: 0.7, reconstruct: 1, ...replacing }, student),
      'INVALID_OPTION',
      /out: .* is the folder of the dense model/,
    )
    expect(await readTensors(join(dense, 'model.safetensors'))).toEqual(before)
  })

  test('a dense model that is not there, or of another shape, is refused', async () => {
    const options = { calibration, pattern: '2:4', reconstruct: 1 }
    await expectError(pruned({ ...options, dense: './nowhere' }), 'FILE_NOT_FOUND', /nowhere/)
    const other = await writeTinyModel(await temporaryFolder(), 'gpt2')
    await expectError(pruned({ ...options, dense: other }), 'INVALID_OPTION', /dense.*"gpt2"/)
  })
})

describe('quality', () => {
  test('fast, good and best do more and more, and what is given goes first', async () => {
    const run = async (options: PruneOptions) => {
      const out = await newFolder()
      const report = await pruned({ calibration, pattern: '2:4', out, ...options })
      const { perplexity: of } = await withModel(out, (model) => perplexity(model, evaluation))
      return { report, of }
    }
    const [fast, good, best, given] = [
      await run({ quality: 'fast' }),
      await run({ quality: 'good' }),
      await run({ quality: 'best' }),
      await run({ quality: 'best', method: 'wanda', distill: false }),
    ]
    const [layer] = fast.report.layers
    expect(layer!.reconstruction).toBeUndefined()
    expect(good.report.layers[0]!.reconstruction).toBeDefined()
    expect(good.report.distillation).toBeUndefined()
    expect(best.report.distillation).toHaveLength(1)
    expect(best.report.layers[0]!.reconstruction!.steps).toBeGreaterThan(
      good.report.layers[0]!.reconstruction!.steps,
    )
    expect(given.report).toMatchObject({ method: 'wanda' })
    expect(given.report.distillation).toBeUndefined()
    expect(given.report.layers[0]!.reconstruction).toBeDefined()
  })

  test('the plan has what it takes', async () => {
    const size = { samples: 8, sequenceLength: 32, pattern: '2:4' }
    const of = async (options: object) => {
      const { flop, memory } = await plan(source, { ...size, ...options })
      return { flop: flop.total, peak: memory.peak }
    }
    const [fast, good, best] = [
      await of({ quality: 'fast' }),
      await of({ quality: 'good' }),
      await of({ quality: 'best' }),
    ]
    expect(good.flop).toBeGreaterThan(2 * fast.flop)
    expect(best.flop).toBeGreaterThan(1.5 * good.flop)
    expect(best.peak).toBeGreaterThan(good.peak)
    const [once, thrice] = [await of({}), await of({ pattern: undefined, schedule: [0.3, 0.4, 0.5] })]
    expect(thrice.flop / once.flop).toBeCloseTo(3, 0)
  })
})
