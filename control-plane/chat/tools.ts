import { MargayError } from "#protocol/errors.ts";
import { isObject, type JsonObject, jsonValue } from "./json-value.ts";

/** A function the model may call, in OpenAI's form. */
export interface ChatTool {
  readonly type: "function";
  readonly function: {
    readonly name: string;
    readonly description?: string | null | undefined;
    /** JSON schema of the arguments. */
    readonly parameters?: Readonly<Record<string, unknown>> | null | undefined;
  };
}

/** Tools as chat templates read them: only name, description and parameters, and those only where given. */
export function templateTools(tools: readonly ChatTool[]): readonly JsonObject[] {
  return tools.map((tool, i) => {
    const param = `tools[${i}].function`;
    const { name, description, parameters } = tool.function;
    if (name === "")
      throw new MargayError("invalid_request", `${param}.name must not be empty.`, { param: `${param}.name` });
    return {
      type: "function",
      function: {
        name,
        ...(typeof description === "string" ? { description } : {}),
        ...(isObject(parameters) ? { parameters: jsonValue(parameters, `${param}.parameters`) } : {}),
      },
    };
  });
}
