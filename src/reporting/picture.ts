import type { Checkpoint } from '../files/checkpoint.js'
import { storedShape, type LinearSpec } from '../models/specs.js'
import { Weights } from '../models/weights.js'
import type { Device, Tensor } from '../native/device.js'

/** The shares of zeros in the cells of a matrix, row by row, as bytes in base64: 0 for none, 255 for all. */
export interface Shares {
  rows: number
  columns: number
  bytes: string
}

/** What the weights of a layer look like, from some of its rows where it is large. */
export interface LayerPicture {
  /** The checkpoint name without '.weight'. */
  name: string
  rows: number
  columns: number
  /** How many weights were looked at. */
  sampled: number
  /** The shares of zeros over the whole matrix. */
  density: Shares
  /** The mask of the first rows and columns, weight by weight. */
  corner: Shares
  /** The weights that are not zero, counted in bins of equal width from -limit to limit; what lies further out is in the outer bins. */
  histogram: { limit: number; before: number[]; after: number[] }
}

/** The number of layers that are pictured. */
const pictured = 6
/** The most cells along a side of a picture. */
const cells = 64
/** The most weights that are looked at in a matrix. */
const mostSampled = 2 ** 20
const bins = 64
/** How far a histogram reaches, in root mean squares of the weights. */
const reach = 4

/** Some of the layers, from the first to the last, evenly. */
function chosen<Layer>(layers: readonly Layer[]): Layer[] {
  const count = Math.min(pictured, layers.length)
  return Array.from(
    { length: count },
    (_, i) => layers[Math.round((i * (layers.length - 1)) / (count - 1 || 1))]!,
  )
}

/**
 * Pictures of a few layers as two checkpoints have them. `layers`: all that may be shown, under their checkpoint names. Throws what
 * reading the weights throws.
 */
export async function takePictures(
  device: Device,
  layers: readonly LinearSpec[],
  { before, after }: { before: Checkpoint; after: Checkpoint },
): Promise<LayerPicture[]> {
  const weights = [before, after].map((checkpoint) => new Weights(device, checkpoint, 'float32'))
  try {
    const pictures: LayerPicture[] = []
    for (const layer of chosen(layers)) {
      const [dense, pruned] = [
        await sample(device, weights[0]!, layer),
        await sample(device, weights[1]!, layer),
      ]
      pictures.push(pictureOf(layer, dense, pruned))
    }
    return pictures
  } finally {
    for (const each of weights) each.dispose()
  }
}

/** Some rows of a stored matrix: a run of them from the beginning of each of equal bands. */
interface Sample {
  bands: Float32Array[]
  /** Whether there is nothing between the bands. */
  whole: boolean
  /** The length of a row. */
  width: number
  /** Whether rows are of inputs, not of outputs. */
  transposed: boolean
}

async function sample(device: Device, weights: Weights, layer: LinearSpec): Promise<Sample> {
  const stored = weights.stored(`${layer.name}.weight`, storedShape(layer))
  const { rows, width } = stored
  const count = Math.min(cells, rows)
  const start = (band: number) => Math.floor((band * rows) / count)
  const most = Math.max(1, Math.floor(mostSampled / count / width))
  const bands: Float32Array[] = []
  const whole = Math.ceil(rows / count) <= most
  try {
    for (let band = 0; band < count; band++) {
      const made: Tensor[] = []
      try {
        const part = device.within(made, () => {
          const height = Math.min(most, start(band + 1) - start(band))
          return device.cast(device.adopt(stored.rowRange(start(band), height)), 'float32')
        })
        bands.push(await device.readFloat32(part))
      } finally {
        for (const tensor of made) tensor.dispose()
      }
    }
  } finally {
    weights.drop(stored)
  }
  return { bands, whole, width, transposed: layer.layout === 'in-out' }
}

/** What a layer looks like by samples of it as it was and as it is. */
function pictureOf({ name, rows, columns }: LinearSpec, before: Sample, after: Sample): LayerPicture {
  const all = before.bands.reduce((sum, { length }) => sum + length, 0)
  let squares = 0
  for (const band of before.bands) for (const value of band) squares += value * value
  const limit = reach * Math.sqrt(squares / all) || 1
  return {
    ...{ name, rows, columns, sampled: all },
    density: upright(densityOf(after), after),
    corner: upright(cornerOf(after), after),
    histogram: { limit, before: counts(before, limit), after: counts(after, limit) },
  }
}

interface Grid {
  values: number[][]
}

function densityOf({ bands, width }: Sample): Grid {
  const across = Math.min(cells, width)
  const values = bands.map((band) => {
    const zeros = new Float64Array(across)
    const totals = new Float64Array(across)
    for (let i = 0; i < band.length; i++) {
      const cell = Math.floor(((i % width) * across) / width)
      totals[cell]! += 1
      if (band[i] === 0) zeros[cell]! += 1
    }
    return Array.from(zeros, (count, cell) => count / totals[cell]!)
  })
  return { values }
}

/** The mask of the first rows, as far as there is nothing between them. */
function cornerOf({ bands, whole, width }: Sample): Grid {
  const across = Math.min(cells, width)
  const values: number[][] = []
  for (const band of whole ? bands : bands.slice(0, 1)) {
    for (let at = 0; at < band.length && values.length < cells; at += width)
      values.push(Array.from(band.subarray(at, at + across), (value) => (value === 0 ? 1 : 0)))
  }
  return { values }
}

/** The grid with outputs as rows. */
function upright({ values }: Grid, { transposed }: Sample): Shares {
  const grid = transposed ? values[0]!.map((_, i) => values.map((row) => row[i]!)) : values
  const bytes = Uint8Array.from(grid.flat(), (share) => Math.round(255 * share))
  return { rows: grid.length, columns: grid[0]!.length, bytes: Buffer.from(bytes).toString('base64') }
}

function counts({ bands }: Sample, limit: number): number[] {
  const result = new Array<number>(bins).fill(0)
  for (const band of bands) {
    for (const value of band) {
      if (value === 0 || Number.isNaN(value)) continue
      const bin = Math.floor(((value + limit) / (2 * limit)) * bins)
      result[Math.min(bins - 1, Math.max(0, bin))]! += 1
    }
  }
  return result
}
