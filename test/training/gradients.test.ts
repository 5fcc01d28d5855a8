import { readFileSync } from 'node:fs'
import { expect, test } from '@jest/globals'
import { loadModel } from '../../src/index.js'
import { BlockWeights } from '../../src/models/block-weights.js'
import type { Batch, Engine } from '../../src/models/engine.js'
import type { Tensor } from '../../src/native/device.js'
import { engineOf } from '../../src/sdk/model.js'
import { RecordedBlock } from '../../src/training/recorded-block.js'
import { goldenModels } from '../models/golden-models.js'
import { describeWithShared, sharedPath } from '../shared.js'
import { readTensors } from '../safetensors-file.js'

/** Of a gradient g in the checkpoint's layout: Σ g_i cos(i) and ‖g‖, in float64 by PyTorch 2.13 and transformers. */
type Digest = [projection: number, norm: number]

interface Expected {
  /** Of the hidden states before the first block. */
  input: Digest
  parameters: Record<string, Digest>
}

/** The gradients of Σ h_i cos(i) over the last block's output h, for the token ids of the golden model. */
const expected = JSON.parse(readFileSync(new URL('torch-gradients.json', import.meta.url), 'utf8')) as Record<
  string,
  Expected
>

const cosines = (count: number) => Float32Array.from({ length: count }, (_, i) => Math.cos(i))

function digest(values: Float32Array): Digest {
  const projection = values.reduce((sum, value, i) => sum + value * Math.cos(i), 0)
  return [projection, Math.sqrt(values.reduce((sum, value) => sum + value * value, 0))]
}

describeWithShared('gradients of tiny models, against PyTorch', () => {
  test.each(goldenModels)('%s', async (name) => {
    const folder = sharedPath('golden', 'models', name) ?? ''
    const { values: flat, shape } = (await readTensors(`${folder}/expected.safetensors`)).get('input_ids')!
    const length = shape[1] ?? 0
    const windows = Array.from({ length: shape[0] ?? 0 }, (_, i) =>
      Int32Array.from(flat.subarray(i * length, (i + 1) * length)),
    )
    for (const [dtype, tolerance] of [
      ['float32', 2e-5],
      ['bfloat16', 0.06],
    ] as const) {
      const model = await loadModel(folder, { device: 'cpu', dtype })
      try {
        const actual = await gradients(engineOf(model, 'test'), windows)
        const { input, parameters } = expected[name]!
        // A key's bias has a gradient of zero but for rounding, so errors count beside the input's gradient, too.
        const near = (what: string, [projection, norm]: Digest, [wanted, size]: Digest) => {
          const largest = tolerance * (size + 0.1 * input[1])
          const errors = { norm: Math.abs(norm - size), projection: Math.abs(projection - wanted) }
          const near = Math.max(errors.norm, errors.projection / 3) <= largest
          expect({ what, dtype, errors, near }).toEqual({ what, dtype, errors, near: true })
        }
        near('input', actual.input, input)
        expect(Object.keys(actual.parameters).sort()).toEqual(Object.keys(parameters).sort())
        for (const [parameter, wanted] of Object.entries(parameters)) {
          // SparseMixer's softmax is over experts within a border, across which bfloat16 rounds some.
          if (name === 'phimoe' && dtype === 'bfloat16' && parameter.endsWith('gate.weight')) continue
          near(parameter, actual.parameters[parameter]!, wanted)
        }
      } finally {
        await model.dispose()
      }
    }
  })
})

/** The same of the product's blocks, each recorded and gone back through. */
async function gradients(engine: Engine, windows: Int32Array[]): Promise<Expected> {
  const { device, architecture } = engine
  const made: Tensor[] = []
  try {
    return await device.within(made, async () => {
      const [{ hidden: embedded, sequences }] = engine.embed([windows]) as [Batch]
      let hidden = embedded
      const parameters: Record<string, Digest> = {}
      const runs: {
        block: RecordedBlock
        input: Tensor
        output: Tensor
        sums: Map<string, Tensor>
        index: number
      }[] = []
      for (let index = 0; index < architecture.blockCount; index++) {
        const weights = new BlockWeights(device, engine.weights, architecture.block(index))
        const sums = new Map<string, Tensor>()
        const { linears, parameters: others } = weights.spec
        for (const { name, rows, columns, bias } of linears) {
          sums.set(`${name}.weight`, device.zeros('float32', [rows, columns]))
          if (bias) sums.set(`${name}.bias`, device.zeros('float32', [rows]))
        }
        for (const { name, shape } of others) sums.set(name, device.zeros('float32', shape))
        let block: RecordedBlock | undefined
        const run = engine.runBlock(
          index,
          weights,
          { hidden, sequences },
          (placement) =>
            (block = new RecordedBlock(device, weights, index, placement, { of: (name) => sums.get(name) })),
        )
        const output = await run.finish()
        runs.push({ block: block!, input: hidden, output, sums, index })
        hidden = output
      }
      const ones = cosines(hidden.rows * hidden.width)
      let gradient = device.cast(device.upload(ones, hidden.shape), hidden.dtype)
      for (const { block, input, output, sums, index } of runs.reverse()) {
        gradient = await block.backward(output, gradient, input)
        const { prefix, linears } = architecture.block(index)
        for (const [name, sum] of sums) {
          const transposed = linears.some(
            (linear) => `${linear.name}.weight` === name && linear.layout === 'in-out',
          )
          const stored = transposed ? device.transpose(sum, 'float32') : sum
          parameters[prefix + name] = digest(await device.readFloat32(stored))
        }
      }
      const input = digest(await device.readFloat32(device.cast(gradient, 'float32')))
      return { input, parameters }
    })
  } finally {
    for (const tensor of made) tensor.dispose()
  }
}
