import type { Communicator } from '../native/communicator.js'
import type { Evaluation } from '../reporting/report.js'
import { recordEvaluation } from '../reporting/write-report.js'
import { preparePerplexity } from '../sdk/perplexity.js'
import type { Model } from '../sdk/model.js'
import { given, textSource } from './arguments.js'
import { showDownload, showEncoding } from './open-model.js'
import { withProgress, type Progress } from './progress.js'

/** The perplexities of a model around a job, as far as they were measured. */
export interface MeasuredPerplexity {
  /** The perplexity of the model that the job has made. */
  perplexity?: number
  /** The perplexity of the model before the job. */
  perplexityBefore?: number
}

/** The line about perplexities, for people. */
export const perplexityLine = ({ perplexity, perplexityBefore }: MeasuredPerplexity): string[] =>
  perplexity === undefined
    ? []
    : [
        `perplexity ${perplexity.toFixed(3)}${perplexityBefore === undefined ? '' : `, before ${perplexityBefore.toFixed(3)}`}`,
      ]

/**
 * Runs a job that changes `model`, and measures the model's perplexity on `text`, if there is one, before and after it. What that needs is read first: a
 * text that cannot be used is to fail before hours of work. The report of the job is returned whatever becomes of the evaluation,
 * whose `failure` comes beside it; the report in the job's folder gets what was measured.
 */
export async function withEvaluation<Report extends { out: string | null }>(
  model: Model,
  {
    text,
    seqlen,
    signal,
    communicator,
  }: {
    text: string | undefined
    seqlen: number | undefined
    signal: AbortSignal
    communicator?: Communicator | undefined
  },
  job: () => Promise<Report>,
): Promise<{ report: Report & MeasuredPerplexity; failure?: Error }> {
  if (text === undefined) return { report: await job() }
  let evaluating: Progress | undefined
  const prepared = await withProgress('reading the evaluation text', (progress) =>
    preparePerplexity(model, {
      ...given({ sequenceLength: seqlen, communicator }),
      ...textSource(text),
      onDownload: showDownload(progress),
      onEncode: showEncoding(progress),
      signal,
      onProgress: (fraction) => evaluating?.update(fraction),
    }),
  )
  const measure = (title: string) =>
    withProgress(title, (progress) => {
      evaluating = progress
      return prepared()
    })
  // A model that cannot be measured may become one that can.
  const before = await measure('evaluating').catch((error: unknown) => {
    if (signal.aborted) throw error
    return undefined
  })
  const report = await job()
  let failure: Error | undefined
  const noted = (error: unknown) => {
    failure ??= error as Error
    return undefined
  }
  const after = await measure('evaluating').catch(noted)
  const windows = after ?? before
  const evaluation: Evaluation = {
    text,
    ...(windows && { windows: windows.windows, sequenceLength: windows.sequenceLength }),
    ...(before && { before: before.perplexity }),
    after: after?.perplexity ?? null,
  }
  if (report.out !== null && (communicator?.rank ?? 0) === 0)
    await recordEvaluation(report.out, evaluation).catch(noted)
  const measured = {
    ...(before && { perplexityBefore: before.perplexity }),
    ...(after && { perplexity: after.perplexity }),
  }
  return { report: { ...report, ...measured }, ...(failure && { failure }) }
}
