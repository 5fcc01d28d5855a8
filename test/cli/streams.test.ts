import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, openSync, closeSync, readdirSync, readFileSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { beforeAll, describe, expect, test } from '@jest/globals'
import { openCheckpoint } from '../../src/files/checkpoint.js'
import { temporaryFolder } from '../temporary.js'
import { asText, randomTokens, writeTinyModel } from '../tiny-model.js'
import { program } from './run.js'

let model: string
let parent: string
let text: string
beforeAll(async () => {
  parent = await temporaryFolder()
  model = await writeTinyModel(join(parent, 'model'))
  text = join(parent, 'text.txt')
  await writeFile(text, asText(randomTokens(600)))
})

const job = (out: string, samples: number) =>
  [program, 'prune', model, '--out', out, '--calibration', text, '--seqlen', '32', '--threads', '1'].concat(
    '--samples',
    String(samples),
  )

describe('a job outlives its readers', () => {
  test('with stderr closed before its first line of progress, which comes after 5 s', async () => {
    const out = join(parent, 'no-stderr')
    const child = spawn(process.execPath, job(out, 60000), { stdio: ['ignore', 'pipe', 'pipe'] })
    const started = performance.now()
    child.stderr.destroy()
    let stdout = ''
    child.stdout.setEncoding('utf8').on('data', (part: string) => (stdout += part))
    expect(await once(child, 'close')).toEqual([0, null])
    expect(performance.now() - started).toBeGreaterThan(5500) // else it has shown nothing
    expect(stdout).toMatch(/14 layers pruned/)
    expect((await openCheckpoint(out)).tensors.size).toBeGreaterThan(14)
  })

  test('with stdout closed before the summary: it ends quietly, the output is complete', async () => {
    const out = join(parent, 'no-stdout')
    const child = spawn(process.execPath, job(out, 8), { stdio: ['ignore', 'pipe', 'pipe'] })
    child.stdout.destroy()
    let stderr = ''
    child.stderr.setEncoding('utf8').on('data', (part: string) => (stderr += part))
    expect(await once(child, 'close')).toEqual([0, null])
    expect(stderr).toBe('')
    expect((await openCheckpoint(out)).tensors.size).toBeGreaterThan(14)
  })

  const full = existsSync('/dev/full')
  if (!full) console.warn('SKIPPED: "a stdout that is full" needs /dev/full')
  ;(full ? test : test.skip)('but a stdout that is full is a failure', async () => {
    const device = openSync('/dev/full', 'w')
    const child = spawn(process.execPath, [program, 'inspect', model], { stdio: ['ignore', device, 'pipe'] })
    closeSync(device)
    let stderr = ''
    child.stderr?.setEncoding('utf8').on('data', (part: string) => (stderr += part))
    expect(await once(child, 'close')).toEqual([1, null])
    expect(stderr).toMatch(/^sparsegpt: cannot write to stdout: .*ENOSPC.*\n$/)
  })
})

/** Ends a job by two signals, once `ready(partial folder)`. It is stopped while they are sent and finds both: it has no time to clean up. */
async function stoppedTwice(name: string, samples: number, ready: (partial: string) => boolean) {
  const child = spawn(process.execPath, job(join(parent, name), samples), {
    stdio: ['ignore', 'ignore', 'pipe'],
  })
  const started = setInterval(() => {
    const partial = readdirSync(parent).find((entry) => entry.startsWith(`${name}.partial-`))
    if (partial === undefined || !ready(join(parent, partial))) return
    clearInterval(started)
    for (const signal of ['SIGSTOP', 'SIGINT', 'SIGTERM', 'SIGCONT'] as const) child.kill(signal)
  }, 5)
  let stderr = ''
  child.stderr.setEncoding('utf8').on('data', (part: string) => (stderr += part))
  const [code] = (await once(child, 'close')) as [number]
  // Two threads may take the two: the code is that of the later one.
  expect([1, 130]).toContain(code)
  // Which the first one alone would have ended with.
  expect(stderr).not.toContain('ABORTED')
  return readdirSync(parent).filter((entry) => entry.startsWith(name))
}

describe('a second signal ends the process at once', () => {
  test('and takes the partial folder away', async () => {
    expect(await stoppedTwice('twice', 200000, () => true)).toEqual([])
  })

  test('but not what can be resumed', async () => {
    const hasBlock = (partial: string) =>
      existsSync(join(partial, 'journal')) &&
      readFileSync(join(partial, 'journal'), 'utf8').split('\n').length > 2
    const left = await stoppedTwice('resumable', 20000, hasBlock)
    expect(left).toEqual([expect.stringMatching(/^resumable\.partial-/)])
    const folder = join(parent, left[0]!)
    expect(readdirSync(folder).sort()).toEqual(['journal', 'model'])
  })
})
