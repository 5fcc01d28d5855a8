import { randomBytes } from 'node:crypto'
import { open, rm, type FileHandle } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { basename, join, resolve } from 'node:path'
import { writeFully } from '../files/copy-range.js'
import { reason } from '../files/read-error.js'
import { SparseGptError } from '../errors.js'
import { openSnapshot } from '../hub/open-snapshot.js'
import type { DownloadOptions, Repository } from '../hub/snapshot.js'
import { parseLine, readDocuments, readLines } from './documents.js'
import { joinDocuments, textReadError } from './text.js'

/** The names of the data sets that the SparseGPT paper calibrates with and evaluates on. */
export const datasetNames = ['wikitext2', 'ptb', 'c4'] as const

/** The name of a data set: WikiText-2, Penn Treebank, or C4. */
export type DatasetName = (typeof datasetNames)[number]

/** Rows of a file, joined into one text. */
interface Part {
  /** The path of the file in the repository. */
  file: string
  /** The field, or column, of a row that holds the text. */
  field: string
  /** The text that is put between two rows. */
  separator: string
  /** The number of rows that are taken, from the first on. Default: all. */
  rows?: number
}

/** What is read of a data set. */
interface Dataset {
  /** The repository of the hub that has the data set. */
  repository: Repository
  /** The rows that windows are drawn from for calibration. */
  calibration: Part
  /** The rows that perplexity is measured on. */
  evaluation: Part
}

const wikitext = { field: 'text' }
const ptb = { field: 'sentence', separator: ' ' }

/** Files and separators are those of the paper's code, which decide what the windows are. */
const datasets: Record<DatasetName, Dataset> = {
  wikitext2: {
    repository: { type: 'dataset', name: 'Salesforce/wikitext', revision: 'main' },
    calibration: { ...wikitext, file: 'wikitext-2-raw-v1/train-00000-of-00001.parquet', separator: ' ' },
    evaluation: { ...wikitext, file: 'wikitext-2-raw-v1/test-00000-of-00001.parquet', separator: '\n\n' },
  },
  ptb: {
    // The repository itself has only a script; the hub keeps its output on this branch.
    repository: { type: 'dataset', name: 'ptb-text-only/ptb_text_only', revision: 'refs/convert/parquet' },
    calibration: { ...ptb, file: 'penn_treebank/train/0000.parquet' },
    evaluation: { ...ptb, file: 'penn_treebank/test/0000.parquet' },
  },
  c4: {
    repository: { type: 'dataset', name: 'allenai/c4', revision: 'main' },
    // Calibration draws single documents: see DocumentStore.
    calibration: { file: 'en/c4-train.00000-of-01024.json.gz', field: 'text', separator: ' ' },
    evaluation: {
      file: 'en/c4-validation.00000-of-00008.json.gz',
      field: 'text',
      separator: ' ',
      rows: 1100,
    },
  },
}

/** The file of a part of a data set, from the hub or its cache. Throws DOWNLOAD_FAILED, WRITE_FAILED, ABORTED. */
async function fetchPart(name: DatasetName, part: Part, options: DownloadOptions): Promise<string> {
  const snapshot = await openSnapshot(datasets[name].repository, options)
  await snapshot.fetch([part.file])
  return join(snapshot.folder, part.file)
}

/** How a data set is read. */
export interface DatasetOptions extends DownloadOptions {
  /** A function that is told the share of the file that has been read, in (0, 1]. */
  onRead?: ((share: number) => void) | undefined
  /** The path of the data set's file, in the place of the hub's. */
  file?: string | undefined
  /** The field of its rows that holds the text. Default: that of the data set. */
  textField?: string | undefined
}

/** Whether a file of this name is a shard of C4, which is sampled as the data set is. */
export const isC4Shard = (file: string) =>
  /^c4-(train|validation)\.\d+-of-\d+\.json(\.gz)?$/.test(basename(file))

/**
 * The text of a data set as the paper's code makes it, in parts one after another.
 *
 * Throws DOWNLOAD_FAILED, WRITE_FAILED, ABORTED, INVALID_TEXT (a damaged file).
 */
