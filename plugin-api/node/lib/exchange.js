/** From the core's words to a `Request`, and from a `Response` to what is answered. */

import { isUtf8 } from "node:buffer";
import { STATUS_CODES } from "node:http";

/** Header fields of an answer that the core writes itself. */
export const FRAMED_BY_THE_CORE = new Set([
  "connection", "content-length", "date", "keep-alive", "proxy-connection", "server", "te", "trailer",
  "transfer-encoding", "upgrade",
]);

/** An error that is meant for the client. */
export class HttpError extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

// `Headers` takes bytes, each as the character of its number, as `node:http` gives them.
const bytesAsCharacters = (value) => (/[^\x00-\x7f]/.test(value) ? Buffer.from(value).toString("latin1") : value);

/** A value of `Headers` as the text that it is. */
function asText(value) {
  if (!/[^\x00-\x7f]/.test(value)) return value;
  const bytes = Buffer.from(value, "latin1");
  return isUtf8(bytes) ? bytes.toString("utf8") : value;
}

/** The request as the platform has it. Errors: HttpError for what a `Request` cannot be. */
export function makeRequest({ method, path, headers, body }, signal) {
  const fields = new Headers();
  let host = "localhost";
  try {
    for (const [name, value] of headers) {
      fields.append(name, bytesAsCharacters(value));
      if (name === "host") host = value;
    }
  } catch (error) {
    throw new HttpError(400, `a header is none: ${error.message}`);
  }
  const init = { method, headers: fields, signal };
  if (body.length > 0 && method !== "GET" && method !== "HEAD") init.body = body;
  try {
    return new Request(`http://${isAuthority(host) ? host : "localhost"}${path}`, init);
  } catch (error) {
    throw new HttpError(501, `${method} is not served: ${error.message}`);
  }
}

let lastAuthority = "localhost";

/** Whether a client's `host` can stand in a URL; it may name one that is none. */
function isAuthority(host) {
  // Clients name the same few again and again, and a URL takes a microsecond to read.
  if (host === lastAuthority) return true;
  try {
    const { username, pathname, search, hash } = new URL(`http://${host}`);
    if (username !== "" || pathname !== "/" || search !== "" || hash !== "") return false;
  } catch {
    return false;
  }
  lastAuthority = host;
  return true;
}

/** Status, header pairs and body of a handler's answer. Errors: TypeError, it is none. */
export async function readResponse(response) {
  if (typeof response?.arrayBuffer !== "function" || typeof response.headers?.forEach !== "function") {
    throw new TypeError("the handler returned no Response");
  }
  const { status } = response;
  if (!Number.isInteger(status) || status < 200 || status > 599) {
    throw new TypeError(`status ${status} is not 200 to 599`);
  }
  const headers = [];
  for (const cookie of response.headers.getSetCookie()) headers.push(["set-cookie", asText(cookie)]);
  response.headers.forEach((value, name) => {
    if (name !== "set-cookie" && !FRAMED_BY_THE_CORE.has(name)) headers.push([name, asText(value)]);
  });
  const body = response.body === null ? "" : Buffer.from(await response.arrayBuffer());
  return { status, headers, body };
}

/** The answer that says an error (RFC 9457), under the id that the client knows the request by. */
export function problem(status, detail, message) {
  const known = message.headers.find(([name]) => name.toLowerCase() === "x-request-id")?.[1] ?? message.requestId;
  const document = { type: "about:blank", title: STATUS_CODES[status] ?? "Error", status, detail, request_id: known };
  return { status, headers: [["content-type", "application/problem+json"]], body: JSON.stringify(document) };
}
