import { open } from 'node:fs/promises'

/** Makes renames and new names in `folder` durable. Not every system can open a folder; those need no such call. */
export async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, 'r').catch(() => undefined)
  await handle?.sync().catch(() => undefined)
  await handle?.close()
}
