import { loadModel, type Model } from '../sdk/model.js'
import type { DownloadProgress } from '../hub/snapshot.js'
import { devices } from '../native/devices.js'
import type { DeviceFlags } from './arguments.js'
import { withProgress, type Progress } from './progress.js'
import { remark, verbosity } from './verbosity.js'

/** Loads the model that a command names, runs `body` with it and frees it. */
export async function withModel<T>(
  pathOrHubId: string,
  { device, dtype, threads }: DeviceFlags,
  signal: AbortSignal,
  body: (model: Model) => Promise<T>,
): Promise<T> {
  const model = await withProgress('downloading', (progress) =>
    loadModel(pathOrHubId, { device, dtype, threads, signal, onDownload: showDownload(progress) }),
  )
  if (verbosity().verbose) remark(`${model.folder} on ${deviceText(model.device)}, in ${model.dtype}`)
  try {
    return await body(model)
  } finally {
    await model.dispose()
  }
}

/** A device and its description, such as 'cpu (AMD EPYC 9354)'. */
function deviceText(kind: Model['device']): string {
  const info = devices().find((device) => device.kind === kind)
  return info?.available ? `${kind} (${info.name})` : kind
}

/** The function to be called while a text is encoded, which shows that as `progress`. */
export const showEncoding = (progress: Progress) => (fraction: number) =>
  progress.update(fraction, 'encoding the text')

/** The function to be called while something is downloaded, which shows it as `progress`. */
export const showDownload =
  (progress: Progress) =>
  ({ file, bytes, totalBytes }: DownloadProgress) =>
    progress.update(bytes / Math.max(1, totalBytes), file)
