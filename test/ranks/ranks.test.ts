import { prune, type PruneOptions } from '../loose-options.js'
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { beforeAll, describe, expect, test } from '@jest/globals'
import { loadModel, perplexity, type LayerReport, type Model } from '../../src/index.js'
import { Device } from '../../src/native/device.js'
import { launchedRanks } from '../../src/native/communicator.js'
import { readTensors } from '../safetensors-file.js'
import { expectError, temporaryFolder } from '../temporary.js'
import { randomTokens } from '../tiny-model.js'
import { InProcessCommunicator } from './in-process.js'

const folder = fileURLToPath(new URL('../../models/sotu-3m', import.meta.url))
/** Tokens all over the vocabulary. */
const text = { tokens: Array.from({ length: 2000 }, (_, i) => (i * i * 31 + i * 7919) % 2048) }
const calibration = { ...text, samples: 12, sequenceLength: 64 }

/** What each of `size` ranks makes of a model, side by side. */
async function onRanks<T>(
  size: number,
  body: (model: Model, communicator: InProcessCommunicator) => Promise<T>,
): Promise<T[]> {
  const run = async (communicator: InProcessCommunicator) => {
    const model = await loadModel(folder, { device: 'cpu', threads: 1 })
    try {
      return await body(model, communicator)
    } finally {
      await model.dispose()
    }
  }
  return Promise.all(InProcessCommunicator.ranks(size).map(run))
}

const sha256 = (bytes: Buffer) => createHash('sha256').update(bytes).digest('hex')

/** Prunes into a folder on `size` ranks, 0 for none; returns the weights and each rank's report. */
async function pruned(size: number, options: PruneOptions) {
  const out = join(await temporaryFolder(), 'out')
  const job = { calibration, out, ...options }
  const reports = await (size === 0
    ? loadModel(folder, { device: 'cpu', threads: 1 }).then(async (model) => {
        const report = await prune(model, job)
        await model.dispose()
        return [report]
      })
    : onRanks(size, (model, communicator) => prune(model, { ...job, communicator })))
  // A report has times.
  const names = (await readdir(out)).filter((name) => !name.startsWith('sparsegpt-report.'))
  const files = new Map(names.map((name) => [name, sha256(readFileSync(join(out, name)))]))
  return { files, reports, weights: () => readTensors(join(out, 'model.safetensors')) }
}

/** The share of entries that are zero in both or in neither, over the pruned matrices whose names match. */
async function alike(left: Promise<Weights>, right: Promise<Weights>, names: RegExp): Promise<number> {
  const [a, b] = [await left, await right]
  let [same, all] = [0, 0]
  for (const [name, { values }] of a) {
    const others = b.get(name)!.values
    if (!names.test(name) || !name.endsWith('proj.weight')) continue
    all += values.length
    values.forEach((value, i) => (same += Number((value === 0) === (others[i] === 0))))
  }
  return same / all
}
type Weights = Awaited<ReturnType<typeof readTensors>>

/** A report without the time, and without the loss and the error, whose summands are added in another order. */
const stable = ({ seconds: _, loss: __, error: ___, ...layer }: LayerReport) => layer

test('a sum over ranks is a tree of pairs, of the upper triangle where that is all', async () => {
  const big = 2 ** 24
  const values = [big, 1, 1, -big]
  const sums = await Promise.all(
    InProcessCommunicator.ranks(4).map(async (communicator) => {
      const device = new Device('cpu', 1)
      const matrix = device.upload(new Float32Array(4).fill(values[communicator.rank]!), [2, 2])
      await communicator.allReduce(device, matrix, { upper: true })
      const sum = [...(await device.readFloat32(matrix))]
      matrix.dispose()
      await device.close()
      return sum
    }),
  )
  // (2²⁴ + 1) + (1 - 2²⁴) in float32, where 2²⁴ + 1 is 2²⁴ and 1 - 2²⁴ is exact.
  expect(sums).toEqual(values.map((value) => [1, 1, value, 1]))
})

test('values of one rank, and of all, are everywhere', async () => {
  const all = await onRanks(3, async (_, communicator) => {
    const device = new Device('cpu', 1)
    const shared = await communicator.share(device, { from: communicator.rank }, 1)
    const gathered = await communicator.gather(device, communicator.rank * 10)
    await device.close()
    return { shared, gathered }
  })
  expect(all).toEqual(Array(3).fill({ shared: { from: 1 }, gathered: [0, 10, 20] }))
})

