import { openCheckpoint } from '../checkpoint/checkpoint.js'
import { CheckpointWriter } from '../checkpoint/writer.js'
import type { Model } from '../models/model.js'
import type { Tensor } from '../native/device.js'

/** Where pruned matrices go. The model uses them after `commit`, and not at all after `abort`. */
export interface Destination {
  /** Absolute path; null in memory. */
  readonly folder: string | null
  /** Takes a weight in its stored form. The tensor's owner may dispose of it afterwards. */
  store(weightName: string, matrix: Tensor): Promise<void>
  commit(): Promise<void>
  abort(): Promise<void>
}

/** A new folder, which appears at `commit`; the model reads it from then on. */
export class FolderDestination implements Destination {
  private constructor(
    private readonly model: Model,
    private readonly writer: CheckpointWriter,
  ) {}

  /** Throws OUTPUT_EXISTS, INVALID_OPTION, WRITE_FAILED. */
  static async create(model: Model, out: string, force: boolean): Promise<FolderDestination> {
    return new FolderDestination(model, await CheckpointWriter.create(model.checkpoint, out, { force }))
  }

  get folder(): string {
    return this.writer.out
  }

  async store(weightName: string, matrix: Tensor): Promise<void> {
    const { device } = this.model
    await this.writer.write(weightName, async (fd, position) => {
      device.writeFile(fd, position, matrix)
      await device.synchronize()
    })
  }

  async commit(): Promise<void> {
    await this.writer.commit()
    this.model.reopen(await openCheckpoint(this.folder))
  }

  abort(): Promise<void> {
    return this.writer.abort()
  }
}

/** The model's own memory. */
export class MemoryDestination implements Destination {
  readonly folder = null
  private readonly pruned = new Map<string, Tensor>()

  constructor(private readonly model: Model) {}

  store(weightName: string, matrix: Tensor): Promise<void> {
    this.pruned.set(weightName, matrix.rowRange(0, matrix.rows))
    return Promise.resolve()
  }

  commit(): Promise<void> {
    for (const [name, matrix] of this.pruned) this.model.weights.replace(name, matrix)
    return Promise.resolve()
  }

  abort(): Promise<void> {
    for (const matrix of this.pruned.values()) matrix.dispose()
    return Promise.resolve()
  }
}
