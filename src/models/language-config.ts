/**
 * The sizes of the config classes in transformers: the `text_config` of a multimodal model leaves out what it has in common with its
 * class.
 */
const usualSizes: Record<string, Record<string, number>> = {
  cohere2: sizes(256000, 8192, 22528, 40, 64, 64),
  gemma: { ...sizes(256000, 3072, 24576, 28, 16, 16), max_position_embeddings: 8192 },
  gemma2: { ...sizes(256000, 2304, 9216, 26, 8, 4), max_position_embeddings: 8192 },
  gemma3_text: { ...sizes(262208, 2304, 9216, 26, 8, 4), max_position_embeddings: 131072 },
  llama: sizes(32000, 4096, 11008, 32, 32),
  mistral: { ...sizes(32000, 4096, 14336, 32, 32, 8), max_position_embeddings: 131072 },
  qwen2: { ...sizes(151936, 4096, 22016, 32, 32), max_position_embeddings: 32768 },
}

function sizes(
  vocab_size: number,
  hidden_size: number,
  intermediate_size: number,
  num_hidden_layers: number,
  num_attention_heads: number,
  num_key_value_heads = num_attention_heads,
): Record<string, number> {
  return {
    vocab_size,
    hidden_size,
    intermediate_size,
    num_hidden_layers,
    num_attention_heads,
    num_key_value_heads,
  }
}

/** Entries that are those of the whole config where it has them. */
const shared = ['tie_word_embeddings']
/** Entries that are those of the whole config where its language model has none. */
const inherited = ['dtype', 'torch_dtype']

/**
 * The config of the language model: of a multimodal one `text_config`, with the sizes that it leaves out; the config itself
 * elsewhere.
 */
export function languageConfig(config: Record<string, unknown>): Record<string, unknown> {
  const { text_config: text, hidden_size } = config
  // A model with sizes of its own has its language model at the top.
  if (typeof text !== 'object' || text === null || Array.isArray(text) || hidden_size !== undefined)
    return config
  const own = Object.fromEntries(
    Object.entries(text as Record<string, unknown>).filter(([, value]) => value !== null),
  )
  const type = own['model_type']
  const usual = typeof type === 'string' && Object.hasOwn(usualSizes, type) ? usualSizes[type] : {}
  const given = (names: string[]) =>
    Object.fromEntries(
      names.filter((name) => (config[name] ?? undefined) !== undefined).map((name) => [name, config[name]]),
    )
  return { ...usual, ...given(inherited), ...own, ...given(shared) }
}

/** The prefixes that a language model's weights may have as a part of a multimodal model, by one that they have alone. */
export function nestedPrefixes(prefix: string): string[] {
  return [`language_model.${prefix}`, prefix.replace(/^(model\.)?/, 'model.language_model.')]
}
