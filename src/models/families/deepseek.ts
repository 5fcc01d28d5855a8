import * as z from 'zod'
import { llamaArchitecture, llamaConfig } from './llama.js'
import type { Architecture } from '../architecture.js'
import { checkExperts, checkHeads, checkSupported, parseConfig, size, type Family } from '../family.js'
import { expertNames, experts, gatedMlp } from '../feed-forward.js'
import { latentAttention } from '../latent-attention.js'
import { yarnScale } from '../rotary.js'
import type { Routing } from '../routing.js'
import type { Weights } from '../weights.js'
import { SparseGptError } from '../../errors.js'

const schema = llamaConfig.extend({
  attention_bias: z.boolean().default(false),
  moe_intermediate_size: size,
  n_routed_experts: size,
  n_shared_experts: size.nullish(),
  num_experts_per_tok: size,
  norm_topk_prob: z.boolean(),
  n_group: size.nullish(),
  topk_group: size.nullish(),
  routed_scaling_factor: z.number().positive(),
  first_k_dense_replace: z.int().min(0),
  moe_layer_freq: z.int().default(1),
  q_lora_rank: size.nullish(),
  kv_lora_rank: size.default(512),
  qk_nope_head_dim: size.default(128),
  qk_rope_head_dim: size.default(64),
  v_head_dim: size.default(128),
})
type Config = z.output<typeof schema>

/** Throws INVALID_CHECKPOINT unless the groups of experts, where there are some, have enough of them. */
function groupsOf(c: Config, best: number): Routing['groups'] {
  if (typeof c.n_group !== 'number' || c.n_group === 1) return undefined
  const { n_group: count, n_routed_experts: all, num_experts_per_tok: active } = c
  const activeGroups = c.topk_group ?? count
  if (all % count === 0 && activeGroups <= count && active <= (activeGroups * all) / count) {
    return { count, active: activeGroups, best }
  }
  const message = `config.json: n_group ${count} and topk_group ${activeGroups} do not fit ${all} experts, of which ${active} are active`
  throw new SparseGptError('INVALID_CHECKPOINT', message)
}

/** The first blocks have an ordinary MLP, the others routed experts and one that every token goes through. */
function architecture(
  c: Config,
  weights: Weights,
  {
    interleaved,
    ...routing
  }: { interleaved: boolean; preference?: string } & Pick<Routing, 'shares' | 'groups'>,
): Architecture {
  const { hidden_size: hidden, hidden_act: activation, num_attention_heads: heads } = c
  const headDim = c.qk_nope_head_dim + c.qk_rope_head_dim
  checkHeads(hidden, heads, heads, headDim)
  checkExperts(c.num_hidden_layers, c.n_routed_experts, c.num_experts_per_tok, 'n_routed_experts')
  checkSupported(c.moe_layer_freq === 1, 'moe_layer_freq', c.moe_layer_freq, 'it must be 1')
  const narrow = c.v_head_dim <= headDim
  checkSupported(narrow, 'v_head_dim', c.v_head_dim, `values wider than keys (${headDim}) are not`)
  // YaRN's factor is that of the scores, here.
  const { factor, mscale_all_dim: mscale } = c.rope_parameters ?? c.rope_scaling ?? {}
  const stretch = typeof factor === 'number' && typeof mscale === 'number' ? yarnScale(factor, mscale) : 1
  const { preference, ...shares } = routing
  const dense = gatedMlp({ hidden, inner: c.intermediate_size, activation })
  const sparse = experts({
    routing: {
      experts: c.n_routed_experts,
      active: c.num_experts_per_tok,
      scale: c.routed_scaling_factor,
      ...shares,
    },
    hidden,
    inner: c.moe_intermediate_size,
    activation,
    router: 'mlp.gate',
    ...(preference !== undefined && { preference }),
    names: expertNames('mlp.experts.'),
    shared: c.n_shared_experts
      ? {
          mlp: gatedMlp({
            hidden,
            inner: c.n_shared_experts * c.moe_intermediate_size,
            activation,
            prefix: 'mlp.shared_experts.',
          }),
        }
      : undefined,
  })
  return llamaArchitecture(c, weights, {
    attention: latentAttention(c, { scale: headDim ** -0.5 * stretch ** 2, interleaved }),
    feedForward: (block) => (block < c.first_k_dense_replace ? dense : sparse),
  })
}

const schema2 = schema.extend({
  n_routed_experts: size.default(64),
  n_shared_experts: size.nullable().default(2),
  num_experts_per_tok: size,
  moe_intermediate_size: size.default(1407),
  q_lora_rank: size.nullable().default(1536),
  norm_topk_prob: z.boolean().default(false),
  routed_scaling_factor: z.number().positive().default(1),
  first_k_dense_replace: z.int().min(0).default(0),
  topk_method: z.string().default('greedy'),
})

/** DeepSeek-V2: multi-head latent attention, and experts by their softmax. */
export const deepseekV2: Family = {
  modelType: 'deepseek_v2',

  build(config, weights) {
    const c = parseConfig(schema2, config)
    const grouped = c.topk_method === 'group_limited_greedy'
    const known = grouped || c.topk_method === 'greedy'
    checkSupported(known, 'topk_method', c.topk_method, 'greedy and group_limited_greedy are')
    checkSupported(!c.norm_topk_prob, 'norm_topk_prob', c.norm_topk_prob, 'it must be false')
    const groups = grouped ? groupsOf(c, 1) : undefined
    return architecture(c, weights, { interleaved: true, shares: 'softmax', groups })
  },
}

const schema3 = schema.extend({
  n_routed_experts: size.default(256),
  n_shared_experts: size.nullable().default(1),
  num_experts_per_tok: size.default(8),
  moe_intermediate_size: size.default(2048),
  n_group: size.nullable().default(8),
  topk_group: size.nullable().default(4),
  q_lora_rank: size.nullable().default(1536),
  norm_topk_prob: z.boolean().default(true),
  routed_scaling_factor: z.number().positive().default(2.5),
  first_k_dense_replace: z.int().min(0).default(3),
  topk_method: z.string().default('noaux_tc'),
  scoring_func: z.string().default('sigmoid'),
  rope_interleave: z.boolean().default(true),
})

/** DeepSeek-V3 and R1: V2 with experts by their sigmoids, chosen within groups, and with a preference that balances them. */
export const deepseekV3: Family = {
  modelType: 'deepseek_v3',

  build(config, weights) {
    const c = parseConfig(schema3, config)
    checkSupported(c.topk_method === 'noaux_tc', 'topk_method', c.topk_method, 'it must be noaux_tc')
    checkSupported(c.scoring_func === 'sigmoid', 'scoring_func', c.scoring_func, 'it must be sigmoid')
    return architecture(c, weights, {
      interleaved: c.rope_interleave,
      shares: c.norm_topk_prob ? 'normalized sigmoid' : 'sigmoid',
      groups: groupsOf(c, 2),
      preference: 'mlp.gate.e_score_correction_bias',
    })
  },
}
