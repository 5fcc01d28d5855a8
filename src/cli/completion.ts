import { Argument, Command, type Option } from 'commander'

const shells = ['bash', 'zsh', 'fish'] as const

/** The command `sparsegpt completion`, which prints what makes a shell complete the command line. */
export function completionCommand(): Command {
  return new Command('completion')
    .description('Print a script that lets a shell complete commands and options.')
    .addArgument(new Argument('<shell>', 'the shell').choices(shells))
    .addHelpText(
      'after',
      `
To have it in every shell:
  bash  echo 'eval "$(sparsegpt completion bash)"' >> ~/.bashrc
  zsh   echo 'eval "$(sparsegpt completion zsh)"' >> ~/.zshrc
  fish  sparsegpt completion fish > ~/.config/fish/completions/sparsegpt.fish`,
    )
    .action((shell: (typeof shells)[number], _: object, command: Command) => {
      process.stdout.write(scripts[shell](command.parent!))
    })
}

/** The options of a command with long flags; `--help` is every command's. */
const optionsOf = (command: Command): Option[] =>
  command
    .createHelp()
    .visibleOptions(command)
    .filter(({ long }) => long)

const choicesOf = (option: Option | Argument): readonly string[] => option.argChoices ?? []

/** The values of a command's first argument that are known. */
const wordsOf = (command: Command): string[] => [
  ...command.commands.map((each) => each.name()),
  ...command.registeredArguments.slice(0, 1).flatMap(choicesOf),
]

/** Whether an option is followed by a value that is not one of few. */
const takesFile = (option: Option) => option.required && choicesOf(option).length === 0

/** Text between single quotes, for all three shells. */
const quote = (text: string) => `'${text.replaceAll("'", `'\\''`)}'`

const scripts: Record<(typeof shells)[number], (program: Command) => string> = {
  bash: (program) => {
    const values = program.commands.flatMap((command) =>
      optionsOf(command).flatMap((option) => {
        if (choicesOf(option).length > 0)
          return [`    ${command.name()}:${option.long}) words=${quote(choicesOf(option).join(' '))} ;;`]
        return takesFile(option) ? [`    ${command.name()}:${option.long}) files=1 ;;`] : []
      }),
    )
    const flags = program.commands.map(
      (command) =>
        `    ${command.name()}) flags=${quote(
          optionsOf(command)
            .map(({ long }) => long)
            .join(' '),
        )}; arguments=${quote(wordsOf(command).join(' '))} ;;`,
    )
    return `# bash completion of sparsegpt
_sparsegpt() {
  local current=\${COMP_WORDS[COMP_CWORD]} command=\${COMP_WORDS[1]} words='' files='' flags='' arguments=''
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W ${quote(program.commands.map((each) => each.name()).join(' '))} -- "$current"))
    return
  fi
  case "$command:\${COMP_WORDS[COMP_CWORD-1]}" in
${values.join('\n')}
  esac
  case "$command" in
${flags.join('\n')}
  esac
  if [ -n "$words" ]; then COMPREPLY=($(compgen -W "$words" -- "$current"))
  elif [ -n "$files" ]; then COMPREPLY=($(compgen -f -- "$current"))
  elif [[ "$current" == -* ]]; then COMPREPLY=($(compgen -W "$flags" -- "$current"))
  elif [ "$COMP_CWORD" -eq 2 ] && [ -n "$arguments" ]; then COMPREPLY=($(compgen -W "$arguments" -- "$current"))
  else COMPREPLY=($(compgen -f -- "$current"))
  fi
}
complete -o filenames -o bashdefault -F _sparsegpt sparsegpt
`
  },

  zsh: (program) => {
    const described = (text: string) => text.replace(/[[\]:]/g, '\\$&')
    const spec = (option: Option) => {
      const value = choicesOf(option).length > 0 ? `:value:(${choicesOf(option).join(' ')})` : ':value:_files'
      const rest = option.required ? value : option.optional ? `:${value}` : ''
      return quote(`*${option.long!}[${described(option.description)}]${rest}`)
    }
    const commands = program.commands.map((each) => quote(`${each.name()}:${described(each.description())}`))
    const cases = program.commands.map((command) => {
      const words = wordsOf(command)
      const first = words.length > 0 ? `'1:argument:(${words.join(' ')})'` : `'*:argument:_files'`
      return `    ${command.name()}) _arguments ${optionsOf(command).map(spec).join(' ')} ${first} ;;`
    })
    return `#compdef sparsegpt
_sparsegpt() {
  local -a commands=(${commands.join(' ')})
  if (( CURRENT == 2 )); then _describe command commands; return; fi
  local command=$words[2]
  shift words; (( CURRENT-- ))
  case $command in
${cases.join('\n')}
  esac
}
compdef _sparsegpt sparsegpt
`
  },

  fish: (program) => {
    const lines = program.commands.flatMap((command) => {
      const name = command.name()
      const seen = `-n '__fish_seen_subcommand_from ${name}'`
      const options = optionsOf(command).map((option) => {
        const value =
          choicesOf(option).length > 0
            ? ` -x -a ${quote(choicesOf(option).join(' '))}`
            : option.required
              ? ' -r'
              : ''
        return `complete -c sparsegpt ${seen} -l ${option.long!.slice(2)}${value} -d ${quote(option.description)}`
      })
      const words = wordsOf(command)
      return [
        `complete -c sparsegpt -n __fish_use_subcommand -f -a ${name} -d ${quote(command.description())}`,
        ...(words.length > 0 ? [`complete -c sparsegpt ${seen} -a ${quote(words.join(' '))}`] : []),
        ...options,
      ]
    })
    return `# fish completion of sparsegpt\n${lines.join('\n')}\n`
  },
}
