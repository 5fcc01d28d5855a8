import { InvalidArgumentError, Option, type Command } from 'commander'
import { datasetNames, type DatasetName } from '../calibration/dataset.js'

/** A number as typed; what numbers are allowed is the SDK's business. */
export function number(text: string): number {
  const value = Number(text)
  if (text.trim() === '' || !Number.isFinite(value)) throw new InvalidArgumentError('It must be a number.')
  return value
}

export const modelArgument = 'folder in Hugging Face layout, or a hub id such as facebook/opt-125m'

export interface DeviceFlags {
  device: 'auto' | 'cpu' | 'cuda'
  dtype: 'float32' | 'bfloat16'
  threads: number
}

export const dtypeOption = (description: string) =>
  new Option('--dtype <dtype>', description).choices(['float32', 'bfloat16'])

/** Where and how the model runs: loadModel's options. */
export function deviceOptions(
  command: Command,
  dtype = dtypeOption('element type of activations').default('float32'),
): Command {
  return command
    .addOption(
      new Option('--device <device>', 'where to compute').choices(['auto', 'cpu', 'cuda']).default('auto'),
    )
    .addOption(dtype)
    .option('--threads <n>', 'CPU threads; 0 for one per core', number, 0)
}

/** What is pruned and how, as far as it needs no file: options of `prune` that `plan` has as well. */
export interface PruningFlags {
  method: 'sparsegpt' | 'magnitude' | 'wanda'
  sparsity?: number
  pattern?: string
  samples?: number
  seqlen?: number
  blockSize?: number
  bits?: number
  sequential: 'block' | 'layer'
  include?: string
  exclude?: string
  minBlock?: number
  maxBlock?: number
}

export function pruningOptions(command: Command): Command {
  return command
    .addOption(
      new Option('--method <method>').choices(['sparsegpt', 'magnitude', 'wanda']).default('sparsegpt'),
    )
    .option('--sparsity <share>', 'share of the weights to prune (default: 0.5)', number)
    .option('--pattern <n:m>', 'prune n of every m neighbours, such as 2:4 or 4:8')
    .option('--samples <n>', 'calibration windows (default: 128)', number)
    .option('--seqlen <n>', "tokens per window (default: the model's context, at most 2048)", number)
    .option('--block-size <n>', 'columns whose mask is chosen together (default: 128)', number)
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
}

/** What a text may be given as; './c4' is a file of that name. */
export const textArgument = `<${datasetNames.join('|')}|FILE>`

export function textSource(text: string): { dataset: DatasetName } | { file: string } {
  const dataset = datasetNames.find((name) => name === text)
  return dataset === undefined ? { file: text } : { dataset }
}

/** Leaves out what was not given, so that the SDK's defaults hold. */
export function given<T extends object>(options: T): { [K in keyof T]?: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as never
}
