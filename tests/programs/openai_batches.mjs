// OpenAI's own client for Node: files and batches, as openai_batches.py has them for Python.
import assert from "node:assert/strict";
import { createReadStream, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { createInterface } from "node:readline";
import { Readable } from "node:stream";

const from = createRequire(`${process.env.NODE_PATH}/`); // modules of ECMAScript do not look there by themselves
const { default: OpenAI, toFile } = await import(pathToFileURL(from.resolve("openai")));
const LINES = Number(process.env.LINES), MODEL = process.env.MODEL, CHAT = "/v1/chat/completions";
const client = new OpenAI();

function content(count, name) {
  const lines = [];
  for (let number = 0; number < count; number++) {
    const body = { model: MODEL, messages: [{ role: "user", content: `What is ${number}?` }], max_tokens: 4 };
    lines.push(JSON.stringify({ custom_id: `${name}-${number}`, method: "POST", url: CHAT, body }) + "\n");
  }
  return lines.join("");
}

async function begun(count, name) {
  const bytes = await toFile(Buffer.from(content(count, name)), `${name}.jsonl`);
  const file = await client.files.create({ file: bytes, purpose: "batch" });
  return client.batches.create({ input_file_id: file.id, endpoint: CHAT, completion_window: "24h" });
}

async function until(batch, wanted) {
  const end = Date.now() + 240_000;
  while (!wanted(batch)) {
    assert(Date.now() < end, JSON.stringify(batch));
    await new Promise((resolve) => setTimeout(resolve, 50));
    batch = await client.batches.retrieve(batch.id);
  }
  return batch;
}

const isOver = (batch) => ["completed", "failed", "expired", "cancelled"].includes(batch.status);

async function linesOf(file) {
  const found = [];
  if (!file) return found;
  const answer = await client.files.content(file);
  for await (const line of createInterface({ input: Readable.fromWeb(answer.body) })) found.push(JSON.parse(line));
  return found;
}

async function refused(status, code, call) {
  await assert.rejects(call, (error) => error.status === status && error.code === code);
}

// A batch from its file, which is streamed without a length, to its answers.
writeFileSync("lines.jsonl", content(LINES, "c"));
const file = await client.files.create({ file: createReadStream("lines.jsonl"), purpose: "batch" });
assert.equal(file.filename, "lines.jsonl");
assert.deepEqual(await client.files.waitForProcessing(file.id), await client.files.retrieve(file.id));
assert.equal(await (await client.files.content(file.id)).text(), readFileSync("lines.jsonl", "utf8"));
const batch = await client.batches.create({
  input_file_id: file.id, endpoint: CHAT, completion_window: "24h", metadata: { who: "me" },
});
const done = await until(batch, isOver);
assert.deepEqual([done.status, done.request_counts], ["completed", { total: LINES, completed: LINES, failed: 0 }]);
assert.equal(done.error_file_id, null);
const answered = (await linesOf(done.output_file_id)).map((line) => line.custom_id);
assert.deepEqual(answered, Array.from({ length: LINES }, (_, number) => `c-${number}`));

// Lists, in three pages.
const made = [];
for (let number = 0; number < 7; number++) made.unshift(await begun(1, `p${number}`));
const batches = [], files = [];
for await (const one of client.batches.list({ limit: 3 })) batches.push(one.id);
assert.deepEqual(batches.slice(0, 8), [...made.map((one) => one.id), batch.id]);
for await (const one of client.files.list({ limit: 3, purpose: "batch" })) files.push(one.id);
assert.deepEqual(files.slice(0, 8), [...made.map((one) => one.input_file_id), file.id]);
assert.equal(new Set(files).size, files.length);
for await (const model of client.models.list()) assert.deepEqual(await client.models.retrieve(model.id), model);

// Cancelling in every state that a client meets.
const large = await begun(20_000, "large");
assert.equal((await client.batches.cancel(large.id)).status, "cancelling"); // it was validating
const ran = (one) => one.status === "in_progress" && one.request_counts.completed >= 5;
const half = await until(await begun(LINES, "half"), ran);
for (let times = 0; times < 2; times++) {
  assert(["cancelling", "cancelled"].includes((await client.batches.cancel(half.id)).status));
}
for (const [one, total] of [[half, LINES], [large, 20_000]]) {
  const over = await until(one, isOver);
  const good = await linesOf(over.output_file_id), bad = await linesOf(over.error_file_id);
  assert.deepEqual([over.status, good.length + bad.length, over.request_counts.total], ["cancelled", total, total]);
  assert(bad.every((line) => line.error.code === "batch_cancelled"));
  assert.deepEqual(await client.batches.cancel(one.id), over);
}
const wrong = await client.files.create({ file: await toFile(Buffer.from("[]\n"), "bad.jsonl"), purpose: "batch" });
const asked = { input_file_id: wrong.id, endpoint: CHAT, completion_window: "24h" };
const failed = await until(await client.batches.create(asked), isOver);
assert.equal(failed.status, "failed");
for (const one of [done, failed]) await refused(409, "invalid_batch_state", () => client.batches.cancel(one.id));

// The end of files.
assert.equal((await client.files.delete(file.id)).deleted, true);
await refused(404, "not_found", () => client.files.retrieve(file.id));
await refused(404, "not_found", () => client.files.content(file.id));
console.log("good");
