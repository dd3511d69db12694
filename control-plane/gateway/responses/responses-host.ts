import type { GenerationHost } from "../generation-host.ts";
import type { Background } from "./background.ts";
import type { ResponseLog } from "./response-log.ts";

/** What the Responses API is given. */
export interface ResponsesHost extends GenerationHost {
  readonly log: ResponseLog;
  readonly background: Background;
  /** Ids of the responses that this process makes now. */
  readonly active: Set<string>;
}
