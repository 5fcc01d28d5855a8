import { storedBytes, type StoredTensor } from '../files/safetensors.js'
import type { Checkpoint } from '../files/checkpoint.js'
import { Engine } from '../models/engine.js'
import { familyOf } from '../models/registry.js'
import { Weights } from '../models/weights.js'
import { Device, findBackend, type DeviceName, type Tensor, type Work } from '../native/device.js'
import type { Arithmetic, MemoryPart } from '../native/operations.js'
import { elementBytes } from '../native/tensor.js'
import type { FinishedBlock } from '../pruning/destination.js'
import { pruneBlocks, selectLayers, type LayerSelection, type PipelineOptions } from '../pruning/pipeline.js'
import { needsDenseStream, needsInputs } from '../pruning/methods/methods.js'
import { PlannedEngine } from './planned-engine.js'
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

/** What pruning a model takes of a device and its disk, weights that are copied apart. */
export interface JobNeeds extends Pick<Plan, 'blocks' | 'prunedWeights' | 'memory'> {
  /** What the device is handed. */
  work: Work
  /** What goes to and comes from the disk, in bytes. */
  traffic: Pick<ShapeExecutor, 'bytesRead' | 'bytesOffloaded' | 'spillFileBytes'>
}

/** Plans the pruning of a model with this config.json. */
export async function planPruning(
  name: string,
  config: Record<string, unknown>,
  job: PlannedJob,
): Promise<Plan> {
  const { blocks, prunedWeights, memory, work, traffic } = await jobNeeds(config, job)
  const { flop } = work
  const written = checkpointTensors(config).reduce((sum, { bytes }) => sum + bytes, 0)
  return {
    model: name,
    blocks,
    prunedWeights,
    memory,
    disk: {
      // What is not pruned is copied from the source.
      read: traffic.bytesRead + written - prunedWeights * storedBytes[storedType(config)],
      written,
      offloaded: traffic.bytesOffloaded,
      offloadFile: traffic.spillFileBytes,
    },
    flop: { ...flop, total: Object.values(flop).reduce((a, b) => a + b, 0) },
  }
}

/** Runs the pruning of a model with this config.json on shapes only. */
export async function jobNeeds(
  config: Record<string, unknown>,
  { offload, writes, finished = 0, ...o }: PlannedJob,
): Promise<JobNeeds> {
  const { executor, device, weights, architecture } = shapesOnly(config, o)
  const layers = selectLayers(architecture, o)
  const twoStreams = needsDenseStream(o)
  const firstPruned = layers.findIndex((block) => block.length > 0)
  const role = (index: number) => {
    const selected = layers[index]?.map(({ name }) => name.slice(architecture.block(index).prefix.length))
    // Up to the first pruned block two streams are one.
    return `${selected?.join()} ${index < finished} ${twoStreams && index <= firstPruned}`
  }
  const engine = new PlannedEngine(device, architecture, weights, executor, role)
  const sequenceLength = engine.sequenceLength(o.sequenceLength)
  const windows = Array<Int32Array>(needsInputs(o) ? o.samples : 0).fill(new Int32Array(sequenceLength))
  const spill = offload ? device.createSpillFile('') : undefined
  const settings = {
    ...o,
    onProgress: undefined,
    offload: spill && ((tensor: Tensor) => device.offload(tensor, spill)),
  }
  const store = (_: string, tensor: Tensor) => {
    if (writes) device.writeFile(0, 0, tensor)
    return Promise.resolve()
  }
  await pruneBlocks(engine, settings, layers, windows, {
    usesMask: false,
    store,
    storeParameter: store,
    // Where blocks are finished, the allocation is known.
    finished: Array<FinishedBlock>(finished).fill({ layers: [], shares: [] }),
    finishBlock: () => Promise.resolve(),
  })

  const { peak } = executor
  const inHostMemory = device.traits.inHostMemory
  const tokens = windows.length * sequenceLength
  const stateBytes = (twoStreams ? 2 : 1) * tokens * architecture.hiddenSize * elementBytes[o.dtype]
  const hiddenStates = offload ? 0 : Math.min(stateBytes, peak.parts.activations)
  const parts = {
    process: inHostMemory ? processBytes + tokens * Int32Array.BYTES_PER_ELEMENT : 0,
    hiddenStates,
    ...peak.parts,
    activations: peak.parts.activations - hiddenStates,
  }
  return {
    blocks: architecture.blockCount,
    prunedWeights: layers.flat().reduce((sum, { rows, columns }) => sum + rows * columns, 0),
    memory: { peak: Object.values(parts).reduce((a, b) => a + b, 0), parts },
    work: device.work,
    traffic: executor,
  }
}

function shapesOnly(config: Record<string, unknown>, o: Pick<PlannedJob, 'device' | 'dtype'>) {
  const executor = new ShapeExecutor(findBackend(o.device).traits)
  const device = new Device(o.device, 1, executor)
  const weights = new PlannedWeights(device, config, o.dtype)
  return { executor, device, weights, architecture: familyOf(config).build(config, weights) }
}

/** Lists all tensors of a checkpoint with this config.json. */
export function checkpointTensors(config: Record<string, unknown>): StoredTensor[] {
  const { device, weights, architecture } = shapesOnly(config, { device: 'cpu', dtype: 'float32' })
  askForEveryTensor(new Engine(device, architecture, weights, weights.planned, ''))
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
