import { cp, mkdir, readdir, readFile, rm, truncate, writeFile } from 'node:fs/promises'
import { createHash } from 'node:crypto'
import { mkdirSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, beforeAll, describe, expect, jest, test } from '@jest/globals'
import {
  distill,
  loadModel,
  prune,
  type DistillOptions,
  type DistillReport,
  type SparseGptError,
} from '../../src/index.js'
import { expectError, temporaryFolder } from '../temporary.js'
import { randomTokens, writeTinyModel } from '../tiny-model.js'

// 50 windows, of which 3 are held out: 12 steps an epoch, of which each sixth is measured, and so saved.
const calibration = { tokens: randomTokens(800), sequenceLength: 16 }
const settings = { calibration, epochs: 2, batch: 4, learningRate: 0.01 }

type DType = 'float32' | 'bfloat16'

/** A dense model, and the folder of what magnitude pruning to 2:4 makes of it. */
async function pair(family: 'gpt2' | 'llama') {
  const dense = await writeTinyModel(await temporaryFolder(), family)
  const student = join(await temporaryFolder(), 'pruned')
  const model = await loadModel(dense, { device: 'cpu', threads: 1 })
  await prune(model, { method: 'magnitude', pattern: '2:4', out: student })
  await model.dispose()
  return { dense, student }
}

async function distilled(
  student: string,
  options: DistillOptions,
  dtype: DType = 'float32',
): Promise<DistillReport> {
  const model = await loadModel(student, { device: 'cpu', threads: 1, dtype })
  try {
    return await distill(model, options)
  } finally {
    await model.dispose()
  }
}

/** Trains until `step` is done, which stops the job. */
function stopped(
  student: string,
  step: number,
  options: DistillOptions,
  dtype?: DType,
): Promise<SparseGptError> {
  const controller = new AbortController()
  const onProgress: DistillOptions['onProgress'] = (progress) => {
    if (progress.step === step) controller.abort()
  }
  return expectError(
    distilled(student, { ...options, onProgress, signal: controller.signal }, dtype),
    'ABORTED',
    /stopped/,
  )
}

/** All files of a folder but its report, which has times. */
async function contents(folder: string): Promise<Map<string, Buffer>> {
  const names = (await readdir(folder)).filter((name) => !name.startsWith('sparsegpt-report.')).sort()
  const files = names.map(async (name): Promise<[string, Buffer]> => [
    name,
    await readFile(join(folder, name)),
  ])
  return new Map(await Promise.all(files))
}

/** What of a report does not depend on the clock and the folder. */
const timeless = ({ losses, layers, sparsity, model }: DistillReport) => ({ losses, layers, sparsity, model })

let gpt2: { dense: string; student: string }
beforeAll(async () => {
  gpt2 = await pair('gpt2')
})

describe('a resumed distillation has the result of an uninterrupted one, to the bit', () => {
  test.each([
    ['gpt2', 'float32', { learningRate: 0.1 }],
    ['llama', 'bfloat16', { hiddenWeight: 0.5, batch: 3 }],
  ] as const)('%s in %s with %j', async (family, dtype, more) => {
    const { dense, student } = family === 'gpt2' ? gpt2 : await pair(family)
    const work = await temporaryFolder()
    const [whole, out] = [join(work, 'whole'), join(work, 'out')]
    const options = { ...settings, dense, ...more }
    const expected = await distilled(student, { ...options, out: whole }, dtype)
    const steps = expected.losses.training.length
    // The values that were the best before are needed at the end.
    if (dtype === 'float32') expect(expected.losses.bestStep).toBeLessThan(steps)
    const every = Math.ceil(steps / 4)
    // From the beginning, behind a saved state, just at one, and at the end.
    const stops = [every - 1, every + 1, 2 * every, steps]
    for (const step of dtype === 'float32' ? stops : stops.slice(1, 3)) {
      const { message } = await stopped(student, step, { ...options, out }, dtype)
      const saved = step < steps ? step - (step % every) : steps
      expect(message).toMatch(
        saved > 0 ? new RegExp(`; ${saved} steps finished are kept in .*--resume`) : /signal$/,
      )
      const made: number[] = []
      const onProgress: DistillOptions['onProgress'] = (progress) => made.push(progress.step)
      const report = await distilled(student, { ...options, out, resume: true, onProgress }, dtype)
      expect(made).toEqual(Array.from({ length: steps - saved }, (_, i) => saved + i + 1))
      expect(timeless(report)).toEqual(timeless(expected))
      expect(await contents(out)).toEqual(await contents(whole))
      expect((await readdir(work)).sort()).toEqual(['out', 'whole'])
      await rm(out, { recursive: true })
    }
  })

  test('stopped twice, with one state kept at a time', async () => {
    const work = await temporaryFolder()
    const [whole, out] = [join(work, 'whole'), join(work, 'out')]
    const options = { ...settings, dense: gpt2.dense, out }
    await distilled(gpt2.student, { ...options, out: whole })
    await stopped(gpt2.student, 8, options)
    await stopped(gpt2.student, 20, { ...options, resume: true })
    const partial = (await readdir(work)).find((name) => name.startsWith('out.partial-'))!
    expect((await readdir(join(work, partial))).sort()).toEqual(['journal', 'model', 'state-18.safetensors'])
    await distilled(gpt2.student, { ...options, resume: true })
    expect(await contents(out)).toEqual(await contents(whole))
  })

  describe('on a slow machine', () => {
    afterEach(() => {
      jest.restoreAllMocks()
    })

    test('the state is saved every five minutes', async () => {
      const work = await temporaryFolder()
      const [whole, out] = [join(work, 'whole'), join(work, 'out')]
      const options = { ...settings, dense: gpt2.dense, out }
      await distilled(gpt2.student, { ...options, out: whole })
      let minutes = 0
      const clock = jest.spyOn(performance, 'now').mockImplementation(() => minutes * 60_000)
      const controller = new AbortController()
      const { signal } = controller
      const onProgress: DistillOptions['onProgress'] = ({ step }) => {
        minutes += 2
        if (step === 5) controller.abort()
      }
      const job = distilled(gpt2.student, { ...options, onProgress, signal })
      await expectError(job, 'ABORTED', /; 4 steps finished are kept/)
      clock.mockRestore()
      await distilled(gpt2.student, { ...options, resume: true })
      expect(await contents(out)).toEqual(await contents(whole))
    })
  })
})

