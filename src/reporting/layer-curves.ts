import type { LayerReport } from '../pruning/report.js'

/** Layers that are one in a chart: a layer, or those of a block that differ in the number of an expert only. */
interface LayerGroup {
  /** The name, with a star in the place of the number of an expert. */
  name: string
  block: number
  kind: string
  layers: LayerReport[]
}

/** Where layers are in a model. */
export interface Places {
  /** The numbers of the blocks, ascending. */
  blocks: number[]
  /** The kinds of layers, in the model's order. */
  kinds: string[]
  groups: LayerGroup[]
}

/** The block and the kind that a layer's name tells: 'model.layers.3.mlp.experts.7.up_proj' is 'mlp.experts.*.up_proj' of block 3. */
function placeOf(name: string): { prefix: string; block: number; kind: string } {
  const [, prefix = '', block = '0', kind = name] = /^((?:.*?\.)?)(\d+)\.(.+)$/s.exec(name) ?? []
  return {
    prefix: `${prefix}${block}.`,
    block: Number(block),
    kind: kind.replace(/(^|\.)\d+(?=\.|$)/g, '$1*'),
  }
}

/** The places of layers, experts together. */
export function placesOf(layers: readonly LayerReport[]): Places {
  const groups = new Map<string, LayerGroup>()
  for (const layer of layers) {
    const { prefix, block, kind } = placeOf(layer.name)
    const key = prefix + kind
    const group = groups.get(key)
    if (group) group.layers.push(layer)
    else groups.set(key, { name: key, block, kind, layers: [layer] })
  }
  const list = [...groups.values()].map((group) =>
    group.layers.length === 1 ? { ...group, name: group.layers[0]!.name } : group,
  )
  return {
    blocks: [...new Set(list.map(({ block }) => block))].sort((a, b) => a - b),
    kinds: [...new Set(list.map(({ kind }) => kind))],
    groups: list,
  }
}

/** A line over the blocks for each kind of layer: the means of `value`. */
export function layerCurves(
  { blocks, kinds, groups }: Places,
  value: (layer: LayerReport) => number | undefined,
  suffix: string,
): { label: string; values: (number | null)[] }[] {
  return kinds.map((kind) => {
    const own = new Map(
      groups.filter((group) => group.kind === kind).map((group) => [group.block, group.layers]),
    )
    const values = blocks.map((block) => {
      const known = (own.get(block) ?? [])
        .map(value)
        .filter((each) => each !== undefined && Number.isFinite(each))
      return known.length === 0 ? null : (known as number[]).reduce((a, b) => a + b, 0) / known.length
    })
    return { label: [kind, suffix].filter(Boolean).join(' '), values }
  })
}
