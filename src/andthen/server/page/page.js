// The page at `/`: a text goes in, what comes next goes out, in place. Ties the sheet, the parameters and the server.

import { Candidates } from "./candidates.js";
import { Card } from "./card.js";
import { COMPLETIONS, CutShort, Refused, complete, curl, models } from "./client.js";
import { copy, el, percent, prose } from "./dom.js";
import { Panel, Unreadable, accuse, forgive } from "./panel.js";
import { Continuation, Sheet } from "./sheet.js";

/** What the page asks for until its reader says otherwise; all else is left to the server's defaults. */
const START = { max_tokens: 64, logprobs: 5, stream: true };
const KEY = "andthen.key";
const DESK = "andthen.desk";

const at = Object.fromEntries([...document.querySelectorAll("[id]")].map((node) => [node.id, node]));
const history = [];
let panel = null;
let running = null;
let catalogue = [];
let candidates = [];

const card = new Card(at.card, take);
const sheet = new Sheet(at.text, at.ink, { onEdit: edited, onLook: look, onKey: (event) => card.key(event) });
const choices = new Candidates(at.candidates, (index) => candidates[index] && lay(candidates[index]));

/** The request as it stands, or null where a control cannot be read. */
function request() {
  try {
    const values = panel.values();
    if (values.best_of > (values.n ?? 1)) delete values.stream; // the best are known only at the end
    const usage = values.stream ? { stream_options: { include_usage: true } } : {};
    return { model: at.model.value, prompt: sheet.text, ...values, ...usage };
  } catch (error) {
    if (!(error instanceof Unreadable)) throw error;
    complain(error);
    return null;
  }
}

async function run() {
  if (!at.key.value) return complain(new Refused({ message: "A key is needed first.", param: "key" }));
  const body = request();
  if (!body) return;
  absolve();
  const before = sheet.state;
  history.push(before);
  running = new AbortController();
  const asked = performance.now();
  const seen = { headers: new Headers(), chunk: null, usage: null, first: null, all: null };
  candidates = Array.from({ length: body.n ?? 1 }, () => Object.assign(new Continuation(before.text, body.echo), { before }));
  choices.lay(candidates.length);
  busy(true);
  try {
    for await (const chunk of complete(body, at.key.value, running.signal, (headers) => (seen.headers = headers))) {
      seen.first ??= performance.now() - asked;
      seen.chunk = chunk;
      seen.usage = chunk.usage ?? seen.usage;
      for (const choice of chunk.choices) candidates[choice.index]?.take(choice);
      for (const choice of chunk.choices) repaint(choice.index);
    }
    seen.all = performance.now() - asked;
    tell(`Done in ${seconds(seen.all)}.`);
  } catch (error) {
    if (error.name === "AbortError") tell("Stopped. The server has dropped the rest of the work.");
    else complain(error);
  } finally {
    paint();
    if (candidates.every((candidate) => candidate.isFresh)) history.pop(); // nothing to take back
    running = null;
    busy(false);
    record(seen, seen.all ?? performance.now() - asked);
  }
}

/* ---- the sheet ---- */

const dirty = new Set();

/** Chunks may come faster than the screen is drawn. */
function repaint(index) {
  if (!dirty.size) requestAnimationFrame(paint);
  dirty.add(index);
}

function paint() {
  for (const index of dirty) choices.show(index, candidates[index]);
  if (dirty.has(choices.chosen)) lay(candidates[choices.chosen]);
  dirty.clear();
}

function lay(candidate) {
  const own = candidate.marks();
  const edge = own[0]?.start ?? candidate.prompt.length;
  const kept = candidate.before.marks.filter((mark) => mark.end <= edge && mark.end > mark.start);
  const follows = at.bar.getBoundingClientRect().top < innerHeight;
  sheet.write({ text: candidate.whole, marks: [...kept, ...own] });
  if (running && follows) sheet.tail.scrollIntoView({ block: "nearest" });
}

function edited() {
  forgive(at.text);
  candidates = [];
  choices.lay(0);
  card.hide();
  refresh();
}

function look(node, mark, how) {
  if (node && how === "hover") card.approach(node, mark);
  else if (node) card.show(node, mark);
  else if (how === "hover") card.leave();
  else card.hide();
}

/** Another token in a token's place: what followed it is gone, and the text goes on from there. */
function take(mark, text, logprob) {
  if (running) return;
  history.push(sheet.state);
  const base = sheet.before(mark.start);
  const [{ top }] = mark.tokens;
  const own = { start: mark.start, end: mark.start + text.length, tokens: [{ text, logprob, top }], read: false };
  candidates = [];
  choices.lay(0);
  card.hide();
  sheet.write({ text: base.text + text, marks: [...base.marks, own] });
  at.text.focus();
  at.text.setSelectionRange(sheet.text.length, sheet.text.length);
  tell("Taken. Run to go on from here.");
  refresh();
}

function back() {
  const state = history.pop();
  if (!state) return;
  candidates = [];
  choices.lay(0);
  sheet.write(state);
  absolve();
  tell("Taken back.");
  refresh();
}

/* ---- what is told ---- */

function busy(yes) {
  at.run.classList.toggle("stop", yes);
  at.run.firstElementChild.textContent = yes ? "Stop" : "Run";
  at.text.readOnly = yes;
  at.ink.classList.toggle("live", yes);
  at.page.setAttribute("aria-busy", String(yes));
  if (yes) tell("Writing …");
  refresh();
}

