import type { LayerReport } from '../pruning/report.js'
import type { ReconstructionReport } from '../training/reconstruction.js'
import type { DistillationLosses } from '../training/saved-training.js'
import { short } from './command.js'
import { layerCurves, placesOf } from './layer-curves.js'
import { pageOf, type Section, type Table } from './page.js'
import type { LayerPicture } from './picture.js'
import type { ModelJobReport } from './report.js'

/** The page of a report of prune or distill. */
export function modelJobPage(report: ModelJobReport): Promise<string> {
  const { job, model, result, evaluation, pictures = [], versions, created, inputs } = report
  const { layers, seconds, sparsity, method } = result
  const isPrune = job === 'prune'
  const title = `${isPrune ? 'Pruned' : 'Distilled'}: ${short(model)}`
  const lead =
    `${percent(sparsity.achieved)} of the weights of ${layers.length} layers are zero (${method}). ` +
    `The job took ${seconds.toFixed(1)} s and ended on ${created}.`
  const summary: Table = {
    head: ['', 'value'],
    rows: [
      ['method', method],
      ['share of zeros, asked for', sparsity.target],
      ['share of zeros, reached', sparsity.achieved],
      ['layers', layers.length],
      ['weights in them', layers.reduce((sum, { rows, columns }) => sum + rows * columns, 0)],
      ['seconds', seconds],
      ['peak memory, GB', result.peakRssBytes / 1e9],
    ],
  }
  return pageOf(title, lead, [
    { title: 'Summary', table: summary },
    ...(evaluation ? [perplexities(evaluation)] : []),
    layerSection(layers, {
      title: 'Sparsity by layer',
      label: 'share of zeros',
      percent: true,
      curves: [{ label: '', value: ({ sparsity: share }) => share }],
    }),
    ...errorSections(layers),
    ...(isPrune
      ? [
          layerSection(layers, {
            title: 'Time by layer',
            label: 'seconds',
            curves: [{ label: '', value: (layer) => layer.seconds }],
          }),
        ]
      : []),
    ...reconstructionSections(layers),
    ...distillationSections(result.losses ? [result.losses] : (result.distillation ?? [])),
    ...(pictures.length > 0 ? maskSections(pictures) : []),
    ...pictures.map(histogram),
    { title: 'Options', table: optionsTable(report.options) },
    {
      title: 'Inputs and versions',
      table: {
        head: ['', 'value'],
        rows: [
          ['model', model],
          ...Object.entries(inputs).map(([name, value]): [string, string] => [`hash of ${name}`, value]),
          ...Object.entries(versions).map(([name, value]): [string, string] => [name, String(value)]),
        ],
      },
    },
  ])
}

const percent = (share: number) => `${(share * 100).toFixed(2)} %`

function perplexities({
  text,
  windows,
  sequenceLength,
  before,
  after,
}: NonNullable<ModelJobReport['evaluation']>): Section {
  const measured = [
    ...(before === undefined ? [] : [{ name: 'before', value: before }]),
    ...(after === null ? [] : [{ name: 'after', value: after }]),
  ]
  const names = measured.map(({ name }) => name)
  return {
    title: 'Perplexity',
    text: `Of ${windows === undefined ? '' : `${windows} windows of ${sequenceLength} tokens of `}${text}: lower is better.${after === null ? ' That of the model after the job could not be measured.' : ''}`,
    chart: {
      kind: 'bars',
      x: { label: 'model', values: names.map((_, i) => i), names },
      y: { label: 'perplexity' },
      series: [{ label: 'perplexity', values: measured.map(({ value }) => value) }],
    },
    table: { head: ['model', 'perplexity'], rows: measured.map(({ name, value }) => [name, value]) },
  }
}

interface LayerFigure {
  title: string
  text?: string
  label: string
  percent?: boolean
  log?: boolean
  curves: { label: string; value: (layer: LayerReport) => number | undefined }[]
}

