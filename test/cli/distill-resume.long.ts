import { existsSync, readdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { isDeepStrictEqual } from 'node:util'
import { beforeAll, expect, test } from '@jest/globals'
import { loadModel, prune } from '../../src/index.js'
import { PythonRandom } from '../../src/text/python-random.js'
import { temporaryFolder } from '../temporary.js'
import { sparsegpt, type Run } from './run.js'
import { begun, contents, finished, when } from './stopped-jobs.js'

const dense = fileURLToPath(new URL('../../models/sotu-3m', import.meta.url))
const text = fileURLToPath(new URL('../../docs/performance.md', import.meta.url))
/** `npm run fuzz -- --kills 100` does more of them by hand. */
const kills = Number(process.env['SPARSEGPT_KILLS'] ?? 5)

let student: string
let parent: string
let out: string
let whole: Map<string, string>
let report: string
/** The time that the job takes once it has its partial folder, in milliseconds. */
let duration: number

const job = (...more: string[]) => {
  const calibrated = ['--calibration', text, '--samples', '12', '--seqlen', '32', '--batch', '2']
  return ['distill', student, '--dense', dense, '--out', out, ...calibrated, '--json', ...more]
}

/** A report without what depends on the clock and the system. */
function timeless({ stdout }: Run): string {
  return JSON.stringify(JSON.parse(stdout), (name, value: unknown) =>
    ['seconds', 'peakRssBytes'].includes(name) ? undefined : value,
  )
}

beforeAll(async () => {
  parent = await temporaryFolder()
  out = join(parent, 'out')
  student = join(await temporaryFolder(), 'pruned')
  const model = await loadModel(dense, { device: 'cpu' })
  await prune(model, { method: 'magnitude', pattern: '2:4', out: student })
  await model.dispose()
  let start = 0
  const run = await sparsegpt(job(), () => when(begun(parent), () => (start = performance.now())))
  duration = performance.now() - start
  expect(run).toMatchObject({ code: 0, stderr: expect.not.stringMatching(/WARN/i) })
  report = timeless(run)
  whole = contents(out)
  rmSync(out, { recursive: true })
}, 60_000)

test(
  `SIGKILL at ${kills} random moments: saved states are kept, and the result is the same to the bit`,
  async () => {
    const random = new PythonRandom(kills)
    let killed = 0
    let states = 0
    while (killed < kills) {
      const delay = (random.randint(0, 1000) / 1000) * duration
      const run = await sparsegpt(job('--resume'), (kill) =>
        when(begun(parent), () => setTimeout(() => kill('SIGKILL'), delay)),
      )
      if (run.code === null) killed++
      else expect(run).toMatchObject({ code: 0 })
      const stands = existsSync(out)
      if (!stands) {
        const now = finished(parent)
        expect(now).toBeGreaterThanOrEqual(states)
        states = now
        if (killed < kills) continue
        const last = await sparsegpt(job('--resume'))
        expect(last).toMatchObject({ code: 0 })
        expect(timeless(last)).toBe(report)
      } else if (run.code === 0) {
        expect(timeless(run)).toBe(report)
      } else {
        // Killed behind the output's appearance: the next job tidies up.
        expect(await sparsegpt(job('--resume'))).toMatchObject({ code: 1 })
      }
      expect(isDeepStrictEqual(contents(out), whole)).toBe(true)
      expect(readdirSync(parent)).toEqual(['out'])
      rmSync(out, { recursive: true })
      states = 0
    }
  },
  60_000 + kills * 10_000,
)

test('Ctrl-C says how the job goes on, and --resume does', async () => {
  const stopped = await sparsegpt(job(), (kill) =>
    when(
      () => finished(parent) > 0,
      () => kill('SIGINT'),
    ),
  )
  expect(stopped).toMatchObject({
    code: 130,
    stdout: '',
    stderr: expect.stringMatching(
      /stopped by the signal; \d steps? finished (is|are) kept in .*--resume.*ABORTED/,
    ),
  })
  const other = await sparsegpt(job('--resume', '--learning-rate', '1e-3'))
  expect(other).toMatchObject({
    code: 2,
    stderr: expect.stringMatching(/--learning-rate: 0\.0015 there, 0\.001 here/),
  })
  const resumed = await sparsegpt(job('--resume'))
  expect(resumed.code).toBe(0)
  expect(timeless(resumed)).toBe(report)
  expect(isDeepStrictEqual(contents(out), whole)).toBe(true)
  expect(readdirSync(parent)).toEqual(['out'])
})
