import { SparseGptError, type ErrorCode } from '../errors.js'
import { openCheckpoint, type Checkpoint, type StoredTensor } from '../files/checkpoint.js'
import type { Grid } from '../files/coded.js'
import { dense } from '../files/encodings/dense.js'
import type { Codes, Encoding } from '../files/encodings/encoding.js'
import type { JobIdentity } from '../files/journal.js'
import { isPacked } from '../files/safetensors.js'
import { CheckpointWriter } from '../files/writer.js'
import type { Engine } from '../models/engine.js'
import { namedLinears } from '../models/specs.js'
import type { Tensor } from '../native/device.js'
import type { Shares } from './allocation/allocation.js'
import { nearestCodes, type MatrixCodes } from './codes.js'
import type { LayerReport } from './report.js'

/** What is noted of a finished block. */
export interface FinishedBlock {
  layers: readonly LayerReport[]
  /** What was measured to allocate the goal to all blocks; absent where nothing was. */
  shares?: Shares | undefined
}

/** Where pruned matrices go. The model uses them after `commit`, and not at all after `abort`. */
export interface Destination<Finished = FinishedBlock> {
  /** The absolute path of the folder that the weights go to; null in memory. */
  readonly folder: string | null
  /** Whether store() looks at the mask. */
  readonly usesMask: boolean
  /** Whether store() looks at the codes. */
  readonly usesCodes: boolean
  /**
   * Takes a weight in its stored form, and if it wants them the solver's mask (uint8, 1 = pruned) in the same layout and the codes of
   * a weight on grids. The tensors' owner may dispose of them afterwards.
   */
  store(
    weightName: string,
    matrix: Tensor,
    rest?: { mask?: Tensor | undefined; codes?: MatrixCodes | undefined },
  ): Promise<void>
  /** Takes a parameter that is no matrix, such as a norm's weight or a bias, in its stored form. */
  storeParameter(name: string, parameter: Tensor): Promise<void>
  /**
   * Lets the job, named by what decides its result, be resumed, and goes on with what an earlier process has left of it, if
   * that was asked for. Before anything is stored. Throws INVALID_OPTION, INVALID_CHECKPOINT, WRITE_FAILED.
   */
  begin(job: JobIdentity): Promise<void>
  /** What an earlier process had finished, in order: the layers of blocks, whose weights are the model's already. */
  readonly finished: readonly Finished[]
  /** Notes that the next block is finished, whose weights are all stored; from then on the job can be resumed behind it. */
  finishBlock(finished: Finished): Promise<void>
  commit(): Promise<void>
  /** Ends the job that `error` has stopped, and returns the error to report: it tells what is kept and can be resumed. */
  abort(error: unknown): Promise<unknown>
}

/** What pruning the blocks needs of a destination. */
export type BlockDestination = Pick<
  Destination,
  'store' | 'storeParameter' | 'usesMask' | 'usesCodes' | 'finished' | 'finishBlock'
>

/** Tells other ranks something, which all of them wait for. */
type Share = (value: unknown) => Promise<unknown>

/** What FolderDestination.create takes; it says what each is. */
interface FolderOptions {
  force: boolean
  encoding: Encoding
  weights: readonly string[]
  resume?: boolean
  stateBytes?: number
  denseModel?: Checkpoint | undefined
  grids?: ReadonlyMap<string, Grid>
}

/** The errors that the same job would meet again. */
const inherent: readonly ErrorCode[] = ['NON_FINITE', 'NOT_POSITIVE_DEFINITE']

/** A new folder, which appears at `commit`; the model reads it from then on, so its encoding must be one that can be read. */
export class FolderDestination<Finished = FinishedBlock> implements Destination<Finished> {
  /** The number of matrices that lie in the folder in another form than as they are. */
  encodedCount = 0
  private readonly stored = new Set<string>()

  private constructor(
    private readonly engine: Engine,
    private readonly writer: CheckpointWriter<Finished>,
    private readonly encoding: Encoding,
    /** The names of the weights that will be stored by the caller. */
    private readonly awaited: ReadonlySet<string>,
    /** The names of all weights that the encoding is applied to and that come without a mask, in the order of writing. */
    private readonly order: readonly string[],
    /** What weights are rounded to, by name: those that are awaited are on it already. */
    private readonly grids: ReadonlyMap<string, Grid>,
    private readonly share: Share | undefined,
  ) {}

