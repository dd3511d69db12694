import { createRequire } from "node:module";
import type { Engine, EngineListener, EngineOptions } from "./native.ts";

/** The addon's own exports. */
export interface Addon {
  openEngine(options: EngineOptions, listener: EngineListener): Promise<Engine>;
}

let addon: Addon | null = null;

/** Loads native/build/margay.node once per process. Throws with a hint when it was not built. */
export function loadAddon(): Addon {
  if (addon !== null) return addon;
  try {
    addon = createRequire(import.meta.url)("../build/margay.node") as Addon;
  } catch (cause) {
    throw new Error("the native addon is missing or does not load: run `npm run setup`", { cause });
  }
  return addon;
}
