#!/usr/bin/env node
import { Command, CommanderError } from 'commander'
import { commit, version } from '../package.js'
import { benchCommand } from './bench.js'
import { buildCommand } from './build.js'
import { compareCommand } from './compare.js'
import { completionCommand } from './completion.js'
import { applyConfig, configOption } from './config.js'
import { distillCommand } from './distill.js'
import { evalCommand } from './eval.js'
import { exitCodes, failureText } from './failure.js'
import { generateCommand } from './generate.js'
import { inspectCommand } from './inspect.js'
import { stopSignal } from './interrupt.js'
import { packCommand, unpackCommand } from './pack.js'
import { planCommand } from './plan.js'
import { pruneCommand } from './prune.js'
import { sensitivityCommand } from './sensitivity.js'
import { surviveClosedStreams } from './streams.js'
import { sweepCommand } from './sweep.js'
import { takeVerbosity, verbosityOptions } from './verbosity.js'

surviveClosedStreams()

const program = new Command('sparsegpt')
  .description('Prunes GPT-family language models in one shot.')
  .option('-V, --version', 'print the version and the commit that it was built from')
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
  .addCommand(completionCommand())
  .addCommand(buildCommand())

// Not commander's own version(): the commit is looked up only when it is asked for.
program.on('option:version', () => {
  const from = commit()
  process.stdout.write(`${version}${from === undefined ? '' : ` (commit ${from})`}\n`)
  throw new CommanderError(0, 'commander.version', version)
})

for (const command of [program, ...program.commands.flatMap((one) => [one, ...one.commands])]) {
  if (command !== program && command.name() !== 'completion') {
    verbosityOptions(command)
    configOption(command)
  }
  command.exitOverride()
  command.showHelpAfterError('(--help lists the options)')
}

program.hook('preAction', (_, command) => takeVerbosity(command))

let config: string | undefined
try {
  config = await applyConfig(program, process.argv.slice(2))
  await program.parseAsync()
} catch (error) {
  if (error instanceof CommanderError) {
    // Commander has said what is wrong; help and --version end here too, with code 0.
    process.exitCode = error.exitCode === 0 ? exitCodes.done : exitCodes.badUsage
  } else {
    process.stderr.write(`${failureText(error)}\n`)
    process.exitCode = exitCodes.of(error, stopSignal())
    if (config !== undefined && process.exitCode === exitCodes.badUsage)
      process.stderr.write(`Options were taken from ${config} too.\n`)
  }
}
