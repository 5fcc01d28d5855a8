import { execFile, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { beforeAll, describe, expect, test } from '@jest/globals'
import { plan, type PlanOptions, type PruneReport } from '../../src/index.js'
import { program } from '../cli/run.js'
import { temporaryFolder } from '../temporary.js'

const path = (name: string) => fileURLToPath(new URL(name, import.meta.url))
const model = path('../../models/sotu-3m')
const text = path('../../docs/performance.md')
const child = path('child.mjs')

/** Why nothing can be started here, if so. */
const missing = await promisify(execFile)('mpirun', ['--version']).then(
  () =>
    existsSync(path('../../build/Release/libsparsegpt_mpi.so'))
      ? undefined
      : 'npm run build:mpi has not been run',
  () => 'there is no mpirun',
)
if (missing !== undefined) console.warn(`SKIPPED: ranks that mpirun starts: ${missing}`)
const describeWithMpi = missing === undefined ? describe : describe.skip

interface Ended {
  code: number | null
  stdout: string
  stderr: string
  seconds: number
}

/** Runs a script on so many ranks. */
function mpirun(ranks: number, ...args: string[]): Promise<Ended> {
  const root = { OMPI_ALLOW_RUN_AS_ROOT: '1', OMPI_ALLOW_RUN_AS_ROOT_CONFIRM: '1' }
  const start = performance.now()
  return new Promise((done, fail) => {
    const started = spawn('mpirun', ['--oversubscribe', '-n', String(ranks), process.execPath, ...args], {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, ...root },
    })
    let [stdout, stderr] = ['', '']
    started.stdout.setEncoding('utf8').on('data', (part: string) => (stdout += part))
    started.stderr.setEncoding('utf8').on('data', (part: string) => (stderr += part))
    started.on('error', fail)
    started.on('close', (code) => done({ code, stdout, stderr, seconds: (performance.now() - start) / 1000 }))
  })
}

/** Of a job without its windows. */
const options = { pattern: '2:4', maxBlock: 2 }
const job = (out: string) => {
  const calibrated = [
    '--calibration',
    text,
    '--samples',
    '12',
    '--seqlen',
    '64',
    '--pattern',
    '2:4',
    '--max-block',
    '2',
  ]
  return [program, 'prune', model, '--out', out, ...calibrated, '--threads', '1', '--json']
}
const sha256 = (bytes: Buffer) => createHash('sha256').update(bytes).digest('hex')
/** The files of a folder but its report, which has times. */
const contents = (folder: string) =>
  new Map(
    readdirSync(folder)
      .filter((name) => !name.startsWith('sparsegpt-report.'))
      .map((name) => [name, sha256(readFileSync(join(folder, name)))]),
  )

describeWithMpi('ranks that mpirun starts', () => {
  let parent: string
  let whole: Map<string, string>
  beforeAll(async () => {
    if (missing !== undefined) return
    parent = await temporaryFolder()
    const { code } = await mpirun(2, ...job(join(parent, 'whole')), '--window-groups', '4')
    expect(code).toBe(0)
    whole = contents(join(parent, 'whole'))
  })

  test('one prunes as two do; rank 0 alone reports', async () => {
    const out = join(parent, 'alone')
    const { code, stdout } = await mpirun(1, ...job(out), '--window-groups', '4')
    expect(code).toBe(0)
    expect(contents(out)).toEqual(whole)
    expect((JSON.parse(stdout) as { layers: unknown[] }).layers).toHaveLength(14)
  })

  test.each<[number, PlanOptions]>([
    [2, { ...options, maxBlock: 1 }],
    [3, { sparsity: 0.5, sequential: 'layer', maxBlock: 1 }],
  ])('%d ranks receive what plan says, to 5 %%', async (ranks, options) => {
    const out = join(parent, `volume-${ranks}`)
    const { stdout } = await mpirun(ranks, child, JSON.stringify({ model, text, out, options }))
    const { bytesReceived, count } = (JSON.parse(stdout) as PruneReport).ranks!
    expect(count).toBe(ranks)
    const planned = await plan(model, { ...options, samples: 12, sequenceLength: 64, ranks })
    expect(Math.abs(bytesReceived / planned.received! - 1)).toBeLessThan(0.05)
  })

  test('eval measures what one process does', async () => {
    const args = [program, 'eval', model, '--dataset', text, '--seqlen', '64', '--windows', '9', '--json']
    const [one, three] = [await mpirun(1, ...args), await mpirun(3, ...args)]
    expect(three.stdout).toBe(one.stdout)
    expect(JSON.parse(three.stdout)).toMatchObject({ windows: 9 })
    const tasks = await mpirun(2, program, 'eval', model, '--tasks', 'boolq')
    expect(tasks.code).not.toBe(0)
    expect(tasks.stderr).toMatch(/rank [01] of 2: sparsegpt: --tasks: one process answers them/)
  })

  test('another number of ranks than --ranks says, and one that fails, end all with its message', async () => {
    const { code, stderr } = await mpirun(2, ...job(join(parent, 'other')), '--ranks', '3')
    expect(code).not.toBe(0)
    expect(stderr).toMatch(
      /rank [01] of 2: sparsegpt: --ranks: 3 ranks are wanted, but the launcher has started 2/,
    )
    const out = join(parent, 'whole')
    const again = await mpirun(2, ...job(out))
    expect(again.code).not.toBe(0)
    expect(again.stderr).toMatch(/rank 0 of 2: sparsegpt: .*whole exists: .*\(--force\).* \[OUTPUT_EXISTS\]/)
  })

  test.each([
    ['forward', 1, 2],
    ['reduction', 0, 4],
    ['solve', 1, 1],
    ['write', 0, 2],
  ])(
    'when a rank is killed in %s (%d), the others end within seconds, and the job can be resumed on %d',
    async (phase, rank, later) => {
      const out = join(parent, phase)
      const task = (more: object) =>
        JSON.stringify({ model, text, out, options: { ...options, windowGroups: 4, ...more } })
      const killed = await mpirun(2, child, task({}), JSON.stringify({ rank, phase }))
      expect(killed.code).not.toBe(0)
      expect(killed.seconds).toBeLessThan(30)
      expect(existsSync(out)).toBe(false)
      const resumed = await mpirun(later, child, task({ resume: true }))
      expect(resumed.code).toBe(0)
      expect(contents(out)).toEqual(whole)
      expect(readdirSync(parent).filter((name) => name.startsWith(`${phase}.partial`))).toEqual([])
    },
  )

  test('an error that a program throws ends all ranks with its message', async () => {
    const out = join(parent, 'error')
    const task = JSON.stringify({ model, text, out, options })
    const { code, stderr, seconds } = await mpirun(
      2,
      child,
      task,
      JSON.stringify({ rank: 1, phase: 'error' }),
    )
    expect(code).not.toBe(0)
    expect(stderr).toMatch(/rank 1 of 2: Error: a rank has met an error/)
    expect(seconds).toBeLessThan(30)
    expect(existsSync(out)).toBe(false)
  })
})
