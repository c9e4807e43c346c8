// The npm `openai` client on one base address, which its environment names.
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI();
const ask = { model: process.env.MODEL, prompt: "Once upon a time", max_tokens: 8, seed: 7 };

const whole = await client.completions.create({ ...ask, logprobs: 2 });
assert.equal(whole.object, "text_completion");
assert.equal(whole.model, ask.model);
const [choice] = whole.choices;
assert.ok(["stop", "length"].includes(choice.finish_reason));
assert.equal(choice.logprobs.tokens.length, whole.usage.completion_tokens);

const stream = await client.completions.create({ ...ask, stream: true, stream_options: { include_usage: true } });
let text = "";
let usage = null;
const reasons = [];
for await (const chunk of stream) {
  for (const part of chunk.choices) {
    text += part.text;
    if (part.finish_reason) reasons.push(part.finish_reason);
  }
  usage = chunk.usage ?? usage;
}
assert.equal(text, choice.text);
assert.deepEqual(reasons, [choice.finish_reason]);
assert.equal(usage.total_tokens, whole.usage.total_tokens);

const several = await client.completions.create({ ...ask, prompt: ["Once", "A cat"], n: 2 });
assert.deepEqual(several.choices.map((part) => part.index), [0, 1, 2, 3]);

await assert.rejects(client.completions.create({ ...ask, top_p: 2 }), (error) => {
  assert.ok(error instanceof OpenAI.BadRequestError);
  assert.equal(error.param, "top_p");
  return true;
});
await assert.rejects(new OpenAI({ apiKey: "no-such-key" }).completions.create(ask), OpenAI.AuthenticationError);
await assert.rejects(client.completions.create({ ...ask, model: "local/none" }), OpenAI.NotFoundError);
