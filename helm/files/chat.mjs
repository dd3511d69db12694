// Asks every model of the release one question; the first one may have to wait for its workers to start.
const { GATEWAY, WAIT_SECONDS, API_KEY } = process.env;
const authorization = API_KEY ? { authorization: `Bearer ${API_KEY}` } : {};
const ask = async (path, body) => {
  const response = await fetch(`${GATEWAY}${path}`, {
    signal: AbortSignal.timeout((Number(WAIT_SECONDS) + 30) * 1000),
    headers: { ...authorization, ...(body && { "content-type": "application/json" }) },
    ...(body && { method: "POST", body: JSON.stringify(body) }),
  });
  const text = await response.text();
  if (!response.ok) throw new Error(`${path} was answered with ${response.status}: ${text}`);
  return JSON.parse(text);
};
for (const { id } of (await ask("/v1/models")).data) {
  const messages = [{ role: "user", content: "What is 2 + 3?" }];
  const answer = await ask("/v1/chat/completions", { model: id, messages, max_tokens: 8 });
  if (!(answer.usage?.completion_tokens > 0)) throw new Error(`${id} gave no token: ${JSON.stringify(answer)}`);
  console.log(`${id}: ${answer.usage.completion_tokens} tokens`);
}
