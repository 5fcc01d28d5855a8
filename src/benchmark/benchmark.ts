import * as z from 'zod'
import { abortable } from '../abort.js'
import { nativeAddon } from '../native/addon.js'
import { Device, native, type DeviceKind } from '../native/device.js'
import { parseOptions } from '../pruning/options.js'
import { benchCases, caseName, tables, type BenchCase, type BenchDType, type BenchTable } from './case.js'
import { createWorkload } from './workload.js'

export interface BenchOptions {
  table: BenchTable
  /** With 'cuda' (and 'auto' where there is a GPU) everything is measured on the CPU as well. Default 'auto'. */
  device?: DeviceKind
  /** Of the CPU; 0 (default) for one per core. */
  threads?: number
  /** Default: both; the solver computes in float32 only. */
  dtype?: BenchDType
  /** Runs of every case, after one that is not counted; medians are reported. Default 5. */
  repeats?: number
  /** Default: those of the models that people prune. See benchCases. */
  sizes?: string[]
  /** Tokens of the window that goes through a block. Default 2048. */
  tokens?: number
  onProgress?: (fraction: number, name: string) => void
  signal?: AbortSignal
}

export interface BenchReport {
  table: BenchTable
  repeats: number
  devices: {
    device: 'cpu' | 'cuda'
    name: string
    /** FLOP/s by element type, measured between the cases. */
    peaks: Partial<Record<BenchDType, number>>
  }[]
  lines: BenchLine[]
}

export interface BenchLine {
  name: string
  case: BenchCase
  /** Floating-point operations. */
  flop: number
  results: BenchResult[]
}

export interface BenchResult {
  device: 'cpu' | 'cuda'
  /** Median over the runs of the operations' time on the device. */
  seconds: number
  /** Share of the device's peak, as measured beside the runs. */
  ofPeak: number
}

const schema = z.strictObject({
  table: z.enum(tables),
  device: z.enum(['auto', 'cpu', 'cuda']).default('auto'),
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

async function openDevices(kind: DeviceKind, threads: number): Promise<MeasuredDevice[]> {
  const wanted = await MeasuredDevice.open(kind, threads)
  return wanted.device.kind === 'cpu' ? [wanted] : [await MeasuredDevice.open('cpu', threads), wanted]
}

/** A device and what it can do at most. */
export class MeasuredDevice {
  private readonly peaks: Partial<Record<BenchDType, number[]>> = {}

  private constructor(
    readonly device: Device,
    private readonly threads: number,
  ) {}

  static async open(kind: DeviceKind, threads: number): Promise<MeasuredDevice> {
    const device = new Device(kind, threads)
    await device.profile() // starts it
    return new MeasuredDevice(device, threads)
  }

  /**
   * The median of `repeats` runs, after one that warms up. Each is preceded by a measurement of the peak, so that a busy
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
      for (let repeat = 0; repeat <= repeats; repeat++) {
        const peak = await this.peak(c.dtype)
        const seconds = await workload.run()
        await beside?.()
        if (repeat === 0) continue
        peaks.push(peak)
        runs.push(seconds)
      }
      const seconds = median(runs)
      const ofPeak = workload.flop / seconds / median(peaks)
      return { flop: workload.flop, result: { device: this.device.kind, seconds, ofPeak } }
    } finally {
      workload.dispose()
    }
  }

  /** FLOP/s: of multiply-adds in registers on the CPU, of a large matrix product on a GPU, which is measured once. */
  async peak(dtype: BenchDType): Promise<number> {
    const seen = (this.peaks[dtype] ??= [])
    if (this.device.kind === 'cpu') {
      const peak = native(() => nativeAddon().cpuPeak(dtype, this.threads))
      seen.push(peak)
      return peak
    }
    if (seen.length === 0) {
      const size = 8192
      const product = { operation: 'linear', tokens: size, inputs: size, outputs: size, dtype } as const
      const workload = await createWorkload(this.device, product)
      try {
        for (let run = 0; run < 5; run++) seen.push(workload.flop / (await workload.run()))
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
    return { device: this.device.kind, name: this.device.description, peaks }
  }
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  return sorted[Math.floor(sorted.length / 2)] ?? NaN
}