/** A value of all layers, over the blocks, with a line for each kind of layer. */
function layerSection(layers: readonly LayerReport[], figure: LayerFigure): Section {
  const { title, label, curves, text } = figure
  const places = placesOf(layers)
  const drawn = curves.map(({ label: name, value }) => layerCurves(places, value, name))
  const rows = places.groups.map(({ name, layers: group }) => [
    name,
    ...curves.map(({ value }) => mean(group.map(value))),
  ])
  return {
    title,
    ...(text !== undefined && { text }),
    chart: {
      kind: 'lines',
      x: { label: 'block', values: places.blocks, integers: true },
      y: { label, ...(figure.percent && { percent: true }), ...(figure.log && { log: true }) },
      series: drawn.flat(),
    },
    table: {
      head: ['layer', ...curves.map(({ label: name }) => [label, name].filter(Boolean).join(' '))],
      rows,
    },
  }
}

/** The mean of what is known; null where nothing is. */
export function mean(values: readonly (number | null | undefined)[]): number | null {
  const known = values.filter((value) => typeof value === 'number' && Number.isFinite(value)) as number[]
  return known.length === 0 ? null : known.reduce((a, b) => a + b, 0) / known.length
}

function errorSections(layers: readonly LayerReport[]): Section[] {
  const after = (layer: LayerReport) => layer.error
  const before = (layer: LayerReport) => layer.errorBefore
  if (!layers.some((layer) => after(layer) !== undefined)) return []
  const fitted = layers.some((layer) => before(layer) !== undefined && before(layer) !== after(layer))
  const text = 'The squared change of the outputs on the calibration text, as a share of the squared outputs.'
  return [
    layerSection(layers, {
      title: 'Relative output error by layer',
      text: fitted ? `${text} Behind the fit of the kept weights.` : text,
      label: 'relative error',
      curves: [{ label: '', value: after }],
    }),
    ...(fitted
      ? [
          layerSection(layers, {
            title: 'Relative output error before the fit',
            text: `${text} Before the kept weights were fitted.`,
            label: 'relative error',
            curves: [{ label: '', value: before }],
          }),
        ]
      : []),
  ]
}

/** The curves of the blocks' reconstruction; all layers of a block have the block's record. */
function reconstructionSections(layers: readonly LayerReport[]): Section[] {
  const byBlock = new Map<number, ReconstructionReport & { seconds: number }>()
  for (const { block, layers: group } of placesOf(layers).groups) {
    const { reconstruction } = group[0]!
    if (reconstruction) byBlock.set(block, reconstruction)
  }
  const records = [...byBlock].sort(([a], [b]) => a - b)
  if (records.length === 0) return []
  const epochs = Math.max(...records.map(([, { curve }]) => curve.length))
  const at = Array.from({ length: epochs }, (_, epoch) => epoch)
  // A line for each of a few blocks, and for what is typical.
  const shown = records.filter((_, i) => records.length <= 7 || i % Math.ceil(records.length / 7) === 0)
  return [
    {
      title: 'Reconstruction',
      text: 'The relative error of the outputs of blocks on held-out text: before the first epoch (0) and behind each.',
      chart: {
        kind: 'lines',
        x: { label: 'epoch', values: at, integers: true },
        y: { label: 'relative error' },
        series: [
          ...(records.length > 1
            ? [
                {
                  label: 'mean of all blocks',
                  values: at.map((i) => mean(records.map(([, { curve }]) => curve[i]))),
                },
              ]
            : []),
          ...shown.map(([block, { curve }]) => ({
            label: `block ${block}`,
            values: at.map((i) => curve[i] ?? null),
          })),
        ],
      },
      table: {
        head: ['block', 'best epoch', 'steps', 'seconds', ...at.map((epoch) => `error, epoch ${epoch}`)],
        rows: records.map(([block, { bestEpoch, steps, seconds, curve }]) => [
          String(block),
          bestEpoch,
          steps,
          seconds,
          ...at.map((i) => curve[i] ?? null),
        ]),
      },
    },
  ]
}

