import { mkdir, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { beforeAll, describe, expect, test } from '@jest/globals'
import { temporaryFolder } from '../temporary.js'
import { randomTokens, writeTinyModel } from '../tiny-model.js'
import { packageUrl, runScript } from './child.js'

// What ends a process or a worker while native threads are at work. An exception that leaves a callback of Node-API, or a thread
// that outlives what it uses, ends the process with a signal.

let model: string
let parent: string
beforeAll(async () => {
  parent = await temporaryFolder()
  model = await writeTinyModel(join(parent, 'model'))
})

/** The source of a module that has `job(out)`, a pruning that takes some seconds and calls `onStart` in the first block. */
const jobModule = () => `
  import { loadModel, prune } from ${JSON.stringify(packageUrl)}
  export async function job(out, onStart) {
    const model = await loadModel(${JSON.stringify(model)}, { device: 'cpu', threads: 2 })
    const running = prune(model, {
      out,
      calibration: { tokens: [${randomTokens(600).join()}], samples: 20000, sequenceLength: 32 },
      onProgress: () => onStart?.(model),
    })
    return { model, running }
  }
`

const dataUrl = (source: string) => `data:text/javascript,${encodeURIComponent(source)}`

describe('the process goes on', () => {
  test('when workers are terminated during jobs, at any moment', async () => {
    const worker = `
      import { parentPort } from 'node:worker_threads'
      ${jobModule()}
      const { running } = await job(undefined, () => parentPort.postMessage('started'))
      await running
    `
    const { code, signal, stdout, stderr } = await runScript(`
      import { Worker } from 'node:worker_threads'
      const url = new URL(${JSON.stringify(dataUrl(worker))})
      for (let i = 0; i < 16; i++) {
        const worker = new Worker(url)
        await new Promise((done) => (i % 4 === 3 ? setTimeout(done, 40 + 5 * i) : worker.once('message', done)))
        await new Promise((done) => setTimeout(done, i % 5))
        await worker.terminate()
      }
      console.log('alive')
    `)
    expect({ code, signal, stdout, stderr }).toEqual({ code: 0, signal: null, stdout: 'alive\n', stderr: '' })
  })

  test('when the workers of a process prune at the same time', async () => {
    const worker = `
      import { parentPort } from 'node:worker_threads'
      import { loadModel, prune } from ${JSON.stringify(packageUrl)}
      const model = await loadModel(${JSON.stringify(model)}, { device: 'cpu', threads: 2 })
      const { layers } = await prune(model, {
        calibration: { tokens: [${randomTokens(600).join()}], samples: 64, sequenceLength: 32 },
      })
      parentPort.postMessage(layers.map(({ loss }) => loss).join())
      await model.dispose()
    `
    const { code, stdout, stderr } = await runScript(`
      import { Worker } from 'node:worker_threads'
      const url = new URL(${JSON.stringify(dataUrl(worker))})
      const losses = await Promise.all(Array.from({ length: 4 }, () => new Promise((done, fail) => {
        let message
        new Worker(url).on('message', (text) => (message = text)).on('error', fail).on('exit', () => done(message))
      })))
      console.log(new Set(losses).size, losses[0].split(',').length)
    `)
    expect({ code, stdout, stderr }).toEqual({ code: 0, stdout: '1 14\n', stderr: '' })
  })
})

describe('the process ends as it should', () => {
  test.each([
    ['process.exit()', 'process.exit(7)', 7, /^$/],
    ['an uncaught exception', 'setImmediate(() => { throw new Error("mine") })', 1, /Error: mine/],
    ['an unhandled rejection', 'void Promise.reject(new Error("mine"))', 1, /Error: mine/],
  ])('%s during work', async (_, end, expected, message) => {
    const folder = join(parent, `end-${expected}-${end.length}`)
    await mkdir(folder)
    const { code, signal, stderr } = await runScript(`
      ${jobModule()}
      const { running } = await job(${JSON.stringify(join(folder, 'out'))}, () => { ${end} })
      await running
    `)
    expect({ code, signal }).toEqual({ code: expected, signal: null })
    expect(stderr).toMatch(message)
    expect(await readdir(folder)).toEqual([])
  })

  test('dispose() during work: what is awaited rejects with ABORTED and the partial folder goes', async () => {
    const folder = join(parent, 'disposed')
    await mkdir(folder)
    const { code, stdout, stderr } = await runScript(`
      import { perplexity } from ${JSON.stringify(packageUrl)}
      ${jobModule()}
      let disposed
      const { model, running } = await job(${JSON.stringify(join(folder, 'out'))}, (model) => (disposed ??= model.dispose()))
      const code = (promise) => promise.then(() => 'resolved', (error) => error.name + ' ' + error.code)
      console.log(await code(running))
      await disposed
      const ids = { tokens: [1, 2, 3, 4], sequenceLength: 2 }
      console.log(await code(model.logits([[1, 2]])), await code(perplexity(model, ids)))
    `)
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    const refused = 'SparseGptError INVALID_OPTION'
    expect(stdout).toBe(`SparseGptError ABORTED\n${refused} ${refused}\n`)
    expect(await readdir(folder)).toEqual([])
  })
})
