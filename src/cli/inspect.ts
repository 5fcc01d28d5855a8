import Table from 'cli-table3'
import { Command } from 'commander'
import { inspect, type Inspection, type KindReport } from '../sdk/inspect.js'
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
      process.stdout.write(json ? `${JSON.stringify(result)}\n` : text(result))
    })
}

const style = {
  style: { head: [], border: [] },
  chars: { mid: '', 'left-mid': '', 'mid-mid': '', 'right-mid': '' },
}

function text(inspection: Inspection): string {
  return [kindTable(inspection), ...why(inspection), '', tensorTable(inspection), ''].join('\n')
}

function kindTable({ kinds, sparsity }: Inspection): string {
  const align = ['left', 'right', 'right', 'right', 'right'] as const
  const rows = new Table({
    head: ['kind', 'tensors', 'weights', 'share', 'zeros'],
    colAligns: [...align],
    ...style,
  })
  const total = sum(kinds)
  for (const kind of kinds) rows.push([kind.kind, kind.tensors, ...cells(kind.weights, total, kind.sparsity)])
  rows.push([
    'all',
    kinds.reduce((count, { tensors }) => count + tensors, 0),
    ...cells(total, total, sparsity),
  ])
  return rows.toString()
}

const sum = (kinds: readonly KindReport[]) => kinds.reduce((count, { weights }) => count + weights, 0)

const cells = (weights: number, total: number, zeros: number | null): string[] => [
  weights.toLocaleString('en'),
  percent(total > 0 ? weights / total : 0),
  zeros === null ? '' : percent(zeros),
]

/** Why the share of zeros of the model is less than what its layers were pruned to. */
function why({ kinds, sparsity }: Inspection): string[] {
  const linears = kinds.filter(({ linear }) => linear)
  const weights = sum(linears)
  if (weights === 0) return [`${percent(sparsity)} of all weights are zero`]
  const zeros = linears.reduce((count, kind) => count + (kind.sparsity ?? 0) * kind.weights, 0)
  return [
    `${percent(zeros / weights)} of the weights of the blocks' linear layers are zero. These are ${percent(weights / sum(kinds))} of the model;`,
    `embeddings, head, norms and biases are not pruned: ${percent(sparsity)} of all weights are zero`,
  ]
}

function tensorTable({ tensors }: Inspection): string {
  const rows = new Table({ head: ['tensor', 'shape', 'dtype', 'zeros', 'patterns'], ...style })
  for (const tensor of tensors) {
    const zeros = tensor.sparsity === null ? '' : percent(tensor.sparsity)
    rows.push([tensor.name, tensor.shape.join(' × '), tensor.dtype, zeros, tensor.patterns.join(', ')])
  }
  return rows.toString()
}

const percent = (share: number) => `${(share * 100).toFixed(2)} %`
