import { HubApiError } from '@huggingface/hub'
import { reason } from '../files/read-error.js'
import { SparseGptError } from '../errors.js'
import type { HubSettings } from './settings.js'

/** Whether another try may help: the connection failed, or the hub is busy. */
export function isTransient(error: unknown): boolean {
  if (error instanceof SparseGptError) return false
  return !(error instanceof HubApiError) || error.statusCode === 429 || error.statusCode >= 500
}

/**
 * The error DOWNLOAD_FAILED that says what was asked for, what came back and what to do; an error of this package is
 * passed on as it is.
 */
export function downloadFailed(
  what: string,
  page: string,
  error: unknown,
  settings: HubSettings,
): SparseGptError {
  if (error instanceof SparseGptError) return error
  const message =
    error instanceof HubApiError
      ? `${error.url || page} answered with status ${error.statusCode}: ${advice(error.statusCode, page, settings)}`
      : `${settings.endpoint} cannot be reached (${networkReason(error)}): check the connection and HF_ENDPOINT, or set ` +
        'HF_HUB_OFFLINE=1 to use what is in the cache'
  return new SparseGptError('DOWNLOAD_FAILED', `cannot download ${what}: ${message}`, { cause: error })
}

function advice(status: number, page: string, { token, endpoint }: HubSettings): string {
  switch (status) {
    case 401:
      return token === undefined
        ? `there is no such repository, or it needs a token: check the name, or set HF_TOKEN to one from ${endpoint}/settings/tokens`
        : `there is no such repository, or the token (HF_TOKEN) may not read it: check both`
    case 403:
      return `the repository is gated: accept its conditions on ${page} with the account of HF_TOKEN`
    case 404:
      return `there is no such repository, revision or file: check the name on ${page}`
    case 429:
      return 'too many requests: wait a while' + (token === undefined ? ', or set HF_TOKEN' : '')
    default:
      return status >= 500 ? 'the hub has a problem: try again later' : 'the hub refused it'
  }
}

/** The reason why fetch failed, which it hides in its cause. */
function networkReason(error: unknown): string {
  const cause: unknown =
    typeof error === 'object' && error !== null && 'cause' in error ? error.cause : undefined
  return cause === undefined ? reason(error) : `${reason(error)}: ${reason(cause)}`
}
