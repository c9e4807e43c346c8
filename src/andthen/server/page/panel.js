// The parameters' controls, made from the OpenAPI document's table: a parameter that the contract gains appears here.
// Knows no network; what a value may be is for the server to judge.

import { el, prose } from "./dom.js";
import { facts, kind, standard } from "./schema.js";

/** Where the known parameters stand; the rest, in the contract's order, follows under the last heading. */
const GROUPS = [
  ["Length", ["max_tokens", "n", "best_of"], true],
  ["Choice", ["temperature", "top_p", "seed"], true],
  ["Ending", ["stop", "suffix"], true],
  ["Reply", ["logprobs", "echo", "stream"], true],
  ["Repetition", ["frequency_penalty", "presence_penalty", "repetition_penalty"], false],
  ["More", [], false],
];

/** What the page itself says: the text, the model, and that it wants the usage. */
const ELSEWHERE = ["model", "prompt", "stream_options"];

/** A number gets a slide only where its range is so narrow that a step of it can be hit. */
const WIDEST_SLIDE = 4;

/** All controls. Empty means absent: the server's default holds. */
export class Panel {
  #fields = new Map();

  constructor(node, hint, properties, onChange) {
    this.hint = hint;
    const placed = new Set([...ELSEWHERE, ...GROUPS.flatMap(([, names]) => names)]);
    const rest = Object.keys(properties).filter((name) => !placed.has(name));
    for (const [title, names, open] of GROUPS) {
      const own = (names.length ? names : rest).filter((name) => name in properties);
      const fields = own.map((name) => this.#add(name, properties[name], onChange));
      if (!fields.length) continue;
      if (open) node.append(el("fieldset", {}, el("legend", {}, title), ...fields));
      else node.append(el("details", {}, el("summary", {}, title), el("fieldset", { "aria-label": title }, ...fields)));
    }
  }

  /** The values that are set, by name. Throws `Unreadable` for what cannot be a value at all. */
  values() {
    const read = [...this.#fields].map(([name, field]) => [name, field.read()]);
    return Object.fromEntries(read.filter(([, value]) => value !== undefined));
  }

  fill(values) {
    for (const [name, value] of Object.entries(values)) this.#fields.get(name)?.write(value);
  }

  /** Says beside each control what becomes of it on this model; `capabilities` is the model's row. */
  suit(model, capabilities) {
    for (const [name, field] of this.#fields) {
      const { how, why } = capabilities[name] ?? {};
      field.node.classList.toggle("refused", how === "refused");
      field.fate = how ? `On ${model}: ${how}${why ? ` (${why})` : ""}.` : "";
    }
  }

  /** Marks the field at fault and goes there. False if there is no such field. */
  blame(param, message) {
    const field = this.#fields.get(param?.split(/[.[]/, 1)[0]);
    if (!field) return false;
    field.node.closest("details")?.setAttribute("open", "");
    accuse(field.control, message);
    field.control.focus();
    return true;
  }

  #add(name, schema, onChange) {
    const field = control(name, facts(schema));
    const told = el("span", { class: "hidden", id: `about-${name}` }, ...prose(about(schema)));
    field.control.setAttribute("aria-describedby", told.id);
    field.node.append(told);
    field.node.addEventListener("input", () => {
      forgive(field.control);
      onChange();
    });
    const explain = () => this.hint.replaceChildren(el("b", {}, name), " ", ...prose(`${about(schema)} ${field.fate ?? ""}`));
    field.node.addEventListener("focusin", explain);
    field.node.addEventListener("pointerenter", explain);
    this.#fields.set(name, field);
    return field.node;
  }
}

/** What stands in a control is no value of its kind. */
export class Unreadable extends Error {
  constructor(param, message) {
    super(message);
    this.param = param;
  }
}

/** Marks a control as wrong, with the reason below it. */
export function accuse(node, message) {
  forgive(node);
  node.setAttribute("aria-invalid", "true");
  const note = el("span", { class: "fault", id: `${node.id}-fault` }, ...prose(message));
  node.setAttribute("aria-errormessage", note.id);
  (node.closest(".field") ?? node.parentElement).append(note);
}

export function forgive(node) {
  node.removeAttribute("aria-invalid");
  node.removeAttribute("aria-errormessage");
  document.getElementById(`${node.id}-fault`)?.remove();
}

/** A parameter's meaning, type, range and default in one sentence or two. */
function about(schema) {
  const value = standard(schema);
  return `${schema.description ?? ""} (${kind(schema)}${value === null ? "" : `, default ${value}`})`.trim();
}

function control(name, { types, items, ...limits }) {
  if (types.includes("boolean")) return flag(name, limits);
  if (types.includes("array")) return items?.type === "string" ? texts(name, limits) : json(name, "[ ]");
  if (types.includes("object")) return json(name, "{ }");
  if (types.includes("integer")) return number(name, { ...limits, isWhole: true });
  return types.includes("number") ? number(name, limits) : text(name);
}

function field(name, kind, control, ...more) {
  const label = el("label", { htmlFor: control.id }, name);
  return { control, node: el("div", { class: `field ${kind}` }, label, control, ...more) };
}

function flag(name, { default: absent = false }) {
  const input = el("input", { id: `p-${name}`, type: "checkbox", checked: absent });
  const read = () => (input.checked === absent ? undefined : input.checked);
  return { ...field(name, "flag", input), read, write: (value) => (input.checked = value) };
}

function number(name, { minimum, maximum, isWhole, default: absent }) {
  const shape = { min: minimum, max: maximum, step: isWhole ? 1 : "any", placeholder: absent ?? "" };
  const input = el("input", { id: `p-${name}`, type: "number", inputMode: isWhole ? "numeric" : "decimal", ...shape });
  const hasSlide = !isWhole && maximum - minimum <= WIDEST_SLIDE;
  const slide = el("input", { type: "range", tabIndex: -1, "aria-hidden": "true", min: minimum, max: maximum, step: 0.05 });
  const follow = () => (slide.value = input.value === "" ? absent : input.value);
  follow();
  input.addEventListener("input", follow);
  slide.addEventListener("input", () => (input.value = slide.value));
  const made = field(name, "number", input, ...(hasSlide ? [slide] : []));
  const read = () => {
    if (input.validity.badInput) throw new Unreadable(name, "This is not a number.");
    if (Math.abs(input.valueAsNumber) > Number.MAX_SAFE_INTEGER)
      throw new Unreadable(name, "The page can write whole numbers only up to 2^53 - 1; use curl beyond that.");
    return input.value === "" ? undefined : input.valueAsNumber;
  };
  const write = (value) => {
    input.value = value;
    follow();
  };
  return { ...made, read, write };
}

function text(name) {
  const input = el("textarea", { id: `p-${name}`, rows: 1, autocomplete: "off" });
  input.setAttribute("spellcheck", "false");
  const made = field(name, "text", input);
  return { ...made, read: () => input.value || undefined, write: (value) => (input.value = value) };
}

/** As many lines as are filled, and one more to fill. `\n`, `\t`, `\r` and `\\` stand for what cannot be typed. */
function texts(name, { maxItems = Infinity }) {
  const lines = el("div", { class: "lines" });
  const line = () => {
    const input = el("input", { type: "text", "aria-label": `${name} ${lines.children.length + 1}`, autocomplete: "off" });
    lines.append(input);
    return input;
  };
  const first = el("input", { id: `p-${name}`, type: "text", placeholder: "none", autocomplete: "off" });
  lines.append(first);
  const spare = () => lines.lastChild.value && lines.children.length < maxItems && line();
  lines.addEventListener("input", spare);
  const read = () => {
    const given = [...lines.children].map((input) => unescape(input.value)).filter(Boolean);
    return given.length ? given : undefined;
  };
  const write = (values) => {
    [values].flat().forEach((value, i) => ((lines.children[i] ?? line()).value = escape(value)));
    spare();
  };
  const label = el("label", { htmlFor: first.id }, name);
  return { control: first, node: el("div", { class: "field text" }, label, lines), read, write };
}

function json(name, placeholder) {
  const made = text(name);
  made.control.placeholder = placeholder;
  const read = () => {
    try {
      return made.control.value.trim() ? JSON.parse(made.control.value) : undefined;
    } catch {
      throw new Unreadable(name, `This is not JSON; it should look like ${placeholder}.`);
    }
  };
  return { ...made, read, write: (value) => (made.control.value = JSON.stringify(value)) };
}

const ESCAPES = { "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r" };
const escape = (text) => text.replace(/[\\\n\t\r]/g, (character) => ESCAPES[character]);
const unescape = (text) => text.replace(/\\[\\ntr]/g, (pair) => Object.keys(ESCAPES).find((key) => ESCAPES[key] === pair));
