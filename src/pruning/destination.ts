import { openCheckpoint, type StoredTensor } from '../files/checkpoint.js'
import { dense } from '../files/encodings/dense.js'
import type { Encoding } from '../files/encodings/encoding.js'
import { CheckpointWriter } from '../files/writer.js'
import type { Engine } from '../models/engine.js'
import type { Tensor } from '../native/device.js'

/** Where pruned matrices go. The model uses them after `commit`, and not at all after `abort`. */
export interface Destination {
  /** The absolute path of the folder that the weights go to; null in memory. */
  readonly folder: string | null
  /** Whether store() looks at the mask. */
  readonly usesMask: boolean
  /**
   * Takes a weight in its stored form, and if it wants the solver's mask (uint8, 1 = pruned) in the same layout. The tensors'
   * owner may dispose of them afterwards.
   */
  store(weightName: string, matrix: Tensor, mask?: Tensor): Promise<void>
  commit(): Promise<void>
  abort(): Promise<void>
}

/** A new folder, which appears at `commit`; the model reads it from then on, so its encoding must be one that can be read. */
export class FolderDestination implements Destination {
  private readonly stored = new Set<string>()

  private constructor(
    private readonly engine: Engine,
    private readonly writer: CheckpointWriter,
    private readonly encoding: Encoding,
  ) {}

  /**
   * Opens the folder for `weights`, the names of those that will be stored in the form of `encoding`. Throws OUTPUT_EXISTS,
   * INVALID_OPTION, WRITE_FAILED.
   */
  static async create(
    engine: Engine,
    out: string,
    { force, encoding, weights }: { force: boolean; encoding: Encoding; weights: readonly string[] },
  ): Promise<FolderDestination> {
    const options = { force, encoding, encoded: weights }
    const writer = await CheckpointWriter.create(engine.checkpoint, out, options)
    return new FolderDestination(engine, writer, encoding)
  }

  get folder(): string {
    return this.writer.out
  }

  get usesMask(): boolean {
    return this.encoding.usesMask ?? false
  }

  store(weightName: string, matrix: Tensor, mask?: Tensor): Promise<void> {
    this.stored.add(weightName)
    return this.write(weightName, matrix, this.encoding, mask)
  }

  private async write(weightName: string, matrix: Tensor, encoding: Encoding, mask?: Tensor): Promise<void> {
    const { device, checkpoint } = this.engine
    const { name, dtype, shape } = checkpoint.tensors.get(weightName) as StoredTensor
    const encoded = await encoding.encode(device, { name, dtype, shape, matrix, mask })
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

  async commit(): Promise<void> {
    // What was pruned in memory before, and not again, is part of the model too; its masks are gone, so it is written plainly.
    for (const [name, matrix] of this.engine.weights.replacements) {
      if (!this.stored.has(name)) await this.write(name, matrix, dense)
    }
    await this.writer.commit()
    this.engine.reopen(await openCheckpoint(this.folder))
  }

  abort(): Promise<void> {
    return this.writer.abort()
  }
}

/** The model's own memory. */
export class MemoryDestination implements Destination {
  readonly folder = null
  readonly usesMask = false
  private readonly pruned = new Map<string, Tensor>()

  constructor(private readonly engine: Engine) {}

  store(weightName: string, matrix: Tensor): Promise<void> {
    this.pruned.set(weightName, matrix.rowRange(0, matrix.rows))
    return Promise.resolve()
  }

  commit(): Promise<void> {
    for (const [name, matrix] of this.pruned) this.engine.weights.replace(name, matrix)
    return Promise.resolve()
  }

  abort(): Promise<void> {
    for (const matrix of this.pruned.values()) matrix.dispose()
    return Promise.resolve()
  }
}
