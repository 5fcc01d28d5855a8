import { prune, type PruneOptions } from '../loose-options.js'
import { cp, mkdir, readdir, readFile, rm, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { beforeAll, describe, expect, test } from '@jest/globals'
import { loadModel, SparseGptError, type PruneReport } from '../../src/index.js'
import type { LoadOptions } from '../../src/sdk/model.js'
import { readSafetensorsHeader } from '../../src/files/safetensors.js'
import { writeSafetensors, type TestTensor } from '../files/files.js'
import { describeWithShared, sharedPath } from '../shared.js'
import { expectError, temporaryFolder } from '../temporary.js'
import { randomTokens, writeTinyModel } from '../tiny-model.js'

const calibration = { tokens: randomTokens(600), samples: 8, sequenceLength: 32 }

/** Writes a copy of a model in several weight files, of another element type if one is given. */
async function variant(source: string, { files = 1, bfloat16 = false }): Promise<string> {
  const folder = join(await temporaryFolder(), 'source')
  await mkdir(folder)
  await cp(join(source, 'tokenizer.json'), join(folder, 'tokenizer.json'))
  const config = JSON.parse(await readFile(join(source, 'config.json'), 'utf8')) as object
  const dtype = bfloat16 ? 'bfloat16' : 'float32'
  await writeFile(join(folder, 'config.json'), JSON.stringify({ ...config, torch_dtype: dtype }))
  const file = join(source, 'model.safetensors')
  const [bytes, { tensors }] = [await readFile(file), await readSafetensorsHeader(file)]
  const copies = tensors.map(({ name, dtype, shape, offset, bytes: size }): TestTensor => {
    const data = bytes.subarray(offset, offset + size)
    if (!bfloat16) return { name, dtype, shape, data }
    const high = data.filter((_, i) => i % 4 >= 2) // of a float32 the half that is a bfloat16
    return { name, dtype: 'BF16', shape, data: high }
  })
  const nameOf = (i: number) =>
    files === 1 ? 'model.safetensors' : `model-0000${i + 1}-of-0000${files}.safetensors`
  const shardOf = (i: number) => i % files
  for (let shard = 0; shard < files; shard++) {
    await writeSafetensors(
      join(folder, nameOf(shard)),
      copies.filter((_, i) => shardOf(i) === shard),
    )
  }
  if (files > 1) {
    const map = Object.fromEntries(copies.map(({ name }, i) => [name, nameOf(shardOf(i))]))
    await writeFile(
      join(folder, 'model.safetensors.index.json'),
      JSON.stringify({ metadata: { total_size: 1 }, weight_map: map }),
    )
  }
  return folder
}

async function pruned(folder: string, options: PruneOptions, load: LoadOptions = {}): Promise<PruneReport> {
  const model = await loadModel(folder, { device: 'cpu', threads: 1, ...load })
  try {
    return await prune(model, { calibration, ...options })
  } finally {
    await model.dispose()
  }
}

/** Prunes until the first layer of `block` is solved, which stops the job. */
function stopped(folder: string, block: number, options: PruneOptions, load: LoadOptions = {}) {
  const controller = new AbortController()
  const onProgress: PruneOptions['onProgress'] = (progress) => {
    if (progress.block === block && progress.layer) controller.abort()
  }
  return expectError(
    pruned(folder, { ...options, onProgress, signal: controller.signal }, load),
    'ABORTED',
    block > 0 ? /--resume/ : /^stopped by the signal$/,
  )
}

/** All files of a folder but its report, which has times. */
async function contents(folder: string): Promise<Map<string, Buffer>> {
  const names = (await readdir(folder)).filter((name) => !name.startsWith('sparsegpt-report.')).sort()
  return new Map(
    await Promise.all(
      names.map(async (name): Promise<[string, Buffer]> => [name, await readFile(join(folder, name))]),
    ),
  )
}

/** What of a report does not depend on the clock. */
const timeless = ({ layers, sparsity, method, model }: PruneReport) => ({
  method,
  model,
  sparsity,
  layers: layers.map(({ seconds: _, ...layer }) => layer),
})

/** Stops a job in `block`, resumes it, and compares with one that nobody has stopped. */
async function checkResumed(folder: string, block: number, options: PruneOptions, load: LoadOptions = {}) {
  const work = await temporaryFolder()
  const [whole, out] = [join(work, 'whole'), join(work, 'out')]
  const expected = await pruned(folder, { ...options, out: whole }, load)
  await stopped(folder, block, { ...options, out }, load)
  const solved = new Set<number>()
  const phases = new Set<string>()
  const fractions: number[] = []
  const report = await pruned(
    folder,
    {
      ...options,
      out,
      resume: true,
      onProgress: ({ block: at, layer, fraction, phase }) => {
        phases.add(phase)
        if (layer) solved.add(at)
        fractions.push(fraction)
      },
    },
    load,
  )
  expect(Math.min(...solved)).toBe(block)
  // What was measured is in the journal.
  expect(phases).not.toContain('allocate')
  expect(fractions.at(-1)).toBeGreaterThan(0.99)
  expect(timeless(report)).toEqual(timeless(expected))
  expect(await contents(out)).toEqual(await contents(whole))
  expect((await readdir(work)).sort()).toEqual(['out', 'whole'])
}

let llama: string
let gpt2: string
beforeAll(async () => {
  llama = await writeTinyModel(await temporaryFolder(), 'llama')
  gpt2 = await writeTinyModel(await temporaryFolder(), 'gpt2')
})

describe('a resumed job has the result of an uninterrupted one, to the bit', () => {
  test.each([
    ['block', 'float32'],
    ['layer', 'bfloat16'],
  ] as const)('sequential %s, computed in %s', async (sequential, dtype) => {
    const stored = await variant(llama, { bfloat16: true })
    for (const folder of [llama, stored, gpt2]) await checkResumed(folder, 1, { sequential }, { dtype })
  })

  test.each([
    { method: 'wanda', sequential: 'layer' },
    { method: 'sparsegpt', pattern: '2:4' },
    { bits: 4, sequential: 'layer' },
    { target: 'dense', refit: true },
    { target: 'dense', refit: true, sequential: 'layer' },
    { target: 'dense', method: 'magnitude', minBlock: 1 },
    { allocation: 'owl', sparsity: 0.6, sequential: 'layer' },
    { allocation: 'sensitivity', method: 'wanda', sparsity: 0.6 },
    { allocation: { default: { sparsity: 0.4 }, entries: [{ blocks: 1, pattern: '2:4' }] } },
  ] as const)('%j', async (options) => {
    await checkResumed(llama, 1, options)
  })

  test('without calibration', async () => {
    await checkResumed(gpt2, 1, { method: 'magnitude' })
  })

  test('with given masks, which are not to be changed in between', async () => {
    const { tensors } = await readSafetensorsHeader(join(llama, 'model.safetensors'))
    const work = await temporaryFolder()
    const [mask, other] = [join(work, 'mask.safetensors'), join(work, 'other.safetensors')]
    for (const [file, period] of [
      [mask, 2],
      [other, 3],
    ] as const) {
      const masks = tensors
        .filter(({ name }) => name.endsWith('proj.weight'))
        .map(({ name, shape }): TestTensor => {
          const size = shape.reduce((a, b) => a * b, 1)
          const data = Uint8Array.from({ length: size }, (_, i) => Number(i % period === 0))
          return { name, dtype: 'U8', shape, data }
        })
      await writeSafetensors(file, masks)
    }
    await checkResumed(llama, 1, { mask })
    const out = join(work, 'out')
    await stopped(llama, 1, { out, mask })
    await expectError(pruned(llama, { out, mask: other, resume: true }), 'INVALID_OPTION', /option mask/)
  })

  test('of a checkpoint of several files', async () => {
    await checkResumed(await variant(llama, { files: 3 }), 1, {})
  })

  test('when some blocks or layers are left dense', async () => {
    await checkResumed(llama, 1, { minBlock: 1 })
    await checkResumed(llama, 1, { exclude: /mlp/ })
  })

  test('stopped and resumed twice', async () => {
    const work = await temporaryFolder()
    const [whole, out] = [join(work, 'whole'), join(work, 'out')]
    await pruned(llama, { out: whole })
    await stopped(llama, 1, { out })
    await stopped(llama, 1, { out, resume: true })
    await pruned(llama, { out, resume: true })
    expect(await contents(out)).toEqual(await contents(whole))
    expect((await readdir(work)).sort()).toEqual(['out', 'whole'])
  })

  test('in the same process, and the model is the pruned one then', async () => {
    const out = join(await temporaryFolder(), 'out')
    const model = await loadModel(llama, { device: 'cpu', threads: 1 })
    try {
      const before = await model.logits([[1, 2, 3]])
      const controller = new AbortController()
      const stop = prune(model, {
        calibration,
        out,
        signal: controller.signal,
        onProgress: ({ block, layer }) => {
          if (block === 1 && layer) controller.abort()
        },
      })
      await expectError(stop, 'ABORTED', /1 block finished is kept in .*--resume/)
      expect(await model.logits([[1, 2, 3]])).toEqual(before)
      await prune(model, { calibration, out, resume: true })
      expect(model.folder).toBe(out)
      const after = await model.logits([[1, 2, 3]])
      const reloaded = await loadModel(out, { device: 'cpu', threads: 1 })
      expect(after).toEqual(await reloaded.logits([[1, 2, 3]]))
      expect(after).not.toEqual(before)
      await reloaded.dispose()
    } finally {
      await model.dispose()
    }
  })

  test('with nothing to resume it starts from the beginning', async () => {
    const work = await temporaryFolder()
    const [whole, out] = [join(work, 'whole'), join(work, 'out')]
    await pruned(llama, { out: whole })
    await stopped(llama, 0, { out })
    expect(await readdir(work)).toEqual(['whole'])
    await pruned(llama, { out, resume: true })
    expect(await contents(out)).toEqual(await contents(whole))
  })
})

describeWithShared('with experts', () => {
  test('mixtral', async () => {
    const folder = sharedPath('golden', 'models', 'mixtral')!
    for (const sequential of ['block', 'layer'] as const) await checkResumed(folder, 1, { sequential })
  })
})

describe('a job that was stopped is not resumed', () => {
  let work: string
  let out: string
  let source: string
  const partial = async () => (await readdir(work)).find((name) => name.startsWith('out.partial-'))!
  beforeAll(async () => {
    work = await temporaryFolder()
    source = await variant(llama, {})
    out = join(work, 'out')
    await stopped(source, 1, { out })
  })

  test.each([
    ['sparsity', { sparsity: 0.6 }, /option sparsity: not given there, 0.6 here/],
    ['allocation', { allocation: 'owl' }, /option allocation: uniform there, owl here/],
    ['method', { method: 'wanda' }, /option method: sparsegpt there, wanda here/],
    ['sequential', { sequential: 'layer' }, /option sequential: block there, layer here/],
    ['encoding', { encoding: 'bitmask' }, /option encoding: dense there, bitmask here/],
    ['exclude', { exclude: /mlp/ }, /option exclude: not given there, \/mlp\/ here/],
    ['dampening', { dampening: 0.02 }, /option dampening: not given there, 0.02 here/],
    ['seed', { calibration: { ...calibration, seed: 1 } }, /calibration text/],
    ['text', { calibration: { ...calibration, tokens: randomTokens(600, 2) } }, /calibration text/],
    ['samples', { calibration: { ...calibration, samples: 9 } }, /option samples: 8 there, 9 here/],
  ] as [string, PruneOptions, RegExp][])('with another %s', async (_, options, message) => {
    await expectError(pruned(source, { out, resume: true, ...options }), 'INVALID_OPTION', message)
  })

  test('computed in another type', async () => {
    const job = pruned(source, { out, resume: true }, { dtype: 'bfloat16' })
    await expectError(job, 'INVALID_OPTION', /option dtype: float32 there, bfloat16 here/)
  })

  test('of another model', async () => {
    const other = await writeTinyModel(await temporaryFolder(), 'llama', (name, values) => {
      if (name.endsWith('layers.0.mlp.up_proj.weight')) values[0]! += 1
    })
    await expectError(
      pruned(other, { out, resume: true }),
      'INVALID_CHECKPOINT',
      /model \(hash of its weights\)/,
    )
  })

  test('when neither resume nor force is given', async () => {
    const job = pruned(source, { out })
    await expectError(job, 'OUTPUT_EXISTS', /out\.partial-.*1 block finished.*--resume.*--force/)
  })

  const spoiled: [string, (folder: string) => Promise<void>, RegExp][] = [
    [
      'a journal with a changed byte',
      async (folder) => {
        const bytes = await readFile(join(folder, 'journal'))
        bytes[bytes.length - 20]! ^= 1
        await writeFile(join(folder, 'journal'), bytes)
      },
      /journal is damaged in line 2.*--force/,
    ],
    [
      'a journal whose first line is changed',
      async (folder) => {
        const bytes = await readFile(join(folder, 'journal'))
        bytes[60]! ^= 1
        await writeFile(join(folder, 'journal'), bytes)
      },
      /journal is damaged in line 1/,
    ],
    [
      'weights that are cut off',
      (folder) => truncate(join(folder, 'model', 'model.safetensors'), 5000),
      /model\.safetensors ends before the finished tensor/,
    ],
    [
      'weights that have gone',
      (folder) => rm(join(folder, 'model', 'model.safetensors')),
      /lacks a file.*model\.safetensors/,
    ],
  ]
  test.each(spoiled)('with %s', async (_, spoil, message) => {
    const copy = join(await temporaryFolder(), 'out')
    const folder = `${copy}.partial-1-00000000`
    await cp(join(work, await partial()), folder, { recursive: true })
    await spoil(folder)
    await expectError(pruned(source, { out: copy, resume: true }), 'INVALID_CHECKPOINT', message)
    await pruned(source, { out: copy, force: true })
    expect(await readdir(join(copy, '..'))).toEqual(['out'])
  })

  test('and is still there after all that; a line that was not written to its end does not count', async () => {
    const journal = join(work, await partial(), 'journal')
    await writeFile(journal, '0123456789abcdef {"weights":[{"na', { flag: 'a' })
    await pruned(source, { out, resume: true })
    await pruned(source, { out: join(work, 'whole') })
    expect(await contents(out)).toEqual(await contents(join(work, 'whole')))
  })
})

test('resume needs an output folder', async () => {
  await expectError(pruned(llama, { resume: true }), 'INVALID_OPTION', /option resume: needs out/)
})

test('two jobs to one output: the second is refused while the first is at work', async () => {
  const work = await temporaryFolder()
  const out = join(work, 'out')
  const seconds: Promise<SparseGptError>[] = []
  await pruned(llama, {
    out,
    onProgress: () => {
      if (seconds.length > 0) return
      const message = new RegExp(`process ${process.pid} is writing .*/out`)
      for (const options of [{}, { resume: true }, { force: true }]) {
        seconds.push(expectError(pruned(llama, { out, ...options }), 'OUTPUT_EXISTS', message))
      }
    },
  })
  expect(await Promise.all(seconds)).toHaveLength(3)
  expect(await readdir(work)).toEqual(['out'])
})

test('a model that was pruned in memory cannot be resumed', async () => {
  const model = await loadModel(llama, { device: 'cpu', threads: 1 })
  try {
    await prune(model, { calibration })
    const out = join(await temporaryFolder(), 'out')
    await expectError(prune(model, { calibration, out, resume: true }), 'INVALID_OPTION', /pruned in memory/)
  } finally {
    await model.dispose()
  }
})

test('what the same job would meet again leaves nothing behind', async () => {
  const work = await temporaryFolder()
  const broken = await writeTinyModel(join(work, 'model'), 'llama', (name, values) => {
    if (name.endsWith('layers.1.mlp.down_proj.weight')) values[3] = NaN
  })
  const error = await expectError(pruned(broken, { out: join(work, 'out') }), 'NON_FINITE', /layers\.1/)
  expect(error).toBeInstanceOf(SparseGptError)
  expect(error.message).not.toMatch(/resume/)
  expect(await readdir(work)).toEqual(['model'])
})
