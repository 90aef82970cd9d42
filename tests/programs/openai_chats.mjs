// OpenAI's own client for Node: questions that are answered at once, as openai_chats.py has them for Python.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const from = createRequire(`${process.env.NODE_PATH}/`); // modules of ECMAScript do not look there by themselves
const { default: OpenAI } = await import(pathToFileURL(from.resolve("openai")));
const { MODEL: model, VECTORS } = process.env;
const messages = [{ role: "user", content: "Why is the sky blue?" }];
const asked = { model, messages, temperature: 0, seed: 1, max_tokens: 20 };
const client = new OpenAI();

async function all(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

const textOf = (chunks) => chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");

async function refused(status, code, call) {
  await assert.rejects(call, (error) => error.status === status && error.code === code);
}

// Whole, and in pieces.
const whole = await client.chat.completions.create(asked);
const chunks = await all(await client.chat.completions.create({ ...asked, stream: true }));
assert.equal(textOf(chunks), whole.choices[0].message.content);
assert.equal(chunks.at(-1).choices[0].finish_reason, whole.choices[0].finish_reason);
assert(textOf(chunks) && chunks.length > 2 && new Set(chunks.map((chunk) => chunk.id)).size === 1);
const withUsage = { ...asked, stream: true, stream_options: { include_usage: true } };
const last = (await all(await client.chat.completions.create(withUsage))).at(-1);
assert.deepEqual([last.choices, last.usage], [[], whole.usage]);
const { data, response } = await client.chat.completions.create(asked).withResponse();
assert(response.headers.get("x-request-id").startsWith("req_") && data.choices.length === 1);
// The helper that puts chunks together.
const helped = client.chat.completions.stream(asked);
let heard = "";
helped.on("content", (delta) => (heard += delta));
const put = await helped.finalChatCompletion();
assert.deepEqual([put.choices[0].message.content, heard], [textOf(chunks), textOf(chunks)]);
// Left in the middle, the client goes on.
const left = await client.chat.completions.create({ ...asked, max_tokens: 128, stream: true });
for await (const chunk of left) if (chunk) break;
const several = Array.from({ length: 8 }, () => client.chat.completions.create({ ...asked, max_tokens: 4 }));
assert((await Promise.all(several)).every((answer) => answer.choices.length === 1));

// Objects as JSON, and vectors.
const schema = { type: "object", properties: { blue: { type: "boolean" } }, required: ["blue"] };
const response_format = { type: "json_schema", json_schema: { name: "sky", schema } };
const parsed = await client.chat.completions.parse({ ...asked, max_tokens: 40, response_format });
assert.equal(typeof JSON.parse(parsed.choices[0].message.content).blue, "boolean");
const input = ["a text", "another"];
const floats = await client.embeddings.create({ model: VECTORS, input, encoding_format: "float" });
const usual = await client.embeddings.create({ model: VECTORS, input }); // asks for base64
assert.deepEqual(floats.data.map((one) => one.index), [0, 1]);
for (const [place, one] of usual.data[0].embedding.entries()) {
  assert(Math.abs(one - floats.data[0].embedding[place]) < 1e-4);
}

// Refusals.
const create = (more) => () => client.chat.completions.create({ ...asked, ...more });
await refused(404, "model_not_found", create({ model: "nope" }));
await refused(404, "model_not_found", create({ model: "nope", stream: true }));
await refused(400, "unsupported_parameter", create({ logit_bias: { 50256: -100 } }));
await refused(401, "invalid_api_key", () => new OpenAI({ apiKey: "wrong" }).chat.completions.create(asked));
console.log("good");
