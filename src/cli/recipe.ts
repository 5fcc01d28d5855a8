import { SparseGptError } from '../errors.js'
import { overRecipe, readRecipe, type PruneRecipe } from '../sdk/recipe.js'
import { version as packageVersion } from '../package.js'
import { printable } from './failure.js'

/** What a recipe makes of the command: which model is loaded, where, and what it is pruned with. */
export interface AppliedRecipe {
  model: string
  load: PruneRecipe['load']
  options: Record<string, unknown>
}

/**
 * Puts what was typed in the place of what a recipe has, if there is one. `given`: the options of `prune` that were typed; `model`: the
 * model that was. Throws FILE_NOT_FOUND, INVALID_OPTION.
 */
export async function applyRecipe(
  file: string | undefined,
  model: string | undefined,
  given: Record<string, unknown>,
): Promise<AppliedRecipe> {
  if (file === undefined) {
    if (model !== undefined) return { model, load: {}, options: given }
    throw new SparseGptError(
      'INVALID_OPTION',
      'prune: give <model>, or --recipe with the report of a pruned model',
    )
  }
  const recipe = await readRecipe(file)
  const { unrepeatable, version } = recipe
  if (unrepeatable !== undefined && (model === undefined || given['calibration'] === undefined)) {
    const message = `option recipe: ${file} does not say all: ${unrepeatable}: give <model> and --calibration too`
    throw new SparseGptError('INVALID_OPTION', message)
  }
  if (version !== packageVersion) {
    process.stderr.write(
      `sparsegpt: ${file} was made by version ${printable(version)}, this is ${packageVersion}: the result may differ\n`,
    )
  }
  const options = overRecipe({ ...recipe.options }, given, { model: model !== undefined })
  return { model: model ?? recipe.model, load: recipe.load, options }
}
