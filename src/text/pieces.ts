import * as z from 'zod'

/**
 * Where a text may be cut so that the token ids of its pieces, one after the other, are those of the whole text. Only what is
 * proven here is cut: between a letter and a single space that another letter follows, and, where the tokenizer puts nothing before a
 * text, between a letter and a newline or a punctuation mark, for tokenizers whose steps are all known not to look across such a
 * place.
 */
export interface Cutting {
  /** The letters after which the text may be cut, by the character that follows the cut. */
  letters: ReadonlyMap<string, ReadonlySet<string>>
  /** Whether the space at the cut is left out, because the tokenizer puts one before every text. */
  dropsSpace: boolean
  /** The number of ids that the post-processor puts before a text. */
  before: number
  /** The number of ids that the post-processor puts after a text. */
  after: number
}

const named = z.object({ type: z.string() }).loose()
type Step = z.output<typeof named>

const addedToken = z
  .object({
    content: z.string(),
    rstrip: z.boolean().default(false),
    single_word: z.boolean().default(false),
  })
  .loose()

const tokenizer = z
  .object({
    added_tokens: z.array(addedToken).nullish(),
    normalizer: named.nullish(),
    pre_tokenizer: named.nullish(),
    post_processor: named.nullish(),
    model: z
      .object({
        type: z.string().optional(),
        vocab: z.unknown(),
        dropout: z.number().nullish(),
        ignore_merges: z.boolean().nullish(),
        continuing_subword_prefix: z.string().nullish(),
        end_of_word_suffix: z.string().nullish(),
      })
      .loose(),
  })
  .loose()

/**
 * Letters since the first versions of Unicode: of Latin, Greek, Cyrillic, Hebrew, Arabic, Devanagari, Thai, kana and Han. Those that
 * normalization takes apart are left out, since the mark at their end is no letter.
 */
const alphabets = 'AZ az Øö øÿ ΑΩ αω Ая את اغ في अह กะ ぁゖ ァヺ 一龥'

let known: ReadonlySet<string> | undefined
function everyLetter(): ReadonlySet<string> {
  if (known) return known
  const ranges = alphabets.split(' ').map((range) => [range.charCodeAt(0), range.charCodeAt(1)] as const)
  const all = ranges.flatMap(([first, last]) =>
    Array.from({ length: last - first + 1 }, (_, i) => String.fromCharCode(first + i)),
  )
  known = new Set(all.filter((letter) => /\p{L}/u.test(letter) && letter.normalize('NFKD') === letter))
  return known
}

/** What else than a space may begin a piece: characters that are neither letters, digits nor apostrophes in any expression below. */
const marks = Array.from('\n.,!?。、')
const mark = '▁'

/** Steps that look at single characters, or at characters that combine with others, which these letters, spaces and marks never do. */
const localNormalizers = new Set(['NFC', 'NFD', 'NFKC', 'NFKD', 'Lowercase'])
/** Steps that split by the kinds of characters, so that a run of letters ends before a space or a mark. */
const wordSplitters = new Set(['Whitespace', 'BertPreTokenizer'])
/** Steps that split at characters which are neither letters nor spaces. */
const numberSplitters = new Set(['Digits', 'Punctuation'])
const numberExpressions = new Set([String.raw`\p{N}{1,3}`, '[0-9][0-9][0-9]'])

