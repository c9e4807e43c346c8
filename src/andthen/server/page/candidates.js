// The candidates of one request side by side; the chosen one stands on the sheet.

import { el, percent } from "./dom.js";
import { Ink } from "./sheet.js";

/** A radio group of candidates. `onChoose(index)` is told when another is wanted on the sheet. */
export class Candidates {
  #cards = [];

  constructor(node, onChoose) {
    Object.assign(this, { node, onChoose, chosen: 0 });
    node.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      this.choose((this.chosen + step + this.#cards.length) % this.#cards.length);
      this.#cards[this.chosen].node.focus();
    });
  }

  /** Lays out as many empty cards as there are candidates; one alone needs none. */
  lay(count) {
    this.chosen = 0;
    this.#cards = count < 2 ? [] : Array.from({ length: count }, (_, index) => this.#card(index));
    this.node.replaceChildren(...this.#cards.map((card) => card.node));
    this.node.hidden = count < 2;
    this.#mark();
  }

  /** Shows how far candidate `index` has come. */
  show(index, continuation) {
    const card = this.#cards[index];
    if (!card) return;
    const edge = continuation.prompt.length;
    const own = continuation.marks().filter((mark) => mark.start >= edge);
    // Each card starts at the candidate's own text; a mark is moved once and then kept, so that little is repainted.
    for (const mark of own) {
      if (!card.moved.has(mark)) card.moved.set(mark, { ...mark });
      Object.assign(card.moved.get(mark), { start: mark.start - edge, end: mark.end - edge });
    }
    card.ink.paint(continuation.whole.slice(edge), own.map((mark) => card.moved.get(mark)));
    const { reason, mean } = continuation;
    card.told.textContent = [reason, reason && mean !== null ? `${percent(mean)} a token` : null].filter(Boolean).join(" · ");
  }

  choose(index) {
    this.chosen = index;
    this.#mark();
    this.onChoose(index);
  }

  #card(index) {
    const told = el("span", { class: "told" });
    const text = el("span", { class: "text" });
    const head = el("span", { class: "head" }, el("b", {}, `${index + 1}`), told);
    const properties = { class: "candidate", type: "button", role: "radio", onclick: () => this.choose(index) };
    return { node: el("button", properties, head, text), ink: new Ink(text), told, moved: new Map() };
  }

  #mark() {
    for (const [index, { node }] of this.#cards.entries()) {
      node.setAttribute("aria-checked", String(index === this.chosen));
      node.tabIndex = index === this.chosen ? 0 : -1;
    }
  }
}
