import type { AsyncBuffer, RowGroup } from 'hyparquet'

/** The largest number of rows that a group may have: they are in memory together. */
const maxGroupRows = 2 ** 22
/** The largest page of a column that is read, unpacked, and what all its pages in a group of rows may have, in bytes. */
const maxPageBytes = 2 ** 28
const maxColumnBytes = 2 ** 30

/** What the header of a page says of it. */
interface Page {
  bytes: number
  packedBytes: number
  values: number
}

/**
 * Checks what a group of rows, and the headers of the pages of `column` in it, claim of their sizes, before memory is taken for
 * them. Resolves to the bytes of these pages, unpacked. Throws an Error that says what is wrong.
 */
export async function checkGroup(file: AsyncBuffer, group: RowGroup, column: string): Promise<number> {
  const rows = Number(group.num_rows)
  if (rows < 0 || rows > maxGroupRows)
    throw new Error(`a group has ${rows} rows; at most ${maxGroupRows} can be read`)
  let bytes = 0
  for (const { meta_data: chunk } of group.columns) {
    if (chunk?.path_in_schema[0] !== column) continue
    const start = Number(chunk.dictionary_page_offset || chunk.data_page_offset)
    const end = start + Number(chunk.total_compressed_size)
    if (!(0 <= start && start <= end && end <= file.byteLength))
      throw new Error('a column reaches beyond the file')
    // A list has a value for each of its elements.
    const listed = chunk.path_in_schema.length > 1
    bytes += checkPages(await file.slice(start, end), listed ? maxGroupRows : rows)
  }
  return bytes
}

/** Checks the pages of a column in a group of rows, which lie one after another and have at most `most` values each; returns their bytes, unpacked. */
function checkPages(column: ArrayBuffer, most: number): number {
  const reader = new CompactReader(new DataView(column))
  let bytes = 0
  while (reader.left > 1) {
    const page = pageOf(reader.struct())
    bytes += page.bytes
    if (page.bytes < 0 || page.bytes > maxPageBytes || bytes > maxColumnBytes) {
      throw new Error(`a page of ${page.bytes} bytes, unpacked, is more than can be read`)
    }
    if (page.packedBytes < 0 || page.packedBytes > reader.left)
      throw new Error('a page reaches beyond its column')
    if (page.values < 0 || page.values > most) {
      throw new Error(`a page has ${page.values} values; of its group there can be ${most}`)
    }
    reader.skip(page.packedBytes)
  }
  return bytes
}

/** The header's fields by their numbers in parquet.thrift: sizes, and the number of values by the kind of page. */
function pageOf(header: Struct): Page {
  const [bytes, packedBytes] = [header.get(2), header.get(3)]
  const kinds = [5, 7, 8].map((field) => header.get(field)).filter((field) => field instanceof Map)
  const counts = kinds
    .flatMap((kind) => [1, 3].map((field) => kind.get(field)))
    .filter((n) => typeof n === 'number')
  if (typeof bytes !== 'number' || typeof packedBytes !== 'number') throw new Error('a page has no sizes')
  return { bytes, packedBytes, values: Math.max(0, ...counts) }
}

/** The numbers and structs of a struct, by the numbers of their fields. */
type Struct = Map<number, number | Struct>

/** Reads Thrift's compact protocol as far as page headers need it. */
class CompactReader {
  private offset = 0

  constructor(private readonly view: DataView) {}

  get left(): number {
    return this.view.byteLength - this.offset
  }

  skip(bytes: number): void {
    if (bytes > this.left) throw new Error('a page header is cut off')
    this.offset += bytes
  }

  struct(depth = 0): Struct {
    if (depth > 8) throw new Error('a page header is too deep')
    const fields: Struct = new Map()
    for (let id = 0; ;) {
      const byte = this.byte()
      if (byte === 0) return fields
      id = byte >> 4 === 0 ? this.zigzag() : id + (byte >> 4)
      const value = this.element(byte & 15, depth)
      if (value !== undefined) fields.set(id, value)
    }
  }

  private element(type: number, depth: number): number | Struct | undefined {
    switch (type) {
      case 1: // true
      case 2: // false
        return undefined
      case 3: // a byte
        return this.byte()
      case 4: // integers of 16, 32 and 64 bits
      case 5:
      case 6:
        return this.zigzag()
      case 7: // a double
        this.skip(8)
        return undefined
      case 8: // bytes, by their number
        this.skip(this.varint())
        return undefined
      case 12:
        return this.struct(depth + 1)
      default:
        throw new Error(`a page header has a field of type ${type}`)
    }
  }

  private byte(): number {
    this.skip(1)
    return this.view.getUint8(this.offset - 1)
  }

  private varint(): number {
    let value = 0
    for (let factor = 1; ; factor *= 128) {
      const byte = this.byte()
      value += (byte & 127) * factor
      if (byte < 128) return value
      if (factor > 2 ** 56) throw new Error('a page header has an endless number')
    }
  }

  private zigzag(): number {
    const value = this.varint()
    return value % 2 === 0 ? value / 2 : -(value + 1) / 2
  }
}