function distillationSections(all: readonly DistillationLosses[]): Section[] {
  return all.map(({ training, heldOut, bestStep }, i) => {
    const values = Array.from({ length: training.length + 1 }, (_, step) => step)
    const measured = new Map(heldOut.map(({ step, loss }) => [step, loss]))
    return {
      title: all.length > 1 ? `Distillation, step ${i + 1} of the schedule` : 'Distillation',
      text: `The divergence from the dense model, in nats per token. The state behind step ${bestStep} was kept.`,
      chart: {
        kind: 'lines',
        x: { label: 'step', values, integers: true },
        y: { label: 'nats per token' },
        series: [
          {
            label: 'training',
            values: values.map((step) => (step === 0 ? null : (training[step - 1] ?? null))),
          },
          { label: 'held out', values: values.map((step) => measured.get(step) ?? null) },
        ],
      },
      table: {
        head: ['step', 'training', 'held out'],
        rows: values.map((step) => [
          String(step),
          step === 0 ? null : (training[step - 1] ?? null),
          measured.get(step) ?? null,
        ]),
      },
    } satisfies Section
  })
}

function maskSections(pictures: readonly LayerPicture[]): Section[] {
  const place = ({ name, rows, columns }: LayerPicture) => `${name} (${rows} × ${columns})`
  const of = (bytes: string) => [...Buffer.from(bytes, 'base64')].map((byte) => byte / 255)
  const row = (picture: LayerPicture) => {
    const shares = of(picture.density.bytes)
    return [
      place(picture),
      mean(shares),
      shares.reduce((a, b) => Math.min(a, b), 1),
      shares.reduce((a, b) => Math.max(a, b), 0),
    ]
  }
  return [
    {
      title: 'Masks',
      text: 'Where the zeros are: the share of zeros in each cell of the whole matrix, from none (the strong colour) to all (the faint one).',
      masks: pictures.map((picture) => ({ caption: place(picture), shares: picture.density })),
      table: {
        head: ['layer', 'mean share of zeros', 'least of a cell', 'greatest of a cell'],
        rows: pictures.map(row),
      },
    },
    {
      title: 'Masks, weight by weight',
      text: 'The first rows and columns: pruned weights have the faint colour.',
      masks: pictures.map((picture) => ({
        caption: `${picture.name}: first ${picture.corner.rows} rows, first ${picture.corner.columns} columns`,
        shares: picture.corner,
      })),
      table: {
        head: ['layer', 'share of zeros here'],
        rows: pictures.map((picture) => [picture.name, mean(of(picture.corner.bytes))]),
      },
    },
  ]
}

function histogram({
  name,
  histogram: { limit, before, after },
  sampled,
  rows,
  columns,
}: LayerPicture): Section {
  const width = (2 * limit) / before.length
  const edges = before.map((_, i) => -limit + i * width)
  const of = sampled < rows * columns ? `${sampled} of the ${rows * columns}` : `all ${sampled}`
  return {
    title: `Weights of ${name}`,
    text: `Of ${of} weights those that are not zero, counted in ${before.length} bins. What lies further out is in the outer bins.`,
    chart: {
      kind: 'steps',
      x: { label: 'weight', values: edges },
      y: { label: 'count' },
      series: [
        { label: 'before', values: before },
        { label: 'after', values: after },
      ],
    },
    table: {
      head: ['from', 'to', 'before', 'after'],
      rows: edges.map((edge, i) => [
        edge.toPrecision(4),
        (edge + width).toPrecision(4),
        before[i]!,
        after[i]!,
      ]),
    },
  }
}

function optionsTable({ given, resolved }: ModelJobReport['options']): Table {
  const inWords = (value: unknown) =>
    value === undefined ? '–' : typeof value === 'string' ? value : JSON.stringify(value)
  const names = [...new Set([...Object.keys(given), ...Object.keys(resolved)])].sort()
  return {
    head: ['option', 'given', 'taken'],
    rows: names.map((name) => [name, inWords(given[name]), inWords(resolved[name])]),
  }
}
