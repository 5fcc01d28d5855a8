import { readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { safetensors, type Checkpoint } from './checkpoint.js'
import { readError } from './read-error.js'

const weights = /\.(safetensors|bin|pt|pth|gguf|h5|msgpack|onnx)(\.index\.json)?$/i

/** A file of a model folder that is not weights: config, tokenizer, licence. */
export interface Companion {
  /** The name of the file in the folder. */
  name: string
  /** The size of the file, in bytes. */
  bytes: number
}

/**
 * The files directly in the source folder that belong to the model beside its weights. Links are followed (the hub cache
 * is made of them); subfolders, weights in any format and the indexes of weights that are not copied are left out.
 *
 * @throws SparseGptError FILE_NOT_FOUND when the source folder has gone.
 */
export async function listCompanions(source: Checkpoint): Promise<Companion[]> {
  const companions: Companion[] = []
  const names = await readdir(source.folder).catch((error: unknown) => {
    throw readError(error, source.folder, 'the source model must stay where it was opened')
  })
  for (const name of names.sort()) {
    const belongs = name === safetensors.index ? source.index === name : !weights.test(name)
    if (!belongs) continue
    // A dangling link is no file of the model.
    const stats = await stat(join(source.folder, name)).catch(() => undefined)
    if (stats?.isFile()) companions.push({ name, bytes: stats.size })
  }
  return companions
}
