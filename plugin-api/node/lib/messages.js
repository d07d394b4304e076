/**
 * Messages: what the core says, as values, and what a plugin says, as JSON text.
 *
 * No I/O and no framing. Source: PROTOCOL.md, "Messages".
 */

import { isUtf8 } from "node:buffer";

/** The core's message breaks the protocol: close the connection. `word` is fixed, for programs. */
export class MessageError extends Error {
  constructor(word, message) {
    super(message);
    this.word = word;
  }
}

const DEPTH_MAX = 128;
const HALF_A_PAIR = /[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/;

/** The JSON value in `frame`. Errors: MessageError. */
export function parseFrame(frame) {
  if (!isUtf8(frame)) throw new MessageError("bad_utf8", "invalid UTF-8");
  const text = frame.toString("utf8");
  let value;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw error instanceof RangeError
      ? new MessageError("too_deep", "JSON is nested too deeply")
      : new MessageError("bad_json", `invalid JSON: ${error.message}`);
  }
  // JSON.parse goes to any depth, and what works on its result may not.
  if (opens(text) > DEPTH_MAX && deeperThan(value, DEPTH_MAX)) {
    throw new MessageError("too_deep", "JSON is nested too deeply");
  }
  if (text.includes("\\u") && hasHalfAPair(value)) throw new MessageError("bad_json", "half a surrogate pair");
  return value;
}

function hasHalfAPair(value) {
  if (typeof value === "string") return HALF_A_PAIR.test(value);
  if (typeof value !== "object" || value === null) return false;
  return Object.entries(value).some(([name, inner]) => HALF_A_PAIR.test(name) || hasHalfAPair(inner));
}

/** Up to one more than `DEPTH_MAX`: brackets that open, in strings too. */
function opens(text) {
  let count = 0;
  for (const bracket of ["[", "{"]) {
    for (let at = text.indexOf(bracket); at >= 0 && count <= DEPTH_MAX; at = text.indexOf(bracket, at + 1)) count++;
  }
  return count;
}

function deeperThan(value, levels) {
  if (typeof value !== "object" || value === null) return false;
  if (levels === 0) return true;
  return Object.values(value).some((inner) => deeperThan(inner, levels - 1));
}

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

const text = (value) => (typeof value === "string" ? value : null);
const integer = (value) => (Number.isInteger(value) ? value : null);

/** What the core says in `frame`, told apart by `kind`. Errors: MessageError where the protocol is broken. */
export function readMessage(frame) {
  const message = parseFrame(frame);
  if (!isObject(message)) throw new MessageError("not_object", "the top level is no object");
  const kind = message.type;
  if (typeof kind !== "string") throw new MessageError("no_type", "a message without `type`");
  const payload = isObject(message.payload) ? message.payload : {};
  switch (kind) {
    case "http":
      return readHttp(message, payload);
    case "lifecycle":
      return readLifecycle(payload);
    case "cancel":
      return { kind: "cancel", requestId: requestId(message, payload) };
    case "kv":
      return readKv(message, payload);
    default:
      return { kind: "unknown" };
  }
}

function requestId(message, payload) {
  const id = text(message.request_id) ?? text(payload.request_id);
  if (id === null) throw new MessageError("no_request_id", `a message of type \`${message.type}\` without \`request_id\``);
  return id;
}

const NOTHING = Buffer.alloc(0);

function readHttp(message, payload) {
  const id = requestId(message, payload);
  // By hand the request may stand in `payload` itself.
  const inner = payload.payload === undefined ? payload : isObject(payload.payload) ? payload.payload : {};
  const { method = "GET", path = "/" } = inner;
  if (typeof method !== "string" || typeof path !== "string") {
    throw new MessageError("bad_json", "`method` and `path` of a request are strings");
  }
  return {
    kind: "http",
    requestId: id,
    method,
    path,
    headers: readHeaders(inner.headers),
    body: readBody(inner),
    remoteAddr: text(inner.remote_addr),
    timeoutMs: integer(inner.timeout_ms),
  };
}

function readHeaders(headers) {
  const fields = [];
  if (!isObject(headers)) return fields;
  for (const name in headers) {
    const value = headers[name];
    if (typeof value === "string") fields.push([name, value]);
    else if (Array.isArray(value)) for (const one of value) fields.push([name, String(one)]);
    else if (value !== null) fields.push([name, String(value)]);
  }
  return fields;
}

function readBody({ body, body_encoding: encoding }) {
  if (body === undefined || body === null || body === "") return NOTHING;
  if (typeof body !== "string") return Buffer.from(JSON.stringify(body));
  if (encoding !== "base64") return Buffer.from(body);
  if (!/^[A-Za-z0-9+/]*={0,2}$/.test(body) || body.length % 4 !== 0) {
    throw new MessageError("bad_json", "`body` is no base64");
  }
  return Buffer.from(body, "base64");
}

