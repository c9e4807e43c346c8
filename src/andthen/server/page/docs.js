// The page at `/docs`: the server's own OpenAPI document, to read. Every word about the API comes from the document.

import { curl } from "./client.js";
import { copy, el, prose } from "./dom.js";
import { kind, standard } from "./schema.js";

const METHODS = ["get", "post", "put", "patch", "delete"];
const JSON_TYPE = "application/json";

const at = Object.fromEntries([...document.querySelectorAll("[id]")].map((node) => [node.id, node]));

/** The name of the object that a reference leads to. */
const named = (reference) => reference?.split("/").at(-1);

/** A name that may be broken after its underscores. */
function breakable(name) {
  return el("code", {}, ...name.split(/(?<=_)/).flatMap((part) => [el("wbr"), part]));
}

/** A schema's type; the objects in it lead to their own tables. */
function typed(schema) {
  const words = kind(schema, (reference) => `#${named(reference)} `);
  return words.split(/(#\w+) /).map((part) => (part[0] === "#" ? el("a", { href: part }, part.slice(1)) : part));
}

/** A table of rows of cells; a column in which no row says anything is left out. */
function table(titles, lines) {
  const told = titles.map((_, i) => lines.some((line) => [line[i]].flat().join("") !== ""));
  const [heads, ...rows] = [titles, ...lines].map((line) => line.filter((_, i) => told[i]));
  const head = el("tr", {}, ...heads.map((name) => el("th", { scope: "col" }, name)));
  const cells = (row) => row.map((cell, i) => el("td", { "data-head": heads[i] }, ...[cell].flat().filter(Boolean)));
  return el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows.map((row) => el("tr", {}, ...cells(row)))));
}

function fields(schema, prefix) {
  const rows = Object.entries(schema.properties ?? {}).map(([name, property]) => {
    const anchor = el("a", { class: "field", id: `${prefix}.${name}`, href: `#${prefix}.${name}` }, breakable(name));
    const value = standard(property);
    const required = schema.required?.includes(name) ? el("span", { class: "required" }, "required") : null;
    return [[anchor, required], typed(property), value === null ? "" : el("code", {}, value), prose(property.description)];
  });
  return table(["Name", "Type", "Default", "Meaning"], rows);
}

/** The operations in the document's order. Paths on which one and the same is served are told of once. */
function operations(paths) {
  const found = new Map();
  for (const [path, methods] of Object.entries(paths)) {
    for (const method of METHODS.filter((name) => name in methods)) {
      const operation = methods[method];
      const same = JSON.stringify([method, { ...operation, operationId: null }]);
      if (!found.has(same)) found.set(same, { method, operation, paths: [] });
      found.get(same).paths.push(path);
    }
  }
  return [...found.values()];
}

const anchor = ({ method, paths }) => `${method}${paths[0]}`;

function security({ security: ways = [] }) {
  if (!ways.length) return "No key is needed.";
  return ways.some((way) => !Object.keys(way).length) ? "A key is needed only where the server is open to other machines." : "";
}

function parameters({ parameters: list }) {
  if (!list) return [];
  const rows = list.map(({ name, in: place, required, schema, description }) => [
    [el("code", {}, name), required ? el("span", { class: "required" }, "required") : null],
    [place],
    typed(schema),
    prose(description),
  ]);
  return [el("h3", {}, "Parameters"), table(["Name", "In", "Type", "Meaning"], rows)];
}

function body({ requestBody }, schemas) {
  const schema = requestBody?.content[JSON_TYPE]?.schema;
  if (!schema) return [];
  const name = named(schema.$ref);
  return [el("h3", { id: name }, "Body"), fields(schemas[name], name)];
}

/** What an operation gives when all is well, and the names of what may go wrong. */
function replies({ responses }) {
  const [[, done]] = Object.entries(responses);
  const kinds = Object.entries(done.content ?? {}).map(([type, { schema }]) => {
    const more = schema.description ? [". ", ...prose(schema.description)] : [];
    return [el("code", {}, type), [...typed(schema), ...more]];
  });
  const heads = Object.entries(done.headers ?? {}).map(([name, header]) => [el("code", {}, name), prose(header.description)]);
  const codes = refusals(responses).map(({ code }) => el("a", { href: `#error.${code}` }, el("code", {}, code)));
  return [
    el("h3", {}, "Reply"),
    el("p", {}, ...prose(done.description)),
    table(["Part", "What"], [...kinds, ...heads]),
    el("h3", {}, "Errors"),
    el("p", { class: "codes" }, ...codes),
  ];
}