const contraction = String.raw`(?i:'s|'t|'re|'ve|'m|'ll|'d)`
const afterWords = String.raw` ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
const upper = String.raw`[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`
const lower = String.raw`[\p{Ll}\p{Lm}\p{Lo}\p{M}]`
const lead = String.raw`[^\r\n\p{L}\p{N}]?`
/**
 * Regular expressions that models split with. In each, a match that has come to a letter never goes on over a space or a mark, one
 * that begins at a space goes on over a letter, and none looks back.
 */
const wordExpressions = new Set([
  // GPT-2
  String.raw`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`,
  // GPT-4, Llama 3
  String.raw`${contraction}|${lead}\p{L}+|\p{N}{1,3}|${afterWords}`,
  // Qwen 2
  String.raw`${contraction}|${lead}\p{L}+|\p{N}|${afterWords}`,
  // GPT-4o
  String.raw`${lead}${upper}*${lower}+${contraction}?|${lead}${upper}+${lower}*${contraction}?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`,
  // BLOOM
  String.raw` ?[^(\s|[.,!?…。，、।۔،])]+`,
])

/** Where the tokenizer of this tokenizer.json may cut; undefined when nothing is known of it. */
export function cuttingOf(json: string): Cutting | undefined {
  let parsed: z.output<typeof tokenizer>
  try {
    parsed = tokenizer.parse(JSON.parse(json))
  } catch {
    // Whether the file is valid is for the library to say.
    return undefined
  }
  const added = parsed.added_tokens ?? []
  const normalizing = normalizersOf(parsed.normalizer)
  const splitting = splittersOf(parsed.pre_tokenizer)
  const special = specialTokens(parsed.post_processor)
  if (!normalizing || !splitting || !special) return undefined
  if (!added.every((token) => staysApart(token, normalizing.marksSpaces))) return undefined
  // A space at the start of a piece that is left out must be all that the tokenizer puts there.
  if (normalizing.prepends && !normalizing.marksSpaces) return undefined
  const { model } = parsed
  if (typeof model.dropout === 'number' && model.dropout !== 0) return undefined
  const marked = normalizing.marksSpaces || splitting.includes('mark')
  if (splitting.includes('marked only') && !marked) return undefined
  const splitsWords = splitting.some((step) => step === 'space' || (step === 'unmarked space' && !marked))
  const rest = { dropsSpace: normalizing.prepends, before: special.before, after: special.after }
  // What is put before a text would be put before such a piece, too.
  const bare = !normalizing.prepends && !splitting.includes('mark') && !splitting.includes('leading space')
  const others = bare && added.every(leavesMarks) ? marks : []
  if (splitsWords) {
    const kinds = splitting.includes('kinds') ? others : []
    return { letters: new Map([' ', ...kinds].map((next) => [next, everyLetter()])), ...rest }
  }
  // Bytes are merged by other names than those of their characters.
  if (splitting.includes('bytes')) return undefined
  const free = unmergedLetters(model, [marked ? mark : ' ', ...others], normalizing.lowers)
  const found = free.map((set, i): [string, ReadonlySet<string>] => [i === 0 ? ' ' : others[i - 1]!, set])
  const cuts = found.filter(([, set]) => set.size > 0)
  return cuts.length > 0 ? { letters: new Map(cuts), ...rest } : undefined
}

type AddedToken = z.output<typeof addedToken>

/** Whether an added token, which is found before all else, can neither lie across a cut nor change what is at its sides. */
function staysApart({ content, rstrip }: AddedToken, marksSpaces: boolean): boolean {
  return [content, content.normalize('NFKC')].every((form) => {
    const spaced = marksSpaces ? form.replaceAll(mark, ' ') : form
    if (/^\p{L}|\s\p{L}|\p{L}\s|^\s$/u.test(spaced)) return false
    return !(rstrip && /\p{L}$/u.test(spaced))
  })
}

/** The same of a cut before a mark: an added token must not have it behind a letter, or begin with it and look at what is before. */
function leavesMarks({ content, single_word }: AddedToken): boolean {
  return [content, content.normalize('NFKC')].every(
    (form) => !/\p{L}[\n.,!?。、]/u.test(form) && !(single_word && /^[\n.,!?。、]/.test(form)),
  )
}

/** The steps of a sequence, or the one step. */
function stepsOf(step: Step | null | undefined, field: string): Step[] | undefined {
  if (step == null) return []
  if (step.type !== 'Sequence') return [step]
  const parsed = z.array(named).safeParse(step[field])
  if (!parsed.success) return undefined
  const inner = parsed.data.map((part) => stepsOf(part, field))
  return inner.every((part) => part !== undefined) ? inner.flat() : undefined
}

function normalizersOf(
  step: Step | null | undefined,
): { prepends: boolean; marksSpaces: boolean; lowers: boolean } | undefined {
  const result = { prepends: false, marksSpaces: false, lowers: false }
  const steps = stepsOf(step, 'normalizers')
  if (!steps) return undefined
  for (const { type, prepend, pattern, content } of steps) {
    if (type === 'Lowercase') result.lowers = true
    if (localNormalizers.has(type)) continue
    if (type === 'Prepend' && prepend === mark && !result.prepends && !result.marksSpaces) {
      result.prepends = true
    } else if (type === 'Replace' && literal(pattern) === ' ' && content === mark && !result.marksSpaces) {
      result.marksSpaces = true
    } else return undefined
  }
  return result
}

/**
 * What a step that splits does at a cut: 'space' splits there, 'unmarked space' does so where the space is still one, 'kinds'
 * before a mark, 'mark' makes '▁' of the space, 'marked only' does nothing to one, 'bytes' makes other characters of all, and
 * 'leading space' puts a space before a text that has none there.
 */
type Splitting = 'space' | 'unmarked space' | 'kinds' | 'mark' | 'marked only' | 'bytes' | 'leading space'

/** What all steps do that split the text; undefined when one is not known. */
function splittersOf(step: Step | null | undefined): Splitting[] | undefined {
  const steps = stepsOf(step, 'pretokenizers')
  if (!steps) return undefined
  const found: Splitting[] = []
  for (const given of steps) {
    const { type } = given
    if (type === 'ByteLevel') {
      if (given['add_prefix_space'] !== false) found.push('leading space')
      if (given['use_regex'] !== false) found.push('unmarked space', 'kinds')
      found.push('bytes')
    } else if (type === 'Metaspace' && (given['replacement'] ?? mark) === mark) {
      found.push('mark')
      if (given['split'] !== false) found.push('space')
    } else if (wordSplitters.has(type)) found.push('unmarked space', 'kinds')
    else if (type === 'WhitespaceSplit') found.push('unmarked space')
    else if (type === 'Split' && literal(given['pattern']) === ' ') found.push('marked only')
    else if (type === 'Split' && given['invert'] !== true && given['behavior'] === 'Isolated') {
      const expression = regularExpression(given['pattern'])
      if (expression === undefined) return undefined
      if (wordExpressions.has(expression)) found.push('unmarked space', 'kinds')
      else if (!numberExpressions.has(expression)) return undefined
    } else if (!numberSplitters.has(type)) return undefined
  }
  return found
}

const literal = (pattern: unknown) => z.object({ String: z.string() }).safeParse(pattern).data?.String

const regularExpression = (pattern: unknown) => z.object({ Regex: z.string() }).safeParse(pattern).data?.Regex

/** The numbers of ids that the post-processor puts around a text. */
function specialTokens(step: Step | null | undefined): { before: number; after: number } | undefined {
  const steps = stepsOf(step, 'processors')
  if (!steps) return undefined
  let [before, after] = [0, 0]
  for (const given of steps) {
    if (given.type === 'ByteLevel') continue
    const template = templateSchema.safeParse(given).data
    if (!template) return undefined
    const at = template.single.findIndex((part) => 'Sequence' in part)
    if (at < 0 || template.single.filter((part) => 'Sequence' in part).length !== 1) return undefined
    for (const [i, part] of template.single.entries()) {
      if (!('SpecialToken' in part)) continue
      const count = template.special_tokens[part.SpecialToken.id]?.ids.length
      if (count === undefined) return undefined
      if (i < at) before += count
      else after += count
    }
  }
  return { before, after }
}

const templateSchema = z.object({
  type: z.literal('TemplateProcessing'),
  single: z.array(
    z.union([
      z.object({ SpecialToken: z.object({ id: z.string() }) }),
      z.object({ Sequence: z.object({ id: z.literal('A') }) }),
    ]),
  ),
  special_tokens: z.record(z.string(), z.object({ ids: z.array(z.int()) })),
})

/**
 * For each of `nexts`, the letters that no merge joins with it behind them, in byte-pair encoding of a text that nothing has split:
 * without a token that has both side by side, each side is merged as if the other were not there.
 */
function unmergedLetters(
  model: z.output<typeof tokenizer>['model'],
  nexts: readonly string[],
  lowers: boolean,
): Set<string>[] {
  const vocab = z.record(z.string(), z.unknown()).safeParse(model.vocab).data
  if (model.type !== 'BPE' || !vocab || model.ignore_merges) return []
  if (model.continuing_subword_prefix || model.end_of_word_suffix) return []
  // What the vocabulary lacks becomes an unknown token, which may be fused with another.
  const letters = [...everyLetter()]
  const known = letters.filter((letter) => Object.hasOwn(vocab, letter))
  const free = new Map(nexts.map((next) => [next, new Set(Object.hasOwn(vocab, next) ? known : [])]))
  for (const token of Object.keys(vocab)) {
    for (let i = 1; i < token.length; i++) free.get(token.charAt(i))?.delete(token.charAt(i - 1))
  }
  const sets = [...free.values()]
  if (!lowers) return sets
  return sets.map((set) => new Set(letters.filter((letter) => set.has(letter.toLowerCase()))))
}

/** The pieces of a text, each of at least `length` characters, but for the last, and cut as soon as it may be. */
export function* piecesOf(text: string, cutting: Cutting, length: number): Generator<string> {
  const letters = everyLetter()
  let start = 0
  for (let at = length; at < text.length; at++) {
    if (!cutting.letters.get(text.charAt(at))?.has(text.charAt(at - 1))) continue
    const spaced = text.charAt(at) === ' '
    if (spaced && !letters.has(text.charAt(at + 1))) continue
    yield text.slice(start, at)
    start = spaced && cutting.dropsSpace ? at + 1 : at
    at += Math.max(length - 1, 0)
  }
  yield text.slice(start)
}
