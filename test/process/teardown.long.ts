import { mkdir, readdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { beforeAll, describe, expect, test } from '@jest/globals'
import { temporaryFolder } from '../temporary.js'
import { asText, randomTokens, writeTinyModel } from '../tiny-model.js'
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

  test('when workers load, prune and measure at the same time, and some are terminated in the middle', async () => {
    const folder = join(parent, 'workers')
    await mkdir(folder)
    const text = join(folder, 'text.txt')
    await writeFile(text, asText(randomTokens(600)))
    const module = `
      import { loadModel, perplexity, prune } from ${JSON.stringify(packageUrl)}
      export async function job(out, options, tell) {
        const model = await loadModel(${JSON.stringify(model)}, { device: 'cpu', threads: 2 })
        tell('loaded')
        const file = ${JSON.stringify(text)}
        const dense = await perplexity(model, { file, sequenceLength: 32, onProgress: () => tell('measured') })
        const { layers } = await prune(model, {
          out,
          ...options,
          calibration: { file, samples: 64, sequenceLength: 32 },
          onProgress: ({ block, layer }) => layer && tell('block ' + block),
        })
        const pruned = await perplexity(model, { file, sequenceLength: 32 })
        await model.dispose()
        return JSON.stringify([dense, pruned, layers.map(({ loss }) => loss)])
      }
    `
    const worker = `
      import { parentPort, workerData } from 'node:worker_threads'
      ${module}
      const { out, end } = workerData
      const tell = (at) => {
        if (at !== end) return
        parentPort.postMessage({ at })
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0) // for the end
      }
      parentPort.postMessage({ result: await job(out, {}, tell) })
    `
    const { code, stdout, stderr } = await runScript(`
      import { existsSync, readdirSync, readFileSync } from 'node:fs'
      import { Worker } from 'node:worker_threads'
      ${module}
      const folder = ${JSON.stringify(folder)}
      const url = new URL(${JSON.stringify(dataUrl(worker))})
      /** Resolves to the result; undefined when the worker is terminated at \`end\`. */
      const run = (out, end) => new Promise((done, fail) => {
        let result
        const worker = new Worker(url, { workerData: { out: folder + '/' + out, end } })
        worker.on('error', fail).on('exit', () => done(result))
        worker.on('message', (message) => {
          result = message.result
          if (message.at) void worker.terminate()
        })
      })
      const ends = ['loaded', 'measured', 'block 0', 'block 1']
      const results = await Promise.all([run('a'), run('b'), ...ends.map((end, i) => run('ended-' + i, end))])
      const kept = readdirSync(folder).filter((name) => name.includes('partial')).map((name) => name[6]).join()
      const codes = []
      for (const i of ends.keys()) {
        // What has a finished block is not lost by an accident.
        await job(folder + '/ended-' + i, {}, () => undefined).then(
          (result) => results.push(result),
          async ({ code }) => {
            codes.push(i + code)
            results.push(await job(folder + '/ended-' + i, { resume: true }, () => undefined))
          },
        )
      }
      const contents = (name) => readFileSync(folder + '/' + name + '/model.safetensors', 'base64')
      const outs = readdirSync(folder).filter((name) => name !== 'text.txt')
      // Processes of tokenizers; Node leaves those that have ended of terminated workers as zombies.
      const read = (file) => (existsSync(file) ? readFileSync(file, 'utf8') : '')
      const lives = (id) => /^State:\\s+[^Z]/m.test(read('/proc/' + id + '/status'))
      const children = () =>
        readdirSync('/proc/self/task').flatMap((id) =>
          read('/proc/self/task/' + id + '/children').split(' ').filter(Boolean).filter(lives),
        )
      while (children().length > 0) await new Promise((done) => setTimeout(done, 50))
      console.log(JSON.stringify({
        ended: results.splice(2, 4).filter(Boolean).length,
        results: [results.length, new Set(results).size],
        outs: [...outs, new Set(outs.map(contents)).size],
        codes,
        kept,
      }))
    `)
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    expect(JSON.parse(stdout)).toEqual({
      ended: 0,
      results: [6, 1],
      outs: ['a', 'b', 'ended-0', 'ended-1', 'ended-2', 'ended-3', 1],
      codes: ['3OUTPUT_EXISTS'],
      kept: expect.stringMatching(/3$/),
    })
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