  /**
   * Opens the folder for `weights`, the names of those that will be stored in the form of `encoding`; `grids`: what some are rounded to, of
   * which those that nobody will store are rounded here; with `resume` that of an
   * earlier process, if there is one, which `begin` goes on with. `stateBytes`: what the job will write to `partialFolder`; `denseModel`: what
   * it reads beside the engine's, which is not to be replaced either; `share`: tells other ranks what FollowedDestination waits for. Throws OUTPUT_EXISTS, INVALID_OPTION, WRITE_FAILED, INVALID_CHECKPOINT.
   */
  static async create<Finished = FinishedBlock>(
    engine: Engine,
    out: string,
    options: FolderOptions & { share?: Share | undefined },
  ): Promise<FolderDestination<Finished>> {
    const { encoding, share, grids = new Map<string, Grid>() } = options
    const { order, ...all } = withOrder(engine, options)
    const writer = await CheckpointWriter.create<Finished>(engine.checkpoint, out, all)
    await share?.({ partialFolder: writer.partialFolder, folder: writer.out })
    return new FolderDestination(engine, writer, encoding, new Set(options.weights), order, grids, share)
  }

  /** Checks all that `create` checks, with the same arguments, and writes nothing. Throws as it does. */
  static rehearse(engine: Engine, out: string, options: FolderOptions): Promise<void> {
    return CheckpointWriter.rehearse(engine.checkpoint, out, withOrder(engine, options))
  }

  get folder(): string {
    return this.writer.out
  }

  /** The absolute path of the folder that takes what is needed to resume the job. */
  get partialFolder(): string {
    return this.writer.partialFolder
  }

  get usesMask(): boolean {
    return this.encoding.usesMask ?? false
  }

  get usesCodes(): boolean {
    return this.encoding.usesCodes ?? false
  }

  async store(
    weightName: string,
    matrix: Tensor,
    { mask, codes }: { mask?: Tensor | undefined; codes?: MatrixCodes | undefined } = {},
  ): Promise<void> {
    await this.storeOthers()
    this.stored.add(weightName)
    const grid = this.grids.get(weightName)
    await this.write(weightName, matrix, this.encoding, { mask, codes: codes && grid && { grid, ...codes } })
  }

  /**
   * Stores the weights that nobody else will and that the encoding is applied to, up to the first that is still awaited, so that the
   * order of writing does not depend on which are. `step` is called after each, with the share of all that is done, and may throw.
   */
  async storeOthers(step: (weightName: string, fraction: number) => void = () => undefined): Promise<void> {
    const { device, weights, checkpoint } = this.engine
    for (const [i, name] of this.order.entries()) {
      if (this.stored.has(name)) continue
      if (this.awaited.has(name)) return
      const { shape } = checkpoint.tensors.get(name) as StoredTensor
      const matrix = device.within([], () => weights.stored(name, shape))
      const grid = this.grids.get(name)
      const made: Tensor[] = []
      try {
        this.stored.add(name)
        const codes = grid && device.within(made, () => ({ grid, ...nearestCodes(device, matrix, grid) }))
        await this.write(name, matrix, this.encoding, { codes })
      } finally {
        for (const tensor of made) tensor.dispose()
        weights.drop(matrix)
      }
      step(name, (i + 1) / this.order.length)
    }
  }

  storeParameter(name: string, parameter: Tensor): Promise<void> {
    this.stored.add(name)
    return this.write(name, parameter, dense)
  }

  private async write(
    weightName: string,
    matrix: Tensor,
    encoding: Encoding,
    { mask, codes }: { mask?: Tensor | undefined; codes?: Codes | undefined } = {},
  ): Promise<void> {
    const { device, checkpoint } = this.engine
    const { name, dtype, shape } = checkpoint.tensors.get(weightName) as StoredTensor
    const encoded = await encoding.encode(device, { name, dtype, shape, matrix, mask, codes })
    if (encoded.some((part) => part.name !== weightName)) this.encodedCount++
    try {
      const parts = encoded.map(({ tensor, ...layout }) => {
        const store = async (fd: number, position: number) => {
          device.writeFile(fd, position, tensor)
          await device.synchronize()
        }
        return { ...layout, store }
      })
      await this.writer.write(weightName, parts)
    } finally {
      for (const { tensor } of encoded) tensor.dispose()
    }
  }

