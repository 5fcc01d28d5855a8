import { copyFile, chmod, open, stat, writeFile, type FileHandle } from 'node:fs/promises'
import { join } from 'node:path'
import { SparseGptError } from '../errors.js'
import { safetensors, torch, type Checkpoint, type Shard } from './checkpoint.js'
import { listCompanions, type Companion } from './companions.js'
import { copyRange, writeFully } from './copy-range.js'
import { OutputFolder } from './output-folder.js'
import { isPlainName } from './plain-name.js'
import { reason, systemCode } from './read-error.js'
import { serializeHeader, type StoredTensor } from './safetensors.js'
import { gather } from './strided.js'

interface OutputShard {
  source: Shard
  path: string
  handle: FileHandle
  /** Absolute position of every tensor in the output file. */
  offsets: Map<string, number>
}

/**
 * Writes a changed copy of a checkpoint: same files, names, dtypes and shapes, other values. A .bin checkpoint becomes a
 * safetensors one with as many shards; weights tied there by sharing memory are stored under each of their names, which
 * transformers takes whether it ties them again or not. Tensors are written in any
 * order, and at the same time, as they become ready; what was not written is copied from the source at `commit`, which
 * makes the folder appear at `out`. Until then everything is in a temporary folder beside it, which `abort` removes.
 */
export class CheckpointWriter {
  readonly #source: Checkpoint
  readonly #folder: OutputFolder
  readonly #companions: Companion[]
  readonly #shards: OutputShard[] = []
  readonly #shardOf = new Map<string, OutputShard>()
  readonly #tensors = new Map<string, 'writing' | 'written' | 'failed'>()
  readonly #extra = new Map<string, string>()
  /** Work that uses the file descriptors: they must not be closed, and so reused, under a native thread. */
  readonly #running = new Set<Promise<unknown>>()
  #discarded: Promise<void> | undefined
  #state: 'open' | 'committing' | 'done' | 'aborted' = 'open'

  private constructor(source: Checkpoint, folder: OutputFolder, companions: Companion[]) {
    this.#source = source
    this.#folder = folder
    this.#companions = companions
  }

  /**
   * Checks `out` and opens the output files in a temporary folder beside it.
   *
   * @throws SparseGptError OUTPUT_EXISTS when `out` exists and `force` is false; INVALID_OPTION when `out` is, or holds,
   * the source; WRITE_FAILED when the disk has too little space or the folder cannot be created.
   */
  static async create(
    source: Checkpoint,
    out: string,
    options: { force: boolean },
  ): Promise<CheckpointWriter> {
    const layouts = source.shards.map((shard) => serializeHeader(shard.tensors, shard.metadata))
    const companions = await listCompanions(source)
    const bytes = [...layouts.map(({ fileBytes }) => fileBytes), ...companions.map((file) => file.bytes)]
    const folder = await OutputFolder.create(out, {
      force: options.force,
      // The weights may be links that lead out of the source folder.
      keep: [source.folder, ...source.shards.map(({ file }) => join(source.folder, file))],
      bytes: bytes.reduce((sum, size) => sum + size, 0),
    })
    const writer = new CheckpointWriter(source, folder, companions)
    if (source.index === torch.index) writer.#extra.set(safetensors.index, weightIndex(source))
    try {
      for (const [i, shard] of source.shards.entries()) await writer.#openShard(shard, layouts[i]!)
    } catch (error) {
      await writer.#discard().catch(() => undefined)
      throw writeFailed(`cannot create the files of ${folder.out}`, error)
    }
    return writer
  }

  /** Absolute path of the folder to appear. */
  get out(): string {
    return this.#folder.out
  }

  async #openShard(source: Shard, layout: ReturnType<typeof serializeHeader>): Promise<void> {
    const path = join(this.#folder.temporary, outputName(source.file))
    const handle = await open(path, 'wx+')
    const shard = { source, path, handle, offsets: layout.offsets }
    this.#shards.push(shard)
    for (const { name } of source.tensors) this.#shardOf.set(name, shard)
    await writeFully(handle, layout.header, 0)
    await handle.truncate(layout.fileBytes)
  }

