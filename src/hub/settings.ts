import { homedir } from 'node:os'
import { join } from 'node:path'
import { getHFHubCachePath } from '@huggingface/hub'
import { readRegularFile } from '../files/regular-file.js'
import { SparseGptError } from '../errors.js'

/** How the hub is reached: the environment variables that Hugging Face's own tools read. */
export interface HubSettings {
  /** The address of the hub, without a slash at its end: HF_ENDPOINT, or https://huggingface.co. */
  endpoint: string
  /** The access token: HF_TOKEN, or what `hf auth login` wrote; undefined where there is none. */
  token: string | undefined
  /** The path of the folder of downloaded files: HF_HUB_CACHE, or `hub` in HF_HOME. */
  cache: string
  /** Whether only what the cache has is used: HF_HUB_OFFLINE. */
  offline: boolean
  /** The time that a server may be silent, in milliseconds: HF_HUB_DOWNLOAD_TIMEOUT, or 10 seconds. */
  timeout: number
}

/** The settings of this process. Throws INVALID_OPTION for a variable that cannot be used. */
export async function hubSettings(): Promise<HubSettings> {
  const { HF_ENDPOINT, HF_HUB_OFFLINE = '' } = process.env
  const endpoint = (HF_ENDPOINT || 'https://huggingface.co').replace(/\/+$/, '')
  if (!URL.canParse(endpoint) || !['http:', 'https:'].includes(new URL(endpoint).protocol)) {
    throw new SparseGptError(
      'INVALID_OPTION',
      `HF_ENDPOINT: ${endpoint} is not a URL such as https://huggingface.co`,
    )
  }
  const offline = ['1', 'ON', 'YES', 'TRUE'].includes(HF_HUB_OFFLINE.toUpperCase())
  const token = offline ? undefined : await readToken()
  const seconds = Number(process.env['HF_HUB_DOWNLOAD_TIMEOUT'] || 10)
  if (!(seconds > 0 && seconds <= 86400)) {
    throw new SparseGptError(
      'INVALID_OPTION',
      'HF_HUB_DOWNLOAD_TIMEOUT: a number of seconds is needed, such as 10',
    )
  }
  return { endpoint, token, cache: getHFHubCachePath(), offline, timeout: Math.ceil(seconds * 1000) }
}

async function readToken(): Promise<string | undefined> {
  const { HF_TOKEN, HF_TOKEN_PATH, HF_HOME, XDG_CACHE_HOME } = process.env
  if (HF_TOKEN?.trim()) return HF_TOKEN.trim()
  const home = HF_HOME || join(XDG_CACHE_HOME || join(homedir(), '.cache'), 'huggingface')
  const limit = { advice: '', maxBytes: 2 ** 16 }
  const text = await readRegularFile(HF_TOKEN_PATH || join(home, 'token'), limit).then(String, () => '')
  return text.trim() || undefined
}
