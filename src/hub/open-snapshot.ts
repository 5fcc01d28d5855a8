import type { DownloadOptions, Repository, Snapshot } from './snapshot.js'

/** Snapshot.open(), whose module and the hub's client are loaded only when something is wanted of the hub. */
export async function openSnapshot(repository: Repository, options?: DownloadOptions): Promise<Snapshot> {
  const { Snapshot } = await import('./snapshot.js')
  return Snapshot.open(repository, options)
}
