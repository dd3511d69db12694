const TOKEN =
  /\s*(?:('(?:[^'\\\n]|\\[\s\S])*'|"(?:[^"\\\n]|\\[\s\S])*")|(True|False|None)\b|(-?(?:\d+\.?\d*(?:[eE][+-]?\d+)?))|([[\]{},:]))\s*/y;
const WORDS: Readonly<Record<string, string>> = { True: "true", False: "false", None: "null" };
const ESCAPES: Readonly<Record<string, string>> = { n: "\n", t: "\t", r: "\r", "\\": "\\", "'": "'", '"': '"' };

/** JSON of a Python literal (True, False, None, quoted strings, numbers, lists, dictionaries); null if it is none. */
export function jsonOfPythonLiteral(text: string): string | null {
  let json = "";
  TOKEN.lastIndex = 0;
  while (TOKEN.lastIndex < text.length) {
    const token = TOKEN.exec(text);
    if (token === null) return null;
    const [, quoted, word, number, sign] = token;
    if (quoted !== undefined) json += JSON.stringify(unquoted(quoted));
    else if (word !== undefined) json += WORDS[word];
    else if (number !== undefined) json += number;
    else json += sign;
    if (sign === "]" || sign === "}") json = json.replace(/,(.)$/, "$1");
  }
  try {
    JSON.parse(json);
    return json;
  } catch {
    return null;
  }
}

function unquoted(quoted: string): string {
  return quoted
    .slice(1, -1)
    .replace(
      /\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|([\s\S]))/g,
      (_, unicode?: string, hex?: string, one?: string) => {
        const code = unicode ?? hex;
        if (code !== undefined) return String.fromCharCode(Number.parseInt(code, 16));
        return ESCAPES[one!] ?? `\\${one}`;
      },
    );
}