function refresh() {
  at.run.disabled = !panel;
  at.back.disabled = at.again.disabled = Boolean(running) || !history.length;
  command();
}

function tell(message) {
  at.status.textContent = message;
}

function absolve() {
  at.problem.hidden = true;
  at.problem.replaceChildren();
  for (const node of document.querySelectorAll("[aria-invalid]")) forgive(node);
}

function complain(error) {
  if (!(error instanceof Refused || error instanceof CutShort || error instanceof Unreadable)) console.error(error);
  const param = error.code === "invalid_api_key" ? "key" : error.param;
  const own = { key: at.key, model: at.model, prompt: at.text }[param];
  absolve();
  tell("");
  const facts = [error.param, error.code, error.status].filter(Boolean).join(" · ");
  at.problem.append(el("p", {}, ...prose(error.message)), ...(facts ? [el("p", { class: "facts" }, facts)] : []));
  at.problem.hidden = false;
  if (own) {
    accuse(own, error.message);
    own.focus();
  } else panel?.blame(param, error.message);
}

const seconds = (ms) => (ms < 1000 ? `${ms.toFixed(0)} ms` : `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`);

/** The last run in figures. */
function record({ headers, chunk, usage, first }, total) {
  const { reason = null, mean = null } = candidates[choices.chosen] ?? {};
  const made = usage?.completion_tokens;
  const cached = usage?.prompt_tokens_details?.cached_tokens;
  const rate = made ? `${(made / (total / 1000)).toFixed(0)} tokens/s` : null;
  const rows = {
    finish: reason,
    tokens: usage ? `${usage.prompt_tokens} read${cached ? ` (${cached} cached)` : ""}, ${made} written` : null,
    time: first === null ? null : [`first ${seconds(first)}`, `all ${seconds(total)}`, rate].filter(Boolean).join(", "),
    "mean probability": mean === null ? null : `${percent(mean)} a token, perplexity ${Math.exp(-mean).toFixed(2)}`,
    model: chunk?.model,
    engine: chunk?.system_fingerprint,
    server: headers.get("server-timing"),
    request: headers.get("x-request-id") ?? chunk?.id,
    ignored: headers.get("x-andthen-ignored"),
    plan: headers.get("x-andthen-plan"),
  };
  const shown = Object.entries(rows).filter(([, value]) => value);
  at.facts.replaceChildren(...shown.map(([name, value]) => el("div", { class: name }, el("dt", {}, name), el("dd", {}, value))));
  at.last.hidden = !shown.length;
}

function command() {
  try {
    const values = panel?.values() ?? {};
    const body = { model: at.model.value, prompt: sheet.text, ...values };
    at.curl.textContent = curl(COMPLETIONS, { body, key: at.withkey.checked ? at.key.value : "" });
    sheet.tail.textContent = `\u200b${values.suffix ?? ""}`; // seen where it will follow
  } catch (error) {
    if (!(error instanceof Unreadable)) throw error;
  }
}

/* ---- key and models ---- */

async function enter() {
  sessionStorage.setItem(KEY, at.key.value);
  forgive(at.key);
  if (!at.key.value) return;
  try {
    catalogue = await models(at.key.value);
  } catch (error) {
    return complain(error);
  }
  absolve();
  const wanted = at.model.value || desk().model;
  at.model.replaceChildren(...catalogue.map(({ id }) => el("option", { value: id }, id)));
  if (catalogue.some(({ id }) => id === wanted)) at.model.value = wanted;
  suit();
}

function suit() {
  const model = catalogue.find(({ id }) => id === at.model.value);
  panel?.suit(at.model.value, model?.capabilities ?? {});
  at.about.textContent = model?.context_length ? `${model.context_length.toLocaleString()} tokens of context` : "";
  refresh();
}

const desk = () => JSON.parse(sessionStorage.getItem(DESK) ?? "{}");

/** The page as it was left comes back in the same tab; the key lies in the tab's own storage and nowhere else. */
function keep() {
  try {
    sessionStorage.setItem(DESK, JSON.stringify({ text: sheet.text, model: at.model.value, values: panel.values() }));
  } catch {
    // What cannot be read, or does not fit, is not worth keeping.
  }
}

async function open() {
  const { text = "Once upon a time", values = START } = desk();
  sheet.write({ text, marks: [] });
  at.text.setSelectionRange(text.length, text.length);
  at.key.value = sessionStorage.getItem(KEY) ?? "";
  (at.key.value ? at.text : at.key).focus();
  const spec = await (await fetch("/openapi.json")).json();
  panel = new Panel(at.parameters, at.hint, spec.components.schemas.CompletionRequest.properties, refresh);
  panel.fill(values);
  refresh();
  await enter();
}

let typing = 0;
at.key.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(enter, 400);
});
at.model.addEventListener("change", suit);
at.withkey.addEventListener("change", command);
at.copy.addEventListener("click", () => copy(at.curl.textContent, at.curl, at.copy));
at.run.addEventListener("click", () => (running ? running.abort() : run()));
at.back.addEventListener("click", back);
at.again.addEventListener("click", () => {
  back();
  run();
});
addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !running) {
    event.preventDefault();
    run();
  } else if (event.key === "Escape" && running) running.abort();
});
addEventListener("pagehide", keep);
open().catch(complain);
