import { Communicator } from '../../src/native/communicator.js'
import type { Device, Tensor } from '../../src/native/device.js'

/** Where ranks of one process meet: each call of one waits for that call of all others. */
class Meeting {
  failure: Error | undefined
  private arrived: unknown[] = []
  private waiting: { done: (values: unknown[]) => void; fail: (error: Error) => void }[] = []

  constructor(private readonly size: number) {}

  /** The values that all ranks have come with. */
  meet<T>(rank: number, value: T): Promise<T[]> {
    if (this.failure) return Promise.reject(this.failure)
    this.arrived[rank] = value
    return new Promise((done, fail) => {
      this.waiting.push({ done: done as (values: unknown[]) => void, fail })
      if (this.waiting.length < this.size) return
      const [values, all] = [this.arrived, this.waiting]
      ;[this.arrived, this.waiting] = [[], []]
      for (const waiting of all) waiting.done(values)
    })
  }

  end(failure: Error): void {
    this.failure ??= failure
    for (const { fail } of this.waiting.splice(0)) fail(this.failure)
  }
}

/** A rank among several in this process, which move tensors through JavaScript. */
export class InProcessCommunicator extends Communicator {
  bytesReceived = 0

  private constructor(
    readonly rank: number,
    readonly size: number,
    private readonly meeting: Meeting,
  ) {
    super()
  }

  static ranks(size: number): InProcessCommunicator[] {
    const meeting = new Meeting(size)
    return Array.from({ length: size }, (_, rank) => new InProcessCommunicator(rank, size, meeting))
  }

  async allReduce(device: Device, tensor: Tensor, { upper = false } = {}): Promise<void> {
    const own = await device.readFloat32(tensor)
    const parts = (await this.meeting.meet(this.rank, own)).map((part) => new Float32Array(part))
    for (let step = 1; step < this.size; step *= 2) {
      for (let r = 0; r + step < this.size; r += 2 * step) {
        const other = parts[r + step]!
        parts[r]!.forEach((value, i) => (parts[r]![i] = value + other[i]!))
      }
    }
    const sum = parts[0]!.map((value, i) =>
      upper && i % tensor.width < Math.floor(i / tensor.width) ? own[i]! : value,
    )
    await this.fill(device, tensor, sum)
  }

  async broadcast(device: Device, tensor: Tensor, root: number): Promise<void> {
    let own = new Float32Array(0)
    if (this.rank === root) {
      const floats = device.within([], () => device.cast(tensor, 'float32'))
      own = new Float32Array(await device.readFloat32(floats))
      floats.dispose()
    }
    const values = await this.meeting.meet(this.rank, own)
    if (this.rank !== root) await this.fill(device, tensor, values[root]!)
  }

  override async share<T>(_: Device, value: T, root = 0): Promise<T> {
    return structuredClone((await this.meeting.meet<T>(this.rank, value))[root]!)
  }

  abort(error: unknown): void {
    this.meeting.end(new Error(`rank ${this.rank}: ${(error as Error).message}`))
  }

  private async fill(device: Device, tensor: Tensor, values: Float32Array): Promise<void> {
    const uploaded = device.within([], () => device.upload(values, tensor.shape))
    device.cast(uploaded, tensor.dtype, tensor)
    uploaded.dispose()
    await device.synchronize()
  }
}
