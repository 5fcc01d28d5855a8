import type { FileHandle } from 'node:fs/promises'
import { resolve } from 'node:path'
import { SparseGptError } from '../errors.js'
import { foreignContents } from './foreign-contents.js'
import { Dict, Global, PickleFault, Tuple, unpickle, type Opaque, type Value } from './pickle.js'
import { readError } from './read-error.js'
import { openRegularFile } from './regular-file.js'
import { storedBytes, tensorBytes, type StoredDType, type StoredTensor } from './safetensors.js'
import { isContiguous, maxGatheredBytes } from './strided.js'
import { read, readZipDirectory, ZipFault, type ZipEntry } from './zip.js'

/** The classes that `torch.save` names as the type of a storage. */
const storageTypes: Record<string, StoredDType> = {
  DoubleStorage: 'F64',
  FloatStorage: 'F32',
  HalfStorage: 'F16',
  BFloat16Storage: 'BF16',
  LongStorage: 'I64',
  IntStorage: 'I32',
  ShortStorage: 'I16',
  CharStorage: 'I8',
  ByteStorage: 'U8',
  BoolStorage: 'BOOL',
}

const maxPickleBytes = 2 ** 26
const maxDimensions = 64

/** The start of what `torch.save` wrote before it used zip archives (torch 1.5 and older). */
const legacyMagic = Buffer.from('80028a0a6cfc9c46f9206aa850192e', 'hex')

/** Memory that tensors look at: one file of the archive. */
class TorchStorage implements Opaque {
  readonly kind = 'storage'

  constructor(
    /** The dtype of its elements. */
    readonly dtype: StoredDType,
    /** The place of its first element, in bytes from the start of the file. */
    readonly offset: number,
    /** The number of its elements. */
    readonly size: number,
  ) {}
}

/** A view of a storage. */
class TorchTensor implements Opaque {
  readonly kind = 'tensor'

  constructor(
    /** The memory that it looks at. */
    readonly storage: TorchStorage,
    /** The place of its first element, in elements from the start of the storage. */
    readonly offset: number,
    /** The sizes of its dimensions. */
    readonly shape: number[],
    /** The distances between neighbours in each dimension, in elements. */
    readonly strides: number[],
  ) {}
}

/**
 * Reads where the tensors of a file that `torch.save` wrote lie: a dictionary from names to tensors in torch's zip
 * format. Its pickle is read as data (see pickle.ts): nothing in the file is ever run. Tensors come in the order of the
 * dictionary; several may look at the same bytes, as tied weights do.
 *
 * Throws FILE_NOT_FOUND; INVALID_CHECKPOINT for a damaged or malicious file, and for one in the format before torch 1.6;
 * UNSUPPORTED_MODEL for what is sound but not read.
 */
export async function readTorchFile(
  file: string,
): Promise<{ tensors: StoredTensor[]; metadata: Record<string, string> }> {
  const path = resolve(file)
  try {
    const { handle } = await openRegularFile(path, 'give an existing .bin file')
    try {
      return { tensors: await readTensors(path, handle), metadata: { format: 'pt' } }
    } finally {
      await handle.close()
    }
  } catch (error) {
    if (error instanceof ZipFault || error instanceof PickleFault) {
      const message = `${path} is not a valid torch checkpoint: ${error.message}`
      throw new SparseGptError('INVALID_CHECKPOINT', message, { cause: error })
    }
    throw readError(error, path, 'give an existing .bin file')
  }
}

async function readTensors(path: string, handle: FileHandle): Promise<StoredTensor[]> {
  const start = Buffer.alloc(64)
  await handle.read(start, 0, start.length, 0)
  const foreign = foreignContents(start.toString('latin1'))
  if (foreign !== undefined) throw new SparseGptError('INVALID_CHECKPOINT', `${path} ${foreign}`)
  if (start.subarray(0, legacyMagic.length).equals(legacyMagic)) {
    throw new SparseGptError(
      'INVALID_CHECKPOINT',
      `${path} is in the format of torch 1.5 and older, which is not read: convert it with ` +
        'torch.save(torch.load(file, weights_only=True), file), or to safetensors with model.save_pretrained(folder)',
    )
  }
  const entries = await readZipDirectory(handle)
  const { root, pickle } = await readPickle(handle, entries)
  await checkByteOrder(handle, entries.get(`${root}byteorder`))
  const value = unpickle(pickle, {
    globals,
    persistent: (id) => openStorage(id, (key) => entries.get(`${root}data/${key}`)),
  })
  if (!(value instanceof Dict)) throw new PickleFault('it does not hold a dictionary from names to tensors')
  return [...value.entries].map(([name, tensor]) => {
    if (typeof name !== 'string') throw new PickleFault(`it has a tensor under the name ${String(name)}`)
    if (!(tensor instanceof TorchTensor))
      throw new PickleFault(`its entry ${JSON.stringify(name)} is not a tensor`)
    return locate(path, name, tensor)
  })
}

