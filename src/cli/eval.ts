import { Command } from 'commander'
import { perplexity } from '../sdk/perplexity.js'
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
import { withProgress } from './progress.js'
import { ofRank, withRanks } from './ranks.js'

/** The command's flags as commander parses them; the options below say what each is. */
interface Flags extends DeviceFlags {
  dataset: string
  textField?: string
  seqlen?: number
  windows?: number
  dense?: string
  ranks?: number
  json?: true
}

/** The command `sparsegpt eval`, which measures a model's perplexity. */
export function evalCommand(): Command {
  const command = new Command('eval')
    .description("Measure a model's perplexity on a text.")
    .argument('<model>', modelArgument)
    .requiredOption(`--dataset ${textArgument}`, 'text to predict')
    .option(
      '--text-field <name>',
      'field of a .jsonl, .json or .parquet file that holds the text (default: text)',
    )
    .option('--seqlen <n>', "tokens per window (default: the model's context, at most 2048)", number)
    .option('--windows <n>', 'evaluate only the first n windows', number)
    .option(
      '--dense <model>',
      'also measure how far the next-token distributions are from this model: its folder, or a hub id',
    )
    .option(
      '--ranks <n>',
      'the number of ranks that mpirun or srun has started: another one is refused',
      number,
    )
    .option('--json', 'print one JSON object on stdout')
  return deviceOptions(command).action(run)
}

async function run(model: string, flags: Flags): Promise<void> {
  const { dataset, textField, seqlen, windows, dense, ranks, json } = flags
  const { reports, ...result } = await withRanks(ranks, async (communicator) => ({
    reports: (communicator?.rank ?? 0) === 0,
    ...(await interruptible((signal) =>
      withModel(model, ofRank(flags, communicator), signal, (opened) =>
        withProgress('evaluating', (progress) =>
          perplexity(opened, {
            ...textSource(dataset),
            onDownload: showDownload(progress),
            ...given({ textField, windows, dense, sequenceLength: seqlen, communicator }),
            signal,
            onProgress: (fraction) => progress.update(fraction),
          }),
        ),
      ),
    )),
  }))
  if (!reports) return
  const { sequenceLength, ...rest } = result
  if (json) {
    process.stdout.write(`${JSON.stringify({ ...rest, seqlen: sequenceLength })}\n`)
  } else {
    const { perplexity: value, windows: count, divergence } = result
    const apart =
      divergence === undefined ? '' : `, ${divergence.toFixed(4)} nats per token from the dense model`
    process.stdout.write(
      `perplexity ${value.toFixed(3)} over ${count} windows of ${sequenceLength} tokens${apart}\n`,
    )
  }
}
