import { existsSync } from 'node:fs'
import { readdir } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { beforeAll, describe, expect, test } from '@jest/globals'
import {
  distill,
  loadModel,
  perplexity,
  prune,
  type DistillOptions,
  type DistillReport,
  type Model,
} from '../../src/index.js'
import { unlikeModels } from '../models/golden-models.js'
import { readTensors } from '../safetensors-file.js'
import { describeWithShared, sharedPath } from '../shared.js'
import { expectError, temporaryFolder } from '../temporary.js'
import { randomTokens, writeTinyModel } from '../tiny-model.js'

const text = { tokens: randomTokens(1600), sequenceLength: 32 }

/** Prunes a model to 2:4 by magnitude into a new folder. */
async function prunedCopy(source: string): Promise<string> {
  const out = join(await temporaryFolder(), 'pruned')
  const model = await loadModel(source, { device: 'cpu', threads: 1 })
  await prune(model, { method: 'magnitude', pattern: '2:4', out })
  await model.dispose()
  return out
}

async function distilled(
  student: string,
  options: DistillOptions,
  dtype: 'float32' | 'bfloat16' = 'float32',
  then?: (model: Model) => Promise<void>,
): Promise<DistillReport> {
  const model = await loadModel(student, { device: 'cpu', threads: 1, dtype })
  try {
    const report = await distill(model, options)
    await then?.(model)
    return report
  } finally {
    await model.dispose()
  }
}

/** The held-out loss before the first step, and that of the state that was kept. */
function heldOut({ losses }: DistillReport): [before: number, after: number] {
  const kept = losses.heldOut.find(({ step }) => step === losses.bestStep)
  return [losses.heldOut[0]!.loss, kept!.loss]
}