export async function* datasetParts(
  name: DatasetName,
  use: 'calibration' | 'evaluation',
  { onRead, file: own, textField, ...options }: DatasetOptions,
): AsyncGenerator<string> {
  const part = datasets[name][use]
  const file = own === undefined ? await fetchPart(name, part, options) : resolve(own)
  try {
    const documents = readDocuments(file, textField ?? part.field, onRead)
    yield* joinDocuments(first(part.rows, documents), part.separator)
  } catch (error) {
    throw textReadError(file, error)
  }
}

async function* first<T>(count: number | undefined, items: AsyncIterable<T>): AsyncGenerator<T> {
  let taken = 0
  if (count === 0) return
  for await (const item of items) {
    yield item
    if (++taken === count) return
  }
}

/**
 * The documents of C4's calibration shard, 356,317 of them, or of another; the caller closes them. Throws as datasetParts does, and
 * WRITE_FAILED.
 */
export async function openC4({ file, textField, ...options }: DatasetOptions): Promise<DocumentStore> {
  const part = datasets.c4.calibration
  const own = file === undefined ? await fetchPart('c4', part, options) : resolve(file)
  return DocumentStore.open(own, textField ?? part.field)
}

/**
 * The documents of a packed file of lines, to be read in any order. They are unpacked (0.8 GB for C4's shard) into a
 * temporary file rather than into memory; it has no name any more, so it goes with the process at the latest.
 */
class DocumentStore {
  private constructor(
    private readonly file: string,
    private readonly field: string,
    private readonly handle: FileHandle,
    /** The places where the lines begin, and where the last ends, in bytes from the start of the temporary file. */
    private readonly offsets: readonly number[],
  ) {}

  /** Unpacks `file`, whose rows have the text in `field`. Throws FILE_NOT_FOUND, INVALID_TEXT, WRITE_FAILED. */
  static async open(file: string, field: string): Promise<DocumentStore> {
    const temporary = join(tmpdir(), `sparsegpt-${process.pid}-${randomBytes(4).toString('hex')}`)
    const failed = (error: unknown) => {
      const message = `cannot unpack ${file} into ${tmpdir()} (TMPDIR): ${reason(error)}`
      return new SparseGptError('WRITE_FAILED', message, { cause: error })
    }
    const handle = await open(temporary, 'wx+').catch((error: unknown) => {
      throw failed(error)
    })
    try {
      await rm(temporary)
      const offsets = [0]
      let end = 0
      let pending: Buffer[] = []
      let pendingBytes = 0
      const flush = async () => {
        await writeFully(handle, Buffer.concat(pending), end - pendingBytes).catch((error: unknown) => {
          throw failed(error)
        })
        pending = []
        pendingBytes = 0
      }
      try {
        for await (const { bytes: line } of readLines(file)) {
          pending.push(line)
          pendingBytes += line.length
          end += line.length
          offsets.push(end)
          if (pendingBytes > 1 << 22) await flush()
        }
      } catch (error) {
        throw textReadError(file, error)
      }
      await flush()
      return new DocumentStore(file, field, handle, offsets)
    } catch (error) {
      await handle.close()
      throw error
    }
  }

  /** The number of documents. */
  get count(): number {
    return this.offsets.length - 1
  }

  /** The text of a document, `index` in [0, count). Throws INVALID_TEXT when its line holds none. */
  async document(index: number): Promise<string> {
    const start = this.offsets[index] ?? 0
    const line = Buffer.alloc((this.offsets[index + 1] ?? start) - start)
    await this.handle.read(line, 0, line.length, start)
    const text = parseLine(this.file, index + 1, line, this.field)
    if (text === undefined)
      throw new SparseGptError('INVALID_TEXT', `${this.file}, line ${index + 1} is blank`)
    return text
  }

  /** Closes the temporary file, which removes it. */
  close(): Promise<void> {
    return this.handle.close()
  }
}