  /**
   * Lets `store` write one tensor: `fd` is open for reading and writing, `position` the absolute byte offset at which
   * exactly the tensor's bytes belong (row-major, little-endian, in its stored dtype). A tensor can be written once.
   *
   * @throws SparseGptError WRITE_FAILED when `store` fails, with its error as the cause; an error of this package that
   * `store` throws (such as ABORTED) is passed on as it is. After either, `commit` refuses.
   */
  async write(name: string, store: (fd: number, position: number) => Promise<void>): Promise<void> {
    this.#requireOpen('write')
    const shard = this.#shardOf.get(name)
    const position = shard?.offsets.get(name)
    if (!shard || position === undefined) {
      throw new SparseGptError('INTERNAL', `the checkpoint has no tensor ${JSON.stringify(name)} to write`)
    }
    if (this.#tensors.has(name)) {
      throw new SparseGptError('INTERNAL', `tensor ${JSON.stringify(name)} is written twice`)
    }
    this.#tensors.set(name, 'writing')
    try {
      await this.#track((async () => store(shard.handle.fd, position))())
      this.#tensors.set(name, 'written')
    } catch (error) {
      this.#tensors.set(name, 'failed')
      throw writeFailed(`cannot write tensor ${JSON.stringify(name)} to ${shard.path}`, error)
    }
  }

  /**
   * Adds a text file (UTF-8) to the output folder, for example a report; it takes the place of a source file of that
   * name.
   *
   * @throws SparseGptError INVALID_OPTION when `name` is not a plain file name or is that of a weight file.
   */
  addFile(name: string, contents: string): void {
    this.#requireOpen('addFile')
    if (!isPlainName(name) || this.#source.shards.some(({ file }) => outputName(file) === name)) {
      throw new SparseGptError(
        'INVALID_OPTION',
        `${JSON.stringify(name)} cannot be added to ${this.#folder.out}: it must be a plain file name, not a weight file's`,
      )
    }
    this.#extra.set(name, contents)
  }

  /**
   * Copies what was not written and the source's other files, makes all of it durable and moves the folder to `out`.
   * When it fails nothing is left behind and what was at `out` before is untouched.
   *
   * @throws SparseGptError WRITE_FAILED, OUTPUT_EXISTS when `out` has appeared in the meantime, INVALID_CHECKPOINT when
   * a source file has become shorter, ABORTED when `abort` was called.
   */
  async commit(): Promise<void> {
    this.#requireOpen('commit')
    this.#state = 'committing'
    try {
      await this.#track(this.#finish())
      this.#state = 'done'
    } catch (error) {
      this.#state = 'aborted'
      // The first failure is the one to report.
      await this.#discard().catch(() => undefined)
      throw writeFailed(`cannot write ${this.#folder.out}`, error)
    }
  }