  async begin(job: JobIdentity): Promise<void> {
    await this.writer.begin(job)
    const finished = await this.writer.finishedTensors()
    for (const { name } of finished) this.stored.add(name)
    this.engine.weights.readInstead(finished)
    await this.share?.({ finished: this.finished, tensors: finished })
  }

  get finished(): Finished[] {
    return this.writer.finishedBlocks
  }

  finishBlock(finished: Finished): Promise<void> {
    return this.writer.finishBlock(finished)
  }

  /** Takes the text of a further file of the folder. */
  addFile(name: string, text: string): void {
    this.writer.addFile(name, text)
  }

  async commit(): Promise<void> {
    await this.storeOthers()
    // What was pruned in memory before, and not again, is part of the model too; its masks are gone, so it is written plainly.
    for (const [name, matrix] of this.engine.weights.replacements) {
      if (!this.stored.has(name)) await this.write(name, matrix, dense)
    }
    await this.writer.commit()
    await this.share?.(undefined)
    this.engine.reopen(await openCheckpoint(this.folder))
  }

  async abort(error: unknown): Promise<unknown> {
    this.engine.weights.readInstead([])
    const known = error instanceof SparseGptError
    // Damage that a job from the beginning has met is in its source; of a resumed one it may be in what is kept.
    const damaged = known && error.code === 'INVALID_CHECKPOINT' && !this.writer.resumed
    await this.writer.abort({ keep: !known || !(inherent.includes(error.code) || damaged) })
    const { kept } = this.writer
    // What is damaged is no better the next time.
    if (!known || kept === undefined || error.code === 'INVALID_CHECKPOINT') return error
    return new SparseGptError(error.code, `${error.message}; ${kept}`, { cause: error })
  }
}

/** The options with the names of the weights in the order of writing, and of all that are encoded. */
function withOrder(engine: Engine, { weights, ...options }: FolderOptions) {
  const awaited = new Set(weights)
  const rounded = [...(options.grids?.keys() ?? [])].filter((name) => !awaited.has(name))
  const order = [...new Set([...writingOrder(engine, options.encoding), ...rounded])]
  return { ...options, order, encoded: [...new Set([...weights, ...order])] }
}

/**
 * The names of the weights that an encoding is applied to though nobody has pruned them, in the order of writing: the matrices of all
 * linear layers, and whatever is packed in the source.
 */
function writingOrder({ architecture, checkpoint }: Engine, encoding: Encoding): string[] {
  const packed = [...checkpoint.tensors.values()].filter(isPacked).map(({ name }) => name)
  if (encoding === dense || encoding.usesMask) return packed
  const linears = Array.from({ length: architecture.blockCount }, (_, index) =>
    namedLinears(architecture.block(index)).map(({ name }) => `${name}.weight`),
  )
  return [...new Set([...linears.flat(), ...packed])]
}

/** The model's own memory. */
export class MemoryDestination implements Destination {
  readonly folder = null
  readonly usesMask = false
  readonly usesCodes = false
  readonly finished = []
  private readonly pruned = new Map<string, Tensor>()

  constructor(private readonly engine: Engine) {}

  begin(): Promise<void> {
    return Promise.resolve()
  }

  store(weightName: string, matrix: Tensor): Promise<void> {
    this.pruned.set(weightName, matrix.rowRange(0, matrix.rows))
    return Promise.resolve()
  }

  storeParameter(name: string, parameter: Tensor): Promise<void> {
    return this.store(name, parameter)
  }

  finishBlock(): Promise<void> {
    return Promise.resolve()
  }

  commit(): Promise<void> {
    for (const [name, matrix] of this.pruned) this.engine.weights.replace(name, matrix)
    return Promise.resolve()
  }

  abort(error: unknown): Promise<unknown> {
    for (const matrix of this.pruned.values()) matrix.dispose()
    return Promise.resolve(error)
  }
}
