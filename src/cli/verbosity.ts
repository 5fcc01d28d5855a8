import type { Command } from 'commander'

/** How much commands say on stderr beside what is wrong. */
interface Verbosity {
  /** Nothing: no progress, no hints. */
  quiet: boolean
  /** Also what a person needs who looks for a fault: the device, every layer, the stack of an error. */
  verbose: boolean
}

let current: Verbosity = { quiet: false, verbose: false }

export const verbosity = (): Readonly<Verbosity> => current

/** Adds `--quiet` and `--verbose` to a command. */
export function verbosityOptions(command: Command): void {
  command
    .option('--quiet', 'say nothing on stderr but what is wrong')
    .option('--verbose', 'say more on stderr: the device, every layer, where an error came from')
}

/** Takes these flags from a command that is about to run, and keeps them. */
export function takeVerbosity(command: Command): void {
  const { quiet = false, verbose = false } = command.opts<Partial<Verbosity>>()
  if (quiet && verbose) command.error('error: --quiet and --verbose contradict each other: give one of them')
  current = { quiet, verbose }
  for (const name of ['quiet', 'verbose', 'config']) command.setOptionValue(name, undefined)
}

/** Writes a line to stderr that is for people and not needed; `--quiet` leaves it out. */
export function remark(line: string): void {
  if (!current.quiet) process.stderr.write(`${line}\n`)
}
