import { Command } from 'commander'
import { pack, unpack, type PackReport } from '../sdk/pack.js'
import { sizeText } from '../sizes.js'
import { given, modelArgument } from './arguments.js'
import { interruptible } from './interrupt.js'
import { showDownload } from './open-model.js'
import { withProgress } from './progress.js'

interface Flags {
  out: string
  force?: true
  json?: true
}

/** The command `sparsegpt pack`, which leaves the zeros of a pruned model out. */
export function packCommand(): Command {
  return command('pack', 'Write a pruned model without its zeros; nothing is lost.').action(
    (model: string, flags: Flags) => run('packing', pack, model, flags),
  )
}

/** The command `sparsegpt unpack`, which gives a packed model its zeros back. */
export function unpackCommand(): Command {
  return command('unpack', 'Write a packed model with every value, as other programs read it.').action(
    (model: string, flags: Flags) => run('unpacking', unpack, model, flags),
  )
}

function command(name: string, description: string): Command {
  return new Command(name)
    .description(description)
    .argument('<model>', modelArgument)
    .requiredOption('--out <dir>', 'folder for the result')
    .option('--force', 'replace the output folder if it exists')
    .option('--json', 'print one JSON object on stdout')
}

async function run(
  what: string,
  convert: typeof pack,
  model: string,
  { out, force, json }: Flags,
): Promise<void> {
  const report = await interruptible((signal) =>
    withProgress(what, (progress) =>
      convert(model, {
        ...{ out, signal, onDownload: showDownload(progress) },
        ...given({ force }),
        onProgress: ({ fraction, weight }) => progress.update(fraction, weight),
      }),
    ),
  )
  process.stdout.write(json ? `${JSON.stringify({ ...report, model })}\n` : summary(report))
}

function summary({ out, packed, bytes }: PackReport): string {
  const change = bytes.after / bytes.before
  return `${out}: ${sizeText(bytes.before)} before, ${sizeText(bytes.after)} after (${change.toFixed(3)} of it), ${Math.max(packed.before, packed.after)} matrices ${packed.after > 0 ? 'packed' : 'unpacked'}\n`
}
