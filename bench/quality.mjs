#!/usr/bin/env node
// What each way of pruning costs and leaves: perplexities, the divergence from the dense model, the time.
//
//   node bench/quality.mjs --model DIR --calibration FILE --eval FILE [--eval FILE …] [--samples 64 --seqlen 512 --windows 40]
//       [--goals '--pattern 2:4|--sparsity 0.5|…'] [--ways '|--refit|--quality good|…'] [--seeds 1] [--dtype float32] [--device cpu] [--threads N]
//
// A goal and a way are options of `sparsegpt prune`; every goal is pruned in every way, with the seeds 0, 1, … A line is printed as
// soon as it is known, the table at the end.

import { spawnSync } from 'node:child_process'
import { basename, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { median, parseOptions, printTable, temporaryFolder } from './frame.mjs'

const text = { type: 'string' }
const options = parseOptions({
  model: text,
  calibration: text,
  eval: { type: 'string', multiple: true, default: [] },
  samples: { type: 'string', default: '64' },
  seqlen: { type: 'string', default: '512' },
  windows: { type: 'string', default: '40' },
  seeds: { type: 'string', default: '1' },
  dtype: { type: 'string', default: 'float32' },
  goals: {
    type: 'string',
    default: '--sparsity 0.5|--sparsity 0.6|--pattern 2:4|--pattern 4:8|--sparsity 0.7|--sparsity 0.8',
  },
  ways: {
    type: 'string',
    default: '|--refit|--method admm|--method admm --target dense|--quality good|--quality best',
  },
})
const { model, calibration, samples, seqlen, windows } = options
if (!model || !calibration || options.eval.length === 0) {
  console.error(
    '--model, --calibration and --eval are needed; the comment at the head of the file says more.',
  )
  process.exit(2)
}

const program = fileURLToPath(new URL('../dist/cli/main.js', import.meta.url))
const out = join(temporaryFolder(), 'pruned')
const common = [
  '--seqlen',
  seqlen,
  '--dtype',
  options.dtype,
  '--device',
  options.device,
  '--threads',
  String(options.threads),
  '--json',
]

/** What the command prints as JSON, with the seconds that it took as a whole. */
function sparsegpt(...args) {
  const start = performance.now()
  const { status, stdout, stderr } = spawnSync(process.execPath, [program, ...args, ...common], {
    encoding: 'utf8',
    maxBuffer: 2 ** 28,
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  if (status !== 0) throw new Error(`sparsegpt ${args.join(' ')} failed:\n${stderr}`)
  return { ...JSON.parse(stdout), wall: (performance.now() - start) / 1000 }
}

/** The perplexities and the divergences from the dense model on every text. */
const evaluate = (folder, ...more) =>
  options.eval.map((file) => sparsegpt('eval', folder, '--dataset', file, '--windows', windows, ...more))

const words = (flags) => flags.split(' ').filter((word) => word !== '')

function measure(goal, way) {
  const runs = Array.from({ length: Number(options.seeds) }, (_, seed) => {
    const flags = ['--calibration', calibration, '--samples', samples, '--seed', String(seed), '--force']
    const { wall, sparsity } = sparsegpt(
      'prune',
      model,
      '--out',
      out,
      ...flags,
      ...words(goal),
      ...words(way),
    )
    return { wall, zeros: sparsity.achieved, texts: evaluate(out, '--against', model) }
  })
  const of = (value) => median(runs.map(value))
  const texts = options.eval.flatMap((_, i) => [
    of((run) => run.texts[i].perplexity).toFixed(2),
    of((run) => run.texts[i].against.divergence).toFixed(3),
  ])
  return [
    goal,
    way || '(SparseGPT)',
    of((run) => run.zeros).toFixed(3),
    of((run) => run.wall).toFixed(0),
    ...texts,
  ]
}

const dense = evaluate(model).flatMap(({ perplexity }) => [perplexity.toFixed(2), '0'])
const lines = [['dense', '', '0', '0', ...dense]]
for (const goal of options.goals.split('|')) {
  for (const way of options.ways.split('|')) {
    const line = measure(goal, way)
    process.stderr.write(`${line.join('  ')}\n`)
    lines.push(line)
  }
}
printTable(['goal', 'way', 'zeros', 's', ...options.eval.flatMap((file) => [basename(file), 'KL'])], lines)
