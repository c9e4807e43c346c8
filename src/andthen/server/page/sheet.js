// One text, the writer's and the model's, in which the model's tokens are shaded by their probability.
// A textarea with clear letters lies over an inked copy of the same text: the one is edited, the other is seen.
// Knows no network and no parameter.

import { el, percent, visible } from "./dom.js";

/** Nats at which the shade is full: a token of one in a thousand. */
const FULL_SHADE = Math.log(1000);

/**
 * One candidate while it comes in. A mark is a stretch of the sheet with the tokens that wrote it: mostly one, several
 * where they share a character, none where no log-probabilities were asked for. Stretches count UTF-16 units of the
 * sheet's text; the contract's offsets count code points.
 */
export class Continuation {
  #marks = [];
  #placed = 0;
  #points = 0;
  #units = 0;

  constructor(prompt, echo) {
    Object.assign(this, { prompt, echo, text: "", tokens: [], reason: null });
  }

  /** The sheet's text with this candidate on it. */
  get whole() {
    return this.echo ? this.text || this.prompt : this.prompt + this.text;
  }

  get isFresh() {
    return this.text === "" && this.tokens.length === 0;
  }

  /** The mean log-probability of the tokens that were generated, or null. */
  get mean() {
    const own = this.marks().filter((mark) => !mark.read).flatMap((mark) => mark.tokens);
    return own.length ? own.reduce((sum, token) => sum + token.logprob, 0) / own.length : null;
  }

  take({ text, logprobs, finish_reason }) {
    this.text += text;
    this.reason ??= finish_reason;
    for (const [i, token] of (logprobs?.tokens ?? []).entries()) {
      const [logprob, top] = [logprobs.token_logprobs[i], logprobs.top_logprobs?.[i] ?? null];
      this.tokens.push({ text: token, logprob, top, offset: logprobs.text_offset[i] });
    }
  }

