import * as z from 'zod'
import { abortable } from '../../abort.js'
import { SparseGptError } from '../../errors.js'
import { emptyCheckpoint } from '../../files/checkpoint.js'
import { Decoder } from '../../generation/decoder.js'
import { ResidentModel, type StripsOf } from '../../generation/resident-model.js'
import { Strips } from '../../generation/strips.js'
import { Engine } from '../../models/engine.js'
import { familyOf } from '../../models/registry.js'
import { Device, type DeviceName, type Tensor } from '../../native/device.js'
import { deviceName } from '../../native/devices.js'
import { parseOptions, path, type PathOrUrl } from '../../options.js'
import { engineOf, loadModel } from '../model.js'
import { median } from './benchmark.js'
import { decodeModels, type BenchDType } from './case.js'
import { RandomWeights, randomIntegers } from './workload.js'

/** The share of zeros of a model's matrices, or their pattern. */
export const decodeGoals = ['dense', '50%', '60%', '70%', '2:4'] as const
/** What is kept of each weight. */
export const decodeValues = ['bfloat16', 'int8', 'int4'] as const
export type DecodeGoal = (typeof decodeGoals)[number]
export type DecodeValues = (typeof decodeValues)[number]

export interface DecodeBenchOptions {
  /** A model folder or hub id, measured as it is. Default: a LLaMA of random weights at every goal. */
  model?: PathOrUrl
  /** The sizes of the models of random weights. Default: llama-1.1b. */
  sizes?: string[]
  /** What is pruned of their matrices. Default: all goals. */
  goals?: DecodeGoal[]
  /** What their matrices hold. Default: all. */
  values?: DecodeValues[]
  /** The device to measure. Default 'cpu'. */
  device?: DeviceName
  /** The number of threads of the CPU; 0 (default) for one per core. */
  threads?: number
  /** The element type of activations. Default bfloat16. */
  dtype?: BenchDType
  /** The number of tokens of a run. Default 16. */
  maxTokens?: number
  /** The number of runs of every case; medians are reported. Default 5. */
  repeats?: number
  onProgress?: (fraction: number, name: string) => void
  signal?: AbortSignal
}

export interface DecodeBenchReport {
  device: { device: Exclude<DeviceName, 'auto'>; name: string }
  /** The bytes/s that the processor reads from memory, measured between the runs; undefined on a GPU. */
  readRate?: number
  repeats: number
  lines: DecodeLine[]
}

export interface DecodeLine {
  model: string
  /** Undefined for a model that is measured as it is. */
  goal?: DecodeGoal
  values?: DecodeValues
  /** What the pass of a token reads of the weights. */
  bytesPerToken: number
  /** Tokens of one sequence per second, through the whole model. */
  tokensPerSecond: number
  /** The seconds that the products of the linear layers of one block take. */
  blockSeconds: number
  /** bytesPerToken · tokensPerSecond as a share of the read rate; undefined on a GPU. */
  ofReadRate?: number
}

const schema = z.strictObject({
  model: path.optional(),
  sizes: z.array(z.string()).min(1).optional(),
  goals: z.array(z.enum(decodeGoals)).min(1).optional(),
  values: z.array(z.enum(decodeValues)).min(1).optional(),
  device: deviceName.default('cpu'),
  threads: z.int().min(0).max(1024).default(0),
  dtype: z.enum(['float32', 'bfloat16']).default('bfloat16'),
  maxTokens: z.int().min(1).max(1024).default(16),
  repeats: z.int().min(1).max(1000).default(5),
  onProgress: z.custom<(fraction: number, name: string) => void>((f) => typeof f === 'function').optional(),
  signal: z.instanceof(AbortSignal).optional(),
})

type Settings = z.output<typeof schema>

/**
 * Measures how fast text is generated, one token after another, which is bound by reading the weights.
 *
 * Throws INVALID_OPTION, DEVICE_UNAVAILABLE, OUT_OF_MEMORY, ABORTED; with `model` also what loadModel throws.
 */
export async function benchmarkDecode(options: DecodeBenchOptions = {}): Promise<DecodeBenchReport> {
  const o = parseOptions(schema, options, 'bench')
  const meter = new Meter(o)
  const { sizes, goals, values } = o
  if (o.model !== undefined) {
    for (const [name, given] of Object.entries({ sizes, goals, values })) {
      if (!given) continue
      const message = `bench: option ${name}: is for random weights; a model is measured as it is: leave out one of the two`
      throw new SparseGptError('INVALID_OPTION', message)
    }
    const model = await loadModel(o.model, { device: o.device, threads: o.threads, dtype: o.dtype })
    try {
      const engine = engineOf(model)
      const measured = await meter.measure(engine, await ResidentModel.load(engine, 1, { signal: o.signal }))
      return meter.report(engine.device, [{ model: engine.name, ...measured }])
    } finally {
      await model.dispose()
    }
  }
  const cases = (sizes ?? ['llama-1.1b']).flatMap((size) =>
    (values ?? decodeValues).flatMap((kept) =>
      (goals ?? decodeGoals).map((goal) => ({ size, values: kept, goal })),
    ),
  )
  const device = new Device(o.device, o.threads)
  try {
    const lines: DecodeLine[] = []
    for (const { size, values, goal } of cases) {
      abortable(o.signal)
      o.onProgress?.(lines.length / cases.length, `${size}, ${goal}, ${values}`)
      const engine = randomEngine(device, size, o.dtype)
      const resident = await ResidentModel.load(engine, 1, {
        signal: o.signal,
        stripsOf: randomStrips(goal, values),
      })
      lines.push({ model: size, goal, values, ...(await meter.measure(engine, resident)) })
    }
    return meter.report(device, lines)
  } finally {
    await device.close()
  }
}

