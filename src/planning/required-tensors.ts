import { SparseGptError } from '../errors.js'
import type { Checkpoint } from '../files/checkpoint.js'
import type { StoredTensor } from '../files/safetensors.js'
import { Engine } from '../models/engine.js'
import type { Family } from '../models/family.js'
import { familyOf } from '../models/registry.js'
import { tensorsOf } from '../models/specs.js'
import { Weights } from '../models/weights.js'
import { Device, findBackend } from '../native/device.js'
import { ShapeExecutor } from './shape-executor.js'

/** Asks the engine's weights for every tensor that its architecture has, the embedding first; the device is to know shapes only. */
export function askForEveryTensor(engine: Engine): void {
  const { architecture, weights } = engine
  engine.embed([[new Int32Array(1)]])
  const blocks = Array.from({ length: architecture.blockCount }, (_, index) => architecture.block(index))
  for (const spec of [...blocks, architecture.final])
    for (const { name, shape } of tensorsOf(spec)) weights.require(name, shape)
  architecture.head(weights)
  architecture.headBias?.(weights)
}

/**
 * Checks that a checkpoint has every tensor that the architecture computes with, in its shape and an element type that is
 * supported, and no bias or norm besides. Nothing is read or computed: the model's parts run on a device that knows shapes only.
 *
 * Throws INVALID_CHECKPOINT, UNSUPPORTED_MODEL.
 */
export function checkTensors(family: Family, checkpoint: Checkpoint): void {
  const { engine, asked } = openShapes(family, checkpoint)
  askForEveryTensor(engine)
  checkNothingIsPassedOver(checkpoint, engine, asked)
}

/** The matrices of a checkpoint, [vocabulary, columns], that tokens are embedded with and that the head makes logits with; one if they are tied. */
export function tokenMatrices(checkpoint: Checkpoint): StoredTensor[] {
  const { engine, asked } = openShapes(familyOf(checkpoint.config), checkpoint)
  engine.embed([[new Int32Array(1)]])
  const [embedding] = asked.values()
  asked.clear()
  engine.architecture.head(engine.weights)
  const [head] = asked.values()
  return [...new Set([embedding!, head!])]
}

/** A model that knows shapes only, and what its parts have asked the checkpoint for. */
function openShapes(
  family: Family,
  checkpoint: Checkpoint,
): { engine: Engine; asked: AskedWeights['asked'] } {
  const device = new Device('cpu', 1, new ShapeExecutor(findBackend('cpu').traits))
  const weights = new AskedWeights(device, checkpoint)
  const architecture = family.build(checkpoint.config, weights)
  return { engine: new Engine(device, architecture, weights, checkpoint, ''), asked: weights.asked }
}

/** Weights of shapes only that a checkpoint must have. */
class AskedWeights extends Weights {
  /** All tensors that were asked for, as the checkpoint has them, by the names that they were asked for by. */
  readonly asked = new Map<string, StoredTensor>()

  constructor(device: Device, checkpoint: Checkpoint) {
    super(device, checkpoint, 'float32')
  }

  override require(name: string, shape: readonly number[]): StoredTensor {
    const stored = super.require(name, shape)
    const { dtype, bytes, shape: sizes } = stored
    this.asked.set(name, stored)
    // Without the place: nothing is to be read.
    return { name, dtype, shape: sizes, bytes, file: name, offset: 0 }
  }
}

/**
 * Throws UNSUPPORTED_MODEL when the checkpoint has a bias or a norm of the model's own blocks or ends that was not asked for: with
 * it the model would compute something else. Other tensors, such as masks and frequencies, do not matter.
 */
function checkNothingIsPassedOver(
  checkpoint: Checkpoint,
  { architecture, weights }: Engine,
  asked: ReadonlyMap<string, StoredTensor>,
): void {
  const prefixes = new Set(
    Array.from({ length: architecture.blockCount }, (_, i) => architecture.block(i).prefix),
  )
  for (const { name, file } of checkpoint.tensors.values()) {
    if (asked.has(name)) continue
    // What else a multimodal model has is none of the language model's.
    if (weights.isPart && !name.startsWith(architecture.final.prefix)) continue
    const block = /^.*?\.?\d+\./.exec(name)?.[0]
    if (block !== undefined && !prefixes.has(block)) continue
    const [, module = '', kind] = /^(.*)\.(weight|bias)$/.exec(name) ?? []
    const isBias = kind === 'bias' && (asked.has(`${module}.weight`) || /^(lm_head|embed_out)$/.test(module))
    const isNorm = kind !== undefined && /(norm|(^|\.)ln_\w+)$/i.test(module)
    if (!isBias && !isNorm) continue
    throw new SparseGptError(
      'UNSUPPORTED_MODEL',
      `${file} has the tensor ${name}, which a model of model_type "${String(checkpoint.config['model_type'])}" with this ` +
        'config.json does not use: correct config.json, or remove the tensor if the model is sound without it',
    )
  }
}
