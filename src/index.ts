export { SparseGptError, type ErrorCode } from './errors.js'
export { pruneLayer, type PruneLayerOptions, type PrunedLayer } from './pruning/layer.js'
export { loadModel, type LoadOptions, type Logits, type Model } from './models/model.js'
export { perplexity, type Perplexity, type PerplexityOptions } from './evaluation/perplexity.js'
