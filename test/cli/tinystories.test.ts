import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from '@jest/globals'
import { describeWithShared, sharedPath } from '../shared.js'
import { temporaryFolder } from '../temporary.js'
import { sparsegpt } from './run.js'

interface GoldenRun {
  method: 'dense' | 'magnitude' | 'sparsegpt'
  sparsity: number
  nm: string
  samples: number
  seqlen: number
  seed: number
  windows: number
  perplexity: number
  wbits?: number
  calibrationTokens?: number
  /** The reference's loss of each layer, by block index and name below it. */
  errors?: Record<string, number>
}

// How far from the reference a perplexity may be: SparseGPT's masks differ in near ties, which grows from block to block.
const tolerance = { dense: 0.001, magnitude: 0.003, sparsegpt: 0.015 }

describeWithShared('TinyStories-656K, against the reference implementation', () => {
  const model = sharedPath('models', 'TinyStories-656K') ?? ''
  const calibration = sharedPath('data', 'tinystories.calibration.txt') ?? ''
  const evaluation = sharedPath('data', 'tinystories.eval.txt') ?? ''
  const golden = JSON.parse(readFileSync(sharedPath('golden', 'tinystories-656k.json') ?? '', 'utf8')) as {
    runs: GoldenRun[]
  }
  const cases = golden.runs.map((run, i) => [i, run.method, run.nm || String(run.sparsity), run] as const)

  test.each(cases)('run %i: %s %s', async (_index, method, _goal, run) => {
    const out = join(await temporaryFolder(), 'out')
    const windows = ['--seqlen', String(run.seqlen)]
    if (method !== 'dense') {
      const goal = run.nm ? ['--pattern', run.nm] : ['--sparsity', String(run.sparsity)]
      const options = ['--method', method, '--samples', String(run.samples), '--seed', String(run.seed)]
      if (run.wbits) options.push('--bits', String(run.wbits))
      const pruned = await sparsegpt([
        ...['prune', model, '--out', out, '--calibration', calibration, '--json'],
        ...[...goal, ...options, ...windows],
      ])
      // On a busy machine progress is told, too.
      expect(pruned.stderr.replace(/^pruning \d+ %.*\n/gm, '')).toBe('')
      const { layers } = JSON.parse(pruned.stdout) as { layers: { name: string; loss: number }[] }
      for (const [name, error] of Object.entries(run.errors ?? {})) {
        const layer = layers.find((candidate) => candidate.name === `model.layers.${name}`)
        // The first block's layers see the same activations as in the reference; what follows sees pruned ones.
        expect(Math.abs(layer!.loss / error - 1)).toBeLessThan(name.startsWith('0.') ? 0.01 : 0.05)
      }
    }
    const limit = ['--windows', String(run.windows)]
    const evaluated = await sparsegpt([
      ...['eval', method === 'dense' ? model : out, '--dataset', evaluation, '--json'],
      ...[...windows, ...limit],
    ])
    const { perplexity } = JSON.parse(evaluated.stdout) as { perplexity: number }
    expect(Math.abs(perplexity / run.perplexity - 1)).toBeLessThan(tolerance[method])
  })
})
