import { createHash } from 'node:crypto'
import { open, readdir, rm, type FileHandle } from 'node:fs/promises'
import { join } from 'node:path'
import * as z from 'zod'
import { writeFully } from '../files/copy-range.js'
import { damaged } from '../files/journal.js'
import { reason } from '../files/read-error.js'
import { openRegularFile } from '../files/regular-file.js'
import { serializeHeader } from '../files/safetensors.js'
import { syncFolder } from '../files/sync-folder.js'
import { writeFailed } from '../files/writer.js'
import type { Device, Tensor } from '../native/device.js'

/** What a distillation came to. */
export interface DistillationLosses {
  /** The mean divergence KL(dense ‖ pruned) of each step's tokens, in nats. */
  training: number[]
  /** The same of the held-out tokens: before the first step, and at every measurement after it. */
  heldOut: { step: number; loss: number }[]
  /** The step whose result was kept; 0 when none was better than the beginning. */
  bestStep: number
}

// As text, since JSON knows neither infinity nor NaN.
const loss = z.string().transform(Number)

const entry = z.object({
  step: z.int().min(1),
  training: z.array(loss),
  heldOut: z.array(z.object({ step: z.int().min(0), loss })),
  bestStep: z.int().min(0),
  sha256: z.string(),
})

/**
 * What the journal says of a saved state: how far the training has come, with the losses since the state before it.
 *
 * @internal
 */
export interface SavedState {
  step: number
  training: string[]
  heldOut: { step: number; loss: string }[]
  bestStep: number
  /** The hash of the file of tensors. */
  sha256: string
}

/**
 * Where states go.
 *
 * @internal
 */
export interface StateDestination {
  /** The absolute path of the folder that takes them. */
  readonly partialFolder: string
  /** What an earlier process has noted, in order. */
  readonly finished: readonly SavedState[]
  /** Notes a state, durably, that is durable itself. */
  finishBlock(state: SavedState): Promise<void>
}

/** The milliseconds of training after which its state is saved again. */
const interval = 5 * 60_000
const chunkBytes = 8 * 1024 * 1024

/**
 * Saves the state of a training to the partial folder of its output, so that it survives the process: its tensors, float32, to
 * `state-<step>.safetensors`, and the rest with that file's hash to the journal, which makes the state count. Until then the one before
 * it stays.
 *
 * @internal
 */
export class SavedTraining {
  private readonly noted = { training: 0, heldOut: 0 }
  private last = performance.now()

  /** `destination`: that of a job that has begun. */
  constructor(
    private readonly device: Device,
    private readonly destination: StateDestination,
  ) {}

  /** Whether the last state is so old that another should be saved. */
  get due(): boolean {
    return performance.now() - this.last >= interval
  }

  /** Makes the state durable: `tensors` by name, and the losses of all steps so far. Throws WRITE_FAILED. */
  async save(tensors: ReadonlyMap<string, Tensor>, losses: DistillationLosses): Promise<void> {
    const { device, destination, noted } = this
    const step = losses.training.length
    const name = stateName(step)
    const path = join(destination.partialFolder, name)
    try {
      const sha256 = await writeState(device, path, tensors)
      await syncFolder(destination.partialFolder)
      await destination.finishBlock({
        step,
        training: losses.training.slice(noted.training).map(String),
        heldOut: losses.heldOut.slice(noted.heldOut).map(({ step, loss }) => ({ step, loss: String(loss) })),
        bestStep: losses.bestStep,
        sha256,
      })
    } catch (error) {
      await rm(path, { force: true }).catch(() => undefined)
      throw writeFailed(`cannot save the state of the training to ${path}`, error)
    }
    this.note(losses)
    await this.removeOthers(name)
    this.last = performance.now()
  }

