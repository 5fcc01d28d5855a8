import type { Communicator } from '../native/communicator.js'
import { preparePerplexity } from '../sdk/perplexity.js'
import type { Model } from '../sdk/model.js'
import { given, textSource } from './arguments.js'
import { showDownload, showEncoding } from './open-model.js'
import { withProgress, type Progress } from './progress.js'

/**
 * Runs a job that changes `model`, then measures the model's perplexity on `text`, if there is one. What that needs is read first: a
 * text that cannot be used is to fail before hours of work. The report of the job is returned whatever becomes of the evaluation,
 * whose `failure` comes beside it.
 */
export async function withEvaluation<Report extends object>(
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
): Promise<{ report: Report & { perplexity?: number }; failure?: Error }> {
  if (text === undefined) return { report: await job() }
  let evaluating: Progress | undefined
  const measure = await withProgress('reading the evaluation text', (progress) =>
    preparePerplexity(model, {
      ...given({ sequenceLength: seqlen, communicator }),
      ...textSource(text),
      onDownload: showDownload(progress),
      onEncode: showEncoding(progress),
      signal,
      onProgress: (fraction) => evaluating?.update(fraction),
    }),
  )
  const report = await job()
  try {
    const { perplexity } = await withProgress('evaluating', (progress) => {
      evaluating = progress
      return measure()
    })
    return { report: { ...report, perplexity } }
  } catch (error) {
    return { report, failure: error as Error }
  }
}
