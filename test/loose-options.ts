import {
  prune as strict,
  pruneLayer as strictLayer,
  type PruneLayerOptions,
  type PruneOptions as Strict,
} from '../src/index.js'

type Keys<Union> = Union extends unknown ? keyof Union : never
type Value<Union, Key> = Union extends unknown ? (Key extends keyof Union ? Union[Key] : never) : never

/** Options of which some may be missing, or contradict each other, as JavaScript can give them. */
type Loose<Union> = { [Key in Keys<Union>]?: Value<Union, Key> }

export type PruneOptions = Loose<Strict>

export const prune = strict as (
  model: Parameters<typeof strict>[0],
  options: PruneOptions,
) => ReturnType<typeof strict>

export const pruneLayer = strictLayer as (options: Loose<PruneLayerOptions>) => ReturnType<typeof strictLayer>
