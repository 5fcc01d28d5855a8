import { mkdir, readFile, readdir, rename, stat, symlink, writeFile } from 'node:fs/promises'
import { dirname, join, relative } from 'node:path'
import {
  datasetInfo,
  getRepoFolderName,
  HubApiError,
  listFiles,
  modelInfo,
  pathsInfo,
} from '@huggingface/hub'
import { abortable } from '../abort.js'
import { isPlainName } from '../files/plain-name.js'
import { reason, systemCode } from '../files/read-error.js'
import { SparseGptError } from '../errors.js'
import { download } from './download.js'
import { downloadFailed, isTransient } from './failure.js'
import { hubFetch, openFile } from './http.js'
import { hubSettings, type HubSettings } from './settings.js'

/** A repository of the hub at a revision. */
export interface Repository {
  /** The kind of its contents. */
  type: 'model' | 'dataset'
  /** The id of the repository, such as 'facebook/opt-125m'. */
  name: string
  /** The branch, tag or commit. */
  revision: string
}

/** How far a download has come. */
export interface DownloadProgress {
  /** The id of the repository, such as 'facebook/opt-125m'. */
  repository: string
  /** The path, in the repository, of the file that is being downloaded. */
  file: string
  /** The number of bytes that have come, of all files that are downloaded together. */
  bytes: number
  /** The size of all files that are downloaded together, in bytes. */
  totalBytes: number
}

/** What a caller may ask of a download. */
export interface DownloadOptions {
  /** The function that is called as bytes come, and once for each file that is done. */
  onDownload?: ((progress: DownloadProgress) => void) | undefined
  /** The signal that stops the download. */
  signal?: AbortSignal | undefined
}

const commitPattern = /^[0-9a-f]{40}$/
/** The number of files and folders that a repository's root may have. */
const maxEntries = 100_000
const objectPattern = /^([0-9a-f]{40}|[0-9a-f]{64})$/

/**
 * The files of a repository at one commit, in the cache folder that Hugging Face's tools share: a file that Python has
 * downloaded is found, and the other way round.
 *
 *     models--org--name/refs/main                      the commit
 *     models--org--name/snapshots/<commit>/<file>      a link to
 *     models--org--name/blobs/<object id>              the contents
 */
export class Snapshot {
  private constructor(
    private readonly repository: Repository,
    private readonly settings: HubSettings,
    private readonly options: DownloadOptions,
    private readonly storage: string,
    private readonly commit: string,
    /** Whether nothing may, or can, be downloaded. */
    private readonly local: boolean,
  ) {}

  /**
   * Finds out which commit the revision is: asks the hub, or the cache when the revision is a commit that the cache has,
   * HF_HUB_OFFLINE is set, or the hub cannot be reached.
   *
   * Throws DOWNLOAD_FAILED, INVALID_OPTION (environment variables), ABORTED.
   */
  static async open(repository: Repository, options: DownloadOptions = {}): Promise<Snapshot> {
    const settings = await hubSettings()
    const storage = join(settings.cache, getRepoFolderName(repository))
    const make = (commit: string, local: boolean) =>
      new Snapshot(repository, settings, options, storage, commit, local)
    const cached = await cachedCommit(storage, repository.revision)
    if (settings.offline) {
      if (cached !== undefined) return make(cached, true)
      throw notCached(repository, storage, 'HF_HUB_OFFLINE is set')
    }
    if (commitPattern.test(repository.revision)) return make(repository.revision, false)
    try {
      const commit = await resolveRevision(repository, settings, options)
      await remember(storage, repository.revision, commit)
      return make(commit, false)
    } catch (error) {
      abortable(options.signal)
      const failure = downloadFailed(title(repository), page(repository, settings), error, settings)
      if (cached === undefined || !isTransient(error)) throw failure
      process.emitWarning(`${failure.message}; the copy in the cache is used`)
      return make(cached, true)
    }
  }

  /** The path of the folder that holds what has been fetched, by this or any other tool. */
  get folder(): string {
    return join(this.storage, 'snapshots', this.commit)
  }

