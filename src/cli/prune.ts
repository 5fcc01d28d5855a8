import { Command, Option } from 'commander'
import { perplexity } from '../evaluation/perplexity.js'
import { prune } from '../pruning/prune.js'
import type { PhaseSeconds } from '../pruning/phases.js'
import type { PruneReport } from '../pruning/report.js'
import {
  deviceOptions,
  given,
  modelArgument,
  number,
  textArgument,
  textSource,
  type DeviceFlags,
} from './arguments.js'
import { interruptible } from './interrupt.js'
import { showDownload, withModel } from './open-model.js'
import { duration, withProgress } from './progress.js'

interface Flags extends DeviceFlags {
  out: string
  calibration?: string
  textField?: string
  method: 'sparsegpt' | 'magnitude' | 'wanda'
  sparsity?: number
  pattern?: string
  mask?: string
  samples?: number
  seqlen?: number
  seed?: number
  saveTokens?: string
  blockSize?: number
  dampening?: number
  bits?: number
  sequential: 'block' | 'layer'
  include?: string
  exclude?: string
  minBlock?: number
  maxBlock?: number
  eval?: string
  profile?: true
  json?: true
  force?: true
}

export function pruneCommand(): Command {
  const command = new Command('prune')
    .description('Prune a model and write it to a new folder.')
    .argument('<model>', modelArgument)
    .requiredOption('--out <dir>', 'folder for the pruned model')
    .option(`--calibration ${textArgument}`, 'text whose activations the pruning preserves')
    .option('--text-field <name>', 'field of a .jsonl or .parquet file that holds the text (default: text)')
    .addOption(
      new Option('--method <method>').choices(['sparsegpt', 'magnitude', 'wanda']).default('sparsegpt'),
    )
    .option('--sparsity <share>', 'share of the weights to prune (default: 0.5)', number)
    .option('--pattern <n:m>', 'prune n of every m neighbours, such as 2:4 or 4:8')
    .option('--mask <file>', 'safetensors file with a mask for every layer to prune (1 = prune)')
    .option('--samples <n>', 'calibration windows (default: 128)', number)
    .option('--seqlen <n>', "tokens per window (default: the model's context, at most 2048)", number)
    .option('--seed <n>', 'of the choice of windows (default: 0)', number)
    .option('--save-tokens <file>', 'save the encoded calibration text (.safetensors) to be given next time')
    .option('--block-size <n>', 'columns whose mask is chosen together (default: 128)', number)
    .option(
      '--dampening <share>',
      "added to the Hessian's diagonal, as a share of its mean (default: 0.01)",
      number,
    )
    .option('--bits <n>', 'also round the kept weights to this many bits', number)
    .addOption(
      new Option(
        '--sequential <unit>',
        'what sees already pruned inputs: the next block, or the next layer too',
      )
        .choices(['block', 'layer'])
        .default('block'),
    )
    .option('--include <regexp>', 'prune only layers whose name matches')
    .option('--exclude <regexp>', 'leave layers dense whose name matches')
    .option('--min-block <i>', 'first block to prune, from 0', number)
    .option('--max-block <j>', 'block to stop before', number)
    .option(`--eval ${textArgument}`, "measure the pruned model's perplexity on this text")
    .option('--profile', 'show where the time goes')
    .option('--json', 'print one JSON object on stdout')
    .option('--force', 'replace the output folder if it exists')
  return deviceOptions(command).action(run)
}

async function run(model: string, flags: Flags): Promise<void> {
  const { device, dtype, threads, calibration, seqlen, samples, seed, textField, saveTokens, ...rest } = flags
  const { eval: evaluation, json, ...options } = rest
  const result = await interruptible((signal) =>
    withModel(model, { device, dtype, threads }, signal, async (opened) => {
      const report = await withProgress('pruning', (progress) => {
        progress.update(0, 'reading the calibration text')
        return prune(opened, {
          ...given(options),
          ...(calibration === undefined
            ? {}
            : {
                calibration: {
                  ...textSource(calibration),
                  ...given({ textField, samples, seed, saveTokens, sequenceLength: seqlen }),
                  onDownload: showDownload(progress),
                },
              }),
          signal,
          onProgress: ({ fraction, block, blocks, phase, layer }) => {
            progress.update(fraction, `block ${block + 1}/${blocks}: ${layer?.name ?? phase}`)
          },
        })
      })
      if (evaluation === undefined) return report
      const { perplexity: measured } = await withProgress('evaluating', (progress) =>
        perplexity(opened, {
          ...given({ sequenceLength: seqlen }),
          ...textSource(evaluation),
          onDownload: showDownload(progress),
          signal,
          onProgress: (fraction) => progress.update(fraction),
        }),
      )
      return { ...report, perplexity: measured }
    }),
  )
  process.stdout.write(json ? `${JSON.stringify({ ...result, model })}\n` : summary(result))
}

function summary(result: PruneReport & { perplexity?: number }): string {
  const starved = result.layers.filter(({ fewTokens }) => fewTokens !== undefined)
  const raised = result.layers.filter(({ dampening }) => dampening !== undefined)
  return [
    `${result.out ?? ''}: ${result.layers.length} layers pruned to ${percent(result.sparsity.achieved)} zeros ` +
      `(${result.method}) in ${duration(result.seconds)}, peak memory ${(result.peakRssBytes / 1e9).toFixed(2)} GB`,
    ...raised.map((layer) => `  ${layer.name}: dampening raised to ${layer.dampening ?? 0}`),
    ...starved.map(
      (layer) => `  ${layer.name}: only ${layer.fewTokens ?? 0} tokens came: pruned for all experts' inputs`,
    ),
    ...(result.phases ? [`  ${phases(result.phases, result.seconds)}`] : []),
    ...(result.perplexity === undefined ? [] : [`perplexity ${result.perplexity.toFixed(3)}`]),
    '',
  ].join('\n')
}

const phases = (seconds: PhaseSeconds, total: number) =>
  Object.entries(seconds)
    .map(
      ([phase, spent]: [string, number]) =>
        `${phase} ${spent.toFixed(1)} s (${((spent / total) * 100).toFixed(0)} %)`,
    )
    .join(', ')

const percent = (share: number) => `${(share * 100).toFixed(2)} %`
