// Runs pruneLayer and prune with every call of the device failing once, in a process of its own, since an unhandled rejection ends
// it: what becomes of each call is one line of JSON. Arguments: the folder of the built package, the folders of two models, a new folder.
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'

const [dist, gpt2, llama, scratch] = process.argv.slice(2)
const built = (file) => import(pathToFileURL(join(dist, file)).href)
const { loadModel, prune, pruneLayer, SparseGptError } = await built('index.js')
const { Device } = await built('native/device.js')

const outcomes = { runs: 0, untyped: [], unhandled: [], survived: [] }
process.on('unhandledRejection', (error) => outcomes.unhandled.push(`${current}: ${String(error)}`))

// The pictures of a report come when the model stands: that they fail is a warning.
let warned = false
process.on('warning', ({ message }) => (warned ||= message.includes('the report could not be completed')))

let current = ''
/** The calls until one fails; undefined: none does. */
let left
let calls = 0
const injected = () => new SparseGptError('OUT_OF_MEMORY', 'injected')
const due = () => {
  calls++
  return left !== undefined && left-- === 0
}

/** How a call can fail. */
const ways = {
  // At once, when it is enqueued.
  throws: {
    perform: () => {
      throw injected()
    },
    upload: () => {
      throw injected()
    },
    empty: () => {
      throw injected()
    },
  },
  // On the queue, where the next one to wait learns of it.
  queued: {
    perform: (device) => {
      const x = device.within([], () => original.perform.call(device, 'fill', fillWithNaN(device)))
      device.within([], () =>
        original.perform.call(device, 'checkFinite', { read: { x }, settings: { subject: 'injected' } }),
      )
    },
  },
  // By a promise that is rejected before anyone can wait for it.
  read: { read: () => Promise.reject(injected()) },
  synchronize: { synchronize: () => Promise.reject(injected()) },
}
const fillWithNaN = (device) => ({
  make: { out: device.within([], () => device.empty('float32', [1, 1])) },
  settings: { value: NaN },
})
const original = {}
for (const name of ['perform', 'upload', 'empty', 'read', 'synchronize'])
  original[name] = Device.prototype[name]

function install(way) {
  for (const name of Object.keys(original)) {
    Device.prototype[name] = function (...args) {
      // Not on the device that knows shapes only, which checks a model when it is opened.
      if (way[name] && this.description !== 'shapes only' && due()) {
        const result = way[name](this)
        if (name !== 'perform') return result
      }
      return original[name].apply(this, args)
    }
  }
}

const columns = 12
const weight = Float32Array.from({ length: 8 * columns }, (_, i) => Math.sin(i + 1))
const hessian = Float32Array.from({ length: columns ** 2 }, (_, i) => (i % (columns + 1) ? 0.1 : 2))
const tokens = Array.from({ length: 300 }, (_, i) => (i * 7) % 32)

/** Without a model of its own a job would go on with what the one before has left. */
async function withModel(folder, dtype, body) {
  const opened = await loadModel(folder, { threads: 1, device: 'cpu', dtype })
  try {
    return await body(opened)
  } finally {
    await opened.dispose()
  }
}
const calibration = { tokens, samples: 3, sequenceLength: 16 }
let folders = 0
const jobs = {
  sparsegpt: () => pruneLayer({ weight, rows: 8, columns, hessian, threads: 1 }),
  wanda: () => pruneLayer({ weight, rows: 8, columns, hessian, method: 'wanda', threads: 1 }),
  'prune by block': () =>
    withModel(gpt2, 'float32', (m) => prune(m, { calibration, out: join(scratch, `out-${folders++}`) })),
  'prune by layer': () => withModel(gpt2, 'float32', (m) => prune(m, { calibration, sequential: 'layer' })),
  // The last matrix is one of several that share an input, and is converted after it has been solved.
  'prune in bfloat16': () =>
    withModel(llama, 'bfloat16', (m) =>
      prune(m, { calibration, sequential: 'layer', include: '[qkv]_proj' }),
    ),
}

for (const [jobName, job] of Object.entries(jobs)) {
  for (const [wayName, way] of Object.entries(ways)) {
    install(way)
    left = undefined
    calls = 0
    await job()
    const total = calls
    // Of long jobs some calls, the last ones among them.
    const step = Math.ceil(total / 24)
    const chosen = Array.from({ length: total }, (_, at) => at).filter(
      (at) => at % step === 0 || at >= total - 6,
    )
    for (const at of chosen) {
      current = `${jobName}, call ${at} of ${total} ${wayName}`
      left = at
      outcomes.runs++
      warned = false
      let survived = false
      try {
        await job()
        // Only the last wait of all, which ends the device's work, is nobody's.
        survived = wayName !== 'synchronize'
      } catch (error) {
        if (!(error instanceof SparseGptError)) outcomes.untyped.push(`${current}: ${String(error)}`)
      }
      // Rejections that nobody waits for show when the event loop turns.
      await new Promise((resolve) => setTimeout(resolve, 0))
      if (survived && !warned) outcomes.survived.push(current)
    }
  }
}
process.stdout.write(`${JSON.stringify(outcomes)}\n`)
