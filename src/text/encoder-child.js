// @ts-check
// The program of the process in which a tokenizer is loaded and encodes: the native library `tokenizers` may abort or take any
// amount of memory for a hostile tokenizer.json, and this process may die of it. encoder-process.ts is its parent. JavaScript,
// because Node runs it as it lies here, also where the rest is compiled on the fly.

import { writeSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { Worker, isMainThread, parentPort, workerData } from 'node:worker_threads'

const watchMilliseconds = 20

/** @type {<T>(value: T | null | undefined) => T} */
const present = (value) => {
  if (value === null || value === undefined) throw new Error('this program is started by encoder-process.ts')
  return value
}

/** Ends this process, whatever its other threads do. */
const die = () => process.kill(process.pid, 'SIGKILL')

/** The thread that ends the process when it takes too much memory, or outlives its parent. */
function watch() {
  /** @type {Float64Array} */
  const limit = workerData
  const parent = process.ppid
  setInterval(() => {
    if (process.memoryUsage.rss() > (limit[0] ?? 0)) {
      writeSync(2, 'memory limit')
      die()
    }
    if (process.ppid !== parent) die()
  }, watchMilliseconds)
  present(parentPort).postMessage('watching')
}

async function serve() {
  const limit = new Float64Array(new SharedArrayBuffer(8)).fill(Infinity)
  const watching = new Promise((resolve, reject) => {
    new Worker(fileURLToPath(import.meta.url), { workerData: limit })
      .once('message', resolve)
      .once('error', reject)
  })
  const [{ Tokenizer }] = await Promise.all([import('tokenizers'), watching])
  const send = present(process.send).bind(process)
  /** @type {import('tokenizers').Tokenizer | undefined} */
  let tokenizer
  process.on('disconnect', die)
  process.on('message', (/** @type {import('./encoder-process.js').Request} */ request) => {
    void answer(request).then(send, (/** @type {unknown} */ error) =>
      send({ error: error instanceof Error ? error.message : String(error) }),
    )
  })
  send({ ready: true })

  /** @param {import('./encoder-process.js').Request} request */
  async function answer({ memory, json, texts, special }) {
    limit[0] = memory
    if (json !== undefined) {
      tokenizer = Tokenizer.fromString(json)
      tokenizer.disableTruncation()
      tokenizer.disablePadding()
    }
    const encodings = await present(tokenizer).encodeBatch(texts, { addSpecialTokens: special })
    return { ids: encodings.map((encoding) => Int32Array.from(encoding.getIds())) }
  }
}

if (isMainThread) await serve()
else watch()
