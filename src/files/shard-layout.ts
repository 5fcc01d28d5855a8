import { SparseGptError } from '../errors.js'
import type { PartLayout } from './encodings/encoding.js'
import { wholeFused } from './fused.js'
import { serializeHeader, tensorBytes, type TensorLayout } from './safetensors.js'

/** The number of digits that a tensor's two offsets have in a header at most, as each is below 2^53. */
const offsetDigits = 2 * 16

/**
 * The places of the tensors of an output file, which may be filled before all sizes are known: those of known size lie in
 * the source's order, those whose values decide it behind them in the order in which they come, and room is kept for the
 * header, which lists all in the source's order.
 */
export class ShardLayout {
  /** The tensors that the file will have, varying ones in their largest shape. */
  readonly announced: readonly PartLayout[]
  /** The size that the file can have at most, in bytes. */
  readonly largestBytes: number
  readonly #parts: ReadonlyMap<string, readonly PartLayout[]>
  readonly #metadata: Record<string, string>
  readonly #headerBytes: number
  /** The tensors that have a place, in the order of their places. */
  readonly #tensors: TensorLayout[]
  readonly #offsets: Map<string, number>
  /** What is stored for each weight of the source that has its place. */
  readonly #placed = new Map<string, readonly TensorLayout[]>()
  #end: number

  /**
   * Lays out a file in which `parts` take the place of the source's tensors, by whose names they are given. Throws
   * INTERNAL when two have the same name.
   */
  constructor(parts: ReadonlyMap<string, readonly PartLayout[]>, metadata: Record<string, string>) {
    this.#parts = parts
    this.#metadata = metadata
    const all = wholeFused([...parts.values()].flat())
    const [known, varying] = [all.filter((part) => !part.varies), all.filter((part) => part.varies)]
    const { header } = serializeHeader([...known, ...varying], metadata)
    this.#headerBytes = header.length + varying.length * offsetDigits
    const { offsets, fileBytes } = serializeHeader(known, metadata, this.#headerBytes)
    this.#tensors = known
    this.#offsets = offsets
    this.#end = fileBytes
    this.announced = all
    this.largestBytes = varying.reduce((sum, part) => sum + tensorBytes(part), fileBytes)
  }

  /** The tensors that have a place, in the order of their places. */
  get tensors(): readonly TensorLayout[] {
    return this.#tensors
  }

  /** The place of a tensor of the file, in bytes from its start; undefined when it has none yet. */
  offset(name: string): number | undefined {
    return this.#offsets.get(name)
  }

  /**
   * The places of the tensors that are stored for one of the source, in bytes from the start of the file. Throws INTERNAL
   * unless they are those that were announced, of which some that vary may be missing, or, where all of those vary and are larger, the
   * source's own.
   */
  place(weight: string, tensors: readonly TensorLayout[]): number[] {
    const parts = this.#parts.get(weight) ?? []
    if (!areAnnounced(tensors, parts) && !isInstead(weight, tensors, parts)) {
      throw new SparseGptError(
        'INTERNAL',
        `tensor ${JSON.stringify(weight)} was encoded in another form than was announced`,
      )
    }
    this.#placed.set(weight, tensors)
    return tensors.map((tensor) => {
      const known = this.#offsets.get(tensor.name)
      if (known !== undefined) return known
      const offset = this.#end
      this.#tensors.push(tensor)
      this.#offsets.set(tensor.name, offset)
      this.#end += tensorBytes(tensor)
      return offset
    })
  }

  /** The first bytes of the file, and its size in bytes; to be asked for when every tensor has its place. */
  header(): { header: Uint8Array; fileBytes: number } {
    const listed = [...this.#parts].flatMap(([weight, parts]) => this.#placed.get(weight) ?? parts)
    const names = listed.map(({ name }) => name)
    return serializeHeader(this.#tensors, this.#metadata, this.#headerBytes, names)
  }
}

/** Whether `tensors` are `parts`, in their order, of which some that vary may be missing. */
function areAnnounced(tensors: readonly TensorLayout[], parts: readonly PartLayout[]): boolean {
  let found = 0
  for (const part of parts) {
    if (tensors[found] && fits(tensors[found]!, part)) found++
    else if (!part.varies) return false
  }
  return found === tensors.length && found > 0
}

/** Whether `tensors` are the weight itself, for which room was kept by parts that all vary. */
function isInstead(weight: string, tensors: readonly TensorLayout[], parts: readonly PartLayout[]): boolean {
  const room = parts.reduce((sum, part) => (part.varies ? sum + tensorBytes(part) : -Infinity), 0)
  return tensors.length === 1 && tensors[0]!.name === weight && tensorBytes(tensors[0]!) <= room
}

function fits({ name, dtype, shape }: TensorLayout, part: PartLayout): boolean {
  return (
    name === part.name &&
    dtype === part.dtype &&
    shape.length === part.shape.length &&
    shape.every((size, i) => (part.varies ? size <= part.shape[i]! : size === part.shape[i]))
  )
}
