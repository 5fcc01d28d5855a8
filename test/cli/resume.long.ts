import { cpSync, existsSync, readdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { isDeepStrictEqual } from 'node:util'
import { beforeAll, describe, expect, test } from '@jest/globals'
import { PythonRandom } from '../../src/text/python-random.js'
import { temporaryFolder } from '../temporary.js'
import { sparsegpt, type Run } from './run.js'
import { begun, contents, finished, when } from './stopped-jobs.js'

const model = fileURLToPath(new URL('../../models/sotu-3m', import.meta.url))
const text = fileURLToPath(new URL('../../docs/performance.md', import.meta.url))
/** `npm run fuzz -- --kills 100` does more of them by hand. */
const kills = Number(process.env['SPARSEGPT_KILLS'] ?? 10)

let parent: string
let out: string
let whole: Map<string, string>
let report: string
/** The time that the job takes once it has its partial folder, in milliseconds. */
let duration: number

const job = (...more: string[]) => {
  const calibrated = ['--calibration', text, '--samples', '16', '--seqlen', '64']
  return ['prune', model, '--out', out, ...calibrated, '--json', ...more]
}

/** A report without what depends on the clock, the system and the folder's name. */
function timeless({ stdout }: Run): string {
  return JSON.stringify(JSON.parse(stdout), (name, value: unknown) =>
    ['seconds', 'peakRssBytes', 'out'].includes(name) ? undefined : value,
  )
}

beforeAll(async () => {
  parent = await temporaryFolder()
  out = join(parent, 'out')
  let start = 0
  const run = await sparsegpt(job(), () => when(begun(parent), () => (start = performance.now())))
  duration = performance.now() - start
  expect(run.code).toBe(0)
  report = timeless(run)
  whole = contents(out)
  rmSync(out, { recursive: true })
})

test(
  `SIGKILL at ${kills} random moments: what was finished is kept, what is replaced never lacks, and the result is the same to the bit`,
  async () => {
    const random = new PythonRandom(kills)
    const counts = { killed: 0, complete: 0, resumed: 0, begunAnew: 0, replaced: 0 }
    while (counts.killed < kills) {
      /** Whether there is an earlier output, which --force replaces. */
      const replaces = random.randint(0, 1) === 1
      if (replaces) cpSync(model, out, { recursive: true })
      const force = replaces ? ['--force'] : []
      let done = 0
      let run: Run
      let complete: boolean
      do {
        const delay = (random.randint(0, 1000) / 1000) * duration
        run = await sparsegpt(job('--resume', ...force), (kill) =>
          when(begun(parent), () => setTimeout(() => kill('SIGKILL'), delay)),
        )
        if (run.code === null) counts.killed++
        else expect(run).toMatchObject({ code: 0 })
        const stands = existsSync(out) ? contents(out) : undefined
        complete = isDeepStrictEqual(stands, whole)
        if (complete) break
        expect(stands).toEqual(replaces ? contents(model) : undefined)
        const now = finished(parent)
        expect(now).toBeGreaterThanOrEqual(done)
        done = now
      } while (random.randint(0, 1) === 0) // killed again on its way
      if (!complete) {
        const anew = random.randint(0, 2) === 0
        const last = await sparsegpt(job(...(anew ? ['--force'] : ['--resume', ...force])))
        expect(last).toMatchObject({ code: 0 })
        expect(timeless(last)).toBe(report)
        if (done > 0 && !anew) counts.resumed++
        else counts.begunAnew++
      } else {
        counts.complete++
        // A job that was killed between the output's appearance and its own end is complete, and tidied up by the next one.
        if (run.code === null) {
          const late = await sparsegpt(job('--resume'))
          expect(late).toMatchObject({ code: 1, stderr: expect.stringMatching(/out exists.*OUTPUT_EXISTS/) })
        } else {
          expect(timeless(run)).toBe(report)
        }
      }
      if (replaces) counts.replaced++
      expect(contents(out)).toEqual(whole)
      expect(readdirSync(parent)).toEqual(['out'])
      rmSync(out, { recursive: true })
    }
    if (kills !== 10) console.info(counts)
    rmSync(parent, { recursive: true })
    expect(counts.resumed + counts.begunAnew + counts.complete).toBeGreaterThan(0)
  },
  60_000 + kills * 10_000,
)

describe('a job that was stopped', () => {
  test.each(['SIGTERM', 'SIGINT'] as const)(
    'by %s says how it goes on, and so does the next one',
    async (signal) => {
      parent = await temporaryFolder()
      out = join(parent, 'out')
      const stopped = await sparsegpt(job(), (kill) => {
        when(
          () => finished(parent) > 0,
          () => kill(signal),
        )
      })
      expect(stopped).toMatchObject({
        code: signal === 'SIGINT' ? 130 : 1,
        stdout: '',
        stderr: expect.stringMatching(
          /stopped by the signal; \d blocks? finished (is|are) kept in .*--resume.*ABORTED/,
        ),
      })
      const plain = await sparsegpt(job())
      expect(plain).toMatchObject({
        code: 1,
        stderr: expect.stringMatching(/out\.partial-.*finished.*--resume.*--force.*OUTPUT_EXISTS/),
      })
      const other = await sparsegpt(job('--resume', '--sparsity', '0.6'))
      expect(other).toMatchObject({
        code: 2,
        stderr: expect.stringMatching(/--sparsity: not given there, 0\.6 here/),
      })
      const resumed = await sparsegpt(job('--resume'))
      expect(resumed.code).toBe(0)
      expect(timeless(resumed)).toBe(report)
      expect(contents(out)).toEqual(whole)
      expect(readdirSync(parent)).toEqual(['out'])
    },
  )

  test('is removed by --force', async () => {
    parent = await temporaryFolder()
    out = join(parent, 'out')
    await sparsegpt(job(), (kill) => {
      when(
        () => finished(parent) > 0,
        () => kill('SIGKILL'),
      )
    })
    expect(readdirSync(parent)).toEqual([expect.stringMatching(/^out\.partial-/)])
    expect((await sparsegpt(job('--force'))).code).toBe(0)
    expect(contents(out)).toEqual(whole)
    expect(readdirSync(parent)).toEqual(['out'])
  })
})
