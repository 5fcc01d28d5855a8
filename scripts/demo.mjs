#!/usr/bin/env node
// Prunes the small trained model of this repository with each method and prints what is left of it.
//
//   npm run demo
//
// Calibration and evaluation text: State of the Union addresses, no speech in both (scripts/sotu.mjs). The pruned models
// stay in build/demo.

import { readFileSync } from 'node:fs'
import { join, relative } from 'node:path'
import Table from 'cli-table3'
import { loadModel, perplexity, prune } from '../dist/index.js'
import { root } from './install.mjs'
import { writeSotu } from './sotu.mjs'

const source = join(root, 'models', 'sotu-3m')
const folder = join(root, 'build', 'demo')
const methods = ['magnitude', 'wanda', 'sparsegpt']
const goals = [
  { title: '50 %', sparsity: 0.5 },
  { title: '60 %', sparsity: 0.6 },
  { title: '2:4', pattern: '2:4' },
]
const sequenceLength = 256
const calibrationCharacters = 2_000_000
const evaluation = { sequenceLength, windows: 200 }

const say = (text) => process.stderr.write(`${text}\n`)
const { train, heldout } = writeSotu(folder)

async function withModel(body) {
  const model = await loadModel(source)
  try {
    return await body(model)
  } finally {
    await model.dispose()
  }
}

const started = performance.now()
const { tokens, dense } = await withModel(async (model) => {
  const text = readFileSync(train, 'utf8').slice(0, calibrationCharacters)
  say(`demo: ${relative(root, source)}, ${model.device}`)
  return {
    tokens: await (await model.tokenizer()).encode(text),
    dense: await perplexity(model, { file: heldout, ...evaluation }),
  }
})

const table = new Table({
  head: ['method', 'goal', 'perplexity', 'zeros', 'seconds'],
  colAligns: ['left', 'left', 'right', 'right', 'right'],
  style: { head: [], border: [] },
  chars: { mid: '', 'left-mid': '', 'mid-mid': '', 'right-mid': '' },
})
table.push(['dense', '', dense.perplexity.toFixed(2), '0.0 %', ''])
for (const { title, ...goal } of goals) {
  for (const method of methods) {
    say(`demo: ${method}, ${title}`)
    await withModel(async (model) => {
      const report = await prune(model, {
        method,
        ...goal,
        calibration: { tokens, samples: 128, sequenceLength },
        out: join(folder, `${method}-${title.replace(/\W+/g, '-').replace(/-$/, '')}`),
        force: true,
      })
      // The model is now the one in the new folder.
      const { perplexity: value } = await perplexity(model, { file: heldout, ...evaluation })
      const zeros = `${(report.sparsity.achieved * 100).toFixed(1)} %`
      table.push([method, title, value.toFixed(2), zeros, report.seconds.toFixed(1)])
    })
  }
}
console.log(table.toString())
console.log(
  `Perplexity on ${dense.windows} windows of ${sequenceLength} tokens of speeches the model has not seen; lower is better.`,
)
console.log(`The pruned models are in ${relative(root, folder)}: look at one with`)
console.log(`  node dist/cli/main.js inspect ${relative(root, join(folder, 'sparsegpt-2-4'))}`)
say(`demo: ${((performance.now() - started) / 1000).toFixed(0)} s`)
