import { writeFile } from 'node:fs/promises'

/** A file to be put into a zip archive; what `central` changes makes the directory lie. */
export interface ZipFile {
  name: string
  data: Uint8Array
  method?: number
  /** In place of the name in the directory. */
  directoryName?: string
  directoryOffset?: number
  directoryBytes?: number
  /** Padding before the data, as torch aligns it. */
  padding?: number
}

/** A zip archive of stored files; with `zip64` all sizes and offsets are in 64-bit fields. */
export function zip(files: readonly ZipFile[], options: { zip64?: boolean } = {}): Buffer {
  const parts: Buffer[] = []
  const directory: Buffer[] = []
  let offset = 0
  for (const file of files) {
    const name = Buffer.from(file.name)
    const local = Buffer.alloc(30)
    local.writeUInt32LE(0x04034b50, 0)
    // Bit 3: torch's writer leaves the sizes of the local header empty.
    local.writeUInt16LE(0x0808, 6)
    local.writeUInt16LE(file.method ?? 0, 8)
    local.writeUInt16LE(name.length, 26)
    local.writeUInt16LE(file.padding ?? 0, 28)
    const data = Buffer.from(file.data)
    parts.push(local, name, Buffer.alloc(file.padding ?? 0, 'Z'), data)
    directory.push(central(file, offset, data.length, options.zip64 === true))
    offset += local.length + name.length + (file.padding ?? 0) + data.length
  }
  const records = Buffer.concat(directory)
  return Buffer.concat([...parts, records, end(files.length, records.length, offset, options.zip64 === true)])
}

function central(file: ZipFile, offset: number, bytes: number, zip64: boolean): Buffer {
  const name = Buffer.from(file.directoryName ?? file.name)
  const place = file.directoryOffset ?? offset
  const size = file.directoryBytes ?? bytes
  const record = Buffer.alloc(46)
  record.writeUInt32LE(0x02014b50, 0)
  record.writeUInt16LE(0x0808, 8)
  record.writeUInt16LE(file.method ?? 0, 10)
  record.writeUInt32LE(zip64 ? 0xffffffff : size, 20)
  record.writeUInt32LE(zip64 ? 0xffffffff : size, 24)
  record.writeUInt16LE(name.length, 28)
  record.writeUInt16LE(zip64 ? 28 : 0, 30)
  record.writeUInt32LE(zip64 ? 0xffffffff : place, 42)
  if (!zip64) return Buffer.concat([record, name])
  const extra = Buffer.alloc(28)
  extra.writeUInt16LE(1, 0)
  extra.writeUInt16LE(24, 2)
  for (const [i, value] of [size, size, place].entries()) extra.writeBigUInt64LE(BigInt(value), 4 + i * 8)
  return Buffer.concat([record, name, extra])
}

function end(count: number, bytes: number, offset: number, zip64: boolean): Buffer {
  const record = Buffer.alloc(22)
  record.writeUInt32LE(0x06054b50, 0)
  record.writeUInt16LE(zip64 ? 0xffff : count, 10)
  record.writeUInt32LE(zip64 ? 0xffffffff : bytes, 12)
  record.writeUInt32LE(zip64 ? 0xffffffff : offset, 16)
  if (!zip64) return record
  const large = Buffer.alloc(56)
  large.writeUInt32LE(0x06064b50, 0)
  large.writeBigUInt64LE(44n, 4)
  for (const [at, value] of [
    [24, count],
    [32, count],
    [40, bytes],
    [48, offset],
  ] as const) {
    large.writeBigUInt64LE(BigInt(value), at)
  }
  const locator = Buffer.alloc(20)
  locator.writeUInt32LE(0x07064b50, 0)
  locator.writeBigUInt64LE(BigInt(offset + bytes), 8)
  return Buffer.concat([large, locator, record])
}