describe('a distillation that was stopped', () => {
  let work: string
  let out: string
  let options: DistillOptions
  const partial = async () =>
    join(
      work,
      (await readdir(work)).find((name) => name.startsWith('out.partial-'))!,
    )
  beforeAll(async () => {
    work = await temporaryFolder()
    out = join(work, 'out')
    options = { ...settings, dense: gpt2.dense, out }
    await stopped(gpt2.student, 13, options)
  })

  test.each([
    ['epochs', { epochs: 3 }, /option epochs: 2 there, 3 here/],
    ['learning rate', { learningRate: 1e-3 }, /option learningRate: 0.01 there, 0.001 here/],
    ['seed', { calibration: { ...calibration, seed: 1 } }, /option seed: 0 there, 1 here/],
    ['text', { calibration: { ...calibration, tokens: randomTokens(800, 2) } }, /calibration text/],
  ] as [string, Partial<DistillOptions>, RegExp][])(
    'is not resumed with another %s',
    async (_, more, message) => {
      const job = distilled(gpt2.student, { ...options, resume: true, ...more })
      await expectError(job, 'INVALID_OPTION', message)
    },
  )

  test('is not resumed with other models, or by prune, or when neither resume nor force is given', async () => {
    const other = await writeTinyModel(await temporaryFolder(), 'gpt2', (name, values) => {
      if (name.endsWith('h.0.mlp.c_fc.weight')) values[0]! += 1
    })
    const resumed = { ...options, resume: true }
    await expectError(
      distilled(gpt2.student, { ...resumed, dense: other }),
      'INVALID_OPTION',
      /option dense \(hash of its weights\)/,
    )
    await expectError(
      distilled(other, resumed),
      'INVALID_CHECKPOINT',
      /differs in model \(hash of its weights\)/,
    )
    await expectError(
      distilled(gpt2.student, options),
      'OUTPUT_EXISTS',
      /out\.partial-.* with 12 steps finished.*--resume.*--force/,
    )
    const model = await loadModel(gpt2.student, { device: 'cpu', threads: 1 })
    const job = prune(model, { method: 'magnitude', out, resume: true })
    await expectError(job, 'INVALID_OPTION', /option method: distill there, magnitude here/)
    await model.dispose()
  })

  const state = 'state-12.safetensors'
  /** Changes the last line of a journal, with the hash that fits. */
  const rewrite = async (folder: string, change: (entry: { step: number; bestStep: number }) => void) => {
    const file = join(folder, 'journal')
    const lines = (await readFile(file, 'utf8')).split('\n')
    const entry = JSON.parse(lines.at(-2)!.slice(33)) as { block: { step: number; bestStep: number } }
    change(entry.block)
    const json = JSON.stringify(entry)
    lines[lines.length - 2] = `${createHash('sha256').update(json).digest('hex').slice(0, 32)} ${json}`
    await writeFile(file, lines.join('\n'))
  }
  const spoiled: [string, (folder: string) => Promise<void>, RegExp][] = [
    [
      'a state with a changed byte',
      async (folder) => {
        const bytes = await readFile(join(folder, state))
        bytes[bytes.length - 1000]! ^= 1
        await writeFile(join(folder, state), bytes)
      },
      /state-12\.safetensors is damaged, .*--force\) begins anew$/,
    ],
    [
      'a state that is cut off',
      (folder) => truncate(join(folder, state), 5000),
      /state-12\.safetensors has 5000 bytes, where \d+ are due, .*--force\) begins anew$/,
    ],
    [
      'a state that has gone',
      (folder) => rm(join(folder, state)),
      /state-12\.safetensors cannot be read \(.*does not exist.*--force\) begins anew$/,
    ],
    [
      'a folder in the place of its state',
      async (folder) => {
        await rm(join(folder, state))
        await mkdir(join(folder, state))
      },
      /state-12\.safetensors cannot be read/,
    ],
    [
      'a journal with a changed byte',
      async (folder) => {
        const bytes = await readFile(join(folder, 'journal'))
        bytes[bytes.length - 20]! ^= 1
        await writeFile(join(folder, 'journal'), bytes)
      },
      /journal is damaged in line 3/,
    ],
    [
      'a journal of too many steps',
      (folder) => rewrite(folder, (entry) => (entry.step = 2 ** 40)),
      /the journal in .* is damaged/,
    ],
    [
      'a journal whose best step was never measured',
      (folder) => rewrite(folder, (entry) => (entry.bestStep = 11)),
      /the journal in .* is damaged/,
    ],
    [
      'a journal of something else',
      (folder) => rewrite(folder, (entry) => Object.assign(entry, { step: 'twelve' })),
      /the journal in .* is damaged/,
    ],
  ]
  test.each(spoiled)('is refused with %s, and kept', async (_, spoil, message) => {
    const copy = join(await temporaryFolder(), 'out')
    const folder = `${copy}.partial-1-00000000`
    await cp(await partial(), folder, { recursive: true })
    await spoil(folder)
    const job = () => distilled(gpt2.student, { ...options, out: copy, resume: true })
    await expectError(job(), 'INVALID_CHECKPOINT', message)
    await expectError(job(), 'INVALID_CHECKPOINT', message)
  })

  test('is resumed after all that, and a state that was not written to its end does not count', async () => {
    const folder = await partial()
    await writeFile(join(folder, 'state-18.safetensors'), 'half')
    await writeFile(join(folder, 'journal'), '0123456789abcdef {"weights":[],"blo', { flag: 'a' })
    await distilled(gpt2.student, { ...options, resume: true })
    await distilled(gpt2.student, { ...options, out: join(work, 'whole') })
    expect(await contents(out)).toEqual(await contents(join(work, 'whole')))
    expect((await readdir(work)).sort()).toEqual(['out', 'whole'])
  })
})

