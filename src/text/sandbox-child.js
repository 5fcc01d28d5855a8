// @ts-check
// The program of the process in which a tokenizer is loaded, encodes and decodes, chat templates are rendered and Parquet files decoded:
// the native library `tokenizers` may abort or take any amount of memory for a hostile tokenizer.json, a template may run for ever, a
// page of a Parquet file may go on for billions of values, and this process may die of it. sandbox-process.ts is its parent.
// JavaScript, because Node runs it as it lies here, also where the rest is compiled on the fly.

import { writeSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { Worker, isMainThread, parentPort, workerData } from 'node:worker_threads'

const watchMilliseconds = 20
/** The length of the longest text that a chat template may make, in characters. */
const longestRendered = 2 ** 24

/** What a chat template refuses with raise_exception(). */
class Raised extends Error {}

/** @type {<T>(value: T | null | undefined) => T} */
const present = (value) => {
  if (value === null || value === undefined) throw new Error('this program is started by sandbox-process.ts')
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
  await watching
  const send = present(process.send).bind(process)
  /** @type {import('tokenizers').Tokenizer | undefined} */
  let tokenizer
  process.on('disconnect', die)
  process.on('message', (/** @type {import('./sandbox-process.js').Request} */ request) => {
    void answer(request).then(send, (/** @type {unknown} */ error) =>
      send({
        error: error instanceof Error ? error.message : String(error),
        name: error instanceof Error ? error.name : '',
        raised: error instanceof Raised,
      }),
    )
  })
  send({ ready: true })

  /**
   * @param {import('./sandbox-process.js').Request} request
   * @returns {Promise<import('./sandbox-process.js').Answer>}
   */
  async function answer({ memory, json, ...task }) {
    limit[0] = memory
    if (json !== undefined) {
      const { Tokenizer } = await import('tokenizers')
      tokenizer = Tokenizer.fromString(json)
      tokenizer.disableTruncation()
      tokenizer.disablePadding()
    }
    if ('template' in task) return { texts: [await render(task)] }
    if ('file' in task) return { rows: await rowsOf(task) }
    const loaded = present(tokenizer)
    if ('ids' in task)
      return {
        texts: await loaded.decodeBatch(
          task.ids.map((ids) => [...ids]),
          true,
        ),
      }
    const encodings = await loaded.encodeBatch(task.texts, { addSpecialTokens: task.special })
    return { ids: encodings.map((encoding) => Int32Array.from(encoding.getIds())) }
  }
}

/** @param {import('./sandbox-process.js').RenderTask} task */
async function render({ template, values }) {
  const { Template } = await import('@huggingface/jinja')
  const program = new Template(template)
  // The library's own raise_exception() throws what any other fault throws.
  program.parsed.body.unshift(...new Template('{% set raise_exception = sparsegpt_refuse %}').parsed.body)
  const refuse = (/** @type {unknown} */ message) => {
    throw new Raised(String(message))
  }
  const text = program.render({ ...values, sparsegpt_refuse: refuse })
  if (text.length > longestRendered) throw new Error(`it makes more than ${longestRendered} characters`)
  return text
}

/** @type {{ path: string, what: Promise<Pick<import('hyparquet').ParquetReadOptions, 'file' | 'metadata'>> } | undefined} */
let opened

/** @param {import('./sandbox-process.js').RowsTask} task */
async function rowsOf({ file: path, columns, rowStart, rowEnd }) {
  const { asyncBufferFromFile, parquetMetadataAsync, parquetReadObjects } = await import('hyparquet')
  const { compressors } = await import('hyparquet-compressors')
  const open = async () => {
    const file = await asyncBufferFromFile(path)
    return { file, metadata: await parquetMetadataAsync(file) }
  }
  if (opened?.path !== path) opened = { path, what: open() }
  return parquetReadObjects({ ...(await opened.what), compressors, columns, rowStart, rowEnd })
}

if (isMainThread) await serve()
else watch()