/** Instructions of a pickle, as bytes. */
export const op = {
  proto: (version = 2) => Buffer.from([0x80, version]),
  mark: Buffer.from('('),
  stop: Buffer.from('.'),
  none: Buffer.from('N'),
  emptyTuple: Buffer.from(')'),
  emptyDict: Buffer.from('}'),
  tuple: Buffer.from('t'),
  tuple1: Buffer.from([0x85]),
  reduce: Buffer.from('R'),
  build: Buffer.from('b'),
  setitem: Buffer.from('s'),
  setitems: Buffer.from('u'),
  persistent: Buffer.from('Q'),
  stackGlobal: Buffer.from([0x93]),
  global: (module: string, name: string) => Buffer.from(`c${module}\n${name}\n`),
  text: (text: string) => {
    const length = Buffer.alloc(5)
    length[0] = 0x58
    length.writeUInt32LE(Buffer.byteLength(text), 1)
    return Buffer.concat([length, Buffer.from(text)])
  },
  int: (value: number) => {
    if (value >= 0 && value < 256) return Buffer.from([0x4b, value])
    const bytes = Buffer.alloc(10)
    bytes[0] = 0x8a
    bytes[1] = 8
    bytes.writeBigInt64LE(BigInt(value), 2)
    return bytes
  },
  flag: (value: boolean) => Buffer.from([value ? 0x88 : 0x89]),
}

const tupleOf = (...items: Buffer[]) => Buffer.concat([op.mark, ...items, op.tuple])

const orderedDict = Buffer.concat([op.global('collections', 'OrderedDict'), op.emptyTuple, op.reduce])

/** A tensor of a torch archive: a view of a storage. */
export interface TorchView {
  storage: string
  type: string
  /** Elements that the storage is said to have. */
  storageSize: number
  offset: number
  shape: number[]
  strides: number[]
}

export function tensorPickle(view: TorchView): Buffer {
  const id = tupleOf(
    op.text('storage'),
    op.global('torch', view.type),
    op.text(view.storage),
    op.text('cpu'),
    op.int(view.storageSize),
  )
  const args = tupleOf(
    Buffer.concat([id, op.persistent]),
    op.int(view.offset),
    tupleOf(...view.shape.map((size) => op.int(size))),
    tupleOf(...view.strides.map((size) => op.int(size))),
    op.flag(false),
    orderedDict,
  )
  return Buffer.concat([op.global('torch._utils', '_rebuild_tensor_v2'), args, op.reduce])
}

/** The pickle of a state dict, with `_metadata` as transformers leaves it. */
export function statePickle(tensors: Record<string, Buffer>): Buffer {
  return Buffer.concat([
    op.proto(),
    orderedDict,
    op.mark,
    ...Object.entries(tensors).flatMap(([name, value]) => [op.text(name), value]),
    op.setitems,
    op.emptyDict,
    op.text('_metadata'),
    orderedDict,
    op.setitem,
    op.build,
    op.stop,
  ])
}

/** The files of an archive that `torch.save` would write. */
export function torchFiles(pickle: Buffer, storages: Record<string, Uint8Array>): ZipFile[] {
  return [
    { name: 'archive/data.pkl', data: pickle },
    { name: 'archive/byteorder', data: Buffer.from('little') },
    ...Object.entries(storages).map(([key, data]) => ({ name: `archive/data/${key}`, data })),
    { name: 'archive/version', data: Buffer.from('3\n') },
  ]
}

const rowMajor = (shape: number[]) => shape.map((_, i) => shape.slice(i + 1).reduce((a, b) => a * b, 1))

export interface TorchOptions {
  /** Bytes before the data of every file; decides its alignment. */
  padding?: number
  /** Matrices to be stored transposed, as views with strides. */
  transposed?: readonly string[]
}

/** Writes a state dict of float32 tensors, each with a storage of its own. */
export async function writeTorch(
  file: string,
  tensors: Record<string, { shape: number[]; values: Float32Array }>,
  options: TorchOptions = {},
): Promise<void> {
  const pickles: Record<string, Buffer> = {}
  const storages: Record<string, Uint8Array> = {}
  for (const [i, [name, { shape, values }]] of Object.entries(tensors).entries()) {
    const storage = String(i)
    const [rows = 1, columns = 1] = shape
    const transposed = options.transposed?.includes(name) === true
    const stored = transposed
      ? Float32Array.from(values, (_, at) => values[(at % rows) * columns + Math.floor(at / rows)]!)
      : values
    storages[storage] = new Uint8Array(stored.buffer, stored.byteOffset, stored.byteLength)
    const strides = transposed ? [1, rows] : rowMajor(shape)
    const size = { storage, storageSize: values.length }
    pickles[name] = tensorPickle({ ...size, type: 'FloatStorage', offset: 0, shape, strides })
  }
  const files = torchFiles(statePickle(pickles), storages)
  await writeFile(file, zip(files.map((part) => ({ ...part, padding: options.padding ?? 0 }))))
}
