import { Command } from 'commander'
import type { GeneratedText } from '../generation/text.js'
import type { Model } from '../sdk/model.js'
import { deviceOptions, given, modelArgument, number, type DeviceFlags } from './arguments.js'
import { interruptible } from './interrupt.js'
import { withModel } from './open-model.js'
import { remark } from './verbosity.js'

/** The command's flags as commander parses them; the options below say what each is. */
interface Flags extends DeviceFlags {
  prompt: string
  chat?: true
  maxTokens?: number
  temperature?: number
  topK?: number
  topP?: number
  seed?: number
  stop?: string[]
  json?: true
}

/** The command `sparsegpt generate`, which continues a text. */
export function generateCommand(): Command {
  const command = new Command('generate')
    .description('Continue a text, or answer a message.')
    .argument('<model>', modelArgument)
    .requiredOption('--prompt <text>', 'text to continue')
    .option('--chat', "the prompt is a user's message: write it as the model's chat template does")
    .option('--max-tokens <n>', 'tokens to generate at most (default: 128)', number)
    .option(
      '--temperature <t>',
      'draw tokens, the likelier ones more often the lower this is (default: 0, always the likeliest)',
      number,
    )
    .option('--top-k <k>', 'draw only from the k likeliest tokens', number)
    .option(
      '--top-p <p>',
      'draw only from the fewest likeliest tokens whose probabilities sum to p, after --top-k',
      number,
    )
    .option('--seed <s>', 'seed of what is drawn (default: 0)', number)
    .option('--stop <text>', 'string that ends the text; may be given more than once', collected)
    .option('--json', 'print one JSON object on stdout')
  return deviceOptions(command).action(run)
}

async function run(path: string, flags: Flags): Promise<void> {
  const { json } = flags
  const result = await interruptible((signal) =>
    withModel(path, flags, signal, async (model) => {
      const stream = generation(model, flags, signal)
      return (json || (await print(stream))) && (await stream.result)
    }),
  )
  if (!result) return
  process.stdout.write(json ? `${JSON.stringify(result)}\n` : '\n')
  if (!json) remark(summary(result))
}

/** Prints a text as it comes; resolves to whether there was somebody to read it to its end. */
async function print(pieces: AsyncIterable<string>): Promise<boolean> {
  const failures: Error[] = []
  process.stdout.once('error', (error: Error) => failures.push(error))
  for await (const piece of pieces) {
    if (failures.length > 0) return false
    process.stdout.write(piece)
  }
  return true
}

const collected = (value: string, before: string[] = []): string[] => [...before, value]

function generation(
  model: Model,
  { prompt, chat, maxTokens, temperature, topK, topP, seed, stop }: Flags,
  signal: AbortSignal,
) {
  const said = chat ? { messages: [{ role: 'user', content: prompt }] } : prompt
  return model.generate(said, {
    ...given({ maxTokens, temperature, topK, topP, seed, stop }),
    signal,
  })
}

/** What is said at the end: how fast it was. */
function summary({ promptTokens, promptTokensPerSecond, tokens, tokensPerSecond, ...rest }: GeneratedText) {
  const why = { stop: 'ended', length: 'as many as allowed', context: "the model's context is full" }
  return (
    `prompt: ${promptTokens} tokens, ${promptTokensPerSecond.toFixed(1)} per second; ` +
    `generated: ${tokens} tokens (${why[rest.finishReason]}), ${tokensPerSecond.toFixed(1)} per second`
  )
}
