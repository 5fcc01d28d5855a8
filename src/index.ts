export { SparseGptError, type ErrorCode } from './errors.js'
export type { PathOrUrl } from './options.js'
export {
  generate,
  loadModel,
  type LoadOptions,
  type Logits,
  type Model,
  type SaveOptions,
} from './sdk/model.js'
export type { GenerateOptions, Prompt, TextGeneration } from './sdk/generate.js'
export type { FinishReason, GeneratedText } from './generation/text.js'
export type { DownloadProgress } from './hub/snapshot.js'
export type { Job } from './sdk/job.js'
export { dryRun, prune, type CalibrationOptions, type DryRun, type PruneOptions } from './sdk/prune.js'
export { readRecipe, type PruneRecipe } from './sdk/recipe.js'
export type { InputHashes } from './reporting/report.js'
export { distill, type DistillationText, type DistillOptions, type DistillReport } from './sdk/distill.js'
export type { DistillationProgress } from './training/distillation.js'
export type { DistillationLosses } from './training/saved-training.js'
export type { AllocationName } from './pruning/allocation/names.js'
export type { Recipe, RecipeEntry, RecipeShare } from './pruning/allocation/recipe.js'
export type { Quality } from './pruning/options.js'
export type { DistillationOptions, ReconstructOptions } from './training/options.js'
export type { LayerReport, PruneProgress, PruneReport } from './pruning/report.js'
export type { PhaseSeconds } from './pruning/phases.js'
export { plan, type Plan, type PlanOptions, type RankedPlan, type TimedPlan } from './sdk/plan.js'
export { pruneLayer, type PruneLayerOptions, type PrunedLayer } from './sdk/prune-layer.js'
export { pack, unpack, type PackOptions, type PackProgress, type PackReport } from './sdk/pack.js'
export { inspect, type Inspection, type KindReport, type TensorReport } from './sdk/inspect.js'
export { benchmark, type BenchOptions, type BenchReport } from './sdk/benchmark/benchmark.js'
export {
  benchmarkDecode,
  type DecodeBenchOptions,
  type DecodeBenchReport,
  type DecodeLine,
} from './sdk/benchmark/decode.js'
export { perplexity, type Comparison, type Perplexity, type PerplexityOptions } from './sdk/perplexity.js'
export { compare, type ComparedModel, type CompareOptions, type CompareReport } from './sdk/compare.js'
export { sweep, type SweepOptions, type SweepPoint, type SweepReport } from './sdk/sweep.js'
export {
  sensitivity,
  type PartDamage,
  type SensitivityOptions,
  type SensitivityReport,
} from './sdk/sensitivity.js'
export { evaluateTasks, type TaskOptions, type TaskReport } from './sdk/tasks.js'
export type { Metric, TaskResult } from './evaluation/evaluate.js'
export type { TaskName } from './evaluation/tasks.js'
export type { CalibrationSource, TextSource, WeightedSource } from './text/source.js'
export type { DatasetName } from './text/dataset.js'
export { saveTokens } from './text/token-file.js'
export { Communicator, MpiCommunicator } from './native/communicator.js'
export type { DeviceName } from './native/device.js'
export { devices, type DeviceInfo } from './native/devices.js'
export type { PruningMethod } from './pruning/methods/names.js'
export type { ChatMessage, EncodeOptions, Tokenizer } from './text/tokenizer.js'
