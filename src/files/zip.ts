import type { FileHandle } from 'node:fs/promises'

/** A file inside a zip archive that is stored as it is, so its bytes can be read, or mapped, in place. */
export interface ZipEntry {
  /** The place of its first byte, in bytes from the start of the archive. */
  offset: number
  /** The size of the file, in bytes. */
  bytes: number
}

/** What is wrong with an archive; whoever knows the file's name makes an error of it. */
export class ZipFault extends Error {}

const endBytes = 22
const end64Bytes = 56
const locatorBytes = 20
const centralBytes = 46
const localBytes = 30
const maxCommentBytes = 65535
const maxDirectoryBytes = 2 ** 26
/** The number of entries that are read within seconds; an archive has one per storage, and a model at most thousands. */
const maxEntries = 2 ** 17

const unknown16 = 0xffff
const unknown32 = 0xffffffff

/**
 * The entries of a zip archive (PKWARE APPNOTE 6.3, zip64 included) by name. Every one is known to be stored without
 * compression or encryption, to lie before the directory, to have a local header that agrees with the directory, and to
 * overlap no other. Only the headers are read.
 *
 * Throws ZipFault; whatever reading throws.
 */
export async function readZipDirectory(handle: FileHandle): Promise<Map<string, ZipEntry>> {
  const fileBytes = (await handle.stat()).size
  const end = await findEnd(handle, fileBytes)
  if (end.offset + end.bytes > end.limit) throw new ZipFault('its directory lies outside the file')
  if (end.bytes > maxDirectoryBytes) {
    throw new ZipFault(`its directory has ${end.bytes} bytes; allowed are ${maxDirectoryBytes}`)
  }
  if (end.count > end.bytes / centralBytes) {
    throw new ZipFault(`its directory is too short for the ${end.count} entries it is said to have`)
  }
  if (end.count > maxEntries) {
    throw new ZipFault(`it has ${end.count} entries; allowed are ${maxEntries}`)
  }
  const directory = await read(handle, end.offset, end.bytes)
  const entries = new Map<string, ZipEntry>()
  const ranges: { name: string; begin: number; end: number }[] = []
  let at = 0
  for (let i = 0; i < end.count; i++) {
    const central = parseCentral(directory, at)
    at = central.next
    const { name, offset: begin, bytes } = central
    if (entries.has(name)) throw new ZipFault(`it has the entry ${JSON.stringify(name)} twice`)
    const offset = await dataOffset(handle, central, end.offset)
    entries.set(name, { offset, bytes })
    ranges.push({ name, begin, end: offset + bytes })
  }
  ranges.sort((a, b) => a.begin - b.begin)
  for (const [i, range] of ranges.entries()) {
    const before = ranges[i - 1]
    if (before && range.begin < before.end) {
      throw new ZipFault(
        `its entries ${JSON.stringify(before.name)} and ${JSON.stringify(range.name)} overlap`,
      )
    }
  }
  return entries
}

/** Where the directory of an archive lies. */
interface Directory {
  /** The place of its first byte, in bytes from the start of the archive. */
  offset: number
  /** The size of the directory, in bytes. */
  bytes: number
  /** The number of its entries. */
  count: number
  /** The place where it must have ended, in bytes from the start of the archive. */
  limit: number
}

async function findEnd(handle: FileHandle, fileBytes: number): Promise<Directory> {
  const tailBytes = Math.min(fileBytes, endBytes + maxCommentBytes)
  const tail = await read(handle, fileBytes - tailBytes, tailBytes)
  let at = tail.length - endBytes
  // The record ends with a comment of a length it states; a signature inside the comment would state another.
  while (
    at >= 0 &&
    !(tail.readUInt32LE(at) === 0x06054b50 && at + endBytes + tail.readUInt16LE(at + 20) === tail.length)
  )
    at--
  if (at < 0) throw new ZipFault('it has no end-of-directory record: it is truncated, or no zip archive')
  const limit = fileBytes - tail.length + at
  const record = {
    count: tail.readUInt16LE(at + 10),
    bytes: tail.readUInt32LE(at + 12),
    offset: tail.readUInt32LE(at + 16),
  }
  if (record.count !== unknown16 && record.bytes !== unknown32 && record.offset !== unknown32)
    return { ...record, limit }

  const locator = await read(handle, limit - locatorBytes, locatorBytes)
  if (locator.readUInt32LE(0) !== 0x07064b50) throw new ZipFault('its zip64 locator is missing')
  const end64 = readSize(locator, 8)
  if (end64 + end64Bytes > limit - locatorBytes) throw new ZipFault('its zip64 record lies outside the file')
  const large = await read(handle, end64, end64Bytes)
  if (large.readUInt32LE(0) !== 0x06064b50) throw new ZipFault('its zip64 record is damaged')
  return { count: readSize(large, 32), bytes: readSize(large, 40), offset: readSize(large, 48), limit: end64 }
}

