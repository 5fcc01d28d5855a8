import { join } from 'node:path'
import * as z from 'zod'
import { SparseGptError } from '../errors.js'
import { parseJsonFile } from '../files/json-file.js'
import { readIfThere } from '../files/regular-file.js'

/** The chat template of a model. */
export interface ChatTemplate {
  /** The path of the file that it is from. */
  file: string
  /** The template, in Jinja. */
  source: string
  /** What it may use besides the messages: the special tokens, by their names in tokenizer_config.json. */
  values: Record<string, string>
}

const maxConfigBytes = 2 ** 26
/** The size of the largest template that is read, in bytes; those of models have some ten thousand. */
const maxTemplateBytes = 2 ** 20

const token = z.union([z.string(), z.object({ content: z.string() }).transform(({ content }) => content)])
const template = z.string().max(maxTemplateBytes)

const configSchema = z.object({
  bos_token: token.nullish(),
  eos_token: token.nullish(),
  unk_token: token.nullish(),
  pad_token: token.nullish(),
  chat_template: z.union([template, z.array(z.object({ name: z.string(), template })).max(1000)]).nullish(),
})

/**
 * The chat template of a model folder, as transformers finds it: chat_template.jinja, else `chat_template` of
 * tokenizer_config.json, of several the one named `default`.
 *
 * Throws FILE_NOT_FOUND when there is none; INVALID_CHECKPOINT when a file is damaged or too large.
 */
export async function readChatTemplate(folder: string): Promise<ChatTemplate> {
  const [jinja, settings] = [join(folder, 'chat_template.jinja'), join(folder, 'tokenizer_config.json')]
  const own = await readIfThere(jinja, maxTemplateBytes)
  const config = parseConfig(settings, (await readIfThere(settings, maxConfigBytes)) ?? '{}')
  const { chat_template: given, ...tokens } = config
  const values = Object.fromEntries(
    Object.entries(tokens).filter((entry): entry is [string, string] => typeof entry[1] === 'string'),
  )
  if (own !== undefined) return { file: jinja, source: own, values }
  if (typeof given === 'string') return { file: settings, source: given, values }
  const source = given?.find(({ name }) => name === 'default')?.template
  if (source !== undefined) return { file: settings, source, values }
  const found = given
    ? `${settings} has chat templates (${given.map(({ name }) => name).join(', ')}), but none named default`
    : `${jinja} does not exist, and ${settings} has no chat_template`
  const message = `${found}: the model has no chat template; give a prompt without one`
  throw new SparseGptError('FILE_NOT_FOUND', message)
}

function parseConfig(file: string, text: string): z.output<typeof configSchema> {
  const result = configSchema.safeParse(parseJsonFile(file, text))
  if (result.success) return result.data
  const problems = result.error.issues.map(({ path, message }) => `${path.join('.')}: ${message}`)
  throw new SparseGptError('INVALID_CHECKPOINT', `${file}: ${problems.join('; ')}`)
}
