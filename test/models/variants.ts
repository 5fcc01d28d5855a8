import { readFileSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { PythonRandom } from '../../src/text/python-random.js'
import { writeSafetensors, type TestTensor } from '../files/files.js'

export interface Variant {
  config: Record<string, unknown>
  /** By tensor name. */
  shapes: Record<string, number[]>
  ids: number[][]
  /** float32 [sequences, tokens, vocabulary], base64. */
  logits: string
}

const file = new URL('variants.json', import.meta.url)

/** Tiny models of kinds that few checkpoints are of, with transformers' logits; made by variants.py. */
export const variants = JSON.parse(readFileSync(file, 'utf8')) as Record<string, Variant>

/** Writes the model; `more` are shapes of further tensors. */
export async function writeVariant(
  folder: string,
  variant: Variant,
  more: Variant['shapes'] = {},
): Promise<void> {
  await writeFile(join(folder, 'config.json'), JSON.stringify(variant.config))
  const tensors = [...weights(variant.shapes), ...weights(more)]
  await writeSafetensors(join(folder, 'model.safetensors'), tensors)
}

/** Random float32 tensors of the shapes, as weights() in variants.py makes them. */
export function weights(shapes: Variant['shapes']): TestTensor[] {
  const random = new PythonRandom(11)
  return Object.keys(shapes)
    .sort()
    .map((name) => {
      const shape = shapes[name]!
      const values = Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => {
        const value = random.randint(-1000, 1000) / 1000
        return shape.length === 1 ? 1 + value / 4 : value / 2
      })
      return { name, dtype: 'F32', shape, data: new Uint8Array(values.buffer) }
    })
}
