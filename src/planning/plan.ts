import * as z from 'zod'
import { readConfig, type Checkpoint, type StoredTensor } from '../checkpoint/checkpoint.js'
import { storedBytes } from '../checkpoint/safetensors.js'
import { resolveModel } from '../hub/model-folder.js'
import type { DownloadProgress } from '../hub/snapshot.js'
import { Model } from '../models/model.js'
import { familyOf } from '../models/registry.js'
import { Weights } from '../models/weights.js'
import { Device } from '../native/device.js'
import {
  checkSelection,
  modelPruningOptions,
  parseOptions,
  samples,
  type ModelPruningOptions,
} from '../pruning/options.js'
import { pruneBlocks, selectLayers, type LayerSelection, type PipelineOptions } from '../pruning/pipeline.js'
import { ShapeBackend, type Arithmetic, type MemoryPart } from './shape-backend.js'

/** The options of `prune` and `loadModel` that time and memory depend on; defaults are theirs. */
export interface PlanOptions extends Omit<ModelPruningOptions, 'dampening'> {
  /** 'cpu' (default), or 'cuda' for a plan of the GPU's memory. */
  device?: 'cpu' | 'cuda'
  dtype?: 'float32' | 'bfloat16'
  samples?: number
  sequenceLength?: number
  /** Whether activations are kept in a file while they wait, as with `prune`'s option `offload`. Default false. */
  offload?: boolean
  /** Called while config.json is downloaded from the hub. */
  onDownload?: (progress: DownloadProgress) => void
  signal?: AbortSignal
}

/** What pruning a model takes. Sizes are in bytes. */
export interface Plan {
  /** As given. */
  model: string
  blocks: number
  /** Weights to be pruned. */
  prunedWeights: number
  memory: {
    /** On the CPU resident memory of the process, mapped pages of weight files included; else memory of the GPU. */
    peak: number
    /** The parts of it at that moment. */
    parts: Record<'process' | 'hiddenStates' | MemoryPart, number>
  }
  disk: {
    /** From the weight files, as if nothing stayed in the system's file cache. */
    read: number
    /** The output folder's weight files. */
    written: number
    /** To and from the file for activations, and its size. */
    offloaded: number
    offloadFile: number
  }
  /** Floating-point operations; a multiply-add is two. */
  flop: Record<Arithmetic | 'total', number>
}

const schema = modelPruningOptions
  .omit({ dampening: true })
  .extend({
    device: z.enum(['cpu', 'cuda']).default('cpu'),
    dtype: z.enum(['float32', 'bfloat16']).default('float32'),
    samples,
    sequenceLength: z.int().min(1).optional(),
    offload: z.boolean().default(false),
    onDownload: z
      .custom<(progress: DownloadProgress) => void>((value) => typeof value === 'function')
      .optional(),
    signal: z.instanceof(AbortSignal).optional(),
  })
  .strict()
  .superRefine(checkSelection)

/**
 * What pruning a model would take, from its config.json alone: of a model on the hub nothing else is downloaded. The pipeline
 * runs as `prune` would, on a device that knows shapes only, so the plan follows whatever the pipeline does.
 *
 * Not in it: memory for encoding the calibration text, which depends on the text and ends before the pruning begins.
 *
 * Throws INVALID_OPTION, FILE_NOT_FOUND, DOWNLOAD_FAILED, INVALID_CHECKPOINT, UNSUPPORTED_MODEL, ABORTED.
 */
export async function plan(pathOrHubId: string, options: PlanOptions = {}): Promise<Plan> {
  const o = parseOptions(schema, options, 'plan')
  const { folder, name } = await resolveModel(pathOrHubId, { ...o, configOnly: true })
  return planPruning(name, await readConfig(folder), o)
}

export interface PlannedJob extends Omit<PipelineOptions, 'dampening' | 'offload'>, LayerSelection {
  device: 'cpu' | 'cuda'
  dtype: 'float32' | 'bfloat16'
  samples: number
  sequenceLength?: number | undefined
  offload: boolean
}

/** Node, the loaded libraries and what JavaScript holds; as measured. */
const processBytes = 90e6

