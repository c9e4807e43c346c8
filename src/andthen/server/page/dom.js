// Makes elements, and says numbers and tokens as people read them.

/** An element with its properties (`class`, `data-*`, `aria-*` and other attributes too), listeners and children. */
export function el(name, properties = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key in node && !key.includes("-")) node[key] = value;
    else node.setAttribute(key === "class" ? "class" : key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** Text in which `words` between backticks are code. */
export function prose(text = "") {
  return text.split("`").map((part, i) => (i % 2 ? el("code", {}, part) : part));
}

/** A probability from its natural logarithm, in two or three digits. */
export function percent(logprob) {
  const share = 100 * Math.exp(logprob);
  if (share >= 99.95) return "100%";
  if (share >= 9.95) return `${share.toFixed(0)}%`;
  if (share >= 0.095) return `${share.toFixed(1)}%`;
  return share >= 0.0095 ? `${share.toFixed(2)}%` : "<0.01%";
}

/** A token's text with its white space made visible. */
export function visible(text) {
  if (text === "") return "∅";
  return text.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll("\r", "␍");
}

/** Copies a text; where the browser forbids it (a page that came over plain HTTP), selects it instead. */
export async function copy(text, shown, button) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(shown);
    button.textContent = "Selected";
  }
  setTimeout(() => (button.textContent = label), 1600);
}
