import { SparseGptError } from '../errors.js'
import { quoted } from '../quoted.js'

const off: unknown[] = [undefined, null, false, 0, '']

/**
 * Entries of config.json that change the forward pass of the models that have them, each with a test whether a value leaves it
 * as it is. A family that computes one has it in its schema.
 */
const entries: Record<string, (value: unknown) => boolean> = {
  // Which keys a query sees, and how scores are made.
  dual_chunk_attention_config: isOff,
  sparse_attention_config: isOff,
  attention_chunk_size: isOff,
  use_sliding_window: isOff,
  use_bidirectional_attention: isOff,
  is_causal: (value) => value !== false,
  is_encoder_decoder: isOff,
  add_cross_attention: isOff,
  layer_types: (value) => isOff(value) || allEqual(value, 'full_attention'),
  attn_logit_softcapping: isOff,
  query_pre_attn_scalar: isOff,
  attention_multiplier: isOff,
  attn_temperature_tuning: isOff,
  use_logn_attn: isOff,
  clip_qkv: isOff,
  qk_layernorm: isOff,
  qk_norm: isOff,
  use_qk_norm: isOff,
  // Positions.
  alibi: isOff,
  use_alibi: isOff,
  use_dynamic_ntk: isOff,
  no_rope_layers: (value) => isOff(value) || allEqual(value, 1),
  no_rope_layer_interval: isOff,
  rope_local_base_freq: isOff,
  rope_interleave: isOff,
  rope_interleaved: isOff,
  position_embedding_type: (value) => isOff(value) || isAny(value, ['absolute', 'learned', 'rope', 'rotary']),
  partial_rotary_factor: isOne,
  // Scales and caps of embeddings, residuals and logits.
  embedding_multiplier: isOne,
  residual_multiplier: isOne,
  logits_scaling: isOne,
  logit_scale: isOne,
  final_logit_softcapping: isOff,
}

/** Throws UNSUPPORTED_MODEL for an entry that changes the forward pass and is not among those that the family computes. */
export function checkForwardEntries(config: Record<string, unknown>, computed: readonly string[]): void {
  for (const [entry, isNeutral] of Object.entries(entries)) {
    const value = config[entry]
    if (computed.includes(entry) || isNeutral(value)) continue
    throw new SparseGptError(
      'UNSUPPORTED_MODEL',
      `config.json: ${entry} ${quoted(value)} changes what the model computes, and is not supported for model_type ` +
        `${quoted(config['model_type'])}; if the model does not use it, remove the entry`,
    )
  }
}

function isOff(value: unknown): boolean {
  if (typeof value === 'object' && value !== null) return Object.keys(value).length === 0
  return off.includes(value)
}

function isOne(value: unknown): boolean {
  return isAny(value, [undefined, null, 1])
}

function isAny(value: unknown, known: readonly unknown[]): boolean {
  return known.includes(value)
}

function allEqual(value: unknown, expected: unknown): boolean {
  return Array.isArray(value) && value.every((item) => item === expected)
}
