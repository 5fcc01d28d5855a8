import Table from 'cli-table3'
import { Command } from 'commander'
import { inspect, type Inspection } from '../sdk/inspect.js'
import { modelArgument } from './arguments.js'
import { interruptible } from './interrupt.js'
import { showDownload } from './open-model.js'
import { withProgress } from './progress.js'

/** The command `sparsegpt inspect`, which shows the tensors of a model. */
export function inspectCommand(): Command {
  return new Command('inspect')
    .description("Show every tensor's shape, dtype, share of zeros, and whether it conforms to 2:4 or 4:8.")
    .argument('<model>', modelArgument)
    .option('--json', 'print one JSON object on stdout')
    .action(async (model: string, { json }: { json?: true }) => {
      const result = await interruptible((signal) =>
        withProgress('downloading', (progress) =>
          inspect(model, { signal, onDownload: showDownload(progress) }),
        ),
      )
      process.stdout.write(json ? `${JSON.stringify(result)}\n` : table(result))
    })
}

function table({ tensors, sparsity }: Inspection): string {
  const rows = new Table({
    head: ['tensor', 'shape', 'dtype', 'zeros', 'patterns'],
    style: { head: [], border: [] },
    chars: { mid: '', 'left-mid': '', 'mid-mid': '', 'right-mid': '' },
  })
  for (const tensor of tensors) {
    const zeros = tensor.sparsity === null ? '' : percent(tensor.sparsity)
    rows.push([tensor.name, tensor.shape.join(' × '), tensor.dtype, zeros, tensor.patterns.join(', ')])
  }
  return `${rows.toString()}\n${percent(sparsity)} of all weights are zero\n`
}

const percent = (share: number) => `${(share * 100).toFixed(2)} %`
