/**
 * Makes elements. Text is always text: nothing here takes HTML.
 *
 * @param {string} name
 * @param {Record<string, any>} [properties] attributes; `class`, `text`; `on...` are listeners; false, null and undefined are left out
 * @param {...(Node | string | null)} children
 * @returns {any}
 */
export function element(name, properties = {}, ...children) {
  return fill(document.createElement(name), properties, children);
}

/**
 * The same for pictures.
 *
 * @param {string} name
 * @param {Record<string, any>} [properties]
 * @param {...(Node | string | null)} children
 * @returns {any}
 */
export function shape(name, properties = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), properties, children);
}

function fill(made, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === false || value === null || value === undefined) continue;
    if (name === "text") made.textContent = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** Says something to those who listen rather than look. */
export function say(text) {
  document.querySelector("#said").textContent = text;
}