async function readPickle(handle: FileHandle, entries: ReadonlyMap<string, ZipEntry>) {
  const names = [...entries.keys()].filter((name) => /^[^/]+\/data\.pkl$/.test(name))
  const [name] = names
  const entry = entries.get(name ?? '')
  if (name === undefined || !entry || names.length > 1) {
    throw new PickleFault(`it must have one data.pkl, but has ${names.length}`)
  }
  const root = name.slice(0, -'data.pkl'.length)
  if (entries.has(`${root}constants.pkl`))
    throw new PickleFault('it is a TorchScript program, not a file of weights')
  if (entry.bytes > maxPickleBytes) {
    throw new PickleFault(`its data.pkl has ${entry.bytes} bytes; allowed are ${maxPickleBytes}`)
  }
  return { root, pickle: await read(handle, entry.offset, entry.bytes) }
}

async function checkByteOrder(handle: FileHandle, entry: ZipEntry | undefined): Promise<void> {
  // Before torch 2.1 there was no such entry, and the order was little-endian.
  if (!entry) return
  const order = (await read(handle, entry.offset, Math.min(entry.bytes, 16))).toString('latin1')
  if (order !== 'little')
    throw new PickleFault(`its byte order is ${JSON.stringify(order)}; "little" is needed`)
}

/** The names that a file of weights has to use. */
const globals = new Map(
  [
    new Global('collections OrderedDict', (args) => {
      if (args.length > 0) throw new PickleFault('an OrderedDict is made from something')
      return new Dict()
    }),
    // (storage, offset, size, stride, requires_grad, backward_hooks, metadata?)
    new Global('torch._utils _rebuild_tensor_v2', rebuildTensor),
    // (tensor, requires_grad, backward_hooks)
    new Global('torch._utils _rebuild_parameter', ([tensor]) => tensor ?? null),
    // (tensor, requires_grad, backward_hooks, attributes)
    new Global('torch._utils _rebuild_parameter_with_state', ([tensor]) => tensor ?? null),
    ...Object.keys(storageTypes).map((type) => new Global(`torch ${type}`)),
  ].map((global) => [global.name, global]),
)

function openStorage(id: Value, find: (key: string) => ZipEntry | undefined): TorchStorage {
  const [kind, type, key, , size] = id instanceof Tuple ? id.items : []
  const dtype = type instanceof Global ? storageTypes[type.name.slice('torch '.length)] : undefined
  if (kind !== 'storage' || dtype === undefined || typeof key !== 'string' || !isSize(size)) {
    throw new PickleFault('it refers to a storage in an unknown way')
  }
  const entry = find(key)
  if (!entry) throw new PickleFault(`it has no data for the storage ${JSON.stringify(key)}`)
  if (entry.bytes !== size * storedBytes[dtype]) {
    throw new PickleFault(
      `the storage ${JSON.stringify(key)} is said to have ${size} elements of ${dtype}, but has ${entry.bytes} bytes`,
    )
  }
  return new TorchStorage(dtype, entry.offset, size)
}

function rebuildTensor([storage, offset, size, stride]: readonly Value[]): TorchTensor {
  const shape = size instanceof Tuple ? size.items : undefined
  const strides = stride instanceof Tuple ? stride.items : undefined
  if (!(storage instanceof TorchStorage) || !isSize(offset) || !shape || !strides) {
    throw new PickleFault('a tensor is not made from a storage, an offset, a shape and strides')
  }
  if (!shape.every(isSize) || !strides.every(isSize) || shape.length !== strides.length) {
    throw new PickleFault('a tensor has a shape or strides that are not non-negative integers below 2^53')
  }
  if (shape.length > maxDimensions) throw new PickleFault(`a tensor has ${shape.length} dimensions`)
  // BigInt: a sum must not come out right by rounding.
  const elements = shape.reduce((product, n) => product * BigInt(n), 1n)
  const reach = shape.reduce((sum, n, i) => sum + BigInt(n - 1) * BigInt(strides[i] ?? 0), BigInt(offset))
  const [is, has] = [
    `[${shape.join(', ')}] at ${offset} with strides [${strides.join(', ')}]`,
    BigInt(storage.size),
  ]
  if (elements > 0n && reach >= has) {
    throw new PickleFault(`a tensor ${is} reaches beyond its storage of ${storage.size} elements`)
  }
  // Overlapping elements (torch's expand) would let a small file describe a tensor of any size.
  if (elements > has) {
    throw new PickleFault(`a tensor ${is} has more elements than its storage (${storage.size})`)
  }
  return new TorchTensor(storage, elements > 0n ? offset : 0, [...shape], [...strides])
}

function locate(path: string, name: string, { storage, offset, shape, strides }: TorchTensor): StoredTensor {
  const { dtype } = storage
  const width = storedBytes[dtype]
  const bytes = tensorBytes({ dtype, shape })
  const tensor = { name, dtype, shape, file: path, offset: storage.offset + offset * width, bytes }
  if (isContiguous(shape, strides)) return tensor
  if (storage.size * width > maxGatheredBytes) {
    throw new SparseGptError(
      'UNSUPPORTED_MODEL',
      `${path}: the tensor ${JSON.stringify(name)} is not contiguous and its storage has more than ${maxGatheredBytes} ` +
        'bytes: save it with .contiguous()',
    )
  }
  return { ...tensor, strides }
}

const isSize = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0
