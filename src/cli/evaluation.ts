import { SparseGptError } from '../errors.js'
import type { Communicator } from '../native/communicator.js'
import { recordEvaluation } from '../reporting/write-report.js'
import { preparePerplexity, type Perplexity } from '../sdk/perplexity.js'
import type { Model } from '../sdk/model.js'
import { given, textSource } from './arguments.js'
import { showDownload, showEncoding } from './open-model.js'
import { withProgress, type Progress } from './progress.js'

/** What a job's report has besides, where an evaluation was asked for. */
export interface Evaluated {
  /** The perplexity of the model before the job. */
  perplexityBefore?: number
  /** The perplexity of the model that the job has made. */
  perplexity?: number
}

/** The text to evaluate on, if there is one, and how much of it. */
interface EvaluationText {
  text: string | undefined
  seqlen: number | undefined
  windows: number | undefined
  signal: AbortSignal
  communicator?: Communicator | undefined
}

/** The measurement of a model's perplexity, whose progress the title stands before. */
type Measure = (title: string) => Promise<Perplexity>

/** Reads and checks what the evaluation needs; undefined without a text. Throws as preparePerplexity does. */
export async function prepareEvaluation(
  model: Model,
  { text, seqlen, windows, signal, communicator }: EvaluationText,
): Promise<Measure | undefined> {
  if (text === undefined) {
    if (windows === undefined) return undefined
    throw new SparseGptError('INVALID_OPTION', 'option windows: is of the evaluation: give --eval too')
  }
  let evaluating: Progress | undefined
  const measure = await withProgress('reading the evaluation text', (progress) =>
    preparePerplexity(model, {
      ...given({ sequenceLength: seqlen, windows, communicator }),
      ...textSource(text),
      onDownload: showDownload(progress),
      onEncode: showEncoding(progress),
      signal,
      onProgress: (fraction) => evaluating?.update(fraction),
    }).catch((error: unknown) => {
      // Beside a calibration text it is to be told which of the two is meant.
      if (!(error instanceof SparseGptError) || error.code !== 'INVALID_TEXT') throw error
      throw new SparseGptError(error.code, `option eval: ${text}: ${error.message}`, { cause: error })
    }),
  )
  return (title) =>
    withProgress(title, (progress) => {
      evaluating = progress
      return measure()
    })
}

/**
 * Runs a job that changes `model`, and measures the model's perplexity on the text, if there is one, before and after it. What that
 * needs is read first: a text that cannot be used is to fail before hours of work. The report of the job is returned whatever becomes of
 * the evaluation, whose `failure` comes beside it; the report in the job's folder gets what was measured.
 */
export async function withEvaluation<Report extends { out: string | null }>(
  model: Model,
  evaluation: EvaluationText,
  job: () => Promise<Report>,
): Promise<{ report: Report & Evaluated; failure?: Error }> {
  const measure = await prepareEvaluation(model, evaluation)
  if (!measure) return { report: await job() }
  let failure: Error | undefined
  const failed = (error: unknown) => {
    failure ??= error as Error
    return undefined
  }
  const before = await measure('evaluating the model as it is').catch(failed)
  // What stops the evaluation may leave the job as it is; a signal stops both.
  const report = await job()
  const after = failure ? undefined : await measure('evaluating').catch(failed)
  const { text, communicator } = evaluation
  if (text !== undefined && report.out !== null && (communicator?.rank ?? 0) === 0) {
    const { windows, sequenceLength } = after ?? before ?? {}
    const record = {
      ...{ text, after: after?.perplexity ?? null },
      ...given({ windows, sequenceLength, before: before?.perplexity }),
    }
    await recordEvaluation(report.out, record).catch(failed)
  }
  return {
    report: { ...report, ...given({ perplexityBefore: before?.perplexity, perplexity: after?.perplexity }) },
    ...(failure && { failure }),
  }
}

/** The line of a summary that sets both perplexities side by side. */
export function perplexityLines(
  { perplexityBefore: before, perplexity: after }: Evaluated,
  names: readonly [before: string, after: string],
): string[] {
  if (before === undefined || after === undefined) return []
  const [from, to] = names
  return [
    `perplexity ${after.toFixed(3)} ${to}, ${before.toFixed(3)} ${from}: ${(after / before).toFixed(3)} times as high`,
  ]
}
