import { readFile } from 'node:fs/promises'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { getHFHubCachePath } from '@huggingface/hub'
import { SparseGptError } from '../errors.js'

/** How the hub is reached: the environment variables that Hugging Face's own tools read. */
export interface HubSettings {
  /** HF_ENDPOINT; without a slash at its end. */
  endpoint: string
  /** HF_TOKEN, or the file that `hf auth login` writes. */
  token: string | undefined
  /** HF_HUB_CACHE, or `hub` in HF_HOME. */
  cache: string
  /** HF_HUB_OFFLINE: use only what the cache has. */
  offline: boolean
}

/** Throws INVALID_OPTION for a variable that cannot be used. */
export async function hubSettings(environment: NodeJS.ProcessEnv = process.env): Promise<HubSettings> {
  const { HF_ENDPOINT, HF_HUB_OFFLINE = '' } = environment
  const endpoint = (HF_ENDPOINT || 'https://huggingface.co').replace(/\/+$/, '')
  if (!URL.canParse(endpoint)) {
    throw new SparseGptError(
      'INVALID_OPTION',
      `HF_ENDPOINT: ${endpoint} is not a URL such as https://huggingface.co`,
    )
  }
  const token = await readToken(environment)
  if (token !== undefined && !token.startsWith('hf_')) {
    throw new SparseGptError('INVALID_OPTION', 'HF_TOKEN: an access token of the hub begins with "hf_"')
  }
  const offline = ['1', 'ON', 'YES', 'TRUE'].includes(HF_HUB_OFFLINE.toUpperCase())
  return { endpoint, token, cache: getHFHubCachePath(), offline }
}

async function readToken(environment: NodeJS.ProcessEnv): Promise<string | undefined> {
  const { HF_TOKEN, HF_TOKEN_PATH, HF_HOME, XDG_CACHE_HOME } = environment
  if (HF_TOKEN?.trim()) return HF_TOKEN.trim()
  const home = HF_HOME || join(XDG_CACHE_HOME || join(homedir(), '.cache'), 'huggingface')
  const text = await readFile(HF_TOKEN_PATH || join(home, 'token'), 'utf8').catch(() => '')
  return text.trim() || undefined
}
