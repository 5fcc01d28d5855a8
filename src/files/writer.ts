import { copyFile, chmod, open, readFile, stat, writeFile, type FileHandle } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { SparseGptError } from '../errors.js'
import {
  readIndexMetadata,
  safetensors,
  stemOf,
  type Checkpoint,
  type Shard,
  type WeightFormat,
} from './checkpoint.js'
import type { Grid } from './coded.js'
import { listCompanions, type Companion } from './companions.js'
import { copyRange, writeFully } from './copy-range.js'
import { dense } from './encodings/dense.js'
import type { Encoding } from './encodings/encoding.js'
import { damaged, Journal, type JobIdentity, type JournalEntry } from './journal.js'
import { OutputFolder, type KeptPath } from './output-folder.js'
import { packQuantized, quantizationEntry } from './pack-quantized.js'
import { blockScaling } from './block-scaled.js'
import { joinPacked } from './packed.js'
import { replaceEntry } from './python-json.js'
import { reason, systemCode } from './read-error.js'
import { isPacked, tensorBytes, type StoredTensor, type TensorLayout } from './safetensors.js'
import { ShardLayout } from './shard-layout.js'
import { gather } from './strided.js'
import { syncFolder } from './sync-folder.js'

/** One of the tensors that are written in the place of a weight. */
interface Part extends TensorLayout {
  /**
   * Writes the tensor's bytes, row-major and little-endian, to the file descriptor `fd`, which is open for reading and
   * writing, from the byte `position` of the file on.
   */
  store: (fd: number, position: number) => Promise<void>
}

/** What is written, and where to. */
interface WriterOptions {
  force: boolean
  encoding?: Encoding
  encoded?: readonly string[]
  grids?: ReadonlyMap<string, Grid>
  resume?: boolean
  stateBytes?: number
  denseModel?: Checkpoint | undefined
}

/** A weight file of the output. */
interface OutputShard {
  /** The source's file that it is a changed copy of. */
  source: Shard
  /** The places of its tensors. */
  layout: ShardLayout
  /** The absolute path of the file in the temporary folder. */
  path: string
  /** The open file. */
  handle: FileHandle
  /** What makes written weights durable while the job goes on. */
  flushing?: Promise<void> | undefined
  /** Why that has failed: the system says it once only. */
  flushError?: unknown
}

/** What becomes of a tensor of the source. */
interface Entry {
  /** The file that it, or what takes its place, is written to. */
  shard: OutputShard
  /** Whether it must be written; else it is copied when nobody has. */
  due: boolean
  /** How far its writing has come. */
  state: 'unwritten' | 'writing' | 'written' | 'failed'
}

/**
 * Writes a changed copy of a checkpoint: the same files with the same tensors, but for the weights that an encoding
 * stores in another form, which may call for other names of files. A .bin checkpoint becomes a safetensors one with as many shards; weights tied there by sharing
 * memory are stored under each of their names, which transformers takes whether it ties them again or not. Weights are
 * written in any order, and at the same time, as they become ready; what was not written is copied from the source at
 * `commit`, which makes the folder appear at `out`. Until then everything is in a temporary folder beside it, which
 * `abort` removes.
 *
 * A job that is named can be resumed: what `finishBlock` has noted survives the process and a power cut, and the temporary
 * folder of a job that ends with something finished stays.
 */