describe('what several ranks prune', () => {
  test.each<[string, number[], PruneOptions]>([
    ['by rows: a pattern', [2, 4], { pattern: '2:4' }],
    ['by rows: codes on grids', [2], { pattern: '2:4', bits: 4, groupSize: 32, encoding: 'bitmask' }],
    ['whole layers: by sparsity', [4], { sparsity: 0.5 }],
    ['whole layers, one group after another', [2], { sparsity: 0.5, sequential: 'layer', refit: true }],
    ['whole layers: codes on grids', [2], { sparsity: 0.4, bits: 4, encoding: 'bitmask' }],
    ['beside the dense stream', [2], { sparsity: 0.5, target: 'dense', sequential: 'layer' }],
    ['by rows, without a Gram matrix', [4], { method: 'wanda' }],
    ['without inputs', [4], { method: 'magnitude' }],
    ['spread by outliers', [2], { sparsity: 0.5, allocation: 'owl' }],
    ['step by step', [2], { schedule: [0.3, 0.5] }],
    [
      'windows of several lengths',
      [2],
      {
        pattern: '2:4',
        calibration: {
          windows: Array.from({ length: 10 }, (_, i) =>
            text.tokens.slice(i * 64, i * 64 + (i % 3 === 0 ? 40 : 64)),
          ),
        },
      },
    ],
  ])(
    '%s: as one process does with the same groups of windows, to the last bit',
    async (_, sizes, options) => {
      const grouped = { ...options, windowGroups: 4, maxBlock: 2 }
      const alone = await pruned(0, grouped)
      for (const size of sizes) {
        const { reports, files } = await pruned(size, grouped)
        expect(files).toEqual(alone.files)
        for (const report of reports) {
          expect(report.layers.map(stable)).toEqual(alone.reports[0]!.layers.map(stable))
          for (const [i, { loss, error }] of report.layers.entries()) {
            const expected = alone.reports[0]!.layers[i]!
            expect([error === undefined, loss === null]).toEqual([
              expected.error === undefined,
              expected.loss === null,
            ])
            if (loss) expect(loss / expected.loss!).toBeCloseTo(1, 10)
            if (error) expect(error / expected.error!).toBeCloseTo(1, 6)
          }
        }
      }
    },
  )

  test('without groups the order of the sums is what differs: the same masks to 99.9 % in the first block, the same bits again', async () => {
    const options = { pattern: '2:4', maxBlock: 1 }
    const alone = await pruned(0, options)
    const several = await pruned(3, options)
    expect(await alike(several.weights(), alone.weights(), /layers\.0\./)).toBeGreaterThanOrEqual(0.999)
    expect(several.files).not.toEqual(alone.files)
    expect((await pruned(3, options)).files).toEqual(several.files)
  })

  test("blocks are fitted with the mean of the ranks' gradients, to the same weights on all", async () => {
    const options = { sparsity: 0.6, reconstruct: { epochs: 2 }, maxBlock: 1 }
    const several = await onRanks(3, async (model, communicator) => {
      // One of the ranks has fewer windows than the others.
      const report = await prune(model, {
        ...options,
        calibration: { ...calibration, samples: 11 },
        communicator,
      })
      const { data } = await model.logits([[1, 2, 3, 4, 5, 6, 7, 8]])
      return { data, fitted: report.layers.map(({ reconstruction }) => reconstruction!) }
    })
    for (const { data, fitted } of several) {
      expect(data).toEqual(several[0]!.data)
      for (const { steps, heldOut } of fitted) {
        expect(steps).toBe(6)
        expect(heldOut.after).toBeLessThan(heldOut.before)
      }
    }
    // The same from files that hold what was trained.
    const [one, again] = [await pruned(2, options), await pruned(2, options)]
    expect(one.files).toEqual(again.files)
  })

  test('the perplexity of what 1, 2 and 4 ranks prune is the same, and measured by them to the last bit', async () => {
    const evaluation = { ...text, sequenceLength: 64, windows: 9 }
    const compared = { ...evaluation, windows: 3, against: folder }
    const found: number[] = []
    for (const size of [1, 2, 4]) {
      const measured = await onRanks(size, async (model, communicator) => {
        await prune(model, { calibration, sparsity: 0.5, windowGroups: 4, maxBlock: 1, communicator })
        const together = await perplexity(model, { ...evaluation, communicator })
        expect(together).toEqual(await perplexity(model, evaluation))
        if (size !== 2) return together.perplexity
        const { against } = await perplexity(model, { ...compared, communicator })
        const alone = (await perplexity(model, compared)).against!
        expect(against!.top1Agreement).toBe(alone.top1Agreement)
        expect(against!.divergence / alone.divergence).toBeCloseTo(1, 10)
        expect(against!.perplexityRatio / alone.perplexityRatio).toBeCloseTo(1, 10)
        return together.perplexity
      })
      expect(new Set(measured).size).toBe(1)
      found.push(measured[0]!)
    }
    expect(new Set(found).size).toBe(1)
  })
})