describe('distillation', () => {
  let dense: string
  let student: string
  beforeAll(async () => {
    dense = await writeTinyModel(await temporaryFolder(), 'gpt2')
    student = await prunedCopy(dense)
  })

  test('trains on what the dense model generates where no text is given', async () => {
    const speaker = await writeTinyModel(await temporaryFolder(), 'gpt2', undefined, { bos_token_id: 1 })
    const seen: number[] = []
    const options = { dense: speaker, epochs: 3, learningRate: 2e-2 }
    const calibration = { samples: 12, sequenceLength: 32 }
    const onGenerate = (fraction: number) => seen.push(fraction)
    const report = await distilled(student, { ...options, calibration, onGenerate })
    const [before, after] = heldOut(report)
    expect(after).toBeLessThan(before)
    // Eleven windows to train on, one a step, three times.
    expect(report.losses.training).toHaveLength(33)
    expect(seen.at(-1)).toBe(1)
    expect(seen).toHaveLength(31)
    expect((await distilled(student, { ...options, calibration })).losses).toEqual(report.losses)
    const others = await distilled(student, { ...options, calibration: { ...calibration, seed: 1 } })
    expect(others.losses).not.toEqual(report.losses)
    // The context is 64 tokens long.
    const all = await distilled(student, { dense: speaker, batch: 64 })
    expect(all.losses.training).toHaveLength(2)
    await expectError(
      distilled(student, { dense, calibration }),
      'INVALID_CHECKPOINT',
      /neither .* has a bos_token_id or an eos_token_id/,
    )
    const withField = { dense: speaker, calibration: { textField: 'text' } }
    await expectError(distilled(student, withField), 'INVALID_OPTION', /option textField: .* give file too/)
  })

  test('brings the distributions nearer, keeps zeros, embeddings and the head, and trains the rest', async () => {
    const out = join(await temporaryFolder(), 'out')
    const progress: number[] = []
    const report = await distilled(
      student,
      {
        dense,
        calibration: text,
        out,
        epochs: 4,
        learningRate: 2e-2,
        batch: 4,
        onProgress: ({ step, steps }) => progress.push(step / steps),
      },
      'float32',
      async (model) => {
        expect(model.folder).toBe(out)
      },
    )
    const [before, after] = heldOut(report)
    expect(after).toBeLessThan(0.7 * before)
    expect(report).toMatchObject({ method: 'distill', out, sparsity: { target: 0.5, achieved: 0.5 } })
    // 50 windows, of which 3 are held out: 12 steps an epoch.
    expect(report.losses.training.length).toBe(48)
    expect(progress.at(-1)).toBe(1)
    const [old, trained] = await Promise.all(
      [student, out].map((folder) => readTensors(join(folder, 'model.safetensors'))),
    )
    for (const { name, sparsity } of report.layers) {
      const { values } = trained!.get(`${name}.weight`)!
      expect([name, sparsity]).toEqual([name, 0.5])
      expect(
        old!.get(`${name}.weight`)!.values.every((value, i) => (value === 0) === (values[i] === 0)),
      ).toBe(true)
    }
    for (const name of ['wte.weight', 'wpe.weight'])
      expect(trained!.get(name)!.values).toEqual(old!.get(name)!.values)
    for (const name of ['h.0.attn.c_attn.weight', 'h.1.mlp.c_fc.bias', 'h.1.ln_2.weight', 'ln_f.weight'])
      expect(trained!.get(name)!.values).not.toEqual(old!.get(name)!.values)
  })

  test('in memory, in several groups of windows a step, with the hidden states as target too', async () => {
    let measured = 0
    const windows = { tokens: randomTokens(320, 5), sequenceLength: 32 }
    const calibration = { ...text, samples: 12, seed: 3 }
    const report = await distilled(
      student,
      { dense, calibration, learningRate: 1e-2, epochs: 3, batch: 12, hiddenWeight: 0.5, holdout: 0.25 },
      'bfloat16',
      async (model) => {
        measured = (await perplexity(model, windows)).perplexity
      },
    )
    expect(report.out).toBeNull()
    expect(report.losses.training.length).toBe(3)
    const [before, after] = heldOut(report)
    expect(after).toBeLessThan(before)
    expect(measured).toBeGreaterThan(1)
  })

  test('what does not help is not kept', async () => {
    const report = await distilled(student, { dense, calibration: text, learningRate: 1 })
    const [before, after] = heldOut(report)
    expect(after).toBeLessThanOrEqual(before)
  })

  test('a model is nothing to its own student', async () => {
    const report = await distilled(dense, { dense, calibration: { ...text, samples: 4 } })
    expect(report.losses.heldOut[0]!.loss).toBeLessThan(1e-6)
  })

  test('leaves nothing when it is stopped', async () => {
    const out = join(await temporaryFolder(), 'out')
    const controller = new AbortController()
    const onProgress = () => controller.abort()
    const options = { dense, calibration: text, out, onProgress, signal: controller.signal }
    await expectError(distilled(student, options), 'ABORTED', /stopped/)
    expect([existsSync(out), await readdir(dirname(out))]).toEqual([false, []])
  })

  test('refuses another vocabulary, a text of one window, and options that it does not know', async () => {
    const other = sharedPath('golden', 'models', 'llama')
    if (other !== undefined) {
      await expectError(
        distilled(student, { dense: other, calibration: text }),
        'INVALID_OPTION',
        /option dense: .*vocabulary of/,
      )
    }
    const short = { tokens: randomTokens(40), sequenceLength: 32 }
    await expectError(
      distilled(student, { dense, calibration: short }),
      'INVALID_TEXT',
      /one window of 32 tokens/,
    )
    const wrong = { dense, calibration: text, temperature: 2 } as DistillOptions
    await expectError(distilled(student, wrong), 'INVALID_OPTION', /unknown option temperature/)
    await expectError(
      distilled(student, { dense: join(dense, 'nowhere'), calibration: text }),
      'FILE_NOT_FOUND',
      /nowhere/,
    )
  })
})

describeWithShared('distillation of every family', () => {
  const tokens = Int32Array.from({ length: 520 }, (_, i) => (i * 7919 + ((i * i) % 31)) % 96)

  test.each(unlikeModels)('%s', async (name) => {
    const dense = sharedPath('golden', 'models', name) ?? ''
    const calibration = { tokens, sequenceLength: 32 }
    const options = { dense, calibration, learningRate: 1e-2, batch: 2, epochs: 3, holdout: 0.2 }
    const report = await distilled(await prunedCopy(dense), options)
    const [before, after] = heldOut(report)
    expect([name, after < before]).toEqual([name, true])
    expect(report.sparsity.achieved).toBeGreaterThanOrEqual(0.5)
  })
})
