/**
 * Reads server-sent events as they come: `{data}` for an event, `{comment}` for a comment.
 *
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<{data?: string, comment?: string}>}
 */
export async function* eventsOf(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + decoder.decode(value, { stream: true })).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        if (block.startsWith(":")) yield { comment: block.slice(1).trim() };
        else if (block.startsWith("data: ")) yield { data: block.slice(6) };
      }
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}
