// The card beside a token: how probable it was and what else the model had in mind.

import { el, percent, visible } from "./dom.js";
import { likelihood } from "./sheet.js";

const LINGER_MS = 250;
const REST_MS = 60;

/** Shows one mark at a time. `onTake(mark, text, logprob)` is called when another token is chosen in its place. */
export class Card {
  #leaving = 0;
  #coming = 0;
  #shown = null;

  constructor(node, onTake) {
    Object.assign(this, { node, onTake });
    node.addEventListener("pointerenter", () => this.#stay());
    node.addEventListener("pointerleave", () => this.leave());
    node.addEventListener("pointerdown", (event) => event.preventDefault()); // the token keeps the focus
    addEventListener("scroll", () => this.anchor && this.#place(this.anchor), { passive: true });
    addEventListener("keydown", (event) => event.key === "Escape" && this.hide());
  }

  /** Shows a mark that the pointer rests on: on its way to the card it passes over others. */
  approach(anchor, mark) {
    if (this.#shown === mark) return this.#stay();
    clearTimeout(this.#coming);
    this.#coming = setTimeout(() => this.show(anchor, mark), REST_MS);
  }

  show(anchor, mark) {
    this.#stay();
    if (this.#shown === mark) return;
    this.hide();
    this.#shown = mark;
    this.anchor = anchor;
    anchor.classList.add("looked");
    anchor.setAttribute("aria-describedby", this.node.id);
    this.node.replaceChildren(...this.#content(mark), el("p", { class: "hidden", role: "status" }));
    this.node.hidden = false;
    this.#place(anchor);
  }

  /** Goes away, but leaves the pointer time to come over. */
  leave() {
    this.#stay();
    this.#leaving = setTimeout(() => this.hide(), LINGER_MS);
  }

  hide() {
    this.#stay();
    this.anchor?.classList.remove("looked");
    this.anchor?.removeAttribute("aria-describedby");
    this.#shown = this.anchor = null;
    this.node.hidden = true;
  }

  /** Up and down choose an alternative, Enter takes it. */
  key(event) {
    const ways = [...this.node.querySelectorAll("button:enabled")];
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const at = ways.findIndex((way) => way.classList.contains("chosen"));
    if (step && ways.length) {
      ways[at]?.classList.remove("chosen");
      const chosen = ways[at < 0 && step < 0 ? ways.length - 1 : (at + step + ways.length) % ways.length];
      chosen.classList.add("chosen");
      this.node.lastChild.textContent = chosen.textContent;
    } else if (event.key === "Enter" && at >= 0) ways[at].click();
    else return;
    event.preventDefault();
  }

  #stay() {
    clearTimeout(this.#leaving);
    clearTimeout(this.#coming);
  }

  #content(mark) {
    const [first] = mark.tokens;
    const written = mark.tokens.map((token) => token.text).join("");
    const logprob = likelihood(mark);
    const head = el("p", { class: "said" }, el("code", {}, visible(written)), el("b", {}, logprob === null ? "–" : percent(logprob)));
    if (logprob === null) return [head, el("p", { class: "note" }, "The first token: nothing comes before it.")];
    const note =
      mark.tokens.length > 1
        ? el("p", { class: "note" }, `${mark.tokens.length} tokens: ${mark.tokens.map((t) => percent(t.logprob ?? 0)).join(", ")}`)
        : null;
    if (!first.top) return note ? [head, note] : [head];
    const ways = Object.entries(first.top).sort(([, a], [, b]) => b - a);
    const rest = 1 - ways.reduce((sum, [, value]) => sum + Math.exp(value), 0);
    const list = el("ul", {}, ...ways.map(([text, value]) => el("li", {}, this.#way(mark, text, value))));
    if (rest > 0.0005) list.append(el("li", {}, row("span", { class: "way rest" }, "all others", Math.log(rest))));
    return [head, ...(note ? [note] : []), list];
  }

  #way(mark, text, logprob) {
    const taken = text === mark.tokens[0].text;
    const fixed = taken || text === "" || /^(bytes|token_id):/.test(text) || !this.onTake;
    const title = fixed ? null : "Go on from here with this instead";
    const properties = { class: `way${taken ? " taken" : ""}`, type: "button", disabled: fixed, tabIndex: -1, title };
    return row("button", { ...properties, onclick: () => this.onTake(mark, text, logprob) }, visible(text), logprob);
  }

  #place(anchor) {
    if (!anchor.isConnected) return this.hide();
    const room = 8;
    const lines = anchor.getClientRects();
    const [at, own] = [lines[lines.length - 1], this.node.getBoundingClientRect()];
    const below = at.bottom + room + own.height < innerHeight;
    const left = Math.max(room, Math.min(at.left, document.documentElement.clientWidth - own.width - room));
    this.node.style.left = `${left}px`;
    this.node.style.top = `${below ? at.bottom + room / 2 : Math.max(room, at.top - own.height - room / 2)}px`;
  }
}

function row(name, properties, text, logprob) {
  const bar = el("i", { "aria-hidden": "true" });
  bar.style.setProperty("--share", Math.exp(logprob).toFixed(4));
  return el(name, properties, bar, el("code", {}, text), el("span", {}, percent(logprob)));
}
