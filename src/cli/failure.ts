import { inspect } from 'node:util'
import { SparseGptError } from '../errors.js'
import { verbosity } from './verbosity.js'

/** The exit codes of the command line. */
export const exitCodes = {
  /** The code of a command that did its job. */
  done: 0,
  /** The code of a job that failed. */
  failed: 1,
  /** The code of a command that was called wrongly. */
  badUsage: 2,
  /** The code of a command that Ctrl-C has stopped, as shells have it. */
  interrupted: 130,
  /** The code of a command that a signal has stopped. */
  stoppedBy: (signal: NodeJS.Signals): number =>
    signal === 'SIGINT' ? exitCodes.interrupted : exitCodes.failed,
  /** The code for what a command has thrown, which `signal` may have stopped. */
  of: (error: unknown, signal?: NodeJS.Signals): number => {
    const code = error instanceof SparseGptError ? error.code : undefined
    if (code === 'ABORTED' && signal) return exitCodes.stoppedBy(signal)
    return code === 'INVALID_OPTION' ? exitCodes.badUsage : exitCodes.failed
  },
}

/** Flags that are not the option's name in kebab case. */
const flags: Record<string, string> = {
  sequenceLength: '--seqlen',
  'calibration.sequenceLength': '--seqlen',
  tokens: '--seqlen',
  'calibration.samples': '--samples',
  'calibration.seed': '--seed',
  'calibration.textField': '--text-field',
  'calibration.saveTokens': '--save-tokens',
  'reconstruct.epochs': '--reconstruct',
  'reconstruct.learningRate': '--learning-rate',
  'reconstruct.batch': '--batch',
  'reconstruct.window': '--window',
}

/**
 * The text to print for a failed command, in which options are called by their flags. Defects come with their stack.
 */
export function failureText(error: unknown): string {
  const text = shortText(error)
  if (!verbosity().verbose || !(error instanceof SparseGptError)) return text
  return `${text}\n${inspect(error)}`
}

/** A text with its control characters shown, tabs and ends of lines apart, of which a name in a file may have such as clear the screen. */
export const printable = (text: string): string =>
  text.replace(/(?![\t\n])\p{Cc}/gu, (control) => `\\u${control.charCodeAt(0).toString(16).padStart(4, '0')}`)

function shortText(error: unknown): string {
  if (!(error instanceof SparseGptError))
    return error instanceof Error ? (error.stack ?? error.message) : String(error)
  const message = error.message.replace(/\boption ([\w.]+):/g, (_, name: string) => `${flagOf(name)}:`)
  return `sparsegpt: ${printable(message)} [${error.code}]`
}

const flagOf = (name: string) =>
  flags[name] ?? `--${name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`
