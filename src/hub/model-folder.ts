import { stat } from 'node:fs/promises'
import { basename, join, resolve } from 'node:path'
import { formats, readWeightMap } from '../files/checkpoint.js'
import { readIfThere } from '../files/regular-file.js'
import { SparseGptError } from '../errors.js'
import { pathOf, type PathOrUrl } from '../options.js'
import { openSnapshot } from './open-snapshot.js'
import type { DownloadOptions } from './snapshot.js'

/** Where a model is, and what it is called. */
interface ModelFolder {
  /** The absolute path of the folder. */
  folder: string
  /** The hub id as it was given, or the folder's name. */
  name: string
}

const maxConfigBytes = 2 ** 24

/** The names of the files that belong to a model beside its weights. */
const companions =
  /^((config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|chat_template|((video_)?pre)?processor_config)\.json|merges\.txt|chat_template\.jinja|.*\.model|(LICENSE|NOTICE|USE_POLICY)(\.(txt|md))?)$/i

/**
 * The folder of a model that is given as a local folder or as a hub id, `org/name`, `org/name@revision`, or
 * `gpt2` without an organization. Of a model on
 * the hub only what is needed is downloaded, and only what the cache lacks: config, tokenizer, and the weights as
 * safetensors, else as .bin, else packed; with `configOnly` nothing but config.json. A local folder wins over a hub id.
 *
 * Throws FILE_NOT_FOUND for what is neither; DOWNLOAD_FAILED, WRITE_FAILED, ABORTED; INVALID_CHECKPOINT for an index
 * that names files elsewhere; INVALID_OPTION (environment variables).
 */
export async function resolveModel(
  model: PathOrUrl,
  options: DownloadOptions & { configOnly?: boolean } = {},
): Promise<ModelFolder> {
  const pathOrHubId = pathOf(model, 'the model')
  const path = resolve(pathOrHubId)
  if (
    await stat(path).then(
      () => true,
      () => false,
    )
  )
    return { folder: path, name: basename(path) }
  const [, name = '', revision = 'main'] = /^([^@]*)(?:@(.*))?$/.exec(pathOrHubId) ?? []
  if (!isRepositoryName(name) || !isRevision(revision)) {
    throw new SparseGptError(
      'FILE_NOT_FOUND',
      `${path} does not exist: give an existing model folder, or a hub id such as facebook/opt-125m (org/name, or ` +
        'org/name@revision)',
    )
  }
  const snapshot = await openSnapshot({ type: 'model', name, revision }, options).catch((error: unknown) => {
    // A name without a slash may have been meant for a folder.
    const folder = !name.includes('/') && error instanceof SparseGptError && error.code === 'DOWNLOAD_FAILED'
    if (!folder) throw error
    const message = `${path} does not exist, and as a hub id: ${error.message}`
    throw new SparseGptError('FILE_NOT_FOUND', message, { cause: error })
  })
  const files = await snapshot.rootFiles()
  if (!files.includes('config.json')) {
    const place = `the model ${pathOrHubId} (${snapshot.folder})`
    throw new SparseGptError(
      'DOWNLOAD_FAILED',
      `${place} has no config.json: it is no model in Hugging Face layout`,
    )
  }
  if (options.configOnly) {
    await snapshot.fetch(['config.json'])
    return { folder: snapshot.folder, name: pathOrHubId }
  }
  const wanted = files.filter((file) => companions.test(file))
  for (const format of formats) {
    if (files.includes(format.single)) {
      await snapshot.fetch([...wanted, format.single])
      break
    }
    if (files.includes(format.index)) {
      await snapshot.fetch([...wanted, format.index])
      const map = await readWeightMap(join(snapshot.folder, format.index), format)
      await snapshot.fetch([...new Set(map.values())].sort())
      break
    }
  }
  // Without weights that can be read, opening the folder says so.
  await snapshot.fetch(wanted)
  if (await namesOwnCode(snapshot.folder, wanted)) {
    await snapshot.fetch(files.filter((file) => file.endsWith('.py')))
  }
  return { folder: snapshot.folder, name: pathOrHubId }
}

/** Whether a model has Python files of its own, which are carried along and never run: whether one of its configs has auto_map. */
async function namesOwnCode(folder: string, files: readonly string[]): Promise<boolean> {
  const configs = files.filter((file) => file.endsWith('config.json'))
  const texts = await Promise.all(configs.map((file) => readIfThere(join(folder, file), maxConfigBytes)))
  return texts.some((text) => text?.includes('"auto_map"'))
}

/**
 * One slash, as the hub's ids have, or none, as its oldest; no dots that lead elsewhere, and no `--`, which stands for the
 * slash in the cache.
 */
const isRepositoryName = (name: string) =>
  /^([A-Za-z0-9_][\w.-]*\/)?[A-Za-z0-9_][\w.-]*$/.test(name) && !/--|\.\./.test(name)

const isRevision = (revision: string) => /^[\w][\w./-]*$/.test(revision) && !/\.\.|\/\/|\/$/.test(revision)
