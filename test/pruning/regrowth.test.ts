import { prune, pruneLayer, type PruneOptions } from '../loose-options.js'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test } from '@jest/globals'
import { loadModel, plan } from '../../src/index.js'
import { PythonRandom } from '../../src/text/python-random.js'
import { readTensors } from '../safetensors-file.js'
import { temporaryFolder } from '../temporary.js'
import { randomTokens, writeTinyModel } from '../tiny-model.js'

const [rows, columns] = [16, 256]
const random = new PythonRandom(5)
const draw = () => random.randint(-1000, 1000) / 1000 || 1
/** Of ten weights seven are zero, at random places. */
const weight = Float32Array.from({ length: rows * columns }, () => (random.randint(0, 9) < 7 ? 0 : draw()))
/** Of inputs that 100 tokens span, so that weights can make up for others. */
const inputs = Array.from({ length: columns }, () => Array.from({ length: 100 }, draw))
const hessian = Float32Array.from({ length: columns ** 2 }, (_, at) => {
  const [i, j] = [Math.floor(at / columns), at % columns]
  return inputs[i]!.reduce((sum, x, t) => sum + x * inputs[j]![t]!, i === j ? 0.1 : 0)
})

/** tr(ΔW H ΔWᵀ) */
function error(result: Float32Array): number {
  let sum = 0
  for (let r = 0; r < rows; r++) {
    const row = Array.from({ length: columns }, (_, j) => result[r * columns + j]! - weight[r * columns + j]!)
    for (let i = 0; i < columns; i++)
      for (let j = 0; j < columns; j++) sum += row[i]! * hessian[i * columns + j]! * row[j]!
  }
  return sum
}

const zeros = (values: Float32Array) => values.filter((value) => value === 0).length / values.length
const refilled = (result: Float32Array) => result.filter((value, i) => weight[i] === 0 && value !== 0).length
const share = (mask: Uint8Array) => mask.reduce((sum, bit) => sum + bit, 0) / mask.length

describe('zeros of a matrix that is 70 % sparse', () => {
  const layer = { weight, rows, columns, hessian }

  test.each([
    { pattern: '2:4', refit: true },
    { pattern: '2:4', refit: true, method: 'wanda' },
    { pattern: '2:4', refit: true, method: 'magnitude' },
    { pattern: '2:4', method: 'admm' },
  ] as const)('%j: with regrow exactly half are zero, and the error is lower', async (options) => {
    const kept = await pruneLayer({ ...layer, ...options })
    const regrown = await pruneLayer({ ...layer, ...options, regrow: true })
    expect([refilled(kept.weight), kept.sparsity >= zeros(weight)]).toEqual([0, true])
    expect([regrown.sparsity, zeros(regrown.weight), share(regrown.mask)]).toEqual([0.5, 0.5, 0.5])
    for (let i = 0; i < weight.length; i += 4) expect(share(regrown.mask.subarray(i, i + 4))).toBe(0.5)
    expect(error(regrown.weight)).toBeLessThan(0.9 * error(kept.weight))
  })

  test.each([
    { pattern: '2:4' },
    { pattern: '4:8' },
    { pattern: '2:4', bits: 4 },
    { sparsity: 0.8 },
    { sparsity: 0.8, method: 'admm' },
    { mask: 'every other' },
    { mask: 'every other', method: 'admm' },
  ] as const)('%j: with regrow the share is that asked for, and zeros help to make up', async (goal) => {
    const mask = Uint8Array.from(weight, (_, i) => i % 2)
    const options = 'mask' in goal ? { ...goal, mask } : goal
    const kept = await pruneLayer({ ...layer, ...options })
    const regrown = await pruneLayer({ ...layer, ...options, regrow: true })
    expect(refilled(kept.weight)).toBe(0)
    expect(refilled(regrown.weight)).toBeGreaterThan('sparsity' in goal ? 0 : 50)
    expect(share(regrown.mask)).toBeCloseTo('sparsity' in goal ? 0.8 : 0.5, 3)
    expect(regrown.weight.filter((value, i) => regrown.mask[i] === 1 && value !== 0)).toHaveLength(0)
    // SparseGPT's choice by column blocks is greedy: more freedom need not be better.
    const bound = 'sparsity' in goal && !('method' in goal) ? 1.1 : 1
    expect(error(regrown.weight)).toBeLessThan(bound * error(kept.weight))
  })

  test.each(['sparsegpt', 'admm', 'wanda', 'magnitude'] as const)(
    '%s: what nothing has to make up for stays zero',
    async (method) => {
      const result = await pruneLayer({ ...layer, method, sparsity: 0.2, regrow: true })
      expect(error(result.weight)).toBeLessThan(1e-6)
      expect(result.sparsity).toBe(zeros(weight))
    },
  )
})

