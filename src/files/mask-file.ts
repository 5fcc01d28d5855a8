import { open } from 'node:fs/promises'
import { SparseGptError } from '../errors.js'
import { readSafetensorsHeader, type StoredDType, type StoredTensor } from './safetensors.js'

const maskDTypes: readonly StoredDType[] = ['BOOL', 'U8', 'I8']

/**
 * The pruning masks of a safetensors file: BOOL, U8 or I8 tensors, named and shaped as the weights; non-zero = prune.
 */
export class MaskFile {
  private constructor(
    private readonly file: string,
    private readonly tensors: ReadonlyMap<string, StoredTensor>,
  ) {}

  /** Opens a file: reads its header. Throws FILE_NOT_FOUND, INVALID_CHECKPOINT. */
  static async open(file: string): Promise<MaskFile> {
    const { tensors } = await readSafetensorsHeader(file)
    return new MaskFile(file, new Map(tensors.map((tensor) => [tensor.name, tensor])))
  }

  /** All tensors of the file. */
  get all(): Iterable<StoredTensor> {
    return this.tensors.values()
  }

  /** The mask of the weight `name`. Throws INVALID_CHECKPOINT unless there is one of its shape. */
  require(name: string, shape: readonly number[]): StoredTensor {
    const tensor = this.tensors.get(name)
    if (!tensor) {
      const message = `${this.file} has no mask named ${name}: add one, or leave the layer out with include or exclude`
      throw new SparseGptError('INVALID_CHECKPOINT', message)
    }
    if (!maskDTypes.includes(tensor.dtype)) {
      const message = `${this.file}: the mask ${name} has dtype ${tensor.dtype}; masks are ${maskDTypes.join(', ')}`
      throw new SparseGptError('INVALID_CHECKPOINT', message)
    }
    if (tensor.shape.join() !== shape.join()) {
      const message = `${this.file}: the mask ${name} is [${tensor.shape.join(', ')}], but the weight is [${shape.join(', ')}]`
      throw new SparseGptError('INVALID_CHECKPOINT', message)
    }
    return tensor
  }

  /** The bytes of a mask, one for each weight in its stored layout. Throws as `require` does. */
  async read(name: string, shape: readonly number[]): Promise<Uint8Array> {
    const { offset, bytes } = this.require(name, shape)
    const mask = new Uint8Array(bytes)
    const handle = await open(this.file, 'r')
    try {
      for (let done = 0; done < bytes;) {
        const { bytesRead } = await handle.read(mask, done, Math.min(bytes - done, 2 ** 30), offset + done)
        if (bytesRead === 0)
          throw new SparseGptError('INVALID_CHECKPOINT', `${this.file} became shorter while it was read`)
        done += bytesRead
      }
    } finally {
      await handle.close()
    }
    return mask
  }
}
