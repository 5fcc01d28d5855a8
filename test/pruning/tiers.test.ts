import { prune, type PruneOptions } from '../loose-options.js'
import { join } from 'node:path'
import { expect, test } from '@jest/globals'
import { loadModel, type LayerReport } from '../../src/index.js'
import { unlikeModels } from '../models/golden-models.js'
import { readTensors } from '../safetensors-file.js'
import { describeWithShared, sharedPath } from '../shared.js'
import { temporaryFolder } from '../temporary.js'

const tokens = Int32Array.from({ length: 1200 }, (_, i) => (i * 7919 + ((i * i) % 31)) % 96)
const calibration = { tokens, samples: 6, sequenceLength: 24 }

const methods = ['sparsegpt', 'admm', 'wanda', 'magnitude'] as const
const goals = [{ sparsity: 0.5 }, { pattern: '2:4' }] as const
/** Each is the one before and something more. */
const tiers = {
  plain: {},
  refit: { refit: true },
  'dense target': { refit: true, target: 'dense' },
  reconstruction: { refit: true, target: 'dense', reconstruct: 1 },
} as const
const tierNames = Object.keys(tiers) as (keyof typeof tiers)[]

async function pruned(source: string, out: string, options: PruneOptions): Promise<LayerReport[]> {
  const model = await loadModel(source, { device: 'cpu', threads: 1 })
  try {
    return (await prune(model, { calibration, ...options, out })).layers
  } finally {
    await model.dispose()
  }
}

/** The matrices of a model folder by layer, 1 where a weight is zero, row by row: [out, in]. */
async function zerosOf(folder: string, layers: readonly LayerReport[], transposed: boolean) {
  const tensors = await readTensors(join(folder, 'model.safetensors'))
  const of = ({ name, rows, columns }: LayerReport) => {
    const values = tensors.get(`${name}.weight`)?.values ?? partOf(tensors, name)
    // GPT-2's matrices are stored as [in, out], and gpt-oss's of all experts.
    const isTransposed = transposed || /\.experts\.\w+\.\d+$/.test(name)
    const at = (i: number) => (isTransposed ? (i % columns) * rows + Math.floor(i / columns) : i)
    return Uint8Array.from(values, (_, i) => (values[at(i)] === 0 ? 1 : 0))
  }
  return new Map(layers.map((layer) => [layer.name, of(layer)]))
}

/** The matrix of an expert, of a tensor that holds those of all. */
function partOf(tensors: ReadonlyMap<string, { shape: number[]; values: Float32Array }>, layer: string) {
  const [, stem = '', index] = /^(.*)\.(\d+)$/.exec(layer)!
  const { shape, values } = (tensors.get(stem) ?? tensors.get(`${stem}.weight`))!
  const size = values.length / shape[0]!
  return values.subarray(Number(index) * size, (Number(index) + 1) * size)
}

const sum = (bits: Uint8Array) => bits.reduce((total, bit) => total + bit, 0)

/** The number of zeros in each run of `size` entries. */
const counts = (bits: Uint8Array, size: number) =>
  Array.from({ length: bits.length / size }, (_, i) => sum(bits.subarray(i * size, (i + 1) * size)))

/** The zeros that half of the weights of a layer come to. */
function half(method: (typeof methods)[number], { rows, columns }: LayerReport): number {
  if (method !== 'sparsegpt') return Math.trunc((rows * columns) / 2)
  const blocks = Array.from({ length: Math.ceil(columns / 128) }, (_, i) => Math.min(128, columns - i * 128))
  return blocks.reduce((total, size) => total + Math.trunc((rows * size) / 2), 0)
}

describeWithShared('method × pattern × tier × family, of models that are 1:4 sparse', () => {
  // Every family meets every tier, and in every tier every method meets both goals.
  const cases = unlikeModels.map((name, i) => ({
    name,
    jobs: tierNames.map((tier, j) => ({
      tier,
      method: methods[(i + j) % methods.length]!,
      goal: goals[(Math.floor(i / methods.length) + j) % goals.length]!,
    })),
  }))

  test.each(cases)('$name', async ({ name, jobs }) => {
    const work = await temporaryFolder()
    const sparse = join(work, 'sparse')
    const transposed = name === 'gpt2'
    const layers = await pruned(sharedPath('golden', 'models', name)!, sparse, {
      method: 'magnitude',
      pattern: '1:4',
    })
    const before = await zerosOf(sparse, layers, transposed)
    for (const { tier, method, goal } of jobs) {
      const out = join(work, tier)
      const reports = await pruned(sparse, out, { method, ...goal, ...tiers[tier] })
      const after = await zerosOf(out, reports, transposed)
      expect([...after.keys()].sort()).toEqual([...before.keys()].sort())
      for (const layer of reports) {
        const at = [tier, method, layer.name] as const
        const [old, zeros] = [before.get(layer.name)!, after.get(layer.name)!]
        expect([...at, 'zeros refilled', zeros.filter((bit, i) => old[i]! > bit).length]).toEqual([
          ...at,
          'zeros refilled',
          0,
        ])
        // Weights of the threshold's size go together, where only sizes are known.
        const bySize = method === 'magnitude' || layer.fewTokens === 0
        const excess = sum(zeros) - half(method, layer)
        if ('pattern' in goal) expect([...at, new Set(counts(zeros, 4))]).toEqual([...at, new Set([2])])
        else if (bySize) expect([...at, excess >= 0 && excess <= 2]).toEqual([...at, true])
        else expect([...at, excess]).toEqual([...at, 0])
        if (method === 'wanda' && !bySize && !('pattern' in goal)) {
          const each = new Set(counts(zeros, layer.columns))
          expect([...at, each]).toEqual([...at, new Set([layer.columns / 2])])
        }
        const { error, errorBefore, reconstruction } = layer
        if ((tier !== 'plain' || method === 'admm') && layer.fewTokens !== 0) {
          expect([...at, error! <= errorBefore! * (1 + 1e-4) + 1e-9]).toEqual([...at, true])
        }
        expect([...at, reconstruction !== undefined]).toEqual([...at, tier === 'reconstruction'])
        if (reconstruction) {
          const { heldOut } = reconstruction
          expect([...at, heldOut.after <= heldOut.before]).toEqual([...at, true])
        }
      }
    }
  })
})