export class CheckpointWriter<Block = unknown> {
  readonly #source: Checkpoint
  readonly #folder: OutputFolder
  readonly #companions: Companion[]
  readonly #encoding: Encoding
  /** What weights are rounded to, by name. */
  readonly #grids: ReadonlyMap<string, Grid>
  /** What the index of the shards says besides, if it is made anew; else it is copied like any companion. */
  readonly #newIndex: Record<string, unknown> | undefined
  readonly #shards: OutputShard[] = []
  readonly #entries = new Map<string, Entry>()
  /** The texts of further files, by name. */
  readonly #texts = new Map<string, string>()
  /** Work that uses the file descriptors: they must not be closed, and so reused, under a native thread. */
  readonly #running = new Set<Promise<unknown>>()
  /** The journal of a job that can be resumed. */
  #journal: Journal<Block> | undefined
  /** What opening the first file threw that the folder taken over lacks. */
  #missing: unknown
  /** What the job that is gone on with had finished. */
  #finished: JournalEntry<Block>[] = []
  /** The weights that were written since the last block was finished. */
  readonly #sinceBlock: { shard: OutputShard; weight: JournalEntry<Block>['weights'][number] }[] = []
  /** Whether nothing is to be kept, although something is finished. */
  #worthless = false
  #discarded: Promise<void> | undefined
  #state: 'open' | 'committing' | 'done' | 'aborted' = 'open'

  private constructor(
    source: Checkpoint,
    folder: OutputFolder,
    companions: Companion[],
    { encoding, grids }: { encoding: Encoding; grids: ReadonlyMap<string, Grid> },
    newIndex: Record<string, unknown> | undefined,
  ) {
    this.#source = source
    this.#folder = folder
    this.#companions = companions
    this.#encoding = encoding
    this.#grids = grids
    this.#newIndex = newIndex
  }

  /**
   * Checks `out` and opens the output files in a temporary folder beside it. `encoded` names the weights that will be
   * written in the form of `encoding` (default: dense), all of which must be written; the packed ones of the source are to be among them;
   * `grids`: what weights among them are rounded to. With `resume` the folder that an
   * earlier process has left is taken over, if there is one; `begin` must be called then. `stateBytes`: what the job itself will
   * write to `partialFolder`, in bytes; `denseModel`: what it reads beside the source.
   *
   * @throws SparseGptError OUTPUT_EXISTS when `out` exists and `force` is false, or when a partial folder of it is in use or
   * worth to be resumed; INVALID_OPTION when `out` is, or holds, the source or the dense model; WRITE_FAILED when the disk has too little
   * space or the folder cannot be created; INVALID_CHECKPOINT when what is taken over lacks a file.
   */
  static async create<Block = unknown>(
    source: Checkpoint,
    out: string,
    options: WriterOptions,
  ): Promise<CheckpointWriter<Block>> {
    const {
      encoding,
      grids,
      due,
      layouts,
      companions,
      newIndex,
      named,
      folder: wanted,
    } = await design(source, options)
    const folder = await OutputFolder.create(out, wanted)
    const writer = new CheckpointWriter<Block>(source, folder, companions, { encoding, grids }, newIndex)
    try {
      for (const [i, shard] of source.shards.entries()) {
        const path = join(folder.temporary, named(shard.file))
        const handle = await open(path, folder.resumed ? 'r+' : 'wx+').catch((error: unknown) => {
          if (!folder.resumed || systemCode(error) !== 'ENOENT') throw error
          writer.#missing = error
        })
        // The job may be another one, which the journal knows.
        if (!handle) break
        const output = { source: shard, layout: layouts[i]!, path, handle }
        writer.#shards.push(output)
        for (const { name } of shard.tensors) {
          writer.#entries.set(name, { shard: output, due: due.has(name), state: 'unwritten' })
        }
      }
    } catch (error) {
      await writer.#discard().catch(() => undefined)
      throw writer.#beginFailed(error)
    }
    return writer
  }

  /** Checks all that `create` checks, with the same arguments, and writes nothing. Throws as it does. */
  static async rehearse(source: Checkpoint, out: string, options: WriterOptions): Promise<void> {
    await OutputFolder.rehearse(out, (await design(source, options)).folder)
  }

