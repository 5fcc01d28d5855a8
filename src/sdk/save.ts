import { encodings, type EncodingName } from '../files/encodings/registry.js'
import type { Engine } from '../models/engine.js'
import { FolderDestination } from '../pruning/destination.js'

/**
 * Writes the model as it is, with what has changed in memory, to a new folder, which the engine uses from then on. `step` is called after
 * each matrix of which the encoding changes the form, with its name and the share that is done; `check`, with the number of matrices
 * whose form has changed, before the folder appears. Both may throw. Throws OUTPUT_EXISTS, INVALID_OPTION, WRITE_FAILED.
 */
export async function saveModel(
  engine: Engine,
  out: string,
  { force, encoding }: { force: boolean; encoding: EncodingName },
  step: (weightName: string, fraction: number) => void,
  check: (encodedCount: number) => void,
): Promise<void> {
  const settings = { force, encoding: encodings[encoding], weights: [] }
  const destination = await FolderDestination.create(engine, out, settings)
  try {
    await destination.storeOthers(step)
    check(destination.encodedCount)
    await destination.commit()
  } catch (error) {
    throw await destination.abort(error)
  }
}
