import type { Traffic } from "#protocol/demand.ts";

/** A request with a prompt of so many tokens came. */
export function withArrival(traffic: Traffic, promptTokens: number): Traffic {
  return {
    ...traffic,
    arrived: traffic.arrived + 1,
    promptTokens: traffic.promptTokens + promptTokens,
    promptSquares: traffic.promptSquares + promptTokens ** 2,
  };
}

/** A request has its first token. */
export function withFirstToken(traffic: Traffic, late: boolean): Traffic {
  return { ...traffic, firstTokens: traffic.firstTokens + 1, lateTokens: traffic.lateTokens + (late ? 1 : 0) };
}

/** A request ended well. */
export function withEnd(
  traffic: Traffic,
  promptTokens: number,
  end: { readonly cachedTokens: number; readonly completionTokens: number },
): Traffic {
  return {
    ...traffic,
    ended: traffic.ended + 1,
    endedPromptTokens: traffic.endedPromptTokens + promptTokens,
    cachedTokens: traffic.cachedTokens + end.cachedTokens,
    outputTokens: traffic.outputTokens + end.completionTokens,
  };
}
