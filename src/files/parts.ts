import type { FileHandle } from 'node:fs/promises'
import { SparseGptError } from '../errors.js'
import { tensorBytes, type StoredDType, type StoredTensor, type TensorLayout } from './safetensors.js'

/** The end of the name of every matrix that is stored in parts. */
export const suffix = '.weight'

/** What the names of the parts of a matrix begin with: its own name without the end. */
export const prefixOf = ({ name }: Pick<TensorLayout, 'name'>): string => name.slice(0, -suffix.length)

const floats: readonly string[] = ['F32', 'BF16', 'F16'] satisfies StoredDType[]

/** The tensors of one file that stand for a matrix, which is to be checked: everything in the file may be damaged. */
export class Parts {
  /** The name of the matrix. */
  readonly name: string

  constructor(
    readonly file: string,
    private readonly handle: FileHandle,
    private readonly prefix: string,
    private readonly tensors: ReadonlyMap<string, StoredTensor>,
    /** The ends of the names that the parts must have, for messages. */
    private readonly needed: string,
  ) {
    this.name = `${prefix}${suffix}`
    if (tensors.has(this.name)) throw this.wrong('is there unpacked, too')
  }

  /** The error INVALID_CHECKPOINT that says what is wrong with the matrix. */
  wrong(what: string): SparseGptError {
    return new SparseGptError(
      'INVALID_CHECKPOINT',
      `${this.file}: the packed tensor ${JSON.stringify(this.name)} ${what}`,
    )
  }

  /** The part whose name ends with `end`, if it is there. */
  optional(end: string): StoredTensor | undefined {
    return this.tensors.get(`${this.prefix}.${end}`)
  }

  part(end: string): StoredTensor {
    const tensor = this.optional(end)
    if (tensor) return tensor
    throw this.wrong(`lacks ${this.prefix}.${end}: ${this.needed} must be in one file`)
  }

  /** Throws unless a part is as it is due; `why` is the end of the message. */
  check(tensor: StoredTensor, { dtype, shape }: Pick<TensorLayout, 'dtype' | 'shape'>, why = ''): void {
    if (tensor.dtype === dtype && tensor.shape.join() === shape.join()) return
    throw this.unexpected(tensor, `${dtype} [${shape.join(', ')}]${why}`)
  }

  /** Throws unless a part is of floats [rows, groups], with groups of as many columns each; returns the number of groups. */
  checkScale(tensor: StoredTensor, rows: number, columns: number): number {
    const groups = tensor.shape[1] ?? 0
    const fits = tensor.shape.length === 2 && tensor.shape[0] === rows && groups > 0 && columns % groups === 0
    if (fits && floats.includes(tensor.dtype)) return groups
    throw this.unexpected(
      tensor,
      `${floats.join(', ')} [${rows}, groups], in which the groups divide ${columns} columns`,
    )
  }

  private unexpected({ name, dtype, shape }: StoredTensor, expected: string): SparseGptError {
    return this.wrong(`is damaged: ${name} is ${dtype} [${shape.join(', ')}], expected ${expected}`)
  }

  /** The integers of a part, I64. Throws FILE_NOT_FOUND, INVALID_CHECKPOINT. */
  async integers(tensor: StoredTensor): Promise<bigint[]> {
    const bytes = Buffer.alloc(tensor.bytes)
    const { bytesRead } = await this.handle.read(bytes, 0, bytes.length, tensor.offset)
    if (bytesRead < bytes.length) throw this.wrong('is cut off: the file became shorter while it was read')
    return Array.from({ length: bytes.length / 8 }, (_, i) => bytes.readBigInt64LE(8 * i))
  }

  /** The shape that the first two of `integers` are, which `tensor` holds. */
  shapeOf(tensor: StoredTensor, [rows = -1n, columns = -1n]: readonly bigint[]): [number, number] {
    const most = BigInt(Number.MAX_SAFE_INTEGER)
    if (rows < 0n || columns < 0n || rows > most || columns > most || rows * columns * 8n > most) {
      throw this.wrong(
        `is damaged: ${tensor.name} holds [${rows}, ${columns}], which is no shape of a matrix`,
      )
    }
    return [Number(rows), Number(columns)]
  }

  /** The tensor that the parts stand for. `place`: the part that gives it its place. */
  joined(
    layout: Pick<TensorLayout, 'dtype' | 'shape'>,
    place: StoredTensor,
    rest: Pick<StoredTensor, 'packed' | 'codes'>,
  ): StoredTensor {
    const { dtype, shape } = layout
    const { name, file } = this
    return { name, dtype, shape, file, offset: place.offset, bytes: tensorBytes(layout), ...rest }
  }
}