  /**
   * Lets the job be resumed from then on: `job` says what decides its result. What an earlier process has finished of the same
   * job counts as written. To be called before anything is written; `abort` is to follow when it fails.
   *
   * @throws SparseGptError WRITE_FAILED; as Journal.resume does.
   */
  async begin(job: JobIdentity): Promise<void> {
    this.#requireOpen('begin')
    try {
      await this.#track(this.#openJournal(job))
      if (this.#missing !== undefined) throw this.#missing as Error
      await this.#track(this.#takeFinished())
    } catch (error) {
      throw this.#beginFailed(error)
    }
  }

  #beginFailed(error: unknown): SparseGptError {
    const { resumed, partial, out } = this.#folder
    if (resumed && systemCode(error) === 'ENOENT') {
      return damaged(`${partial.path} lacks a file (${reason(error)})`, error)
    }
    return writeFailed(`cannot create the files of ${out}`, error)
  }

  async #openJournal(job: JobIdentity): Promise<void> {
    const { resumed, partial } = this.#folder
    if (!resumed) {
      this.#journal = await Journal.create(partial.path, job)
      return
    }
    const { journal, entries } = await Journal.resume<Block>(partial.path, job)
    this.#journal = journal
    this.#finished = entries
  }

  /** Gives the weights of finished blocks the places that they have in the files. */
  async #takeFinished(): Promise<void> {
    for (const { name, parts } of this.#finished.flatMap(({ weights }) => weights)) {
      const entry = this.#entries.get(name)
      if (entry?.state !== 'unwritten')
        throw damaged(`the journal in ${this.#folder.partial.path} is damaged`)
      entry.shard.layout.place(name, parts)
      entry.state = 'written'
    }
    for (const { file, offset, bytes, name } of this.#finishedParts.flatMap(({ parts }) => parts)) {
      if ((await stat(file)).size >= offset + bytes) continue
      throw damaged(`${file} ends before the finished tensor ${JSON.stringify(name)}`)
    }
  }

  /** The absolute path of the folder beside `out` that takes what is needed to resume the job. */
  get partialFolder(): string {
    return this.#folder.partial.path
  }

  /** Whether the job goes on with what an earlier process has left. */
  get resumed(): boolean {
    return this.#folder.resumed
  }

  /** What the job that is gone on with had noted of each block that it had finished, in order. */
  get finishedBlocks(): Block[] {
    return this.#finished.map(({ block }) => block)
  }

  /** The weights of finishedBlocks, as they lie in the temporary folder. Throws FILE_NOT_FOUND, INVALID_CHECKPOINT. */
  async finishedTensors(): Promise<StoredTensor[]> {
    const { join = joinPacked } = this.#encoding
    const tensors: StoredTensor[] = []
    for (const { weight, parts } of this.#finishedParts) {
      if (parts.length > 0) tensors.push(...(await join(parts[0]!.file, parts, this.#grids.get(weight))))
    }
    return tensors
  }

  /** What is stored of each weight of finishedBlocks. */
  get #finishedParts(): { weight: string; parts: StoredTensor[] }[] {
    return this.#finished.flatMap(({ weights }) =>
      weights.map(({ name: weight, parts }) => {
        const { path, layout } = this.#entries.get(weight)!.shard
        const stored = parts.map((part) => {
          return { ...part, file: path, offset: layout.offset(part.name)!, bytes: tensorBytes(part) }
        })
        return { weight, parts: stored }
      }),
    )
  }

  /**
   * Makes all weights that were written since the last call durable, and notes that `block` is finished with them; what
   * of it lies in `partialFolder` must be durable already. Does nothing in a job that was not named.
   *
   * @throws SparseGptError WRITE_FAILED.
   */
  async finishBlock(block: Block): Promise<void> {
    this.#requireOpen('finishBlock')
    const journal = this.#journal
    if (!journal) return
    const written = this.#sinceBlock.splice(0)
    const { partial, temporary } = this.#folder
    const finish = async () => {
      for (const shard of new Set(written.map((entry) => entry.shard))) {
        await shard.flushing
        if (shard.flushError !== undefined) throw writeFailed(`cannot write ${shard.path}`, shard.flushError)
        await shard.handle.datasync()
      }
      if (journal.finished.entries === 0) {
        for (const folder of [temporary, partial.path]) await syncFolder(folder)
        await this.#folder.syncParents()
      }
      await journal.append({ weights: written.map(({ weight }) => weight), block })
    }
    try {
      await this.#track(finish())
    } catch (error) {
      throw writeFailed(`cannot write the journal of ${partial.path}`, error)
    }
  }

  /** The absolute path of the folder to appear. */
  get out(): string {
    return this.#folder.out
  }

  /**
   * Writes a weight: lets each of `parts`, which are those that its encoding has announced, store its bytes. A weight can
   * be written once.
   *
   * @throws SparseGptError WRITE_FAILED when a part cannot be stored, with its error as the cause; an error of this
   * package (such as ABORTED) is passed on as it is. After either, `commit` refuses.
   */
  async write(weight: string, parts: readonly Part[]): Promise<void> {
    this.#requireOpen('write')
    const entry = this.#entries.get(weight)
    if (!entry) {
      throw new SparseGptError('INTERNAL', `the checkpoint has no tensor ${JSON.stringify(weight)} to write`)
    }
    if (entry.state !== 'unwritten') {
      throw new SparseGptError('INTERNAL', `tensor ${JSON.stringify(weight)} is written twice`)
    }
    const { shard } = entry
    entry.state = 'writing'
    const store = async () => {
      const offsets = shard.layout.place(weight, parts)
      for (const [i, part] of parts.entries()) await part.store(shard.handle.fd, offsets[i]!)
    }
    try {
      await this.#track(store())
      entry.state = 'written'
      if (this.#journal) {
        const layouts = parts.map(({ name, dtype, shape }) => ({ name, dtype, shape }))
        this.#sinceBlock.push({ shard, weight: { name: weight, parts: layouts } })
        this.#flush(shard)
      }
    } catch (error) {
      entry.state = 'failed'
      const what = `cannot write tensor ${JSON.stringify(weight)} to ${shard.path}`
      // A device that has written to the file's descriptor does not know its name.
      if (error instanceof SparseGptError && error.code === 'WRITE_FAILED')
        throw new SparseGptError('WRITE_FAILED', `${what}: ${error.message}`, { cause: error })
      throw writeFailed(what, error)
    }
  }

  /** Begins to make durable what is written, so that little of it is left to wait for when the block is finished. */
  #flush(shard: OutputShard): void {
    if (shard.flushing) return
    const flush = shard.handle.datasync().catch((error: unknown) => (shard.flushError ??= error))
    shard.flushing = this.#track(flush).then(() => (shard.flushing = undefined))
  }

  /** Takes the text of a further file of the folder, which goes before one of the source with its name. */
  addFile(name: string, text: string): void {
    this.#requireOpen('addFile')
    this.#texts.set(name, text)
  }

  /**
   * Copies what was not written and the source's other files, makes all of it durable and moves the folder to `out`.
   * When it fails what was at `out` before is untouched, and nothing is left behind unless it can be resumed.
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

  /** What is kept of a job that has ended with something finished, and how it is resumed; undefined when nothing is. */
  get kept(): string | undefined {
    if (this.#state === 'done' || !this.#resumable) return undefined
    const { words } = this.#journal!.finished
    return `${words} finished ${words.startsWith('1 ') ? 'is' : 'are'} kept in ${this.#folder.partial.path}: the same job with resume (--resume) goes on from there`
  }

  get #resumable(): boolean {
    return !this.#worthless && (this.#journal?.finished.entries ?? 0) > 0
  }

  /**
   * Closes and removes the temporary folder, or leaves it to be resumed if something is finished in it and `keep` is true,
   * once running writes have ended; a running `commit` stops, unless it is
   * already moving the folder. Can be called at any time and more than once; does nothing after a `commit`.
   *
   * @throws SparseGptError WRITE_FAILED when the temporary folder cannot be removed.
   */
  async abort({ keep = true } = {}): Promise<void> {
    if (this.#state === 'done') return
    this.#state = 'aborted'
    if (!keep) this.#worthless = true
    await Promise.allSettled(this.#running)
    try {
      await this.#discard()
    } catch (error) {
      throw writeFailed(`cannot remove the temporary folder ${this.#folder.temporary}`, error)
    }
  }

  async #finish(): Promise<void> {
    for (const [name, { state, due }] of this.#entries) {
      if (state === 'written' || (state === 'unwritten' && !due)) continue
      const fault = {
        unwritten: 'was not written',
        writing: 'is still being written',
        failed: 'could not be written',
      }
      throw new SparseGptError(
        state === 'failed' ? 'WRITE_FAILED' : 'INTERNAL',
        `${this.#folder.out} cannot be completed: tensor ${JSON.stringify(name)} ${fault[state]}`,
      )
    }
    for (const shard of this.#shards) {
      await this.#copyUnwritten(shard)
      const { header, fileBytes } = shard.layout.header()
      await writeFully(shard.handle, header, 0)
      await shard.handle.truncate(fileBytes)
      await shard.handle.sync()
    }
    const index = weightIndex(
      this.#shards.map(({ path, layout }) => [basename(path), layout.tensors]),
      this.#newIndex,
    )
    const config = await this.#newConfig()
    await this.#closeShards()
    for (const { name } of this.#companions) {
      if (this.#texts.has(name)) continue
      this.#requireNotAborted()
      const target = join(this.#folder.temporary, name)
      await copyFile(join(this.#source.folder, name), target)
      // A read-only source (a shared cache) must not make the copy read-only.
      await chmod(target, (await stat(target)).mode | 0o200)
      if (name === 'config.json' && config !== undefined) await writeFile(target, config)
      await syncFile(target)
    }
    const { format = safetensors } = this.#encoding
    if (this.#newIndex) this.#texts.set(format.index, index)
    for (const [name, text] of this.#texts) {
      const target = join(this.#folder.temporary, name)
      await writeFile(target, text)
      await syncFile(target)
    }
    this.#requireNotAborted()
    await this.#folder.publish()
    await this.#journal?.close()
  }

  /** The text of config.json, where it is to say something else of the quantization than the source's. */
  async #newConfig(): Promise<string | undefined> {
    const tensors = this.#shards.flatMap(({ layout }) => layout.tensors)
    const quantization = this.#encoding.quantization?.([...this.#grids.values()], tensors)
    const { config } = this.#source
    const isPlain = packQuantized(config) === undefined && blockScaling(config) === undefined
    if (quantization === undefined && isPlain) return undefined
    const text = await readFile(join(this.#source.folder, 'config.json'), 'utf8')
    return replaceEntry(text, quantizationEntry, quantization)
  }

  async #copyUnwritten(shard: OutputShard): Promise<void> {
    const unwritten = shard.source.tensors.filter(
      ({ name }) => this.#entries.get(name)?.state === 'unwritten',
    )
    if (unwritten.length === 0) return
    const file = join(this.#source.folder, shard.source.file)
    const handle = await open(file, 'r')
    try {
      for (const { first, bytes } of contiguousRuns(unwritten, shard.layout)) {
        const to = { handle: shard.handle, position: shard.layout.offset(first.name)! }
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
      await this.#journal?.close().catch(() => undefined)
      // What an earlier job has finished is not lost because this one cannot go on with it.
      if (this.#resumable || (this.#folder.resumed && !this.#worthless)) await this.#folder.release()
      else await this.#folder.discard()
    })()
    return this.#discarded
  }
}

/** Tensors that follow each other in both files. */
interface Run {
  /** The tensor that comes first. */
  first: StoredTensor
  /** The size of all of them, in bytes. */
  bytes: number
}

/** The runs of tensors that can be copied in one go. */
function contiguousRuns(tensors: readonly StoredTensor[], layout: ShardLayout): Run[] {
  const runs: Run[] = []
  for (const tensor of tensors) {
    const run = runs.at(-1)
    const follows =
      run !== undefined &&
      !run.first.strides &&
      !tensor.strides &&
      tensor.offset === run.first.offset + run.bytes &&
      layout.offset(tensor.name) === layout.offset(run.first.name)! + run.bytes
    if (follows) run.bytes += tensor.bytes
    else runs.push({ first: tensor, bytes: tensor.bytes })
  }
  return runs
}

/** The name of a weight file of one format in another; the names of .bin shards are changed as transformers would. */
function outputName(file: string, from: WeightFormat, to: WeightFormat): string {
  const name = file.slice(0, -from.extension.length)
  const [old, stem] = [stemOf(from), stemOf(to)]
  return `${name.startsWith(old) ? stem + name.slice(old.length) : name}${to.extension}`
}

/** The index, as transformers writes it, of the tensors of each file; `metadata`: what it says besides. */
function weightIndex(
  shards: readonly (readonly [file: string, tensors: readonly TensorLayout[]])[],
  metadata: Record<string, unknown> = {},
): string {
  const tensors = shards.flatMap(([, list]) => list)
  const files = shards
    .flatMap(([file, list]) => list.map(({ name, fused }): [string, string] => [fused?.name ?? name, file]))
    .sort(([a], [b]) => (a < b ? -1 : 1))
  const index = {
    metadata: { ...metadata, total_size: tensors.reduce((sum, tensor) => sum + tensorBytes(tensor), 0) },
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

export function writeFailed(what: string, error: unknown): SparseGptError {
  if (error instanceof SparseGptError) return error
  const why = systemCode(error) === 'ENOSPC' ? 'the disk is full' : reason(error)
  return new SparseGptError('WRITE_FAILED', `${what}: ${why}`, { cause: error })
}

/** Says what is written of a checkpoint, and what its folder must have. Throws SparseGptError for a weight that the encoding has no form for. */
async function design(source: Checkpoint, options: WriterOptions) {
  const { force, encoding = dense, encoded = [], resume = false, stateBytes = 0, denseModel } = options
  const { grids = new Map<string, Grid>() } = options
  const due = new Set(encoded)
  const layouts = source.shards.map(({ tensors, metadata }) => {
    const partsOf = (tensor: StoredTensor) =>
      (due.has(tensor.name) ? encoding : dense).layout(tensor, grids.get(tensor.name))
    return new ShardLayout(new Map(tensors.map((tensor) => [tensor.name, partsOf(tensor)])), metadata)
  })
  const { format = safetensors } = encoding
  const hasPacked = [...source.tensors.values()].some(isPacked)
  const copiesIndex = source.index === format.index && encoding === dense && !hasPacked
  const newIndex =
    source.index === undefined || copiesIndex
      ? undefined
      : await readIndexMetadata(join(source.folder, source.index))
  const companions = (await listCompanions(source)).filter(({ name }) => !newIndex || name !== source.index)
  const named = (file: string) => outputName(file, source.format, format)
  const index = weightIndex(
    source.shards.map(({ file }, i) => [named(file), layouts[i]!.announced]),
    newIndex,
  )
  const sizes = [
    ...layouts.map(({ largestBytes }) => largestBytes),
    ...companions.map(({ bytes }) => bytes),
    newIndex ? Buffer.byteLength(index) : 0,
    stateBytes,
  ]
  const keep = [...pathsOf(source, 'source'), ...(denseModel ? pathsOf(denseModel, 'dense') : [])]
  const folder = { force, resume, keep, bytes: sizes.reduce((sum, size) => sum + size, 0) }
  return { encoding, grids, due, layouts, companions, newIndex, named, folder }
}

/** A model's folder, and its weight files, which may be links that lead out of it. */
const pathsOf = ({ folder, shards }: Checkpoint, model: KeptPath['model']): KeptPath[] =>
  [folder, ...shards.map(({ file }) => join(folder, file))].map((path) => ({ path, model }))
