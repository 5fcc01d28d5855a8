#!/usr/bin/env node
// A whole job, 2:4: the command from start to end (text, tokens, weights, pruning, the folder it writes) beside the pruning alone of the
// reference, on the same windows; then where our time goes.
//
//   node bench/job.mjs [--reference DIR --python BIN] [--model DIR --calibration FILE [--eval FILE --windows 40]]
//       [--samples N --seqlen N] [--device cpu|cuda] [--threads N] [--repeats 5]
//
// Without --model: a random model of two blocks of OPT-125M's shape and 16 windows of 2048 random tokens; with it 64 of 512. --eval
// measures the perplexity of what each of them wrote.

import { spawnSync } from 'node:child_process'
import { copyFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { readText } from '../dist/text/text.js'
import { loadModel, saveTokens } from '../dist/index.js'
import {
  median,
  parseOptions,
  percent,
  printTable,
  Reference,
  temporaryFolder,
  writeRandomModel,
} from './frame.mjs'

const text = { type: 'string' }
const own = { model: text, calibration: text, eval: text, windows: { type: 'string', default: '40' } }
const options = parseOptions({ ...own, samples: text, seqlen: text })
const { samples = options.model ? '64' : '16', seqlen = options.model ? '512' : '2048' } = options
if (options.model && !options.calibration) throw new Error('--model needs --calibration FILE')

const program = fileURLToPath(new URL('../dist/cli/main.js', import.meta.url))
const work = temporaryFolder()
const out = join(work, 'out')

/** What the command prints as JSON, with the seconds that it took as a whole. */
function sparsegpt(...args) {
  const start = performance.now()
  const { status, stdout, stderr } = spawnSync(process.execPath, [program, ...args, '--json'], {
    encoding: 'utf8',
    maxBuffer: 2 ** 28,
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  if (status !== 0) throw new Error(`sparsegpt ${args.join(' ')} failed:\n${stderr}`)
  return { ...JSON.parse(stdout), wall: (performance.now() - start) / 1000 }
}

function perplexity() {
  // The reference writes none.
  copyFileSync(join(model, 'tokenizer.json'), join(out, 'tokenizer.json'))
  const args = ['--dataset', options.eval, '--seqlen', seqlen, '--windows', options.windows]
  return sparsegpt('eval', out, ...args).perplexity.toFixed(2)
}

/** The model, the text to calibrate with, and the tokens of that text. */
async function inputs() {
  const tokens = join(work, 'tokens.safetensors')
  if (options.model) {
    const model = await loadModel(options.model, { device: 'cpu' })
    const ids = await (await model.tokenizer()).encode(await readText(options.calibration))
    await model.dispose()
    await saveTokens(tokens, ids)
    return { model: model.folder, calibration: options.calibration, tokens }
  }
  const config = {
    architectures: ['OPTForCausalLM'],
    model_type: 'opt',
    vocab_size: 50272,
    hidden_size: 768,
    word_embed_proj_dim: 768,
    ffn_dim: 3072,
    num_hidden_layers: 2,
    num_attention_heads: 12,
    max_position_embeddings: 2048,
    torch_dtype: 'bfloat16',
  }
  writeRandomModel(work, config)
  return { model: work, calibration: tokens, tokens }
}

const { model, calibration, tokens } = await inputs()

function ours(dtype, sequential) {
  const { device, threads } = options
  const flags = { out, calibration, samples, seqlen, pattern: '2:4', dtype, sequential, device, threads }
  const list = Object.entries(flags).flatMap(([name, value]) => [`--${name}`, String(value)])
  const report = sparsegpt('prune', model, ...list, '--force', '--profile')
  const start = report.wall - report.seconds // Node itself, loading
  return { seconds: report.wall, peakRssBytes: report.peakRssBytes, phases: { ...report.phases, start } }
}

async function theirs(dtype) {
  const reference = new Reference(options) // a new process each time, for its peak memory
  const sizes = { samples: Number(samples), sequence: Number(seqlen), pattern: { n: 2, m: 4 } }
  try {
    return await reference.ask({ operation: 'job', model, tokens, dtype, ...sizes, out: options.eval && out })
  } finally {
    reference.close()
  }
}

const runs = [
  { name: 'float32, block', run: () => ours('float32', 'block') },
  { name: 'float32, layer', run: () => ours('float32', 'layer') },
  { name: 'bfloat16, layer', run: () => ours('bfloat16', 'layer') },
]
const reference = Reference.available(options)
if (reference) {
  runs.push({ name: 'reference, float32', run: () => theirs('float32') })
  runs.push({ name: 'reference, bfloat16', run: () => theirs('bfloat16') })
}

const results = runs.map(() => [])
const perplexities = []
for (let repeat = 0; repeat < options.repeats; repeat++) {
  for (const [i, { name, run }] of runs.entries()) {
    const result = await run()
    process.stderr.write(`${name}: ${result.seconds.toFixed(1)} s\n`)
    results[i].push(result)
    if (options.eval && repeat === 0) perplexities.push(perplexity())
    rmSync(out, { recursive: true, force: true })
  }
}

const seconds = results.map((list) => median(list.map((result) => result.seconds)))
const ratio = (i, name) => {
  const other = runs.findIndex((run) => run.name === name)
  return other < 0 ? '' : `${(seconds[other] / seconds[i]).toFixed(1)} ×`
}
printTable(
  [
    `${samples} × ${seqlen} tokens, 2:4`,
    ...['s', 'float32 reference', 'bfloat16 reference', 'peak MB'],
    ...(options.eval ? ['perplexity'] : []),
  ],
  runs.map(({ name }, i) => [
    name,
    seconds[i].toFixed(1),
    ratio(i, 'reference, float32'),
    ratio(i, 'reference, bfloat16'),
    Math.max(...results[i].map(({ peakRssBytes }) => peakRssBytes / 1e6)).toFixed(0),
    ...(options.eval ? [perplexities[i]] : []),
  ]),
)

// Where the time goes, in the run of median length.
const phases = runs.map((_, i) => results[i].find((result) => result.seconds === seconds[i]).phases)
const names = [...new Set(phases.flatMap((list) => Object.keys(list)))]
printTable(
  ['share of time', ...runs.map(({ name }) => name)],
  names.map((phase) => [
    phase,
    ...phases.map((list, i) => (phase in list ? percent(list[phase] / seconds[i]) : '')),
  ]),
)
