/** `GET /docs`: shows the document of /openapi.json. One page without assets; it may load nothing but the document. */
export const DOCS_PAGE = `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Margay API</title>
<style>
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 0 auto; padding: 1rem; }
h2 { font-size: 1.1rem; margin: 0; display: inline; font-weight: 500; }
summary { cursor: pointer; padding: .5rem 0; }
details { border-top: 1px solid color-mix(in srgb, currentColor 25%, transparent); }
details > :not(summary) { margin-left: 1rem; }
code, pre { font: .9rem/1.45 ui-monospace, monospace; }
pre { overflow-x: auto; padding: .75rem; border: 1px solid color-mix(in srgb, currentColor 25%, transparent); }
.verb { display: inline-block; min-width: 4.5rem; font-weight: 700; }
</style>
<main>
<h1>Margay API</h1>
<p id="about">Loading the <a href="openapi.json">document</a>.</p>
<div id="operations"></div>
</main>
<script>
const element = (name, text, ...children) => {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  made.append(...children);
  return made;
};
const resolve = (all, schema) => schema?.$ref ? { name: schema.$ref.split("/").at(-1), ...all[schema.$ref.split("/").at(-1)] } : schema;
const part = (title, all, schema) => {
  const whole = resolve(all, schema);
  const shown = element("details", "", element("summary", title + (whole?.name ? ": " + whole.name : "")));
  shown.append(element("pre", JSON.stringify(whole, null, 2)));
  return shown;
};
const operation = (all, path, verb, { summary, parameters = [], requestBody, responses }) => {
  const title = element("summary", "", element("span", verb.toUpperCase()), element("h2", "", element("code", path)));
  title.firstChild.className = "verb";
  const shown = element("details", "", title, element("p", summary));
  for (const { name, description, schema } of parameters)
    shown.append(element("p", "", element("code", name), " " + (description ?? ""), part("schema", all, schema)));
  for (const [type, { schema }] of Object.entries(requestBody?.content ?? {})) shown.append(part("Request, " + type, all, schema));
  for (const [status, { content = {} }] of Object.entries(responses))
    for (const [type, { schema }] of Object.entries(content)) shown.append(part("Answer " + status + ", " + type, all, schema));
  return shown;
};
fetch("openapi.json").then((answer) => answer.json()).then(({ info, paths, components }) => {
  document.querySelector("#about").prepend(info.description + " ");
  const place = document.querySelector("#operations");
  for (const [path, { parameters = [], ...verbs }] of Object.entries(paths))
    for (const [verb, one] of Object.entries(verbs))
      place.append(operation(components.schemas, path, verb, { ...one, parameters: [...parameters, ...(one.parameters ?? [])] }));
}).catch(() => { document.querySelector("#about").textContent = "The document /openapi.json could not be loaded."; });
</script>
`;

/** The page may run its own script and style, and ask this server. */
export const DOCS_HEADERS = {
  "content-type": "text/html; charset=utf-8",
  "content-security-policy":
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  "x-content-type-options": "nosniff",
} as const;
