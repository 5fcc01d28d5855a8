import { once } from 'node:events'
import { readdir, readFile, writeFile } from 'node:fs/promises'
import { availableParallelism } from 'node:os'
import { join, relative } from 'node:path'
import { expect, test } from '@jest/globals'
import { loadModel, prune, type PruneOptions } from '../../src/index.js'
import { temporaryFolder } from '../temporary.js'
import { writeTinyModel } from '../tiny-model.js'
import { runCampaign, startExercise, type Result } from './campaign.js'
import { calibrationTokens, type Stopped } from './inputs.js'

/** `npm run fuzz` sets these. */
const number = (name: string, otherwise: number) => Number(process.env[`SPARSEGPT_FUZZ_${name}`] ?? otherwise)
const byHand = process.env['SPARSEGPT_FUZZ_SECONDS'] !== undefined
const seconds = number('SECONDS', 20)
const [seed, inputs] = [number('SEED', 1), number('INPUTS', Infinity)]

/** All files below a folder. */
async function filesOf(folder: string): Promise<Record<string, Buffer>> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true })
  const paths = entries
    .filter((entry) => entry.isFile())
    .map(({ parentPath, name }) => join(parentPath, name))
  const read = async (path: string) => [relative(folder, path), await readFile(path)] as const
  return Object.fromEntries(await Promise.all(paths.sort().map(read)))
}

async function stoppedJob(): Promise<Stopped> {
  const parent = await temporaryFolder()
  const [folder, whole, out] = ['model', 'whole', 'out'].map((name) => join(parent, name)) as [
    string,
    string,
    string,
  ]
  const model = await loadModel(await writeTinyModel(folder), { device: 'cpu', threads: 1 })
  const calibration = { tokens: calibrationTokens, samples: 2, sequenceLength: 8 }
  try {
    const controller = new AbortController()
    const onProgress: PruneOptions['onProgress'] = ({ block, layer }) => {
      if (block === 1 && layer) controller.abort()
    }
    const job = prune(model, { calibration, out, onProgress, signal: controller.signal })
    await expect(job).rejects.toMatchObject({ code: 'ABORTED' })
    await prune(model, { calibration, out: whole })
  } finally {
    await model.dispose()
  }
  const partial = (await readdir(parent)).find((name) => name.startsWith('out.partial-'))!
  return {
    model: await filesOf(folder),
    partial: await filesOf(join(parent, partial)),
    whole: await filesOf(whole),
  }
}

function table({ counts, inputs: done, faults, peakBytes }: Result): string {
  const lines = [...counts]
    .sort()
    .flatMap(([kind, outcomes]) => [
      `${kind}: ${[...outcomes.values()].reduce((a, b) => a + b, 0)}`,
      ...[...outcomes]
        .sort((a, b) => b[1] - a[1])
        .map(([outcome, count]) => `${String(count).padStart(8)}  ${outcome}`),
    ])
  const peak = `${(peakBytes / 1e6).toFixed(0)} MB at most`
  return [...lines, `${done} inputs from seed ${seed} on, ${faults.length} faults, ${peak}`, ''].join('\n')
}

test(
  'whatever a file holds, the process lives, answers in 20 s with less than 1 GB, and rejects with a SparseGptError',
  async () => {
    const say = (text: string) => process.stdout.write(`${text}\n`)
    const result = await runCampaign({
      seed,
      inputs,
      seconds,
      processes: Math.min(2, availableParallelism()),
      stopped: await stoppedJob(),
      onFault: ({ seed: at, kind, what, kept }) => say(`input ${at}, ${kind}: ${what} (kept in ${kept})`),
    })
    if (byHand) say(table(result))
    expect(result.faults).toEqual([])
    expect(result.inputs).toBeGreaterThan(0)
  },
  (seconds + 120) * 1000,
)

test('a process of the campaign ends when its parent does, in the middle of a job', async () => {
  const folder = await temporaryFolder()
  await writeTinyModel(join(folder, 'model'))
  await writeFile(join(folder, 'job.json'), JSON.stringify({ prune: { reconstruct: 500 } }))
  const child = startExercise()
  const ended = once(child, 'exit')
  try {
    child.send({ folder, tokens: calibrationTokens })
    while (!(await readdir(folder)).some((name) => name.startsWith('out.partial-')))
      await new Promise((done) => setTimeout(done, 20))
    child.disconnect()
    expect(await ended).toEqual([null, 'SIGKILL'])
  } finally {
    child.kill('SIGKILL')
  }
}, 60_000)