/**
 * The tokens of one sequence that `engine` generates per second. Throws OUT_OF_MEMORY, ABORTED.
 *
 * @internal
 */
export async function decodeSpeed(engine: Engine, signal: AbortSignal): Promise<number> {
  const meter = new Meter({ ...schema.parse({}), signal }, false)
  return (await meter.measure(engine, await ResidentModel.load(engine, 1, { signal }))).tokensPerSecond
}

/** Measures models, in turn with the rate at which memory is read if it `readsMemory`. */
class Meter {
  private readonly rates: number[] = []

  constructor(
    private readonly settings: Settings,
    private readonly readsMemory = true,
  ) {}

  /** Disposes of the model. */
  async measure(
    { device, architecture }: Engine,
    model: ResidentModel,
  ): Promise<Pick<DecodeLine, 'bytesPerToken' | 'tokensPerSecond' | 'blockSeconds' | 'ofReadRate'>> {
    const { maxTokens: tokens, repeats, signal } = this.settings
    const { bytes } = model
    const ids = [1, 2, 3, 4]
    const limit = ids.length + 2 + tokens * (repeats + 1)
    const decoder = new Decoder(model, 1, limit)
    const next = async () => {
      await decoder.logits([ids], signal)
      ids.push(1 + (ids.length % (architecture.vocabularySize - 1)))
    }
    const [seconds, products, rates]: [number[], number[], number[]] = [[], [], []]
    try {
      await next()
      for (let run = 0; run <= repeats; run++) {
        abortable(signal)
        const rate = this.readsMemory ? device.readRate() : undefined
        await device.profile()
        const start = performance.now()
        for (let t = 0; t < tokens; t++) await next()
        const took = (performance.now() - start) / 1000 / tokens
        const { linear = 0, multiplyStrips = 0 } = await device.profile()
        if (run === 0) continue // it warms up
        seconds.push(took)
        products.push((linear + multiplyStrips) / tokens)
        if (rate !== undefined) rates.push(rate)
      }
    } finally {
      decoder.dispose()
      model.dispose()
    }
    this.rates.push(...rates)
    const perSecond = 1 / median(seconds)
    return {
      bytesPerToken: bytes,
      tokensPerSecond: perSecond,
      // The head's part of the products is that of its bytes.
      blockSeconds: (median(products) * (1 - model.headBytes / bytes)) / architecture.blockCount,
      ...(rates.length > 0 && { ofReadRate: (bytes * perSecond) / median(rates) }),
    }
  }

  report(device: Device, lines: DecodeLine[]): DecodeBenchReport {
    return {
      device: { device: device.name, name: device.description },
      ...(this.rates.length > 0 && { readRate: median(this.rates) }),
      repeats: this.settings.repeats,
      lines,
    }
  }
}

function randomEngine(device: Device, size: string, dtype: BenchDType): Engine {
  const config = decodeModels[size]
  if (!config) {
    const known = Object.keys(decodeModels).join(', ')
    throw new SparseGptError('INVALID_OPTION', `bench: option sizes: "${size}" is not one of ${known}`)
  }
  const checkpoint = emptyCheckpoint(config)
  const weights = new RandomWeights(device, checkpoint, dtype)
  return new Engine(device, familyOf(config).build(config, weights), weights, checkpoint, size)
}

/** Strips of random weights in the place of the matrices of a model, with 8 bits for the head where the others are codes. */
function randomStrips(goal: DecodeGoal, values: DecodeValues): StripsOf {
  const sources = new Map<string, Uint8Array | Float32Array>()
  return async ({ device, architecture }, { rows, width }) => {
    const isHead = rows === architecture.vocabularySize
    if ((goal === 'dense' || isHead) && values === 'bfloat16') return undefined
    const bits = values === 'bfloat16' ? 16 : values === 'int8' || isHead ? 8 : 4
    const pruned = isHead ? 'dense' : goal
    const key = [rows, width, bits].join()
    const elements = sources.get(key) ?? randomElements(rows * width, pruned, bits)
    sources.set(key, elements)
    const group = bits < 16 && width % 128 === 0 ? 128 : width
    const grid = [rows, width / group]
    const size = grid[0]! * grid[1]!
    const uploaded: Tensor[] = []
    try {
      const source = device.within(uploaded, () => {
        const x = device.upload(elements, [rows, width])
        if (bits === 16) return { x: device.cast(x, 'bfloat16') }
        const zeros = device.upload(new Uint8Array(size).fill(1 << (bits - 1)), grid)
        return { x, grid: { zeros, scales: device.upload(new Float32Array(size).fill(0.01), grid) } }
      })
      return await Strips.of(device, source, { bits, masked: pruned !== 'dense', group, halfScales: true })
    } finally {
      for (const tensor of uploaded) tensor.dispose()
    }
  }
}

/** Elements, or codes in the middle of whose range zero is; what a goal prunes is zero, and nothing else is. */
function randomElements(count: number, goal: DecodeGoal, bits: number): Uint8Array | Float32Array {
  const numbers = randomIntegers(count)
  const elements = bits === 16 ? new Float32Array(count) : new Uint8Array(count)
  const zero = bits === 16 ? 0 : 1 << (bits - 1)
  const share = goal === 'dense' || goal === '2:4' ? 0 : parseInt(goal) / 100
  for (let i = 0; i < count; i++) {
    const number = numbers[i]!
    const pruned = goal === '2:4' ? (i + (i >> 2)) % 4 < 2 : (number >>> 8) / 2 ** 24 < share
    const kept = bits === 16 ? 1 + (number & 127) / 128 : (number & (2 * zero - 1)) | 1
    elements[i] = pruned ? zero : kept
  }
  return elements
}
