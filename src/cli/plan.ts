import Table from 'cli-table3'
import { Command } from 'commander'
import type { DeviceName } from '../native/device.js'
import { availableMemory } from '../native/devices.js'
import { plan, type Plan, type PlanOptions, type RankedPlan, type TimedPlan } from '../sdk/plan.js'
import { sizeText } from '../sizes.js'
import {
  dtypeOption,
  given,
  modelArgument,
  number,
  pruningOptions,
  pruningSettings,
  type PruningFlags,
} from './arguments.js'
import { interruptible } from './interrupt.js'
import { showDownload } from './open-model.js'
import { duration, withProgress } from './progress.js'

/** The command's flags as commander parses them; the options below say what each is. */
interface Flags extends PruningFlags {
  device: Exclude<DeviceName, 'auto'>
  dtype: 'float32' | 'bfloat16'
  offload?: true
  ranks?: number
  time: boolean
  bandwidth?: string
  json?: true
}

/** The command `sparsegpt plan`, which says what pruning would take. */
export function planCommand(): Command {
  const command = new Command('plan')
    .description('Say from config.json alone what pruning a model would take: memory, disk, arithmetic.')
    .argument('<model>', modelArgument)
    .option('--offload', 'with activations in a file while they wait')
    .option('--device <device>', 'whose memory: cpu or cuda', 'cpu')
    .addOption(dtypeOption('element type of activations').default('float32'))
    .option('--ranks <n>', 'what each of n ranks, on machines like this one, would take', number)
    .option('--bandwidth <rate>', 'of a rank: 100Gbps, or 12.5GB/s (default: 10Gbps)')
    .option(
      '--no-time',
      'without an estimate of the time, for which this machine is measured in some seconds',
    )
    .option('--json', 'print one JSON object on stdout')
  return pruningOptions(command).action(async (model: string, { json, seqlen, time, ...flags }: Flags) => {
    const result = await interruptible((signal) =>
      withProgress('downloading', (progress) =>
        plan(model, {
          ...pruningSettings(flags),
          ...given({ sequenceLength: seqlen }),
          estimate: time,
          signal,
          onDownload: showDownload(progress),
          // Whether flags fit each other is for the SDK to say.
        } as PlanOptions),
      ),
    )
    const available = availableMemory(flags.device)
    const memory = { ...result.memory, ...given({ available }) }
    process.stdout.write(json ? `${JSON.stringify({ ...result, memory })}\n` : planText(result, flags.device))
  })
}

/** A plan for people, beside it what this machine's device has. */
export function planText(result: Plan | TimedPlan | RankedPlan, device: Exclude<DeviceName, 'auto'>): string {
  const { model, blocks, prunedWeights, memory, disk, flop, received } = result
  const bytes = sizeText
  const available = availableMemory(device)
  const { parts } = memory
  const rows: [string, string][] = [
    [
      `peak memory${parts.process > 0 ? ', without encoding the text' : ' of the GPU, without its context and libraries'}`,
      bytes(memory.peak),
    ],
    ...(available === undefined
      ? []
      : ([[enough(memory.peak, available), bytes(available)]] as [string, string][])),
    ['  process', bytes(parts.process)],
    ['  weights of a block, one of them in float32', bytes(parts.weights)],
    ['  hidden states of all windows', bytes(parts.hiddenStates)],
    ['  activations of the windows under way', bytes(parts.activations)],
    ['  Gram matrices', bytes(parts.gram)],
    ['  masks and the rest of the solver', bytes(parts.solver)],
    ['read from the weight files', bytes(disk.read)],
    ['written to the output', bytes(disk.written)],
    ...(disk.offloadFile > 0
      ? ([
          ['file for activations', bytes(disk.offloadFile)],
          ['read from and written to it', bytes(disk.offloaded)],
        ] as [string, string][])
      : []),
    ['arithmetic (a multiply-add is two operations)', tera(flop.total)],
    ['  linear layers', tera(flop.linear)],
    ['  attention', tera(flop.attention)],
    ['  Gram matrices', tera(flop.gram)],
    ['  factorisations', tera(flop.factor)],
    ['  solver', tera(flop.solve)],
    ...(received === undefined
      ? []
      : ([['received from other ranks', bytes(received)]] as [string, string][])),
    ...('seconds' in result ? times(result) : []),
  ]
  const table = new Table({
    colAligns: ['left', 'right'],
    style: { head: [], border: [] },
    chars: { mid: '', 'left-mid': '', 'mid-mid': '', 'right-mid': '' },
  })
  table.push(...rows)
  return `${model}: ${blocks} blocks, ${(prunedWeights / 1e9).toFixed(3)} billion weights to prune\n${table.toString()}\n`
}

const enough = (needed: number, available: number) =>
  `  available on this machine${needed > available ? ', which is too little' : ''}`

/** The lines about the time. */
function times(result: TimedPlan | RankedPlan): [string, string][] {
  const { seconds } = result
  const ranks = 'ranks' in result ? ` on ${result.ranks} ${result.ranks === 1 ? 'rank' : 'ranks'}` : ''
  return [
    [
      `time${ranks} at this machine's measured rates, without conversions and the disk`,
      duration(seconds.total),
    ],
    ['  linear layers and attention', duration(seconds.linear + seconds.attention)],
    ['  Gram matrices', duration(seconds.gram)],
    ['  factorisations', duration(seconds.factor)],
    ['  solver', duration(seconds.solve)],
    ...('ranks' in result
      ? ([
          ['  communication', duration(seconds.communicate)],
          ['parallel efficiency', `${(result.efficiency * 100).toFixed(0)} %`],
        ] as [string, string][])
      : []),
  ]
}

const tera = (flop: number) => `${(flop / 1e12).toFixed(flop < 1e13 ? 3 : 0)} TFLOP`