describe('when something is wrong', () => {
  let out: string
  beforeAll(async () => {
    out = join(await temporaryFolder(), 'out')
  })
  const rejected = (promise: Promise<unknown>) =>
    promise.then(
      () => 'fulfilled',
      (error: unknown) => (error as Error).message,
    )

  test('an error on one rank ends all, and another number of ranks goes on with the job', async () => {
    const job = { calibration, out, pattern: '2:4', maxBlock: 2 }
    const stop = new AbortController()
    const messages = await onRanks(2, (model, communicator) =>
      rejected(
        prune(model, {
          ...job,
          communicator,
          ...(communicator.rank === 1 && {
            signal: stop.signal,
            onProgress: ({ block, phase }) => {
              if (block === 1 && phase === 'solve') stop.abort()
            },
          }),
        }),
      ),
    )
    expect(messages.map((message) => message.split(';')[0])).toEqual([
      'rank 1: stopped by the signal',
      'stopped by the signal',
    ])
    await expect(stat(out)).rejects.toThrow('ENOENT')
    const [report] = await onRanks(1, (model, communicator) =>
      prune(model, { ...job, communicator, resume: true }),
    )
    const whole = await pruned(2, { pattern: '2:4', maxBlock: 1 })
    const weights = await readTensors(join(out, 'model.safetensors'))
    const expected = await whole.weights()
    expect(report!.layers).toHaveLength(2 * whole.reports[0]!.layers.length)
    // The block that two ranks have finished is theirs.
    for (const [name, { values }] of weights) {
      if (/layers\.0\./.test(name)) expect(values).toEqual(expected.get(name)!.values)
    }
  })

  test('more ranks than windows, and distillation, are refused before anything is written', async () => {
    const other = join(await temporaryFolder(), 'out')
    const few = await onRanks(3, (model, communicator) =>
      rejected(
        prune(model, {
          calibration: { tokens: randomTokens(600), samples: 2, sequenceLength: 32 },
          communicator,
        }),
      ),
    )
    expect(few.some((message) => /option samples: 2 windows are too few for 3 ranks/.test(message))).toBe(
      true,
    )
    await onRanks(2, async (model, communicator) => {
      const trained = prune(model, { calibration, out: other, distill: true, communicator })
      await expectError(trained, 'INVALID_OPTION', /distill: cannot be combined with communicator/)
    })
    await expect(stat(other)).rejects.toThrow('ENOENT')
  })

  test('what is no communicator is refused', async () => {
    const model = await loadModel(folder, { device: 'cpu', threads: 1 })
    const communicator = { rank: 0, size: 2 } as unknown as InProcessCommunicator
    await expectError(prune(model, { calibration, communicator }), 'INVALID_OPTION', /communicator/)
    await model.dispose()
  })
})

test('the launcher says how many ranks there are', () => {
  expect(launchedRanks({})).toBe(1)
  expect(launchedRanks({ OMPI_COMM_WORLD_SIZE: '4' })).toBe(4)
  expect(launchedRanks({ PMI_SIZE: '2', PMI_RANK: '0' })).toBe(2)
  // srun that does not connect its tasks starts jobs that know nothing of each other.
  expect(launchedRanks({ SLURM_STEP_NUM_TASKS: '8' })).toBe(1)
  expect(launchedRanks({ SLURM_STEP_NUM_TASKS: '8', PMIX_RANK: '3' })).toBe(8)
})
