// The JavaScript clients people use, through the proxy: ollama-js and openai.
//
// Called by ../python/clients.py with the proxy's address and the folder of the packages; prints, as its last line, how
// many requests it left and how many were refused or answered with an error, to be held against proxy and nodes.

import { createRequire } from 'node:module'
import { strict as assert } from 'node:assert'

const [url, folder] = process.argv.slice(2)
const require = createRequire(`${folder}/`)
const { Ollama } = require('ollama')
const OpenAI = require('openai')

const CHAT = 'llama3.2:3b'
const THINKS = 'qwen3:8b'
const EMBED = 'nomic-embed-text'
const messages = [{ role: 'user', content: 'Why is the sky blue?' }]
const WEATHER = {
  type: 'function',
  function: {
    name: 'weather',
    description: 'The weather of a place',
    parameters: { type: 'object', properties: { place: { type: 'string' } }, required: ['place'] },
  },
}
const JOKE = {
  type: 'object',
  properties: { setup: { type: 'string' }, punchline: { type: 'string' } },
  required: ['setup', 'punchline'],
  additionalProperties: false,
}
const counts = { left: 0, unknown: 0, shown: 0, failed: 0 }

async function all(stream) {
  const parts = []
  for await (const part of stream) parts.push(part)
  return parts
}

async function refused(call, check) {
  try {
    await call()
  } catch (error) {
    check(error)
    return
  }
  assert.fail('what must be refused was answered')
}

function joke(text) {
  assert.deepEqual(Object.keys(JSON.parse(text)), ['setup', 'punchline'])
}

async function ollama() {
  const client = new Ollama({ host: url })
  const options = (tokens) => ({ num_predict: tokens })
  assert.equal((await client.chat({ model: CHAT, messages, options: options(12) })).eval_count, 12)
  const chat = await all(await client.chat({ model: CHAT, messages, options: options(20), stream: true }))
  assert.equal(chat.length, 20 + 1)
  assert.equal(chat.at(-1).eval_count, 20)
  assert.ok(chat.slice(0, -1).every((part) => !part.done && part.message.content))
  const text = await all(await client.generate({ model: CHAT, prompt: 'Once', options: options(15), stream: true }))
  assert.equal(text.at(-1).eval_count, 15)
  assert.equal((await client.generate({ model: CHAT, prompt: 'Once', options: options(9) })).eval_count, 9)
  const called = await client.chat({ model: CHAT, messages, tools: [WEATHER] })
  assert.equal(called.message.tool_calls[0].function.name, 'weather')
  const calls = await all(await client.chat({ model: CHAT, messages, tools: [WEATHER], stream: true }))
  assert.ok(calls.some((part) => part.message.tool_calls?.[0].function.arguments.place))
  assert.ok((await client.chat({ model: THINKS, messages, think: true })).message.thinking)
  joke((await client.chat({ model: CHAT, messages, format: JOKE })).message.content)
  assert.equal((await client.embed({ model: EMBED, input: ['one', 'two'] })).embeddings.length, 2)
  assert.ok((await client.show({ model: CHAT })).capabilities.includes('completion'))
  counts.shown += 1
  assert.equal((await client.list()).models.length, 3)
  assert.ok((await client.ps()).models.length > 0)
  await refused(() => client.chat({ model: 'no-such-model', messages }), (error) => {
    assert.equal(error.status_code, 404)
    assert.match(error.message, /not found/)
  })
  await refused(() => client.generate({ model: 'no-such-model', prompt: 'x', stream: true }), (error) => {
    assert.equal(error.status_code, 404)
  })
  counts.unknown += 2
  await refused(() => client.chat({ model: CHAT, messages, format: 'xml' }), (error) => {
    assert.equal(error.status_code, 500)
    assert.match(error.message, /invalid format/)
  })
  counts.failed += 1
  const stream = await client.chat({ model: CHAT, messages, options: options(4000), stream: true })
  await refused(async () => {
    for await (const part of stream) if (part.message.content) stream.abort()
  }, (error) => assert.equal(error.name, 'AbortError'))
  counts.left += 1
}

async function openai() {
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none', maxRetries: 0 })
  const request = { model: CHAT, messages }
  const answer = await client.chat.completions.create({ ...request, max_tokens: 11 })
  assert.equal(answer.usage.completion_tokens, 11)
  const plain = await all(await client.chat.completions.create({ ...request, max_tokens: 21, stream: true }))
  assert.ok(plain.every((chunk) => chunk.choices.length === 1 && !chunk.usage))
  assert.ok(plain.some((chunk) => chunk.choices[0].finish_reason))
  const asked = { ...request, max_tokens: 22, stream: true, stream_options: { include_usage: true } }
  assert.equal((await all(await client.chat.completions.create(asked))).at(-1).usage.completion_tokens, 22)
  const called = await client.chat.completions.create({ ...request, tools: [WEATHER] })
  assert.equal(called.choices[0].message.tool_calls[0].function.name, 'weather')
  assert.equal(called.choices[0].finish_reason, 'tool_calls')
  const calls = await all(await client.chat.completions.create({ ...request, tools: [WEATHER], stream: true }))
  assert.ok(calls.some((chunk) => chunk.choices[0]?.delta.tool_calls?.[0].function.name === 'weather'))
  const format = { type: 'json_schema', json_schema: { name: 'joke', strict: true, schema: JOKE } }
  const parsed = await client.chat.completions.create({ ...request, response_format: format })
  joke(parsed.choices[0].message.content)
  const runner = client.chat.completions.stream({ ...request, response_format: format })
  joke((await runner.finalChatCompletion()).choices[0].message.content)
  assert.equal((await client.completions.create({ model: CHAT, prompt: 'x', max_tokens: 7 })).usage.completion_tokens, 7)
  // This library asks for base64 and unpacks it.
  const vectors = await client.embeddings.create({ model: EMBED, input: ['one', 'two'] })
  assert.ok(vectors.data.length === 2 && vectors.data[0].embedding.every((value) => typeof value === 'number'))
  const response = await client.responses.create({ model: CHAT, input: 'Hello', max_output_tokens: 13 })
  assert.equal(response.usage.output_tokens, 13)
  const events = await all(await client.responses.create({ model: CHAT, input: 'Hello', max_output_tokens: 14, stream: true }))
  assert.match(events.at(-1).type, /^response\.(completed|incomplete)$/)
  assert.equal((await all(client.models.list())).length, 3)
  assert.equal((await client.models.retrieve(CHAT)).id, CHAT)
  for (const stream of [false, true]) {
    await refused(() => client.chat.completions.create({ model: 'no-such-model', messages, stream }), (error) => {
      assert.ok(error instanceof OpenAI.NotFoundError && /not found/.test(error.message))
    })
    counts.unknown += 1
  }
  await refused(() => client.chat.completions.create({ model: CHAT, messages: [] }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError)
  })
  counts.failed += 1
  const stream = await client.chat.completions.create({ ...request, max_tokens: 4000, stream: true })
  for await (const chunk of stream) if (chunk.choices[0]?.delta.content) break
  counts.left += 1
  // A signal ends what is still waited for, too.
  const signal = AbortSignal.timeout(300)
  await refused(() => client.chat.completions.create({ ...request, max_tokens: 4000 }, { signal }), (error) => {
    assert.ok(error instanceof OpenAI.APIUserAbortError)
  })
  counts.left += 1
}

await { ollama, openai }[process.argv[4]]()
console.log(JSON.stringify(counts))