  /**
   * Puts the last state that an earlier process has saved into `tensors`, and resolves to its losses; undefined when there is none.
   * `steps`: those of the whole training. Throws INVALID_CHECKPOINT when it is damaged.
   */
  async restore(
    tensors: ReadonlyMap<string, Tensor>,
    steps: number,
  ): Promise<DistillationLosses | undefined> {
    const { device, destination } = this
    const { partialFolder: folder, finished } = destination
    const entries = finished.map((saved) => entry.safeParse(saved).data)
    const last = entries.at(-1)
    if (finished.length === 0) return undefined
    const losses: DistillationLosses = {
      training: entries.flatMap((saved) => saved?.training ?? []),
      heldOut: entries.flatMap((saved) => saved?.heldOut ?? []),
      bestStep: last?.bestStep ?? 0,
    }
    const { training, heldOut, bestStep } = losses
    const whole = training.length === last?.step && heldOut.some(({ step }) => step === bestStep)
    if (!whole || last.step > steps) throw damaged(`the journal in ${folder} is damaged`)
    const name = stateName(last.step)
    await readState(device, join(folder, name), tensors, last.sha256)
    this.note(losses)
    await this.removeOthers(name)
    return losses
  }

  private note({ training, heldOut }: DistillationLosses): void {
    this.noted.training = training.length
    this.noted.heldOut = heldOut.length
  }

  /** Removes the states, whole or not, that do not count. What cannot be removed does no harm. */
  private async removeOthers(name: string): Promise<void> {
    const { partialFolder: folder } = this.destination
    const others = (await readdir(folder)).filter((other) => statePattern.test(other) && other !== name)
    await Promise.allSettled(others.map((other) => rm(join(folder, other))))
  }
}

const stateName = (step: number) => `state-${step}.safetensors`
const statePattern = /^state-\d+\.safetensors$/

const headerOf = (tensors: ReadonlyMap<string, Tensor>) =>
  serializeHeader(
    [...tensors].map(([name, { shape }]) => ({ name, dtype: 'F32', shape: [...shape] })),
    {},
  )

/** Writes the file, durably, and resolves to its hash. */
async function writeState(
  device: Device,
  path: string,
  tensors: ReadonlyMap<string, Tensor>,
): Promise<string> {
  const { header, offsets, fileBytes } = headerOf(tensors)
  const handle = await open(path, 'w+')
  try {
    await writeFully(handle, header, 0)
    for (const [name, tensor] of tensors) {
      device.writeFile(handle.fd, offsets.get(name)!, tensor)
      await device.synchronize()
    }
    await handle.sync()
    return await hashOf(handle, fileBytes)
  } finally {
    await handle.close()
  }
}

/** Reads the file, which must have that hash, into `tensors`. */
async function readState(
  device: Device,
  path: string,
  tensors: ReadonlyMap<string, Tensor>,
  sha256: string,
): Promise<void> {
  // The sizes are the model's, so nothing in the file says how much is read.
  const { offsets, fileBytes } = headerOf(tensors)
  const unreadable = (error: unknown) => {
    throw damaged(`${path} cannot be read (${reason(error)})`, error)
  }
  const { handle, bytes } = await openRegularFile(path, 'it holds the state of the training').catch(
    unreadable,
  )
  try {
    if (bytes !== fileBytes) throw damaged(`${path} has ${bytes} bytes, where ${fileBytes} are due`)
    if ((await hashOf(handle, fileBytes).catch(unreadable)) !== sha256) throw damaged(`${path} is damaged`)
  } finally {
    await handle.close()
  }
  const file = device.mapFile(path)
  for (const [name, tensor] of tensors) {
    const saved = device.mapTensor(file, offsets.get(name)!, 'float32', tensor.shape)
    device.cast(saved, 'float32', tensor)
    device.releasePages(saved)
    saved.dispose()
  }
  await device.synchronize()
}

/** The SHA-256 of the first `bytes` bytes of a file, in hexadecimal; of what there is of them in a shorter one. */
async function hashOf(handle: FileHandle, bytes: number): Promise<string> {
  const hash = createHash('sha256')
  const buffer = Buffer.allocUnsafe(Math.min(bytes, chunkBytes))
  for (let done = 0; done < bytes;) {
    const { bytesRead } = await handle.read(buffer, 0, Math.min(buffer.length, bytes - done), done)
    if (bytesRead === 0) break
    hash.update(buffer.subarray(0, bytesRead))
    done += bytesRead
  }
  return hash.digest('hex')
}