function readLifecycle(payload) {
  switch (payload.action) {
    case "ping":
      return { kind: "ping", seq: integer(payload.seq) };
    case "shutdown":
      return { kind: "shutdown", deadlineMs: integer(payload.deadline_ms) };
    case "init":
      return {
        kind: "init",
        protocol: text(payload.protocol) || "1.0",
        instanceId: text(payload.instance_id),
        pluginSocket: text(payload.plugin_socket),
        logPath: text(payload.log_path),
        pluginId: text(payload.plugin_id),
        maxMessageBytes: integer(payload.max_message_bytes),
        dataDir: text(payload.data_dir),
        config: isObject(payload.config) ? payload.config : null,
      };
    default:
      return { kind: "unknown" };
  }
}

function readKv(message, payload) {
  const id = requestId(message, payload);
  // An answer has no `action`; in a question of 1.0 it may stand one level deeper, as in `http`.
  for (const fields of [payload, isObject(payload.payload) ? payload.payload : {}]) {
    if (fields.action !== undefined && fields.action !== null) return readKvRequest(id, fields);
  }
  const { keys, error } = payload;
  return {
    kind: "kvReply",
    requestId: id,
    value: text(payload.value),
    keys: Array.isArray(keys) ? keys.filter((key) => typeof key === "string") : null,
    error: isObject(error) ? { code: String(error.code ?? ""), message: String(error.message ?? "") } : null,
  };
}

function readKvRequest(id, fields) {
  const bad = (reason, words) => ({ kind: "badKv", requestId: id, reason, message: words });
  const action = typeof fields.action === "string" ? fields.action.toLowerCase() : "";
  const request = { requestId: id, action };
  const { key, value, prefix = null, limit = null } = fields;
  switch (action) {
    case "list":
      if (prefix !== null && typeof prefix !== "string") return bad("bad_prefix", "prefix must be a string");
      if (limit !== null && (integer(limit) === null || limit < 0)) {
        return bad("bad_limit", "limit must be a number of keys");
      }
      Object.assign(request, { prefix: prefix ?? "", limit });
      break;
    case "get":
    case "delete":
    case "set":
      if (typeof key !== "string") return bad("bad_key", "key must be a string");
      request.key = key;
      if (action !== "set") break;
      if (typeof value !== "string") return bad("bad_value", "value must be a string");
      request.value = value;
      break;
    default:
      return bad("bad_action", "action must be get, set, delete or list");
  }
  return { kind: "kvRequest", requestId: id, request };
}

let stampMs = -1;
let stamp = "";

/** Now, in RFC 3339, UTC, with milliseconds. */
function timestamp() {
  const now = Date.now();
  if (now !== stampMs) {
    stampMs = now;
    stamp = new Date(now).toISOString();
  }
  return stamp;
}

/** An answer; `headers` are pairs, a repeated name becomes an array; a body that is not UTF-8 goes in base64. */
export function encodeHttpResponse(requestId, status, headers, body) {
  // Without a prototype: `__proto__` is a name like any other.
  const together = Object.create(null);
  for (const [name, value] of headers) {
    const before = together[name];
    if (before === undefined) together[name] = value;
    else if (Array.isArray(before)) before.push(value);
    else together[name] = [before, value];
  }
  const isText = typeof body === "string" || isUtf8(body);
  const content = typeof body === "string" ? body : body.toString(isText ? "utf8" : "base64");
  return (
    `{"type":"http","timestamp":"${timestamp()}","request_id":${JSON.stringify(requestId)},"payload":{"status":${status},` +
    `"headers":${JSON.stringify(together)},"body":${JSON.stringify(content)}${isText ? "" : ',"body_encoding":"base64"'}}}`
  );
}

function encode(type, payload, requestId) {
  return JSON.stringify({ type, timestamp: timestamp(), request_id: requestId, payload });
}

export const encodeReady = () => encode("lifecycle", { type: "lifecycle", action: "ready" });
export const encodeFailed = (error) => encode("lifecycle", { type: "lifecycle", action: "failed", error });
export const encodePong = (seq) => encode("lifecycle", { type: "lifecycle", action: "pong", seq: seq ?? undefined });
export const encodeLog = (level, message, fields) => encode("log", { level, message, fields });
export const encodeKv = (requestId, action, fields) =>
  encode("kv", { type: "kv", request_id: requestId, action, ...fields }, requestId);
export const encodeKvReply = (requestId, answer) =>
  encode("kv", Array.isArray(answer) ? { keys: answer } : { value: answer ?? null }, requestId);
export const encodeKvError = (requestId, code, message) => encode("kv", { error: { code, message } }, requestId);
