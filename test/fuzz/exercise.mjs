// Goes with each work folder that it is told of through whatever reads one, in a process of its own, which may die of it. The
// answer says how each call ended, and what is wrong with that: a rejection that is no SparseGptError or says nothing useful,
// something left behind, an output that cannot be read or is not what it should be.
import { existsSync, readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { inspect, loadModel, perplexity, plan, prune, SparseGptError } from '../../dist/index.js'

const windows = { samples: 2, sequenceLength: 8 }

// The parent has ended, however it did.
process.on('disconnect', () => process.kill(process.pid, 'SIGKILL'))

process.on('message', ({ folder, tokens }) => {
  void exercise(folder, tokens).then((answer) => process.send(answer))
})

async function exercise(folder, tokens) {
  const job = JSON.parse(readFileSync(join(folder, 'job.json'), 'utf8'))
  const faults = []
  const outcomes = {}
  const attempt = async (call, body) => {
    try {
      const result = await body()
      outcomes[call] ??= 'ok'
      return result
    } catch (error) {
      outcomes[call] ??= error.code ?? error.name
      const fault = faultOf(error)
      if (fault) faults.push(`${call}: ${fault}`)
      return undefined
    }
  }
  const model = join(folder, 'model')
  const out = join(folder, 'out')
  await attempt('inspect', () => inspect(model))
  await attempt('plan', () => plan(model, { ...windows, ...job.prune }))
  const loaded = await attempt('load', () => loadModel(model, { device: 'cpu', threads: 1 }))
  if (!loaded) return { outcomes, faults }
  try {
    const text = job.text === undefined ? { tokens } : { file: join(folder, job.text) }
    await attempt('logits', () => loaded.logits([tokens.slice(0, windows.sequenceLength)]))
    if (job.encode) await attempt('encode', async () => (await loaded.tokenizer()).encode('w1 w12  w3\n'))
    await attempt('perplexity', () => perplexity(loaded, { ...text, sequenceLength: 8 }))
    const before = readdirSync(folder).join()
    const options = {
      ...job.prune,
      ...(job.mask === undefined ? {} : { mask: join(folder, job.mask) }),
      calibration: { ...text, ...windows },
      out,
    }
    let report = await attempt('prune', () => prune(loaded, { ...options, resume: job.resume !== undefined }))
    if (!report && job.resume)
      report = await attempt('force', () => prune(loaded, { ...options, force: true }))
    if (job.resume && !report) faults.push('a job that cannot be resumed cannot be begun anew either')
    const expected = job.resume
      ? before.replace('out.partial-1-00000000', 'out')
      : report
        ? `${before},out`
        : before
    const after = readdirSync(folder).join()
    if (after !== sorted(expected)) faults.push(`prune leaves ${after} of ${before}`)
    if (report) {
      await attempt('inspect the output', () => inspect(out))
      await attempt('load the output', async () =>
        (await loadModel(out, { device: 'cpu', threads: 1 })).dispose(),
      )
      for (const call of ['inspect the output', 'load the output'])
        if (outcomes[call] !== 'ok') faults.push(`${call}: ${outcomes[call]}`)
    }
    if (job.resume === 'same' && existsSync(out)) {
      for (const name of readdirSync(join(folder, 'whole'))) {
        // A report has the time and the folder.
        if (name.startsWith('sparsegpt-report.')) continue
        const same = readFileSync(join(folder, 'whole', name)).equals(readFileSync(join(out, name)))
        if (!same) faults.push(`${name} differs from what an uninterrupted job writes`)
      }
    }
  } finally {
    await loaded.dispose()
  }
  return { outcomes, faults }
}

const sorted = (names) => names.split(',').sort().join()

function faultOf(error) {
  if (!(error instanceof SparseGptError)) return `is no SparseGptError: ${error?.stack ?? String(error)}`
  const { code, message } = error
  if (code === 'INTERNAL') return `says INTERNAL: ${error.stack}`
  if (message.length > 10_000)
    return `has a message of ${message.length} characters: ${message.slice(0, 200)}…`
  if (/\[object |Cannot (read|set)|is not (a function|iterable|defined)/.test(message))
    return `says: ${message}`
  return undefined
}