/** The plan for a model with this config.json. */
export async function planPruning(
  name: string,
  config: Record<string, unknown>,
  { offload, ...o }: PlannedJob,
): Promise<Plan> {
  const { backend, device, model } = shapesOnly(name, config, o)
  const { architecture } = model
  const layers = selectLayers(architecture, o)
  const sequenceLength = model.sequenceLength(o.sequenceLength)
  const windows = Array<Int32Array>(o.method === 'magnitude' ? 0 : o.samples).fill(
    new Int32Array(sequenceLength),
  )
  const spill = offload ? device.createSpillFile('') : undefined
  await pruneBlocks(
    model,
    { ...o, dampening: 0.01, offload: spill && ((tensor) => device.offload(tensor, spill)) },
    layers,
    windows,
    { store: () => Promise.resolve() },
  )

  const { flop, peak } = backend
  const tokens = windows.length * sequenceLength
  const stateBytes = tokens * architecture.hiddenSize * (o.dtype === 'bfloat16' ? 2 : 4)
  const hiddenStates = offload ? 0 : Math.min(stateBytes, peak.parts.activations)
  const parts = {
    process: o.device === 'cpu' ? processBytes + tokens * Int32Array.BYTES_PER_ELEMENT : 0,
    hiddenStates,
    ...peak.parts,
    activations: peak.parts.activations - hiddenStates,
  }
  const prunedWeights = layers.flat().reduce((sum, { rows, columns }) => sum + rows * columns, 0)
  const written = checkpointTensors(config).reduce((sum, { bytes }) => sum + bytes, 0)
  return {
    model: name,
    blocks: architecture.blockCount,
    prunedWeights,
    memory: { peak: Object.values(parts).reduce((a, b) => a + b, 0), parts },
    disk: {
      // What is not pruned is copied from the source.
      read: backend.bytesRead + written - prunedWeights * storedBytes[storedType(config)],
      written,
      offloaded: backend.bytesOffloaded,
      offloadFile: backend.spillFileBytes,
    },
    flop: { ...flop, total: Object.values(flop).reduce((a, b) => a + b, 0) },
  }
}

function shapesOnly(name: string, config: Record<string, unknown>, o: Pick<PlannedJob, 'device' | 'dtype'>) {
  const backend = new ShapeBackend(o.device === 'cpu')
  const device = new Device(o.device, 1, backend)
  const weights = new PlannedWeights(device, config, o.dtype)
  const architecture = familyOf(config).build(config, weights)
  return { backend, device, weights, model: new Model(device, architecture, weights, weights.planned, name) }
}

/** All tensors of a checkpoint with this config.json. */
export function checkpointTensors(config: Record<string, unknown>): StoredTensor[] {
  const { device, weights, model } = shapesOnly('', config, { device: 'cpu', dtype: 'float32' })
  const { architecture } = model
  const [embedded] = model.embed([[new Int32Array(1)]])
  if (embedded) architecture.finish(weights, device, embedded.hidden)
  architecture.head(weights)
  architecture.headBias?.(weights)
  for (let index = 0; index < architecture.blockCount; index++)
    weights.block(architecture.block(index)).dispose()
  return [...weights.planned.tensors.values()]
}

/** The element type that the files have by the config; float32 when it does not say, as in transformers. */
function storedType(config: Record<string, unknown>): 'F32' | 'F16' | 'BF16' {
  const stored = config['torch_dtype'] ?? config['dtype']
  return stored === 'bfloat16' ? 'BF16' : stored === 'float16' ? 'F16' : 'F32'
}

/** Weights of a checkpoint that need not exist: every tensor that is asked for, in the element type that the config names. */
class PlannedWeights extends Weights {
  readonly planned: Checkpoint

  constructor(device: Device, config: Record<string, unknown>, dtype: 'float32' | 'bfloat16') {
    const planned: Checkpoint = { folder: '', config, shards: [], tensors: new Map() }
    super(device, planned, dtype)
    this.planned = planned
  }

  override has(): boolean {
    return true
  }

  override require(name: string, shape: readonly number[]): StoredTensor {
    let tensor = this.planned.tensors.get(name)
    if (!tensor) {
      const dtype = storedType(this.planned.config)
      const bytes = shape.reduce((a, b) => a * b, storedBytes[dtype])
      tensor = { name, dtype, shape: [...shape], file: name, offset: 0, bytes }
      this.planned.tensors.set(name, tensor)
    }
    return tensor
  }
}
