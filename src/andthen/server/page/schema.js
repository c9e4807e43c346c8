// Says in words what a JSON schema of the OpenAPI document says. Knows no page.

/** A maximum that is only that of the type says nothing. */
const UNBOUNDED = 2 ** 31 - 1;

/** One schema's facts without null, whether null is told by a list of types or by `anyOf`. */
export function facts(schema) {
  const branches = (schema.anyOf ?? schema.oneOf ?? [schema]).filter((branch) => branch.type !== "null");
  const types = branches.flatMap((branch) => branch.type ?? []).filter((type) => type !== "null");
  const items = branches.find((branch) => branch.items)?.items;
  return { ...Object.assign({}, ...branches), ...schema, types, items };
}

/** The type with its range: "integer, 1 to 128", "non-empty string or list of at most 4 strings". */
export function kind(schema, name = (reference) => reference.split("/").at(-1)) {
  if (schema.$ref) return name(schema.$ref);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" or ");
  const branches = schema.anyOf ?? schema.oneOf;
  if (branches) return branches.map((branch) => kind(branch, name)).filter(Boolean).join(" or ");
  const types = [schema.type ?? []].flat().filter((type) => type !== "null");
  return types.map((type) => (type === "array" ? list(schema, name) : ranged(type, schema))).join(" or ");
}

function list({ items, minItems, maxItems }, name) {
  const what = items.$ref || items.anyOf ? kind(items, name) : plural(items, name);
  if (maxItems !== undefined) return `list of at most ${maxItems} ${what}`;
  return `${minItems ? "non-empty " : ""}list of ${what}`;
}

function plural(items, name) {
  return items.type === "array" ? list(items, name).replace("list", "lists") : `${items.type}s`;
}

function ranged(type, { minimum, maximum, minLength, maxLength }) {
  if (maxLength !== undefined) return `${type}, at most ${maxLength} characters`;
  if (minLength) return `non-empty ${type}`;
  if (minimum === undefined) return type;
  if (minimum < Number.MIN_SAFE_INTEGER) return `${type} of 64 bits`;
  return `${type}, ${minimum}${maximum < UNBOUNDED ? ` to ${maximum}` : " or more"}`.replaceAll("-", "−");
}

/** The default in words, or null where absent means something that is no value. */
export function standard(schema) {
  return schema.default === undefined || schema.default === null ? null : JSON.stringify(schema.default);
}
