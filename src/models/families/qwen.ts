import * as z from 'zod'
import { llamaArchitecture, llamaConfig, type LlamaConfig } from './llama.js'
import {
  checkExperts,
  layerTypes,
  parseConfig,
  renamed,
  size,
  slidingBlocks,
  tokenCount,
  type Family,
} from '../family.js'
import { expertNames, experts, gatedMlp, type Experts, type FeedForward } from '../feed-forward.js'

const schema = llamaConfig.extend({
  use_sliding_window: z.boolean().default(false),
  /** 0, too, means that there is none. */
  sliding_window: z.literal(0).or(tokenCount).nullable().default(4096),
  max_window_layers: z.int().min(0).default(28),
  layer_types: layerTypes,
})

/** The window of a block: some, or those from max_window_layers on, have one when windows are used at all. */
function window(
  c: z.output<typeof schema>,
  usual = (block: number) => block >= c.max_window_layers,
): (block: number) => number | undefined {
  const slides = slidingBlocks(c, usual)
  return (block) => (c.use_sliding_window && slides(block) ? c.sliding_window || undefined : undefined)
}

/** Qwen2 and Qwen2.5: LLaMA with biases for q, k and v. */
export const qwen2: Family = {
  modelType: 'qwen2',

  build(config, weights) {
    const c = parseConfig(schema, config)
    return llamaArchitecture(c, weights, { bias: { qkv: true }, window: window(c) })
  },
}

const schema3 = schema.extend({
  head_dim: size.default(128),
  attention_bias: z.boolean().default(false),
})

/** Qwen3: LLaMA with norms of each head's q and k. */
export const qwen3: Family = {
  modelType: 'qwen3',

  build(config, weights) {
    const c = parseConfig(schema3, config)
    const bias = { qkv: c.attention_bias, output: c.attention_bias }
    return llamaArchitecture(c, weights, { bias, queryKeyNorms: {}, window: window(c) })
  },
}

const expertEntries = {
  moe_intermediate_size: size,
  num_experts: size,
  num_experts_per_tok: size,
  norm_topk_prob: z.boolean().default(false),
  decoder_sparse_step: z.int().min(1).default(1),
  mlp_only_layers: z.array(z.int()).nullish(),
}

/** The experts of the blocks that have some, and the MLP of the others. */
function expertsByBlock(
  c: LlamaConfig & z.output<z.ZodObject<typeof expertEntries>>,
  shared?: Experts['shared'],
): (block: number) => FeedForward {
  checkExperts(c.num_hidden_layers, c.num_experts, c.num_experts_per_tok, 'num_experts')
  const { hidden_size: hidden, hidden_act: activation } = c
  const dense = gatedMlp({ hidden, inner: c.intermediate_size, activation })
  const sparse = experts({
    routing: {
      experts: c.num_experts,
      active: c.num_experts_per_tok,
      shares: c.norm_topk_prob ? 'softmax of chosen' : 'softmax',
    },
    hidden,
    inner: c.moe_intermediate_size,
    activation,
    router: 'mlp.gate',
    names: expertNames('mlp.experts.'),
    shared,
  })
  const isSparse = (block: number) =>
    (block + 1) % c.decoder_sparse_step === 0 && !c.mlp_only_layers?.includes(block)
  return (block) => (isSparse(block) ? sparse : dense)
}

const moeSchema = schema.extend({
  ...expertEntries,
  moe_intermediate_size: size.default(1408),
  num_experts: size.default(60),
  num_experts_per_tok: size.default(4),
  shared_expert_intermediate_size: size.default(5632),
  qkv_bias: z.boolean().default(true),
})

/** Qwen1.5 and Qwen2 with experts, and one that every token goes through. */
export const qwen2Moe: Family = {
  modelType: 'qwen2_moe',

  build(config, weights) {
    const c = parseConfig(moeSchema, config)
    const shared = {
      mlp: gatedMlp({
        hidden: c.hidden_size,
        inner: c.shared_expert_intermediate_size,
        activation: c.hidden_act,
        prefix: 'mlp.shared_expert.',
      }),
      gate: 'mlp.shared_expert_gate',
    }
    return llamaArchitecture(c, weights, {
      bias: { qkv: c.qkv_bias },
      window: window(c, (block) => block % 2 === 0 && block < c.max_window_layers),
      feedForward: expertsByBlock(c, shared),
    })
  },
}

const moeSchema3 = schema3.omit({ max_window_layers: true, layer_types: true }).extend({
  ...expertEntries,
  head_dim: size.nullish(),
  moe_intermediate_size: size.default(768),
  num_experts: size.default(128),
  num_experts_per_tok: size.default(8),
})

/** Qwen3 with experts. */
export const qwen3Moe: Family = {
  modelType: 'qwen3_moe',

  build(config, weights) {
    const c = parseConfig(moeSchema3, renamed(config, { num_local_experts: 'num_experts' }))
    return llamaArchitecture(c, weights, {
      bias: { qkv: c.attention_bias, output: c.attention_bias },
      queryKeyNorms: {},
      window: () => (c.use_sliding_window ? c.sliding_window || undefined : undefined),
      feedForward: expertsByBlock(c),
    })
  },
}