  /**
   * The names of the files directly in the repository's root: of all, or of those in the cache when the hub cannot be
   * asked. Throws DOWNLOAD_FAILED, ABORTED.
   */
  async rootFiles(): Promise<string[]> {
    const cached = await readdir(this.folder).catch(() => [])
    if (this.local) return cached
    try {
      const names: string[] = []
      let entries = 0
      for await (const { type, path } of listFiles({ ...this.request(), revision: this.commit })) {
        if (++entries > maxEntries) {
          const message = `${title(this.repository)} lists more than ${maxEntries} files: it is no model`
          throw new SparseGptError('DOWNLOAD_FAILED', message)
        }
        if (type !== 'file') continue
        if (!isPlainName(path)) throw this.badName(path)
        names.push(path)
      }
      return names
    } catch (error) {
      const failure = this.failure('the list of files', error)
      if (cached.length === 0 || !isTransient(error)) throw failure
      process.emitWarning(`${failure.message}; the copy in the cache is used`)
      return cached
    }
  }

  /** Makes sure that `folder` has these files (paths from the root). Throws DOWNLOAD_FAILED, WRITE_FAILED, ABORTED. */
  async fetch(paths: readonly string[]): Promise<void> {
    const strange = paths.find((path) => !path.split('/').every(isPlainName))
    if (strange !== undefined) throw this.badName(strange)
    const missing: string[] = []
    for (const path of paths) if (!(await exists(join(this.folder, path)))) missing.push(path)
    if (missing.length === 0) return
    if (this.local) {
      throw notCached(this.repository, this.storage, `${missing.join(', ')} cannot be downloaded`, missing[0])
    }
    const infos = await pathsInfo({ ...this.request(), paths: missing, revision: this.commit }).catch(
      (error: unknown) => {
        throw this.failure(missing.join(', '), error)
      },
    )
    const files = missing.map((path) => {
      const info = infos.find((candidate) => candidate.path === path && candidate.type === 'file')
      const oid = info?.lfs?.oid ?? info?.oid ?? ''
      if (!info || !Number.isSafeInteger(info.size) || !objectPattern.test(oid)) {
        const message = `${title(this.repository)} has no file ${path} (see ${page(this.repository, this.settings)})`
        throw new SparseGptError('DOWNLOAD_FAILED', message)
      }
      return { path, oid, size: info.lfs?.size ?? info.size }
    })
    const totalBytes = files.reduce((sum, { size }) => sum + size, 0)
    let before = 0
    for (const file of files) {
      await this.fetchFile(file, (bytes) =>
        this.options.onDownload?.({
          repository: this.repository.name,
          file: file.path,
          bytes: before + bytes,
          totalBytes,
        }),
      )
      before += file.size
    }
  }

  private async fetchFile(
    file: { path: string; oid: string; size: number },
    onBytes: (bytes: number) => void,
  ): Promise<void> {
    const { signal } = this.options
    const blob = join(this.storage, 'blobs', file.oid)
    const link = join(this.folder, file.path)
    await mkdir(dirname(blob), { recursive: true })
    await mkdir(dirname(link), { recursive: true })
    if (!(await hasSize(blob, file.size))) {
      // Python's name for it, so that either goes on where the other stopped.
      const incomplete = `${blob}.incomplete`
      try {
        await download(incomplete, file, (start) => this.open(file, start), onBytes, signal)
      } catch (error) {
        throw this.failure(file.path, error)
      }
      await rename(incomplete, blob).catch(async (error: unknown) => {
        // Another process has finished the same file.
        if (!(await exists(blob))) throw cacheFailed(blob, error)
      })
    }
    await symlink(relative(dirname(link), blob), link).catch((error: unknown) => {
      if (systemCode(error) !== 'EEXIST') throw cacheFailed(link, error)
    })
    onBytes(file.size)
  }