  marks() {
    const whole = this.whole;
    const edge = this.prompt.length;
    if (!this.tokens.length) return whole.length > edge ? [{ start: edge, end: whole.length, tokens: [] }] : [];
    for (; this.#placed < this.tokens.length; this.#placed++) {
      const token = this.tokens[this.#placed];
      while (this.#points < token.offset && this.#units < whole.length) {
        this.#units += whole.codePointAt(this.#units) > 0xffff ? 2 : 1;
        this.#points++;
      }
      if (this.#points < token.offset) break; // its text is still held back
      const last = this.#marks.at(-1);
      if (last?.start === this.#units) last.tokens.push(token);
      else {
        if (last) last.end = this.#units;
        this.#marks.push({ start: this.#units, tokens: [token], read: this.#units < edge });
      }
    }
    if (this.#marks.length) this.#marks.at(-1).end = whole.length;
    return this.#marks;
  }
}

/**
 * Text on the page, cut into its marks. Repaints only from the first piece that changed. With a tail, its tokens can be
 * looked at one by one; without, they are only shaded.
 */
export class Ink {
  #pieces = [];
  #marks = new WeakMap();

  constructor(node, tail = null) {
    Object.assign(this, { node, tail });
  }

  paint(text, marks) {
    const pieces = cut(text, marks);
    const same = (piece, old) => old && old.text === piece.text && old.mark === piece.mark;
    let kept = 0;
    while (kept < pieces.length && same(pieces[kept], this.#pieces[kept])) kept++;
    for (const old of this.#pieces.splice(kept)) old.node.remove();
    for (const piece of pieces.slice(kept)) {
      piece.node = this.#draw(piece);
      this.#pieces.push(piece);
      if (this.tail) this.tail.before(piece.node);
      else this.node.append(piece.node);
    }
  }

  markOf(node) {
    return this.#marks.get(node);
  }

  #draw({ text, mark }) {
    if (!mark) return el("span", { "aria-hidden": "true" }, text);
    if (!mark.tokens.length) return el("span", { class: "written", "aria-hidden": "true" }, text);
    const logprob = likelihood(mark);
    const kind = `token ${mark.read ? "read" : "written"}${text ? "" : " end"}`;
    const start = text.length - text.trimStart().length || 0;
    const [space, word] = start < text.length ? [text.slice(0, start), text.slice(start)] : ["", text];
    const name = `${visible(mark.tokens.map((token) => token.text).join(""))} ${percent(logprob ?? 0)}`;
    const touch = this.tail ? { role: "button", tabIndex: -1, "aria-label": name } : {};
    const node = el("span", { class: kind, ...touch }, space, el("span", { class: "shade" }, word));
    node.style.setProperty("--surprise", Math.min(1, -(logprob ?? 0) / FULL_SHADE).toFixed(3));
    this.#marks.set(node, mark);
    return node;
  }
}

/** The log-probability of a mark's tokens together; null where nothing precedes them. */
export function likelihood(mark) {
  return mark.tokens.reduce((sum, token) => (token.logprob === null ? sum : (sum ?? 0) + token.logprob), null);
}

function cut(text, marks) {
  const pieces = [];
  let at = 0;
  for (const mark of marks) {
    if (mark.start > at) pieces.push({ text: text.slice(at, mark.start), mark: null });
    // A token without text is worth a sign only where it ends the text.
    if (mark.end > mark.start || mark.end === text.length) pieces.push({ text: text.slice(mark.start, mark.end), mark });
    at = mark.end;
  }
  if (at < text.length) pieces.push({ text: text.slice(at), mark: null });
  return pieces;
}

/** The sheet itself. `onEdit` is told when its writer changed it, `onLook(node, mark, how)` when a token is looked at. */
export class Sheet {
  #text = "";
  #marks = [];

  constructor(area, inked, { onEdit, onLook, onKey }) {
    this.area = area;
    this.tail = el("span", { class: "tail", "aria-hidden": "true" }, "\u200b");
    inked.append(this.tail);
    this.ink = new Ink(inked, this.tail);
    area.addEventListener("input", () => {
      this.#edited();
      onEdit();
    });
    const look = (node, how) => onLook(node ?? null, node ? this.ink.markOf(node) : null, how);
    area.addEventListener("pointermove", (event) => event.pointerType === "mouse" && look(this.#under(event), "hover"));
    area.addEventListener("pointerleave", () => look(null, "hover"));
    area.addEventListener("click", (event) => look(this.#under(event), "tap"));
    inked.addEventListener("focusin", ({ target }) => {
      this.#rove(target);
      look(target, "focus");
    });
    inked.addEventListener("focusout", () => look(null, "focus"));
    inked.addEventListener("keydown", (event) => this.#step(event) || onKey(event));
  }

  get text() {
    return this.#text;
  }

  /** What a later `write` brings back. */
  get state() {
    return { text: this.#text, marks: this.#marks };
  }

  write({ text, marks }) {
    this.#text = text;
    this.#marks = marks;
    if (this.area.value !== text) this.area.value = text;
    this.ink.paint(text, marks);
    const first = this.ink.node.querySelector(".token");
    if (first && !this.ink.node.querySelector(".token[tabindex='0']")) first.tabIndex = 0;
  }

  /** The marks before a place, for a text that goes another way from there. */
  before(place) {
    return { text: this.#text.slice(0, place), marks: this.#marks.filter((mark) => mark.end <= place) };
  }

  /** What follows a changed place was not written after this text: its shades no longer hold. */
  #edited() {
    const text = this.area.value;
    let same = 0;
    while (same < text.length && text[same] === this.#text[same]) same++;
    this.write({ text, marks: this.#marks.filter((mark) => mark.end <= same && mark.end > mark.start) });
  }

  /** The token under the pointer, seen through the textarea. */
  #under({ clientX, clientY }) {
    return document.elementsFromPoint(clientX, clientY).map((node) => node.closest(".ink .token")).find(Boolean);
  }

  #rove(node) {
    for (const other of this.ink.node.querySelectorAll(".token[tabindex='0']")) other.tabIndex = -1;
    node.tabIndex = 0;
  }

  #step({ key, target }) {
    if (key === "Escape") this.area.focus();
    const tokens = [...this.ink.node.querySelectorAll(".token")];
    const at = tokens.indexOf(target);
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: tokens.length - 1 }[key];
    tokens[to]?.focus();
    return to !== undefined;
  }
}
