import { createHash } from 'node:crypto'
import { basename, dirname, join } from 'node:path'
import type { Checkpoint } from '../files/checkpoint.js'
import { fingerprint } from '../files/fingerprint.js'
import type { MaskFile } from '../files/mask-file.js'
import { reason } from '../files/read-error.js'
import { readIfThere } from '../files/regular-file.js'
import type { Engine } from '../models/engine.js'
import type { LinearSpec } from '../models/specs.js'
import { hashOfModel, hashOfWindows } from '../pruning/job-identity.js'
import { takePictures } from './picture.js'
import { plainOptions } from './plain-options.js'
import { header, type InputHashes, type ModelJobReport } from './report.js'
import { reportTexts, rewriteReport } from './write-report.js'

/** Files that say how a text becomes token ids. */
const tokenizerFiles = [
  'tokenizer.json',
  'tokenizer.model',
  'vocab.json',
  'merges.txt',
  'chat_template.jinja',
]
const maxTokenizerBytes = 2 ** 28

/** What a job reads besides its model. */
export interface JobInputs {
  dense?: Engine | undefined
  windows: readonly Int32Array[]
  training?: readonly Int32Array[] | undefined
  masks?: MaskFile | undefined
}

/** Hashes of what a job reads, before it writes. Throws FILE_NOT_FOUND. */
export async function hashInputs(
  engine: Engine,
  { dense, windows, training, masks }: JobInputs,
): Promise<InputHashes> {
  const tokenizer = createHash('sha256')
  let known = false
  for (const name of tokenizerFiles) {
    const text = await readIfThere(join(engine.folder, name), maxTokenizerBytes)
    if (text === undefined) continue
    known = true
    tokenizer.update(name).update('\0').update(text)
  }
  return {
    model: await hashOfModel(engine),
    ...(dense && { dense: await hashOfModel(dense) }),
    ...(known && { tokenizer: tokenizer.digest('hex').slice(0, 32) }),
    ...(windows.length > 0 && { calibration: hashOfWindows(windows) }),
    ...(training && { training: hashOfWindows(training) }),
    ...(masks && { mask: await fingerprint(masks.all) }),
  }
}

/** What the report of a job is made of: how its model was before it, and what it is run with. */
export class JobRecord {
  private readonly source: Checkpoint
  private readonly model: string
  private readonly changed: boolean
  private report: ModelJobReport | undefined

  constructor(
    private readonly engine: Engine,
    private readonly job: 'prune' | 'distill',
    private readonly options: { given: object; resolved: object },
    private readonly inputs: InputHashes,
  ) {
    const { folder, name, checkpoint, weights } = engine
    this.source = checkpoint
    this.changed = weights.changed
    this.model = modelName(folder, name)
  }

  /** The files that say what the job came to, to be written with the model. */
  async files(result: ModelJobReport['result']): Promise<Map<string, string>> {
    const { engine, options, job } = this
    const { device } = engine
    const given = await plainOptions(options.given)
    const resolved = await plainOptions(options.resolved)
    const unrepeatable = this.changed
      ? 'the model had been changed in memory before'
      : given.inMemory === undefined
        ? undefined
        : `the calibration text was handed over in memory (${given.inMemory})`
    this.report = {
      ...header(job, device.description),
      model: this.model,
      load: { device: device.name, dtype: engine.weights.dtype },
      options: { given: given.plain, resolved: resolved.plain },
      inputs: this.inputs,
      ...(unrepeatable !== undefined && { unrepeatable }),
      result,
    }
    return reportTexts(this.source.folder, this.report)
  }

  /**
   * Adds the final `result`, pictures of the weights, and the page, once the model stands in `folder`. The job is done by then, so what goes wrong is a
   * warning.
   */
  async complete(
    folder: string,
    layers: readonly LinearSpec[],
    result: ModelJobReport['result'],
  ): Promise<void> {
    if (!this.report) return
    const { device, checkpoint } = this.engine
    try {
      const pictures = await takePictures(device, layers, { before: this.source, after: checkpoint })
      await rewriteReport(folder, { ...this.report, result, pictures })
    } catch (error) {
      process.emitWarning(`${folder}: the report could not be completed: ${reason(error)}`)
    }
  }
}

/** What loads the same model again: the hub id with the commit, or the path of the folder. */
function modelName(folder: string, name: string): string {
  if (basename(dirname(folder)) !== 'snapshots') return folder
  return `${name.replace(/@.*$/, '')}@${basename(folder)}`
}
