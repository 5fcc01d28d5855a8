import { availableParallelism, cpus } from 'node:os'
import { deserialize, serialize } from 'node:v8'
import { SparseGptError } from '../errors.js'
import { nativeAddon } from './addon.js'
import { findBackend, type Device, type DeviceName, type Tensor } from './device.js'
import { native } from './failure.js'

/**
 * The processes, ranks, that work on one job, each with a device of its own. All of them make the same calls in the same order; a call
 * resolves when what the device is handed next sees its result.
 */
export abstract class Communicator {
  /** The number of this rank, from 0. */
  abstract readonly rank: number
  /** The number of ranks. */
  abstract readonly size: number
  /** What has come from other ranks so far, in bytes. */
  abstract readonly bytesReceived: number

  /**
   * Sums a float32 tensor over the ranks, in its place. The summands of an element are added as a binary tree over the ranks, so all get the
   * same bits. `upper`: the upper triangle only, with the diagonal; the rest stays as it is.
   */
  abstract allReduce(device: Device, tensor: Tensor, options?: { upper?: boolean }): Promise<void>

  /** Gives every rank the elements that the tensor has in `root`; its shape and dtype are the same everywhere, its rows follow each other. */
  abstract broadcast(device: Device, tensor: Tensor, root: number): Promise<void>

  /** Ends the job on all ranks because of an error on this one. */
  abstract abort(error: unknown): void

  /** The value that `root` gives, on every rank; of kinds that v8.serialize knows. */
  async share<T>(device: Device, value: T, root = 0): Promise<T> {
    const own = this.rank === root ? new Uint8Array(serialize(value)) : new Uint8Array(0)
    const size = await this.received(device, new Int32Array([own.length >>> 20, own.length & 0xfffff]), root)
    const length = size[0]! * 2 ** 20 + size[1]!
    const bytes = await this.received(device, this.rank === root ? own : new Uint8Array(length), root)
    return this.rank === root ? value : (deserialize(bytes) as T)
  }

  /** The values of all ranks, in their order, on every rank. */
  async gather<T>(device: Device, value: T): Promise<T[]> {
    const values: T[] = []
    for (let root = 0; root < this.size; root++) values.push(await this.share(device, value, root))
    return values
  }

  private async received<A extends Int32Array | Uint8Array>(
    device: Device,
    array: A,
    root: number,
  ): Promise<A> {
    const tensor = device.within([], () => device.upload(array, [array.length]))
    try {
      await this.broadcast(device, tensor, root)
      return (await device.read(tensor)) as A
    } finally {
      tensor.dispose()
    }
  }
}

/** Awaits this rank's part of a job, if it has one; an error ends the job on all ranks. */
export async function endingAll<T>(communicator: Communicator | undefined, part: Promise<T>): Promise<T> {
  try {
    return await part
  } catch (error) {
    communicator?.abort(error)
    throw error
  }
}

/** A rank's part of `items`: such as follow each other, in the order of ranks, of which none has more than rank 0. */
export function partOf<T>(items: readonly T[], { rank, size }: Pick<Communicator, 'rank' | 'size'>): T[] {
  const [begin, end] = [rank, rank + 1].map((r) => Math.ceil((r * items.length) / size))
  return items.slice(begin, end)
}

/** The ranks that mpirun, srun or the like has started. */
export class MpiCommunicator extends Communicator {
  readonly rank: number
  readonly size: number
  private readonly localRank: number
  private readonly localSize: number

  /**
   * Starts MPI, which waits for all ranks; once in a process. `describe`: makes the text of an error that ends the job. Throws
   * DEVICE_UNAVAILABLE when MPI is not built or cannot be loaded.
   */
  constructor(private readonly describe = describeError) {
    super()
    const { rank, size, localRank, localSize } = native(() => nativeAddon().mpi.start())
    this.rank = rank
    this.size = size
    this.localRank = localRank
    this.localSize = localSize
  }

  get bytesReceived(): number {
    return nativeAddon().mpi.received()
  }

  allReduce(device: Device, tensor: Tensor, { upper = false } = {}): Promise<void> {
    device.handOver((handle) => nativeAddon().mpi.allReduce(handle, tensor.handle, upper))
    return Promise.resolve()
  }

  broadcast(device: Device, tensor: Tensor, root: number): Promise<void> {
    device.handOver((handle) => nativeAddon().mpi.broadcast(handle, tensor.handle, root))
    return Promise.resolve()
  }

  /** The device of this rank where all name the same: of several GPUs of a machine each of its ranks takes another. */
  deviceFor(name: DeviceName): DeviceName {
    if (name !== 'auto' && name !== 'cuda') return name
    const { traits } = findBackend(name)
    if (traits.inHostMemory) return name
    const { devices } = nativeAddon().probe(traits.kind)
    return devices.length > 1 ? `cuda:${this.localRank % devices.length}` : name
  }

  /** The number of CPU threads of this rank: its share of the machine's cores, unless the launcher has bound it to fewer. */
  get threads(): number {
    return Math.max(1, Math.min(availableParallelism(), Math.floor(cpus().length / this.localSize)))
  }

  /** Writes the error to stderr, with this rank, and ends all ranks with exit code 1, or 2 for an option that is not allowed. */
  abort(error: unknown): void {
    process.stderr.write(`rank ${this.rank} of ${this.size}: ${this.describe(error)}\n`)
    const isUsage = error instanceof SparseGptError && error.code === 'INVALID_OPTION'
    nativeAddon().mpi.abort(isUsage ? 2 : 1)
  }

  /** Ends the use of MPI; waits for all ranks. */
  close(): void {
    nativeAddon().mpi.finish()
  }
}

const describeError = (error: unknown): string =>
  error instanceof SparseGptError ? `sparsegpt: ${error.message} [${error.code}]` : String(error)

/** The number of ranks that a launcher has started this process among; 1 without a launcher. */
export function launchedRanks(environment: NodeJS.ProcessEnv = process.env): number {
  // Open MPI; MPICH and whatever speaks its protocol; Slurm's step, where it connects the tasks by PMI.
  const names = ['OMPI_COMM_WORLD_SIZE', 'PMI_SIZE', 'MPI_LOCALNRANKS']
  const slurm = environment['PMIX_RANK'] ?? environment['PMI_RANK']
  const sizes = [
    ...names.map((name) => environment[name]),
    slurm === undefined ? undefined : environment['SLURM_STEP_NUM_TASKS'],
  ]
  return Math.max(
    1,
    ...sizes.flatMap((size) => (size !== undefined && /^\d+$/.test(size) ? [Number(size)] : [])),
  )
}