test('a state that cannot be written ends the job, and the one before it is kept', async () => {
  const work = await temporaryFolder()
  const out = join(work, 'out')
  const onProgress: DistillOptions['onProgress'] = ({ step }) => {
    if (step !== 7) return
    const [partial] = readdirSync(work)
    mkdirSync(join(work, partial!, 'state-12.safetensors'))
  }
  const job = distilled(gpt2.student, { ...settings, dense: gpt2.dense, out, onProgress })
  await expectError(
    job,
    'WRITE_FAILED',
    /cannot save the state .*state-12\.safetensors.*; 6 steps finished are kept/,
  )
})

test('resume needs an output folder, and a student that is in files', async () => {
  const options = { ...settings, dense: gpt2.dense, resume: true }
  await expectError(distilled(gpt2.student, options), 'INVALID_OPTION', /option resume: needs out/)
  const model = await loadModel(gpt2.dense, { device: 'cpu', threads: 1 })
  try {
    await prune(model, { method: 'magnitude' })
    const out = join(await temporaryFolder(), 'out')
    await expectError(distill(model, { ...options, out }), 'INVALID_OPTION', /changed in memory/)
    // Without resume it is trained, and leaves nothing when it is stopped.
    const controller = new AbortController()
    const onProgress: DistillOptions['onProgress'] = ({ step }) => step === 7 && controller.abort()
    const { signal } = controller
    const job = distill(model, { ...options, resume: false, out, onProgress, signal })
    await expectError(job, 'ABORTED', /signal$/)
    expect(await readdir(join(out, '..'))).toEqual([])
  } finally {
    await model.dispose()
  }
})
