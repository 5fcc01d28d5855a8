import { readFileSync } from 'node:fs'
import { readSafetensorsHeader } from '../src/files/safetensors.js'

/** The tensors of a small file, whole, for comparing with golden data: F32 as such, integers as numbers. */
export async function readTensors(file: string) {
  const bytes = readFileSync(file)
  const { tensors } = await readSafetensorsHeader(file)
  return new Map(
    tensors.map((tensor) => {
      const begin = bytes.byteOffset + tensor.offset
      const raw = bytes.buffer.slice(begin, begin + tensor.bytes)
      const values =
        tensor.dtype === 'F32'
          ? new Float32Array(raw)
          : tensor.dtype === 'I64'
            ? Float32Array.from(new BigInt64Array(raw), Number)
            : Float32Array.from(new Uint8Array(raw))
      return [tensor.name, { shape: tensor.shape, values }]
    }),
  )
}
