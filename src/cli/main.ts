#!/usr/bin/env node
import { readFileSync } from 'node:fs'
import { Command, CommanderError } from 'commander'
import { benchCommand } from './bench.js'
import { compareCommand } from './compare.js'
import { distillCommand } from './distill.js'
import { evalCommand } from './eval.js'
import { exitCodes, failureText } from './failure.js'
import { generateCommand } from './generate.js'
import { inspectCommand } from './inspect.js'
import { packCommand, unpackCommand } from './pack.js'
import { planCommand } from './plan.js'
import { pruneCommand } from './prune.js'
import { sensitivityCommand } from './sensitivity.js'
import { surviveClosedStreams } from './streams.js'
import { sweepCommand } from './sweep.js'

const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as {
  version: string
}

surviveClosedStreams()

const program = new Command('sparsegpt')
  .description('Prunes GPT-family language models in one shot.')
  .version(version)
  .enablePositionalOptions() // bench decode has options with the names of bench's
  .addCommand(pruneCommand())
  .addCommand(distillCommand())
  .addCommand(planCommand())
  .addCommand(evalCommand())
  .addCommand(compareCommand())
  .addCommand(sweepCommand())
  .addCommand(sensitivityCommand())
  .addCommand(generateCommand())
  .addCommand(inspectCommand())
  .addCommand(packCommand())
  .addCommand(unpackCommand())
  .addCommand(benchCommand())

for (const command of [program, ...program.commands.flatMap((one) => [one, ...one.commands])]) {
  command.exitOverride()
  command.showHelpAfterError('(--help lists the options)')
}

try {
  await program.parseAsync()
} catch (error) {
  if (error instanceof CommanderError) {
    // Commander has said what is wrong; help and --version end here too, with code 0.
    process.exitCode = error.exitCode === 0 ? exitCodes.done : exitCodes.badUsage
  } else {
    process.stderr.write(`${failureText(error)}\n`)
    process.exitCode = exitCodes.of(error)
  }
}