/** What the directory says of an entry. */
interface Central {
  /** The name of the entry. */
  name: string
  /** The name as it is stored. */
  nameBytes: Buffer
  /** The place of its local header, in bytes from the start of the archive. */
  offset: number
  /** The size of its data, in bytes. */
  bytes: number
  /** The place of the next entry, in bytes from the start of the directory. */
  next: number
}

function parseCentral(directory: Buffer, at: number): Central {
  if (at + centralBytes > directory.length || directory.readUInt32LE(at) !== 0x02014b50) {
    throw new ZipFault('its directory is damaged')
  }
  const flags = directory.readUInt16LE(at + 8)
  const method = directory.readUInt16LE(at + 10)
  const nameStart = at + centralBytes
  const extraStart = nameStart + directory.readUInt16LE(at + 28)
  const extraEnd = extraStart + directory.readUInt16LE(at + 30)
  const next = extraEnd + directory.readUInt16LE(at + 32)
  if (next > directory.length) throw new ZipFault('its directory is damaged')
  const nameBytes = directory.subarray(nameStart, extraStart)
  const name = nameBytes.toString('utf8')
  const wrong = (what: string) => new ZipFault(`its entry ${JSON.stringify(name)} ${what}`)
  if (flags & 1) throw wrong('is encrypted')
  if (method !== 0) throw wrong('is compressed, which torch.save never does')

  const wide = wideFields(directory.subarray(extraStart, extraEnd))
  const field = (value: number): number => {
    if (value !== unknown32) return value
    const size = wide.shift()
    if (size === undefined) throw wrong('lacks its zip64 sizes')
    return size
  }
  // The order of the extra field is fixed: size, compressed size, offset.
  const bytes = field(directory.readUInt32LE(at + 24))
  const compressed = field(directory.readUInt32LE(at + 20))
  const offset = field(directory.readUInt32LE(at + 42))
  if (bytes !== compressed) throw wrong(`has ${compressed} bytes that are said to be ${bytes}`)
  return { name, nameBytes, offset, bytes, next }
}

/** The 64-bit values of the zip64 extra field. */
function wideFields(extra: Buffer): number[] {
  for (let at = 0; at + 4 <= extra.length;) {
    const end = at + 4 + extra.readUInt16LE(at + 2)
    if (end > extra.length) break
    if (extra.readUInt16LE(at) === 1) {
      return Array.from({ length: Math.floor((end - at - 4) / 8) }, (_, i) => readSize(extra, at + 4 + i * 8))
    }
    at = end
  }
  return []
}

/** Where the entry's bytes begin, once its local header is found to agree. */
async function dataOffset(handle: FileHandle, central: Central, limit: number): Promise<number> {
  const wrong = (what: string) => new ZipFault(`its entry ${JSON.stringify(central.name)} ${what}`)
  if (central.offset + localBytes + central.nameBytes.length > limit) throw wrong('lies outside the file')
  const local = await read(handle, central.offset, localBytes + central.nameBytes.length)
  const flags = local.readUInt16LE(6)
  // With bit 3 the sizes follow the data; 0xffffffff says that they are in the extra field.
  const bytes = local.readUInt32LE(22)
  const agrees =
    local.readUInt32LE(0) === 0x04034b50 &&
    local.readUInt16LE(8) === 0 &&
    (flags & 1) === 0 &&
    local.readUInt16LE(26) === central.nameBytes.length &&
    local.subarray(localBytes).equals(central.nameBytes) &&
    ((flags & 8) !== 0 || bytes === unknown32 || bytes === central.bytes)
  if (!agrees) throw wrong('is described differently at its place and in the directory')
  const offset = central.offset + local.length + local.readUInt16LE(28)
  if (offset + central.bytes > limit) throw wrong('reaches outside the file')
  return offset
}

/** An unsigned 64-bit number; beyond 2^53 it can only be wrong. */
function readSize(bytes: Buffer, at: number): number {
  const size = Number(bytes.readBigUInt64LE(at))
  if (!Number.isSafeInteger(size)) throw new ZipFault(`it claims a size of ${size} bytes`)
  return size
}

/** Reads exactly `length` bytes from the byte `position` of the file on. Throws ZipFault when there are fewer. */
export async function read(handle: FileHandle, position: number, length: number): Promise<Buffer> {
  if (position < 0) throw new ZipFault('it is truncated')
  const buffer = Buffer.alloc(length)
  for (let done = 0; done < length;) {
    const { bytesRead } = await handle.read(buffer, done, length - done, position + done)
    if (bytesRead === 0) throw new ZipFault('it is truncated')
    done += bytesRead
  }
  return buffer
}
