import { afterEach, beforeEach } from '@jest/globals'
import { temporaryFolder } from '../temporary.js'
import { HubServer } from './hub-server.js'

const variables = [
  'HF_ENDPOINT',
  'HF_HOME',
  'HF_TOKEN',
  'HF_HUB_OFFLINE',
  'HF_HUB_CACHE',
  'HUGGINGFACE_HUB_CACHE',
]
const proxies = ['http_proxy', 'https_proxy', 'all_proxy', 'no_proxy']
const more = [
  ...['HF_TOKEN_PATH', 'XDG_CACHE_HOME', 'HF_HUB_DOWNLOAD_TIMEOUT'],
  ...proxies,
  ...proxies.map((name) => name.toUpperCase()),
]

/** Before each test: a hub of its own, which the environment variables point to, and an empty cache. */
export function useHub(): { hub: HubServer; home: string } {
  const used = {} as { hub: HubServer; home: string }
  const before = { ...process.env }
  beforeEach(async () => {
    for (const name of [...variables, ...more]) Reflect.deleteProperty(process.env, name)
    used.hub = await HubServer.start()
    used.home = await temporaryFolder()
    process.env['HF_ENDPOINT'] = `${used.hub.url}/`
    process.env['HF_HOME'] = used.home
  })
  afterEach(async () => {
    await used.hub.stop()
    for (const name of [...variables, ...more]) {
      const value = before[name]
      if (value === undefined) Reflect.deleteProperty(process.env, name)
      else process.env[name] = value
    }
  })
  return used
}
