import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { serializeHeader, type StoredDType } from '../../src/files/safetensors.js'

export interface TestTensor {
  name: string
  dtype: StoredDType
  shape: number[]
  data: Uint8Array
}

/** A tensor of `bytes` U8 elements, all of them `value`. */
export function filled(name: string, bytes: number, value: number): TestTensor {
  return { name, dtype: 'U8', shape: [bytes], data: new Uint8Array(bytes).fill(value) }
}

export async function writeSafetensors(
  file: string,
  tensors: TestTensor[],
  metadata: Record<string, string> = { format: 'pt' },
): Promise<void> {
  const { header } = serializeHeader(tensors, metadata)
  await writeFile(file, Buffer.concat([header, ...tensors.map(({ data }) => data)]))
}

/** A safetensors file from a header as text: length bytes, the text, then `data`. */
export function rawFile(json: string | Uint8Array, data: Uint8Array = new Uint8Array()): Buffer {
  const header = Buffer.from(json)
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(header.length))
  return Buffer.concat([length, header, data])
}

export async function writeConfig(folder: string): Promise<void> {
  await writeFile(join(folder, 'config.json'), '{"model_type":"llama"}')
}
