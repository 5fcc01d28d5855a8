import { systemCode } from '../files/read-error.js'
import { exitCodes } from './failure.js'

/** The errors of a stream that nobody reads any more: a closed pipe, a terminal that is gone. */
const closed = ['EPIPE', 'EIO', 'ERR_STREAM_DESTROYED']

/**
 * Makes jobs outlive their readers: without a listener the first write to a closed stderr or stdout would end the process. What
 * stdout cannot take for another reason, such as a full disk, is a failure.
 */
export function surviveClosedStreams(): void {
  process.stderr.on('error', () => undefined)
  process.stdout.on('error', (error: Error) => {
    if (closed.includes(systemCode(error) ?? '')) return
    process.stderr.write(`sparsegpt: cannot write to stdout: ${error.message}\n`)
    process.exitCode = exitCodes.failed
  })
}