  private async open(
    { path, size }: { path: string; size: number },
    start: number,
  ): Promise<AsyncIterable<Uint8Array>> {
    const { repository, settings } = this
    const place = path.split('/').map(encodeURIComponent).join('/')
    const url = `${page(repository, settings)}/resolve/${this.commit}/${place}`
    const range = start === 0 ? undefined : `bytes=${start}-${size - 1}`
    const { message, url: from } = await openFile(settings, url, range, this.options.signal)
    const status = message.statusCode ?? 0
    const begins =
      start === 0 ? status === 200 : message.headers['content-range']?.startsWith(`bytes ${start}-`)
    if (begins && (start === 0 || status === 206)) return message
    message.destroy()
    if (status < 400) {
      const what = `answers with status ${status} to a request for the bytes from ${start} on`
      throw new SparseGptError('DOWNLOAD_FAILED', `${from} ${what}`)
    }
    throw new HubApiError(from, status)
  }

  private badName(path: string): SparseGptError {
    const message = `${title(this.repository)} lists a file ${JSON.stringify(path)}, which is no name of a file in its folder`
    return new SparseGptError('DOWNLOAD_FAILED', message)
  }

  private request() {
    return requestOf(this.repository, this.settings, this.options)
  }

  private failure(what: string, error: unknown): SparseGptError {
    abortable(this.options.signal)
    const { repository, settings } = this
    return downloadFailed(`${what} of ${title(repository)}`, page(repository, settings), error, settings)
  }
}

function requestOf({ type, name }: Repository, settings: HubSettings, { signal }: DownloadOptions) {
  return { repo: { type, name }, hubUrl: settings.endpoint, fetch: hubFetch(settings, signal) }
}

async function resolveRevision(repository: Repository, settings: HubSettings, options: DownloadOptions) {
  const { repo, ...request } = requestOf(repository, settings, options)
  const query = { ...request, name: repo.name, revision: repository.revision }
  const { sha } =
    repo.type === 'model'
      ? await modelInfo({ ...query, additionalFields: ['sha'] })
      : await datasetInfo({ ...query, additionalFields: ['sha'] })
  if (!commitPattern.test(sha)) {
    const message = `${settings.endpoint} does not answer as the hub does: it names no commit of ${repository.name}`
    throw new SparseGptError('DOWNLOAD_FAILED', message)
  }
  return sha
}

/** The commit of a revision according to the cache. */
async function cachedCommit(storage: string, revision: string): Promise<string | undefined> {
  const text = commitPattern.test(revision)
    ? revision
    : await readFile(join(storage, 'refs', revision), 'utf8').catch(() => '')
  const commit = text.trim()
  return commitPattern.test(commit) && (await exists(join(storage, 'snapshots', commit))) ? commit : undefined
}

async function remember(storage: string, revision: string, commit: string): Promise<void> {
  const file = join(storage, 'refs', revision)
  try {
    await mkdir(dirname(file), { recursive: true })
    await writeFile(file, commit)
  } catch (error) {
    throw cacheFailed(file, error)
  }
}

function notCached(repository: Repository, storage: string, why: string, file?: string): SparseGptError {
  const what = file === undefined ? '' : `the file ${file} of `
  const advice = 'unset HF_HUB_OFFLINE, or download it where there is a connection'
  return new SparseGptError(
    'DOWNLOAD_FAILED',
    `${what}${title(repository)} is not in the cache (${storage}), and ${why}: ${advice}`,
  )
}

function cacheFailed(path: string, error: unknown): SparseGptError {
  const message = `cannot write to the hub's cache (${path}): ${reason(error)}; HF_HUB_CACHE names another folder`
  return new SparseGptError('WRITE_FAILED', message, { cause: error })
}

const title = ({ type, name, revision }: Repository) =>
  `the ${type === 'model' ? 'model' : 'data set'} ${name}${revision === 'main' ? '' : `@${revision}`}`

const page = ({ type, name }: Repository, { endpoint }: HubSettings) =>
  `${endpoint}/${type === 'model' ? '' : 'datasets/'}${name}`

/** Whether there is a file of this size: a write that a power cut has undone leaves another. */
const hasSize = (path: string, size: number) =>
  stat(path).then(
    (stats) => stats.isFile() && stats.size === size,
    () => false,
  )

const exists = (path: string) =>
  stat(path).then(
    () => true,
    () => false,
  )
