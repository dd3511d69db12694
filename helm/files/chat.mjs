// Asks every model of the release one question; the first one may have to wait for its workers to start.
import { existsSync, readFileSync } from "node:fs";
import http from "node:http";
import https from "node:https";

const { GATEWAY, WAIT_SECONDS, API_KEY } = process.env;
const authorization = API_KEY ? { authorization: `Bearer ${API_KEY}` } : {};
const own = (ending) => `/etc/margay/tls/test.${ending}`;
const certificate = existsSync(own("crt")) ? { cert: readFileSync(own("crt")), key: readFileSync(own("key")) } : {};
const ask = (path, body) =>
  new Promise((resolve, reject) => {
    const options = {
      method: body ? "POST" : "GET",
      headers: { ...authorization, ...(body && { "content-type": "application/json" }) },
      signal: AbortSignal.timeout((Number(WAIT_SECONDS) + 30) * 1000),
      ...certificate,
    };
    const { request } = GATEWAY.startsWith("https:") ? https : http;
    const asked = request(`${GATEWAY}${path}`, options, async (response) => {
      const text = (await response.setEncoding("utf8").toArray()).join("");
      if (response.statusCode === 200) resolve(JSON.parse(text));
      else reject(new Error(`${path} was answered with ${response.statusCode}: ${text}`));
    });
    asked.on("error", reject).end(body && JSON.stringify(body));
  });
for (const { id } of (await ask("/v1/models")).data) {
  const messages = [{ role: "user", content: "What is 2 + 3?" }];
  const answer = await ask("/v1/chat/completions", { model: id, messages, max_tokens: 8 });
  if (!(answer.usage?.completion_tokens > 0)) throw new Error(`${id} gave no token: ${JSON.stringify(answer)}`);
  console.log(`${id}: ${answer.usage.completion_tokens} tokens`);
}
