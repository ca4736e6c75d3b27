// OpenAI's SDK for Node, unchanged: argv is the server's address and a file of messages; one JSON object comes out.
const fs = require("node:fs");
const OpenAI = require("openai");

async function main(url, path) {
  const messages = JSON.parse(fs.readFileSync(path, "utf8"));
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
  const asked = { model: "cascade", messages, max_tokens: 60 };
  const answer = await client.chat.completions.create(asked);
  let streamed = "", usage = null, finish = null;
  for await (const chunk of await client.chat.completions.create({
    ...asked, stream: true, stream_options: { include_usage: true },
  })) {
    usage = chunk.usage ?? usage;
    for (const choice of chunk.choices) {
      streamed += choice.delta.content ?? "";
      finish = choice.finish_reason ?? finish;
    }
  }
  const errors = {};
  for (const [name, wrong] of Object.entries({
    model: { ...asked, model: "gpt-4" },
    messages: { ...asked, messages: [{ role: "user", content: "no recording" }] },
    temperature: { ...asked, temperature: -1 },
  })) {
    try {
      await client.chat.completions.create(wrong);
    } catch (error) {
      errors[name] = [error.constructor.name, error.status, error.code, error.param];
    }
  }
  const models = [];
  for await (const model of client.models.list()) models.push(model.id);
  const { VERSION } = require("openai/version");
  console.log(JSON.stringify({
    client: `openai (npm) ${VERSION}`,
    text: answer.choices[0].message.content,
    streamed,
    finish: [answer.choices[0].finish_reason, finish],
    usage: [answer.usage.completion_tokens, usage.completion_tokens],
    models,
    model: (await client.models.retrieve("cascade")).id,
    errors,
  }));
}

main(...process.argv.slice(2)).catch((error) => { console.error(error); process.exit(1); });
