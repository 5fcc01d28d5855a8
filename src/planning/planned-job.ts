import { storedBytes, type StoredTensor } from '../files/safetensors.js'
import { emptyCheckpoint, type Checkpoint } from '../files/checkpoint.js'
import { Engine } from '../models/engine.js'
import { languageConfig } from '../models/language-config.js'
import { familyOf } from '../models/registry.js'
import { Weights } from '../models/weights.js'
import { Device, findBackend, type DeviceName, type Tensor, type Work } from '../native/device.js'
import type { Arithmetic, MemoryPart } from '../native/operations.js'
import { elementBytes } from '../native/tensor.js'
import type { FinishedBlock } from '../pruning/destination.js'
import {
  blocksToPass,
  pruneBlocks,
  selectLayers,
  type LayerSelection,
  type PipelineOptions,
} from '../pruning/pipeline.js'
import { ProgressMeter } from '../pruning/progress.js'
import { Ranks } from '../pruning/ranks.js'
import { Distillation, measurements } from '../training/distillation.js'
import type { DistillationOptions } from '../training/options.js'
import { heldOutCount } from '../training/schedule.js'
import { needsDenseStream, needsInputs } from '../pruning/methods/methods.js'
import { PlannedCommunicator } from './planned-communicator.js'
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
  /** What comes from other ranks, where there are several; the rest of the plan is of the one that has most to do. */
  received?: number
}

/** @internal */
export interface PlannedJob extends Omit<PipelineOptions, 'offload' | 'dense' | 'ranks'>, LayerSelection {
  /** The number of ranks; the first of them is planned, which has most to do. Default 1. */
  ranks?: number | undefined
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
  /** Whether another model is the dense one that layers, blocks or the whole are to come near. Default false. */
  dense?: boolean
  /** The shares of zeros to prune to, one after the other. Default: `sparsity` alone. */
  schedule?: readonly number[] | undefined
  /** How the whole model is trained after each of them, if it is, and on how many windows; by default on `samples`. */
  distill?: Required<DistillationOptions> | undefined
  trainingWindows?: number
}

/** What Node, the libraries, JavaScript's objects and the memory pools' slack hold, in bytes; as measured on jobs of 1 B weights. */
const processBytes = 115e6

/**
 * What pruning a model takes of a device and its disk, weights that are copied apart.
 *
 * @internal
 */
export interface JobNeeds extends Pick<Plan, 'blocks' | 'prunedWeights' | 'memory'> {
  /** What the device is handed. */
  work: Work
  /** What goes to and comes from the disk, in bytes. */
  traffic: Pick<ShapeExecutor, 'bytesRead' | 'bytesOffloaded' | 'spillFileBytes' | 'bytesReceived'>
}

/**
 * Plans the pruning of a model with this config.json.
 *
 * @internal
 */
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
    ...((job.ranks ?? 1) > 1 && { received: traffic.bytesReceived }),
  }
}

/**
 * Runs the pruning of a model with this config.json on shapes only.
 *
 * @internal
 */
export async function jobNeeds(
  config: Record<string, unknown>,
  { offload, writes, finished = 0, distill, schedule, trainingWindows, ranks = 1, ...job }: PlannedJob,
): Promise<JobNeeds> {
  const steps = schedule ?? [job.sparsity]
  const hasOther = job.dense === true || steps.length > 1 || distill !== undefined
  const { dense: _, ...o } = { ...job, sparsity: steps[0] }
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
  const dense = hasOther ? new PlannedEngine(device, architecture, weights, executor, role) : undefined
  const settings = {
    ...o,
    ranks: ranks > 1 ? new Ranks(device, new PlannedCommunicator(ranks, executor)) : undefined,
    dense: twoStreams ? dense : undefined,
    offload: spill && ((tensor: Tensor) => device.offload(tensor, spill)),
  }
  const store = (_: string, tensor: Tensor) => {
    if (writes) device.writeFile(0, 0, tensor)
    return Promise.resolve()
  }
  const meter = new ProgressMeter(device, blocksToPass(layers), undefined, undefined, undefined)
  for (const sparsity of steps) {
    await pruneBlocks(
      engine,
      { ...settings, sparsity },
      layers,
      windows,
      {
        usesMask: false,
        usesCodes: false,
        store,
        storeParameter: store,
        // Where blocks are finished, the allocation is known.
        finished: Array<FinishedBlock>(finished).fill({ layers: [], shares: [] }),
        finishBlock: () => Promise.resolve(),
      },
      meter,
    )
  }
  const prunedWeights = layers.flat().reduce((sum, { rows, columns }) => sum + rows * columns, 0)
  if (distill && dense) {
    const work = await plannedDistillation(engine, dense, distill, {
      windows: trainingWindows ?? o.samples,
      sequenceLength,
    })
    addWork(device.work, work, steps.length - 1)
  }
  // What the steps on the way leave stays in memory.
  const keptBytes = steps.length > 1 || distill ? prunedWeights * storedBytes[storedType(config)] : 0

  const { peak } = executor
  const inHostMemory = device.traits.inHostMemory
  const tokens = windows.length * sequenceLength
  const passed = Math.ceil(windows.length / ranks) * sequenceLength
  const stateBytes = (twoStreams ? 2 : 1) * passed * architecture.hiddenSize * elementBytes[o.dtype]
  const hiddenStates = offload ? 0 : Math.min(stateBytes, peak.parts.activations)
  const parts = {
    process: inHostMemory ? processBytes + tokens * Int32Array.BYTES_PER_ELEMENT : 0,
    hiddenStates,
    ...peak.parts,
    weights: peak.parts.weights + keptBytes,
    activations: peak.parts.activations - hiddenStates,
  }
  return {
    blocks: architecture.blockCount,
    prunedWeights,
    memory: { peak: Object.values(parts).reduce((a, b) => a + b, 0), parts },
    work: device.work,
    traffic: executor,
  }
}

