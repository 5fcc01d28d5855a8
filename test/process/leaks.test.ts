import { join } from 'node:path'
import { expect, test } from '@jest/globals'
import { temporaryFolder } from '../temporary.js'
import { randomTokens, writeTinyModel } from '../tiny-model.js'
import { packageUrl, runScript } from './child.js'

/** `npm run fuzz -- --loads 500` does more of them by hand; in every second one a job is stopped. */
const loads = Number(process.env['SPARSEGPT_LOADS'] ?? 120)

test('loads, jobs that are aborted and models disposed of at work leave nothing: memory, files, threads', async () => {
  const folder = await temporaryFolder()
  const model = await writeTinyModel(join(folder, 'model'))
  const { code, stderr, stdout } = await runScript(`
    import { existsSync, readdirSync } from 'node:fs'
    import { loadModel, prune } from ${JSON.stringify(packageUrl)}
    const tokens = [${randomTokens(600).join()}]
    const outcomes = {}
    const count = (outcome) => (outcomes[outcome] = (outcomes[outcome] ?? 0) + 1)
    async function round(i) {
      const model = await loadModel(${JSON.stringify(model)}, { device: 'cpu', threads: 2 })
      if (i % 2 === 0) {
        const stop = new AbortController()
        const running = prune(model, {
          out: ${JSON.stringify(join(folder, 'out'))},
          force: true, // also what a job with a finished block has left
          calibration: { tokens, samples: 64, sequenceLength: 32 },
          signal: stop.signal,
          onProgress: ({ fraction }) => {
            if (fraction * 40 >= i % 40) i % 4 === 0 ? stop.abort() : void model.dispose()
          },
        })
        await running.then(() => count('done'), ({ code }) => count(code))
      }
      await model.dispose()
    }
    const list = (path) => (existsSync(path) ? readdirSync(path).length : 0)
    async function rounds(n) {
      for (let i = 0; i < n; i++) await round(i)
      for (let i = 0; i < 3; i++) {
        globalThis.gc()
        await new Promise((done) => setTimeout(done, 50))
      }
      return { rss: process.memoryUsage.rss(), threads: list('/proc/self/task'), files: list('/proc/self/fd') }
    }
    await rounds(40)
    const before = await rounds(40)
    const after = await rounds(${loads - 80})
    console.log(JSON.stringify({ before, after, outcomes, rest: readdirSync(${JSON.stringify(folder)}) }))
  `)
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
  const { before, after, outcomes, rest } = JSON.parse(stdout)
  if (loads !== 120) console.info({ loads, before, after, outcomes })
  expect(outcomes.ABORTED).toBeGreaterThan((loads * 5) / 12)
  const partial = (name: string) => name.startsWith('out.partial-')
  expect(rest.filter((name: string) => name !== 'out' && !partial(name))).toEqual(['model'])
  expect(rest.filter(partial).length).toBeLessThanOrEqual(1)
  expect(after.threads).toBe(before.threads)
  expect(after.files).toBeLessThanOrEqual(before.files)
  // A model's parameters and tables alone are some 10 kB, a partial file's buffers more.
  expect(after.rss - before.rss).toBeLessThan(8e6)
})
