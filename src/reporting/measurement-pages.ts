import type { TaskResult } from '../evaluation/evaluate.js'
import { short } from './command.js'
import { pageOf, type Section } from './page.js'

interface Compared {
  harness?: string
  models: {
    model: string
    sparsity: number
    bytes: number
    tokensPerSecond: number
    perplexity?: number
    tasks?: TaskResult[]
  }[]
}

/** The page of models side by side. */
export function comparisonPage({ models, harness }: Compared): Promise<string> {
  const names = models.map(({ model }) => model)
  const bars = (title: string, label: string, values: (number | undefined)[], percent = false): Section[] =>
    values.some((value) => value !== undefined)
      ? [
          {
            title,
            chart: {
              kind: 'bars',
              x: { label: 'model', values: names.map((_, i) => i), names },
              y: { label, ...(percent && { percent }) },
              series: [{ label, values: values.map((value) => value ?? null) }],
            },
            table: { head: ['model', label], rows: names.map((name, i) => [name, values[i] ?? null]) },
          },
        ]
      : []
  const tasks = models[0]?.tasks ?? []
  const answered = tasks.flatMap(({ task }, i) =>
    (['acc', 'acc_norm'] as const).flatMap((metric) =>
      bars(
        `${task}, ${metric}`,
        metric,
        models.map((model) => model.tasks?.[i]?.[metric]?.value),
        true,
      ),
    ),
  )
  const lead = `${models.length} models side by side.${harness === undefined ? '' : ` Prompts and scoring of ${harness}.`}`
  return pageOf('Comparison of models', lead, [
    ...bars(
      'Perplexity',
      'perplexity',
      models.map(({ perplexity }) => perplexity),
    ),
    ...answered,
    ...bars(
      'Sparsity',
      'share of zeros',
      models.map(({ sparsity }) => sparsity),
      true,
    ),
    ...bars(
      'Size',
      'MB',
      models.map(({ bytes }) => bytes / 1e6),
    ),
    ...bars(
      'Speed',
      'tokens per second',
      models.map(({ tokensPerSecond }) => tokensPerSecond),
    ),
  ])
}

interface Swept {
  model: string
  dense: number
  windows: number
  sequenceLength: number
  points: { method: string; sparsity: number; pattern?: string; perplexity: number; seconds: number }[]
}

/** The page of perplexity over sparsity. */
export function sweepPage({ model, dense, windows, sequenceLength, points }: Swept): Promise<string> {
  const methods = [...new Set(points.map(({ method }) => method))]
  const free = points.filter(({ pattern }) => pattern === undefined)
  const shares = [...new Set(free.map(({ sparsity }) => sparsity))].sort((a, b) => a - b)
  const patterns = [...new Set(points.flatMap(({ pattern }) => pattern ?? []))]
  const at = (method: string, share: number) =>
    free.find((point) => point.method === method && point.sparsity === share)?.perplexity ?? null
  const of = (method: string, pattern: string) =>
    points.find((point) => point.method === method && point.pattern === pattern)?.perplexity ?? null
  const values = [0, ...shares.filter((share) => share > 0)]
  const head = ['', ...methods]
  const curve: Section = {
    title: 'Perplexity over sparsity',
    text: 'Lower is better; the scale is logarithmic. At 0 is the dense model.',
    chart: {
      kind: 'lines',
      x: { label: 'share of zeros', values },
      y: { label: 'perplexity', log: true },
      series: methods.map((method) => ({
        label: method,
        values: values.map((share) => (share === 0 ? dense : at(method, share))),
      })),
    },
    table: {
      head,
      rows: values.map((share) => [
        share === 0 ? 'dense' : `${(share * 100).toFixed(1)} %`,
        ...methods.map((method) => (share === 0 ? dense : at(method, share))),
      ]),
    },
  }
  const ofPatterns: Section = {
    title: 'Perplexity by pattern',
    chart: {
      kind: 'lines',
      x: { label: 'pattern', values: patterns.map((_, i) => i), names: patterns, integers: true },
      y: { label: 'perplexity', log: true },
      series: methods.map((method) => ({ label: method, values: patterns.map((each) => of(method, each)) })),
    },
    table: { head, rows: patterns.map((each) => [each, ...methods.map((method) => of(method, each))]) },
  }
  const lead = `${model}, measured on ${windows} windows of ${sequenceLength} tokens. The dense model has a perplexity of ${dense.toFixed(3)}.`
  return pageOf(`Sweep: ${short(model)}`, lead, [
    ...(shares.length > 0 ? [curve] : []),
    ...(patterns.length > 0 ? [ofPatterns] : []),
    {
      title: 'Runs',
      table: {
        head: ['method', 'goal', 'perplexity', 'seconds'],
        rows: points.map(({ method, sparsity, pattern, perplexity, seconds }) => [
          method,
          pattern ?? `${(sparsity * 100).toFixed(1)} %`,
          perplexity,
          seconds,
        ]),
      },
    },
  ])
}

interface Sensitive {
  model: string
  method: string
  sparsity: number
  each: 'block' | 'layer'
  parts: { name: string; block: number; kind: string; damage: number }[]
}

/** The page of what pruning each part of a model alone does. */
export function sensitivityPage({ model, method, sparsity, each, parts }: Sensitive): Promise<string> {
  const blocks = [...new Set(parts.map(({ block }) => block))]
  const kinds = [...new Set(parts.map(({ kind }) => kind))]
  const lead = `${model}: what it does to the next-token distributions when one ${each} alone is pruned to ${(sparsity * 100).toFixed(1)} % zeros by ${method}.`
  return pageOf(`Sensitivity: ${short(model)}`, lead, [
    {
      title: `Divergence from the dense model, by ${each}`,
      chart: {
        kind: 'lines',
        x: { label: 'block', values: blocks, integers: true },
        y: { label: 'nats per token' },
        series: kinds.map((kind) => ({
          label: kind,
          values: blocks.map(
            (block) => parts.find((part) => part.block === block && part.kind === kind)?.damage ?? null,
          ),
        })),
      },
      table: { head: [each, 'nats per token'], rows: parts.map(({ name, damage }) => [name, damage]) },
    },
  ])
}
