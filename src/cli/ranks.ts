import { SparseGptError } from '../errors.js'
import { launchedRanks, MpiCommunicator } from '../native/communicator.js'
import { failureText } from './failure.js'
import type { DeviceFlags } from './arguments.js'
import { showProgress } from './progress.js'

/**
 * Runs a command's job on the ranks that mpirun, srun or the like has started, if there are several; `body` gets none where this process is
 * alone. `wanted`: how many there must be, where that is said. Rank 0 alone shows progress. An error ends all ranks.
 */
export async function withRanks<T>(
  wanted: number | undefined,
  body: (communicator: MpiCommunicator | undefined) => Promise<T>,
): Promise<T> {
  if ((wanted ?? launchedRanks()) === 1) return body(undefined)
  const communicator = new MpiCommunicator(failureText)
  const { rank, size } = communicator
  showProgress(rank === 0)
  try {
    if (wanted !== undefined && wanted !== size) {
      const message = `option ranks: ${wanted} ranks are wanted, but the launcher has started ${size}: mpirun -n ${wanted} sparsegpt …`
      throw new SparseGptError('INVALID_OPTION', message)
    }
    const result = await body(communicator)
    communicator.close()
    return result
  } catch (error) {
    communicator.abort(error)
    throw error
  }
}

/** The flags with the device and the threads of this rank. */
export const ofRank = (flags: DeviceFlags, communicator: MpiCommunicator | undefined): DeviceFlags =>
  communicator
    ? {
        device: communicator.deviceFor(flags.device),
        dtype: flags.dtype,
        threads: flags.threads || communicator.threads,
      }
    : flags