/** Runs a step of the training and a measurement, and returns the work of all of them, which becomes the device's. */
async function plannedDistillation(
  student: Engine,
  dense: Engine,
  settings: Required<DistillationOptions>,
  { windows, sequenceLength }: { windows: number; sequenceLength: number },
): Promise<Work> {
  const { work } = student.device
  const count = Math.max(2, windows)
  const heldOut = heldOutCount(count, settings.holdout)
  const batch = Math.min(settings.batch, count - heldOut)
  const window = new Int32Array(sequenceLength)
  const before = workOf(work)
  const distillation = new Distillation(student, dense, { ...settings, epochs: 1, seed: 0 })
  try {
    await distillation.step(Array<Int32Array>(batch).fill(window), 0)
    const step = difference(work, before)
    const measuring = workOf(work)
    await distillation.divergence([window])
    const measurement = difference(work, measuring)
    const steps = settings.epochs * Math.ceil((count - heldOut) / batch)
    addWork(work, step, steps - 1)
    addWork(work, measurement, heldOut * (1 + measurements) - 1)
    await distillation.settle(() => Promise.resolve())
    return difference(work, before)
  } finally {
    distillation.dispose()
  }
}

function workOf({ flop, bytes }: Work): Work {
  return { flop: { ...flop }, bytes }
}

function difference(after: Work, before: Work): Work {
  const work = workOf(after)
  addWork(work, before, -1)
  return work
}

/** Adds `more` to `work`, `times` times. */
function addWork(work: Work, more: Work, times: number): void {
  work.bytes += times * more.bytes
  for (const kind of Object.keys(work.flop) as (keyof typeof work.flop)[])
    work.flop[kind] += times * more.flop[kind]
}

function shapesOnly(config: Record<string, unknown>, o: Pick<PlannedJob, 'device' | 'dtype'>) {
  const executor = new ShapeExecutor(findBackend(o.device).traits)
  const device = new Device(o.device, 1, executor)
  const weights = new PlannedWeights(device, config, o.dtype)
  return { executor, device, weights, architecture: familyOf(config).build(config, weights) }
}

/**
 * Lists all tensors of a checkpoint with this config.json.
 *
 * @internal
 */
export function checkpointTensors(config: Record<string, unknown>): StoredTensor[] {
  const { device, weights, architecture } = shapesOnly(config, { device: 'cpu', dtype: 'float32' })
  askForEveryTensor(new Engine(device, architecture, weights, weights.planned, ''))
  return [...weights.planned.tensors.values()]
}

/** The element type that the files have by the config; float32 when it does not say, as in transformers. */
function storedType(config: Record<string, unknown>): 'F32' | 'F16' | 'BF16' {
  const { torch_dtype, dtype } = languageConfig(config)
  const stored = torch_dtype ?? dtype
  return stored === 'bfloat16' ? 'BF16' : stored === 'float16' ? 'F16' : 'F32'
}

/** Weights of a checkpoint that need not exist: every tensor that is asked for, in the element type that the config names. */
class PlannedWeights extends Weights {
  readonly planned: Checkpoint

  constructor(device: Device, config: Record<string, unknown>, dtype: 'float32' | 'bfloat16') {
    const planned = emptyCheckpoint(config)
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