  /**
   * Closes and removes the temporary folder, once running writes have ended; a running `commit` stops, unless it is
   * already moving the folder. Can be called at any time and more than once; does nothing after a `commit`.
   *
   * @throws SparseGptError WRITE_FAILED when the temporary folder cannot be removed.
   */
  async abort(): Promise<void> {
    if (this.#state === 'done') return
    this.#state = 'aborted'
    await Promise.allSettled(this.#running)
    try {
      await this.#discard()
    } catch (error) {
      throw writeFailed(`cannot remove the temporary folder ${this.#folder.temporary}`, error)
    }
  }

  async #finish(): Promise<void> {
    for (const [name, state] of this.#tensors) {
      if (state === 'written') continue
      throw new SparseGptError(
        state === 'writing' ? 'INTERNAL' : 'WRITE_FAILED',
        `${this.#folder.out} cannot be completed: tensor ${JSON.stringify(name)} ` +
          (state === 'writing' ? 'is still being written' : 'could not be written'),
      )
    }
    for (const shard of this.#shards) {
      await this.#copyUnwritten(shard)
      await shard.handle.sync()
    }
    await this.#closeShards()
    for (const { name } of this.#companions) {
      if (this.#extra.has(name)) continue
      this.#requireNotAborted()
      const target = join(this.#folder.temporary, name)
      await copyFile(join(this.#source.folder, name), target)
      // A read-only source (a shared cache) must not make the copy read-only.
      await chmod(target, (await stat(target)).mode | 0o200)
      await syncFile(target)
    }
    for (const [name, contents] of this.#extra) {
      const target = join(this.#folder.temporary, name)
      await writeFile(target, contents)
      await syncFile(target)
    }
    this.#requireNotAborted()
    await this.#folder.publish()
  }

  async #copyUnwritten(shard: OutputShard): Promise<void> {
    const unwritten = shard.source.tensors.filter(({ name }) => !this.#tensors.has(name))
    if (unwritten.length === 0) return
    const file = join(this.#source.folder, shard.source.file)
    const handle = await open(file, 'r')
    try {
      for (const { first, bytes } of contiguousRuns(unwritten, shard.offsets)) {
        const to = { handle: shard.handle, position: shard.offsets.get(first.name)! }
        if (first.strides) {
          this.#requireNotAborted()
          await writeFully(to.handle, gather(first), to.position)
        } else {
          const from = { handle, position: first.offset, file }
          await copyRange(from, to, bytes, () => this.#requireNotAborted())
        }
      }
    } finally {
      await handle.close()
    }
  }

  #requireOpen(call: string): void {
    if (this.#state === 'open') return
    throw new SparseGptError('INTERNAL', `${call} on a checkpoint writer that is ${this.#state}`)
  }

  #requireNotAborted(): void {
    if (this.#state === 'aborted') {
      throw new SparseGptError('ABORTED', `writing ${this.#folder.out} was stopped`)
    }
  }

  async #track<T>(work: Promise<T>): Promise<T> {
    this.#running.add(work)
    try {
      return await work
    } finally {
      this.#running.delete(work)
    }
  }

  async #closeShards(): Promise<void> {
    for (const { handle } of this.#shards.splice(0)) await handle.close()
  }

  #discard(): Promise<void> {
    // Once: a failing commit and an abort meanwhile must not remove the same folder side by side.
    this.#discarded ??= (async () => {
      // The files go anyway, so what closing them says does not matter.
      await this.#closeShards().catch(() => undefined)
      await this.#folder.discard()
    })()
    return this.#discarded
  }
}

interface Run {
  first: StoredTensor
  bytes: number
}

/** Runs of tensors that follow each other in both files, to be copied in one go. */
function contiguousRuns(tensors: readonly StoredTensor[], offsets: ReadonlyMap<string, number>): Run[] {
  const runs: Run[] = []
  for (const tensor of tensors) {
    const run = runs.at(-1)
    const follows =
      run !== undefined &&
      !run.first.strides &&
      !tensor.strides &&
      tensor.offset === run.first.offset + run.bytes &&
      offsets.get(tensor.name) === offsets.get(run.first.name)! + run.bytes
    if (follows) run.bytes += tensor.bytes
    else runs.push({ first: tensor, bytes: tensor.bytes })
  }
  return runs
}

/** What a weight file is called in the output; the names of .bin shards are changed as transformers would. */
function outputName(file: string): string {
  if (!file.endsWith(torch.extension)) return file
  return `${file.slice(0, -torch.extension.length).replace(/^pytorch_model/, 'model')}${safetensors.extension}`
}

/** The index of the output's shards, as transformers writes it. */
function weightIndex(source: Checkpoint): string {
  const files = source.shards.flatMap(({ file, tensors }) =>
    tensors.map(({ name }): [string, string] => [name, outputName(file)]),
  )
  const index = {
    metadata: { total_size: [...source.tensors.values()].reduce((sum, { bytes }) => sum + bytes, 0) },
    weight_map: Object.fromEntries(files),
  }
  return `${JSON.stringify(index, null, 2)}\n`
}

async function syncFile(path: string): Promise<void> {
  const handle = await open(path, 'r+')
  try {
    await handle.sync()
  } finally {
    await handle.close()
  }
}

function writeFailed(what: string, error: unknown): SparseGptError {
  if (error instanceof SparseGptError) return error
  const why = systemCode(error) === 'ENOSPC' ? 'the disk is full' : reason(error)
  return new SparseGptError('WRITE_FAILED', `${what}: ${why}`, { cause: error })
}