/** The errors that a set of responses tells of, one for each code. */
function refusals(responses) {
  return Object.entries(responses).flatMap(([status, { description }]) =>
    [...description.matchAll(/`(\w+)`: (.*?)(?= `\w+`: |$)/g)].map(([, code, meaning]) => ({ status, code, meaning })),
  );
}

function errors(entries) {
  const found = new Map(entries.flatMap(({ operation }) => refusals(operation.responses)).map((error) => [error.code, error]));
  const sorted = [...found.values()].sort((a, b) => a.status - b.status);
  const rows = sorted.map(({ status, code, meaning }) => [
    [status],
    el("code", { id: `error.${code}` }, code),
    prose(meaning),
  ]);
  const lead = "Every error is an `ErrorReply`; `param` names the field at fault, and the header `x-should-retry` says whether another try may succeed.";
  return el("article", { id: "errors" }, el("h2", {}, "Errors"), el("p", {}, ...prose(lead)), table(["Status", "Code", "Meaning"], rows));
}

/** The smallest body that a schema takes, for a route that brings no example of its own. */
function smallest({ required = [], properties }) {
  const some = (property) => (property.type === "array" ? [1, 2] : "Once upon a time");
  return Object.fromEntries(required.map((name) => [name, some(properties[name])]));
}

function snippets({ method, paths, operation }, schemas) {
  const path = paths[0].replaceAll(/\{(\w+)\}/g, "$1");
  const { schema, examples = {} } = operation.requestBody?.content[JSON_TYPE] ?? {};
  const isOpen = (operation.security ?? []).some((way) => !Object.keys(way).length) || !operation.security?.length;
  const alone = { "": { value: schema ? smallest(schemas[named(schema.$ref)]) : null } };
  return Object.entries(Object.keys(examples).length ? examples : alone).map(([name, { value, summary }]) => {
    const code = el("code", { tabIndex: 0 }, curl(path, { method: method.toUpperCase(), body: value, isOpen }));
    const button = el("button", { type: "button", onclick: () => copy(code.textContent, code, button) }, "Copy");
    return el("figure", {}, el("figcaption", {}, summary ?? name, button), el("pre", {}, code));
  });
}

function article(entry, schemas) {
  const { method, paths, operation } = entry;
  const title = el("h2", {}, operation.summary ?? anchor(entry));
  const routes = paths.map((path) => el("li", {}, el("b", {}, method.toUpperCase()), " ", el("code", {}, path)));
  return el(
    "article",
    { id: anchor(entry) },
    title,
    el("ul", { class: "routes" }, ...routes),
    el("p", {}, ...prose(operation.description), security(operation)),
    ...snippets(entry, schemas),
    ...parameters(operation),
    ...body(operation, schemas),
    ...replies(operation),
  );
}

/** The objects that replies are made of; the bodies of requests stand with their operation. */
function objects(schemas, told) {
  const own = Object.entries(schemas).filter(([name]) => !told.has(name));
  return own.map(([name, schema]) =>
    el("article", { id: name }, el("h2", {}, name), el("p", {}, ...prose(schema.description)), fields(schema, name)),
  );
}

function key(schemes) {
  const ways = Object.values(schemes).map(({ type, in: place, name }) =>
    type === "apiKey" ? `in the ${place} \`${name}\`` : "as `Authorization: Bearer …`",
  );
  return el("p", {}, "Keys go ", ...prose(ways.join(" or ")), ". The examples read yours from the shell’s ", el("code", {}, "$KEY"), ".");
}

function contents(entries, schemas, told) {
  const link = (target, text) => el("li", {}, el("a", { href: `#${target}` }, text));
  const names = Object.keys(schemas).filter((name) => !told.has(name));
  return [
    el("h2", {}, "Routes"),
    el("ul", {}, ...entries.map((entry) => link(anchor(entry), entry.operation.summary)), link("errors", "Errors")),
    el("h2", {}, "Objects"),
    el("ul", {}, ...names.map((name) => link(name, name))),
  ];
}

async function open() {
  const reply = await fetch("/openapi.json");
  const { info, paths, components } = await reply.json();
  const entries = operations(paths);
  const told = new Set(entries.map(({ operation }) => named(operation.requestBody?.content[JSON_TYPE]?.schema.$ref)));
  at.about.textContent = `${info.description} Version ${info.version}.`;
  at.contents.append(...contents(entries, components.schemas, told));
  at.main.append(key(components.securitySchemes), ...entries.map((entry) => article(entry, components.schemas)));
  at.main.append(errors(entries), ...objects(components.schemas, told));
  at.main.removeAttribute("aria-busy");
  document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
}

open().catch((error) => {
  at.main.replaceChildren(el("p", { role: "alert" }, `The document could not be read: ${error.message}`));
  throw error;
});
