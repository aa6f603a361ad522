// openai-node against a running `pleach serve`. Reads BASE_URL (without /v1), MODEL (the base's name), NODE (a node's path with a
// slash in it), TOKEN (a key, where one is wanted), BUSY_URL (a server that refuses the second of several requests at once).
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";

const { BASE_URL, MODEL, NODE, TOKEN, BUSY_URL } = process.env;
const at = (url) => new OpenAI({ baseURL: `${url.replace(/\/$/, "")}/v1`, apiKey: TOKEN || "none", maxRetries: 0 });
const client = at(BASE_URL);
const greedy = { model: NODE, prompt: "Commande : mkdir\nNOM :", max_tokens: 8, temperature: 0 };
const greedyChat = { model: NODE, messages: [{ role: "user", content: "Bonjour" }], max_completion_tokens: 8, temperature: 0 };
const streamed = { stream: true, stream_options: { include_usage: true } };

const collected = async (stream) => {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
};

test("a completion, whole and streamed, is the same text", async () => {
  const whole = await client.completions.create(greedy);
  assert.equal(whole.object, "text_completion");
  assert.equal(whole.node, NODE);
  assert.ok(whole.choices[0].text);
  const chunks = await collected(await client.completions.create({ ...greedy, ...streamed }));
  assert.equal(chunks.map((chunk) => chunk.choices[0]?.text ?? "").join(""), whole.choices[0].text);
  assert.equal(chunks.at(-1).usage.total_tokens, whole.usage.total_tokens);
});

test("a chat, whole and streamed, is the same text", async () => {
  const whole = await client.chat.completions.create(greedyChat);
  assert.equal(whole.choices[0].message.role, "assistant");
  const { content } = whole.choices[0].message;
  assert.ok(content);
  const chunks = await collected(await client.chat.completions.create({ ...greedyChat, ...streamed }));
  assert.equal(chunks[0].choices[0].delta.role, "assistant");
  assert.equal(chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join(""), content);
  assert.deepEqual(chunks.at(-1).choices, []);
  assert.equal(chunks.at(-1).usage.total_tokens, whole.usage.total_tokens);
  const helper = client.chat.completions.stream(greedyChat);
  assert.equal((await helper.finalChatCompletion()).choices[0].message.content, content);
});

test("a stream may be left early", async () => {
  const stream = await client.chat.completions.create({ ...greedyChat, max_completion_tokens: 500, stream: true });
  for await (const chunk of stream) if (chunk.choices[0].delta.content) break;
  assert.ok((await client.completions.create(greedy)).choices[0].text);
});

test("models are listed, and a path with slashes retrieved", async () => {
  const models = await collected(await client.models.list());
  assert.equal(models[0].id, MODEL);
  const model = await client.models.retrieve(NODE);
  assert.deepEqual([model.id, model.object, model.root], [NODE, "model", MODEL]);
});

test("errors are of the client's classes", async () => {
  const refused = async (kind, status, param, request) => {
    const error = await client.completions.create({ ...greedy, ...request }).then(assert.fail, (error) => error);
    assert.ok(error instanceof kind, String(error));
    assert.deepEqual([error.status, error.param, error.type], [status, param, kind.name]);
    assert.ok(error.code === null || typeof error.code === "string");
    assert.ok(error.requestID);
  };
  await refused(OpenAI.NotFoundError, 404, "model", { model: `${NODE}x` });
  await refused(OpenAI.NotFoundError, 404, "model", { model: "nobody", stream: true });
  await refused(OpenAI.BadRequestError, 400, "temperature", { temperature: -1 });
  await assert.rejects(client.post("/nothing", { body: {} }), OpenAI.NotFoundError);
});

test("a full server says 429, and a client that tries again is served", { skip: BUSY_URL ? false : "BUSY_URL is not set" }, async () => {
  const busy = at(BUSY_URL);
  const several = (maxRetries) => {
    const one = () => busy.completions.create({ ...greedy, max_tokens: 32 }, { maxRetries });
    return Promise.allSettled(Array.from({ length: 8 }, one));
  };
  const refused = (await several(0)).filter(({ status }) => status === "rejected");
  assert.ok(refused.length > 0);
  for (const { reason } of refused) assert.ok(reason instanceof OpenAI.RateLimitError, String(reason));
  const answers = await several(60);
  assert.deepEqual(answers.filter(({ status }) => status === "rejected"), []);
});
