import { storedBytes, type StoredTensor } from '../files/safetensors.js'
import type { Checkpoint } from '../files/checkpoint.js'
import { Engine } from '../models/engine.js'
import { familyOf } from '../models/registry.js'
import { Weights } from '../models/weights.js'
import { Device, findBackend, type DeviceName, type Tensor, type Work } from '../native/device.js'
import type { Arithmetic, MemoryPart } from '../native/operations.js'
import { elementBytes } from '../native/tensor.js'
import { pruneBlocks, selectLayers, type LayerSelection, type PipelineOptions } from '../pruning/pipeline.js'
import { needsInputs } from '../pruning/methods/methods.js'
import { askForEveryTensor } from './required-tensors.js'
import { ShapeExecutor } from './shape-executor.js'

/** What pruning a model takes. Sizes are in bytes. */
export interface Plan {
  /** The hub id, or the name of the folder. */
  model: string
  /** The number of the model's blocks. */
  blocks: number
  /** The number of weights to be pruned. */
  prunedWeights: number
  /** What is in memory at the highest moment. */
  memory: {
    /** The peak: on the CPU of the process's resident memory, mapped pages of weight files included; else of the GPU's memory. */
    peak: number
    /** The parts of the peak at that moment. */
    parts: Record<'process' | 'hiddenStates' | MemoryPart, number>
  }
  /** What goes to and comes from the disk. */
  disk: {
    /** What is read from the weight files, as if nothing stayed in the system's file cache. */
    read: number
    /** The size of the output folder's weight files. */
    written: number
    /** What goes to and comes from the file for activations. */
    offloaded: number
    /** The size of the file for activations. */
    offloadFile: number
  }
  /** The number of floating-point operations by kind; a multiply-add is two. */
  flop: Record<Arithmetic | 'total', number>
}

export interface PlannedJob extends Omit<PipelineOptions, 'offload'>, LayerSelection {
  /** The device whose memory is counted. */
  device: Exclude<DeviceName, 'auto'>
  dtype: 'float32' | 'bfloat16'
  samples: number
  sequenceLength?: number | undefined
  offload: boolean
  /** Whether pruned weights are written. */
  writes: boolean
  /** The number of blocks that are pruned already. Default 0. */
  finished?: number
}

/** What Node, the libraries, JavaScript's objects and the memory pools' slack hold, in bytes; as measured on jobs of 1 B weights. */
const processBytes = 115e6

/** Plans the pruning of a model with this config.json; `work` is what its device is handed. */
export async function planPruning(
  name: string,
  config: Record<string, unknown>,
  { offload, writes, ...o }: PlannedJob,
): Promise<{ plan: Plan; work: Work }> {
  const { executor, engine } = shapesOnly(name, config, o)
  const { architecture, device } = engine
  const layers = selectLayers(architecture, o)
  const sequenceLength = engine.sequenceLength(o.sequenceLength)
  const windows = Array<Int32Array>(needsInputs(o) ? o.samples : 0).fill(new Int32Array(sequenceLength))
  const spill = offload ? device.createSpillFile('') : undefined
  const settings = {
    ...o,
    onProgress: undefined,
    offload: spill && ((tensor: Tensor) => device.offload(tensor, spill)),
  }
  await pruneBlocks(engine, settings, layers, windows, {
    usesMask: false,
    finished: Array<[]>(o.finished ?? 0).fill([]),
    finishBlock: () => Promise.resolve(),
    store(_, matrix) {
      if (writes) device.writeFile(0, 0, matrix)
      return Promise.resolve()
    },
  })

  const { peak } = executor
  const { flop } = device.work
  const inHostMemory = device.traits.inHostMemory
  const tokens = windows.length * sequenceLength
  const streams = o.target === 'dense' ? 2 : 1
  const stateBytes = streams * tokens * architecture.hiddenSize * elementBytes[o.dtype]
  const hiddenStates = offload ? 0 : Math.min(stateBytes, peak.parts.activations)
  const parts = {
    process: inHostMemory ? processBytes + tokens * Int32Array.BYTES_PER_ELEMENT : 0,
    hiddenStates,
    ...peak.parts,
    activations: peak.parts.activations - hiddenStates,
  }
  const prunedWeights = layers.flat().reduce((sum, { rows, columns }) => sum + rows * columns, 0)
  const written = checkpointTensors(config).reduce((sum, { bytes }) => sum + bytes, 0)
  const plan: Plan = {
    model: name,
    blocks: architecture.blockCount,
    prunedWeights,
    memory: { peak: Object.values(parts).reduce((a, b) => a + b, 0), parts },
    disk: {
      // What is not pruned is copied from the source.
      read: executor.bytesRead + written - prunedWeights * storedBytes[storedType(config)],
      written,
      offloaded: executor.bytesOffloaded,
      offloadFile: executor.spillFileBytes,
    },
    flop: { ...flop, total: Object.values(flop).reduce((a, b) => a + b, 0) },
  }
  return { plan, work: device.work }
}

function shapesOnly(name: string, config: Record<string, unknown>, o: Pick<PlannedJob, 'device' | 'dtype'>) {
  const executor = new ShapeExecutor(findBackend(o.device).traits)
  const device = new Device(o.device, 1, executor)
  const weights = new PlannedWeights(device, config, o.dtype)
  const architecture = familyOf(config).build(config, weights)
  return { executor, weights, engine: new Engine(device, architecture, weights, weights.planned, name) }
}

/** Lists all tensors of a checkpoint with this config.json. */
export function checkpointTensors(config: Record<string, unknown>): StoredTensor[] {
  const { weights, engine } = shapesOnly('', config, { device: 'cpu', dtype: 'float32' })
  askForEveryTensor(engine)
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
