/**
 * A listener of `node:http`, as Express is, as a `fetch` for `serve`.
 *
 * The listener is given a true `IncomingMessage` and a true `ServerResponse`, which end in memory instead of a socket.
 */

import { IncomingMessage, ServerResponse } from "node:http";
import { Duplex } from "node:stream";

export function fromListener(listener) {
  return async (request, ctx) => {
    const { remoteAddr } = ctx.of(request);
    const incoming = await makeIncoming(request, remoteAddr);
    incoming.toru = ctx;
    request.signal.throwIfAborted();
    const { outgoing, answered, fail } = capture(incoming);
    const gone = () => {
      incoming.aborted = true;
      incoming.emit("aborted");
      incoming.destroy();
      outgoing.emit("close");
      fail(request.signal.reason);
    };
    request.signal.addEventListener("abort", gone, { once: true });
    try {
      const returned = listener(incoming, outgoing);
      // A listener that is an async function says by its promise that it failed.
      if (typeof returned?.then === "function") returned.then(undefined, fail);
      return await answered;
    } finally {
      request.signal.removeEventListener("abort", gone);
    }
  };
}

/** What a listener looks at of a socket: whose it is. */
class Nowhere extends Duplex {
  constructor(remoteAddr) {
    super();
    const match = /^\[?(.*?)\]?:(\d+)$/.exec(remoteAddr ?? "");
    this.remoteAddress = match?.[1];
    this.remotePort = match ? Number(match[2]) : undefined;
    this.remoteFamily = match?.[1].includes(":") ? "IPv6" : "IPv4";
    this.encrypted = false;
  }

  _read() {}

  _write(_chunk, _encoding, done) {
    done();
  }

  setTimeout() {
    return this;
  }

  setNoDelay() {
    return this;
  }

  setKeepAlive() {
    return this;
  }
}

async function makeIncoming(request, remoteAddr) {
  const incoming = new IncomingMessage(new Nowhere(remoteAddr));
  const { pathname, search } = new URL(request.url);
  incoming.method = request.method;
  incoming.url = pathname + search;
  incoming.httpVersion = "1.1";
  incoming.httpVersionMajor = 1;
  incoming.httpVersionMinor = 1;
  const body = request.body === null ? null : Buffer.from(await request.arrayBuffer());
  const fields = [...request.headers].filter(([name]) => name !== "content-length" && name !== "transfer-encoding");
  // Parsers of bodies look for it before they read.
  if (body !== null) fields.push(["content-length", String(body.length)]);
  for (const [name, value] of fields) {
    incoming.rawHeaders.push(name, value);
    incoming.headers[name] = value;
  }
  if (body !== null) incoming.push(body);
  incoming.push(null);
  incoming.complete = true;
  return incoming;
}

/**
 * A response whose head and content are kept, and what becomes of it: `answered` resolves with a `Response`.
 *
 * The methods are the object's own, because Express gives it another prototype.
 */
function capture(incoming) {
  const outgoing = new ServerResponse(incoming);
  const { writeHead } = ServerResponse.prototype;
  const pieces = [];
  let resolve, reject;
  const answered = new Promise((...both) => ([resolve, reject] = both));
  // A listener that throws by itself rejects before anybody waits.
  answered.catch(() => {});

  function piece(chunk, encoding) {
    outgoing.flushHeaders();
    if (chunk === undefined || chunk === null) return;
    pieces.push(typeof chunk === "string" ? Buffer.from(chunk, encoding) : Buffer.from(chunk));
  }

  outgoing.writeHead = (status, reason, headers) => {
    const given = typeof reason === "string" ? headers : reason;
    for (const [name, value] of fieldsOf(given)) outgoing.setHeader(name, value);
    return writeHead.call(outgoing, status, typeof reason === "string" ? reason : undefined);
  };
  outgoing.flushHeaders = () => {
    if (!outgoing.headersSent) outgoing.writeHead(outgoing.statusCode);
  };
  outgoing.write = (chunk, encoding, done) => {
    if (typeof encoding === "function") [encoding, done] = [undefined, encoding];
    piece(chunk, encoding);
    if (done) process.nextTick(done);
    return true;
  };
  outgoing.end = (chunk, encoding, done) => {
    if (typeof chunk === "function") [chunk, encoding, done] = [undefined, undefined, chunk];
    if (typeof encoding === "function") [encoding, done] = [undefined, encoding];
    if (outgoing.finished) return outgoing;
    piece(chunk, encoding);
    outgoing.finished = true;
    try {
      resolve(makeResponse(outgoing, Buffer.concat(pieces)));
    } catch (error) {
      reject(error);
    }
    process.nextTick(() => {
      outgoing.emit("finish");
      outgoing.emit("close");
      done?.();
    });
    return outgoing;
  };
  return { outgoing, answered, fail: reject };
}

/** Pairs of what `writeHead` takes: an object, a list of pairs, or names and values by turns. */
function fieldsOf(given) {
  if (!given) return [];
  if (!Array.isArray(given)) return Object.entries(given).filter(([, value]) => value !== undefined);
  const pairs = Array.isArray(given[0]) ? given : given.flatMap((name, at) => (at % 2 ? [] : [[name, given[at + 1]]]));
  const together = new Map();
  for (const [name, value] of pairs) together.set(name, [...(together.get(name) ?? []), value].flat());
  return [...together].map(([name, values]) => [name, values.length === 1 ? values[0] : values]);
}

function makeResponse(outgoing, content) {
  const { statusCode: status } = outgoing;
  const headers = new Headers();
  for (const [name, value] of Object.entries(outgoing.getHeaders())) {
    for (const one of Array.isArray(value) ? value : [value]) headers.append(name, String(one));
  }
  // A `Response` of these has no body, not even an empty one.
  const bodiless = status === 204 || status === 205 || status === 304;
  return new Response(bodiless ? null : content, { status, headers });
}