describe('zeros of a model that is 70 % sparse', () => {
  const calibration = { tokens: randomTokens(900), samples: 10, sequenceLength: 32 }

  async function pruned(source: string, options: PruneOptions) {
    const model = await loadModel(source, { device: 'cpu', threads: 1 })
    const out = typeof options.out === 'string' ? options.out : join(await temporaryFolder(), 'out')
    try {
      const report = await prune(model, { calibration, ...options, out })
      return { out, report, tensors: await readTensors(join(out, 'model.safetensors')) }
    } finally {
      await model.dispose()
    }
  }

  test.each(['own', 'dense'] as const)('2:4 with target %s', async (target) => {
    const dense = await writeTinyModel(await temporaryFolder())
    const sparse = await pruned(dense, { sparsity: 0.7 })
    const options = { pattern: '2:4', method: 'admm', target } as const
    const kept = await pruned(sparse.out, options)
    const regrown = await pruned(sparse.out, { ...options, regrow: true })
    expect(kept.report.sparsity.achieved).toBeGreaterThanOrEqual(0.7)
    expect(regrown.report.sparsity.achieved).toBeLessThan(target === 'dense' ? 0.6 : 0.65)
    for (const [i, layer] of regrown.report.layers.entries()) {
      const { values } = regrown.tensors.get(`${layer.name}.weight`)!
      expect(zeros(values)).toBe(layer.sparsity)
      for (let at = 0; at < values.length; at += 4)
        expect(zeros(values.subarray(at, at + 4))).toBeGreaterThanOrEqual(0.5)
      // Where both see the same inputs.
      if (i < 3) expect(layer.error).toBeLessThan(kept.report.layers[i]!.error!)
      // The dense model has other inputs there, for which all weights are wanted.
      if (target === 'dense' && layer.name.includes('.1.')) expect(layer.sparsity).toBe(0.5)
    }
  })

  test('a job is resumed with the same choice only, and the plan knows it', async () => {
    const folder = await writeTinyModel(await temporaryFolder())
    const out = join(await temporaryFolder(), 'out')
    const controller = new AbortController()
    const options = { pattern: '2:4', out, regrow: true }
    const onProgress: PruneOptions['onProgress'] = ({ block }) => {
      if (block === 1) controller.abort()
    }
    const stopped = pruned(folder, { ...options, onProgress, signal: controller.signal })
    await expect(stopped).rejects.toMatchObject({ code: 'ABORTED' })
    await expect(pruned(folder, { ...options, regrow: false, resume: true })).rejects.toMatchObject({
      code: 'INVALID_OPTION',
      message: /option regrow: true there, false here/,
    })
    await pruned(folder, { ...options, resume: true })
    const whole = await pruned(folder, { pattern: '2:4', regrow: true })
    const read = (at: string) => readFile(join(at, 'model.safetensors'))
    expect(await read(out)).toEqual(await read(whole.out))
    const job = { pattern: '2:4', samples: 10, sequenceLength: 32 }
    const [less, more] = await Promise.all([plan(folder, job), plan(folder, { ...job, regrow: true })])
    expect(more.flop).toEqual(less.flop)
  })
})
