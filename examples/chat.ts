// Calibrates on your own conversations: rows of a .jsonl file with `messages: [{ role, content }]`, which the model's chat template
// writes out, so that the model sees in calibration what it sees at work.
//
//   npx tsx examples/chat.ts MODEL CONVERSATIONS.jsonl OUT

import { readFile } from 'node:fs/promises'
import { loadModel, prune, type ChatMessage } from 'sparsegpt'

const [path, file, out] = process.argv.slice(2)
if (!path || !file || !out) {
  console.error('usage: chat.ts MODEL CONVERSATIONS.jsonl OUT')
  process.exit(2)
}

// `calibration: { file, chat: true }` reads the file as it is. Here the app chooses what goes in.
const rows = (await readFile(file, 'utf8')).trim().split('\n')
const conversations = rows
  .map((row) => (JSON.parse(row) as { messages: ChatMessage[] }).messages)
  .filter((messages) => messages.some(({ role }) => role === 'assistant'))
console.log(`${conversations.length} of ${rows.length} conversations have an answer`)

const model = await loadModel(path)
const { sparsity } = await prune(model, {
  sparsity: 0.5,
  calibration: { messages: conversations, samples: 64 },
  out,
})
console.log(`${out}: ${(sparsity.achieved * 100).toFixed(1)} % zeros`)
await model.dispose()
