const units = ['bytes', 'kB', 'MB', 'GB', 'TB', 'PB']

/** A number of bytes for people, with four figures: '269.1 MB', '0.8 GB' being '800.0 MB'. */
export function sizeText(bytes: number): string {
  const power = bytes < 1000 ? 0 : Math.min(units.length - 1, Math.floor(Math.log10(bytes) / 3))
  const amount = bytes / 1000 ** power
  return `${power === 0 ? amount : amount.toPrecision(4)} ${units[power]!}`
}
