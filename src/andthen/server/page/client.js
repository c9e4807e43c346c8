// Speaks with the server: the models, one completion as a series of chunks, the same request for curl.
// Knows the contract's words and nothing of the page.

const API = "/v4/beta";

/** Where completions are asked for. */
export const COMPLETIONS = `${API}/completions`;

/** The server said no: `param` names the field at fault, if one is. */
export class Refused extends Error {
  constructor({ message, type, param, code }, status = null) {
    super(message);
    Object.assign(this, { type, param, code, status });
  }
}

/** The connection ended before the reply did. What came so far is incomplete. */
export class CutShort extends Error {
  constructor() {
    super("The reply was cut off before its end. What stands on the page is incomplete.");
  }
}

/** The models this key may use, each with its row of abilities. */
export async function models(key) {
  return (await (await exchange(`${API}/models`, { headers: { "x-api-key": key } })).json()).data;
}

/**
 * Asks for what comes next and yields the reply's chunks; a reply that is no stream is one chunk.
 * Throws `Refused`, also for an error within the stream, and `CutShort`; never ends early in silence.
 */
export async function* complete(body, key, signal, onHeaders) {
  const response = await exchange(COMPLETIONS, {
    method: "POST",
    headers: { "content-type": "application/json", "x-api-key": key },
    body: JSON.stringify(body),
    signal,
  });
  onHeaders(response.headers);
  if (!body.stream) {
    yield await whole(response.json(), signal);
    return;
  }
  let ended = false;
  for await (const { event, data } of frames(response.body, signal)) {
    if (event === "error") throw new Refused(JSON.parse(data).error);
    if (data === "[DONE]") {
      ended = true;
      continue;
    }
    const chunk = JSON.parse(data);
    // A server may be set to send no [DONE]; the usage, which we always ask for, comes last of all.
    ended ||= chunk.choices.length === 0;
    yield chunk;
  }
  if (!ended) throw new CutShort();
}

/** A request as a command for a POSIX shell; without a key, the shell's own variable stands in its place. */
export function curl(path, { method = "", body = null, key = "", isOpen = false } = {}) {
  const secret = key ? `'x-api-key: ${key.replaceAll("'", "")}'` : '"x-api-key: $KEY"';
  const unsaid = body ? "POST" : "GET"; // what curl does by itself
  const how = `${method && method !== unsaid ? `-X ${method} ` : ""}${body?.stream ? "-N " : ""}`;
  const parts = [`curl ${how}'${location.origin}${path}'`];
  if (!isOpen) parts.push(`-H ${secret}`);
  if (body) parts.push("-H 'content-type: application/json'", `-d '${JSON.stringify(body).replaceAll("'", String.raw`'\''`)}'`);
  return parts.join(" \\\n  ");
}

async function exchange(address, options) {
  let response;
  try {
    response = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused({ message: "The server does not answer. Is it running?", code: "unreachable" });
  }
  if (response.ok) return response;
  const said = await response.json().catch(() => null);
  throw new Refused(said?.error ?? { message: `The server answered ${response.status}.` }, response.status);
}

async function* frames(stream, signal) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await whole(reader.read(), signal);
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const fields = Object.fromEntries(part.split("\n").map((line) => [line.split(": ", 1)[0], line]));
      if (fields.data) yield { event: fields.event?.slice(7), data: fields.data.slice(6) };
    }
  }
}

async function whole(promise, signal) {
  try {
    return await promise;
  } catch (error) {
    throw signal.aborted ? signal.reason : new CutShort();
  }
}
