import * as z from 'zod'
import { abortable } from '../../abort.js'
import { Device, type DeviceName } from '../../native/device.js'
import { deviceName } from '../../native/devices.js'
import { parseOptions } from '../../options.js'
import { benchCases, caseName, tables, type BenchCase, type BenchDType, type BenchTable } from './case.js'
import { createWorkload } from './workload.js'

export interface BenchOptions {
  table: BenchTable
  /** The device to measure. Default 'auto'. With a GPU everything is measured on the CPU as well. */
  device?: DeviceName
  /** The number of threads of the CPU; 0 (default) for one per core. */
  threads?: number
  /** The element type. Default: both; the solver computes in float32 only. */
  dtype?: BenchDType
  /** The number of runs of every case, after one that is not counted; medians are reported. Default 5. */
  repeats?: number
  /** The sizes to measure, as benchCases takes them. Default: those of the models that people prune. */
  sizes?: string[]
  /** The number of tokens of the window that goes through a block. Default 2048. */
  tokens?: number
  onProgress?: (fraction: number, name: string) => void
  signal?: AbortSignal
}

export interface BenchReport {
  table: BenchTable
  repeats: number
  devices: {
    device: Exclude<DeviceName, 'auto'>
    name: string
    /** The FLOP/s by element type, measured between the cases. */
    peaks: Partial<Record<BenchDType, number>>
  }[]
  lines: BenchLine[]
}

export interface BenchLine {
  name: string
  case: BenchCase
  /** The floating-point operations of a run. */
  flop: number
  results: BenchResult[]
}

export interface BenchResult {
  device: Exclude<DeviceName, 'auto'>
  /** The operations' time on the device: the median over the runs. */
  seconds: number
  /** The share of the device's peak, as measured beside the runs. */
  ofPeak: number
}

const schema = z.strictObject({
  table: z.enum(tables),
  device: deviceName.default('auto'),
  threads: z.int().min(0).max(1024).default(0),
  dtype: z.enum(['float32', 'bfloat16']).optional(),
  repeats: z.int().min(1).max(1000).default(5),
  sizes: z.array(z.string()).optional(),
  tokens: z.int().min(1).max(65536).default(2048),
  onProgress: z.custom<(fraction: number, name: string) => void>((f) => typeof f === 'function').optional(),
  signal: z.instanceof(AbortSignal).optional(),
})

/**
 * Measures one table on this machine with random data.
 *
 * Throws INVALID_OPTION, DEVICE_UNAVAILABLE, OUT_OF_MEMORY, ABORTED.
 */
export async function benchmark(options: BenchOptions): Promise<BenchReport> {
  const o = parseOptions(
    schema.refine(({ table, dtype }) => table !== 'solver' || dtype !== 'bfloat16', {
      path: ['dtype'],
      error: 'the solver computes in float32',
    }),
    options,
    'bench',
  )
  const cases = benchCases(o.table, o.dtype ? [o.dtype] : ['float32', 'bfloat16'], o.tokens, o.sizes)
  const devices = await openDevices(o.device, o.threads)
  try {
    const lines: BenchLine[] = []
    for (const c of cases) {
      const line: BenchLine = { name: caseName(c), case: c, flop: 0, results: [] }
      for (const device of devices) {
        abortable(o.signal)
        o.onProgress?.(lines.length / cases.length, line.name)
        const { flop, result } = await device.measure(c, o.repeats)
        line.flop = flop
        line.results.push(result)
      }
      lines.push(line)
    }
    return { table: o.table, repeats: o.repeats, devices: devices.map((d) => d.report()), lines }
  } finally {
    for (const { device } of devices) await device.close()
  }
}

async function openDevices(kind: DeviceName, threads: number): Promise<MeasuredDevice[]> {
  const wanted = await MeasuredDevice.open(kind, threads)
  return wanted.device.traits.inHostMemory ? [wanted] : [await MeasuredDevice.open('cpu', threads), wanted]
}

/** A device and what it can do at most. */
export class MeasuredDevice {
  private readonly peaks: Partial<Record<BenchDType, number[]>> = {}

  private constructor(readonly device: Device) {}

  static async open(kind: DeviceName, threads: number): Promise<MeasuredDevice> {
    const device = new Device(kind, threads)
    await device.profile() // starts it
    return new MeasuredDevice(device)
  }

  /**
   * Measures the median of `repeats` runs, after one that warms up. Each is preceded by a measurement of the peak, so that a busy
   * machine slows both, and followed by `beside`, for something else that is measured in turn.
   */
  async measure(
    c: BenchCase,
    repeats: number,
    beside?: () => Promise<void>,
  ): Promise<{ flop: number; result: BenchResult }> {
    const workload = await createWorkload(this.device, c)
    try {
      const runs: number[] = []
      const peaks: number[] = []
      let flop = 0
      for (let repeat = 0; repeat <= repeats; repeat++) {
        const peak = await this.peak(c.dtype)
        const run = await workload.run()
        await beside?.()
        if (repeat === 0) continue
        flop = run.flop
        peaks.push(peak)
        runs.push(run.seconds)
      }
      const seconds = median(runs)
      return { flop, result: { device: this.device.name, seconds, ofPeak: flop / seconds / median(peaks) } }
    } finally {
      workload.dispose()
    }
  }

  /** Measures the peak in FLOP/s: of multiply-adds in registers on the CPU; of a large product, once, on a GPU. */
  async peak(dtype: BenchDType): Promise<number> {
    const seen = (this.peaks[dtype] ??= [])
    const peak = this.device.registerPeak(dtype)
    if (peak !== undefined) {
      seen.push(peak)
      return peak
    }
    if (seen.length === 0) {
      const size = 8192
      const product = { operation: 'linear', tokens: size, inputs: size, outputs: size, dtype } as const
      const workload = await createWorkload(this.device, product)
      try {
        for (let run = 0; run < 5; run++) {
          const { flop, seconds } = await workload.run()
          seen.push(flop / seconds)
        }
      } finally {
        workload.dispose()
      }
    }
    return median(seen)
  }

  report(): BenchReport['devices'][number] {
    const peaks: Partial<Record<BenchDType, number>> = {}
    for (const dtype of ['float32', 'bfloat16'] as const) {
      const seen = this.peaks[dtype]
      if (seen) peaks[dtype] = median(seen)
    }
    return { device: this.device.name, name: this.device.description, peaks }
  }
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  return sorted[Math.floor(sorted.length / 2)] ?? NaN
}
