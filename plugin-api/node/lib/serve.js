/**
 * The plugin's side of the socket.
 *
 * One `Connection` for each connection of the core; `Server` is what they share.
 * A read may bring many frames; everything that is ready in one turn of the loop goes out in one write.
 */

import { createServer } from "node:net";
import { setImmediate as nextTurn } from "node:timers/promises";

import { Context, KvError, remember } from "./context.js";
import { HttpError, makeRequest, problem, readResponse } from "./exchange.js";
import { Decoder, encodeFrames, FRAME_BYTES_MAX_DEFAULT, FRAME_BYTES_MAX_LIMIT } from "./frames.js";
import { listen, socketPath } from "./listen.js";
import * as messages from "./messages.js";
import { metadataLine, metadataOf } from "./metadata.js";

/** PROTOCOL.md gives the core this long for an answer. */
const KV_TIMEOUT_MS = 5000;

/** For a shutdown that names no deadline (1.0, SIGTERM): the core's default grace period. */
const STOP_GRACE_MS = 5000;

/**
 * Node does not tell a peer that closed its sending side from one that is gone. A person with socat is worth waiting
 * for; a core that sends an end has usually gone, and is taken for gone after so long.
 */
const HALF_CLOSED_MS = 2000;

/** With more than this waiting to be written, a connection is not read, and log lines go to stderr. */
const UNWRITTEN_BYTES_MAX = 4 * 1024 * 1024;

const UNTOLD = "the plugin failed to answer";

export function serve(definition) {
  const metadata = metadataOf(definition);
  if (typeof definition.fetch !== "function") throw new TypeError("the plugin has no `fetch`");
  if (process.argv.slice(2).includes("--metadata")) {
    process.stdout.write(`${metadataLine(metadata)}\n`, () => process.exit(0));
    return;
  }
  const server = new Server(definition, metadata);
  server.run().catch((error) => {
    process.stderr.write(`${error.message}\n`, () => process.exit(1));
  });
}

/** One connection of the core, in the framing that its first byte chose. */
class Connection {
  #out = [];
  #flushing = false;
  #ended = false;
  #halfClosed;

  constructor(server, socket) {
    this.server = server;
    this.socket = socket;
    this.decoder = new Decoder(null, server.frameBytesMax);
    this.protocol = "1.0";
    /** Requests that are not answered, by their id: `cancel` and the end of the connection find them here. */
    this.calls = new Map();
    /** Answers that are still to come here. A half-closed connection stays open for them. */
    this.pending = 0;
    socket.on("data", (data) => this.#read(data));
    socket.on("end", () => {
      this.#ended = true;
      this.#closeWhenDone();
      if (this.decoder.framing !== "lines") this.#halfClosed = setTimeout(() => socket.destroy(), HALF_CLOSED_MS);
    });
    socket.on("drain", () => socket.resume());
    // What follows is `close`, which says all that matters.
    socket.on("error", () => {});
    socket.on("close", () => {
      clearTimeout(this.#halfClosed);
      server.lost(this);
    });
  }

  get isBehind() {
    return this.socket.writableLength > UNWRITTEN_BYTES_MAX;
  }

  #read(data) {
    for (const frame of this.decoder.feed(data)) {
      let message;
      try {
        message = messages.readMessage(frame);
      } catch (error) {
        this.#fail(error);
        return;
      }
      this.server.take(this, message);
    }
    if (this.decoder.error !== null) this.#fail(this.decoder.error);
  }

  #fail(error) {
    this.server.log("error", "connection closed: the core broke the protocol", { error: error.message });
    this.close();
  }

  /** Puts a message on its way; it is written at the end of this turn of the loop. */
  send(text) {
    this.#out.push(text);
    if (!this.#flushing) {
      this.#flushing = true;
      setImmediate(() => this.#flush());
    }
  }

  /** One of the answers that were to come is out, or will never be. */
  settled() {
    this.pending -= 1;
    this.#closeWhenDone();
  }

  #closeWhenDone() {
    if (this.#ended && this.pending === 0) this.close();
  }

  #flush() {
    this.#flushing = false;
    const out = this.#out;
    if (out.length === 0 || !this.socket.writable) return;
    this.#out = [];
    this.socket.write(encodeFrames(this.decoder.framing, out));
    // A core that does not read is not read either.
    if (this.isBehind) this.socket.pause();
  }

  close() {
    this.#flush();
    this.socket.end();
  }
}

/** What the connections share: the definition, the calls in flight, the way to the core, start and stop. */
class Server {
  #definition;
  #metadata;
  #context;
  #listener;
  #connections = new Set();
  /** The connection of the supervisor, known by `init` or `ping`: questions and log lines go there. */
  #core = null;
  #kvSequence = 0;
  #kvWaiting = new Map();
  #init = null;
  #inFlight = 0;
  #whenIdle = null;
  #stopping = false;

  constructor(definition, metadata) {
    this.#definition = definition;
    this.#metadata = metadata;
    this.frameBytesMax = FRAME_BYTES_MAX_DEFAULT;
    this.#context = new Context(this, process.env.TORU_PLUGIN_ID || metadata.id, process.env.TORU_INSTANCE_ID ?? "");
  }

  async run() {
    let signals = 0;
    for (const name of ["SIGTERM", "SIGINT"]) {
      process.on(name, () => {
        signals += 1;
        if (signals > 1) process.exit(1);
        this.#stop(STOP_GRACE_MS);
      });
    }
    this.#listener = createServer({ allowHalfOpen: true }, (socket) => {
      this.#connections.add(new Connection(this, socket));
    });
    let path = "its socket";
    try {
      path = socketPath(this.#metadata.id);
      await listen(this.#listener, path);
    } catch (error) {
      throw new Error(`cannot listen on ${path}: ${error.message}`);
    }
  }

  take(connection, message) {
    switch (message.kind) {
      case "http":
        return void this.#answer(connection, message);
      case "cancel":
        return connection.calls.get(message.requestId)?.abort();
      case "ping":
        return this.#ping(connection, message);
      case "init":
        return void this.#takeInit(connection, message);
      case "shutdown":
        return void this.#stop(message.deadlineMs ?? STOP_GRACE_MS);
      case "kvReply": {
        const waiting = this.#kvWaiting.get(message.requestId);
        return waiting?.(message);
      }
      case "kvRequest":
        return void this.#answerKv(connection, message);
      case "badKv":
        return connection.send(messages.encodeKvError(message.requestId, "invalid", message.message));
    }
  }

  #ping(connection, { seq }) {
    if (seq !== null && this.#core === null) {
      // The supervisor lost its connection and made another; its `init` was said and stands.
      connection.protocol = "1.1";
      this.#core = connection;
    }
    // Without `seq` it is from a core that expects no answer, or from a person, who does.
    if (seq !== null || connection.decoder.framing === "lines") connection.send(messages.encodePong(seq));
  }

  // Requests

  async #answer(connection, message) {
    const { requestId } = message;
    const controller = new AbortController();
    const call = { over: false, abort: () => this.#abort(connection, requestId, call, controller) };
    connection.calls.set(requestId, call);
    this.#begin(connection);
    let text;
    try {
      if (this.#init === null || this.#init.state !== "ready") await this.#initialized();
      const request = makeRequest(message, controller.signal);
      remember(request, { requestId, remoteAddr: message.remoteAddr, timeoutMs: message.timeoutMs });
      text = this.#encode(message, await readResponse(await this.#definition.fetch(request, this.#context)));
    } catch (error) {
      // After a cancel nobody wants the answer, and a rejection is what `signal` is for.
      if (!call.over) text = this.#failure(message, error);
    }
    if (call.over) return;
    call.over = true;
    this.#forget(connection, requestId, call);
    connection.send(text);
    this.#end(connection);
  }

  #abort(connection, requestId, call, controller) {
    if (call.over) return;
    call.over = true;
    this.#forget(connection, requestId, call);
    controller.abort(new DOMException("the client has gone or the time is up", "AbortError"));
    this.#end(connection);
  }

  #forget(connection, requestId, call) {
    // The id may be another request's by now.
    if (connection.calls.get(requestId) === call) connection.calls.delete(requestId);
  }

  #begin(connection) {
    connection.pending += 1;
    this.#inFlight += 1;
  }

  #end(connection) {
    connection.settled();
    this.#less();
  }

  #less() {
    this.#inFlight -= 1;
    if (this.#inFlight === 0) this.#whenIdle?.();
  }

  #encode(message, { status, headers, body }) {
    const text = messages.encodeHttpResponse(message.requestId, status, headers, body);
    // A character has at most three bytes for each unit of a string.
    if (text.length * 3 > this.frameBytesMax) {
      const bytes = Buffer.byteLength(text);
      if (bytes > this.frameBytesMax) {
        throw new RangeError(`the answer takes ${bytes} bytes; a message may have ${this.frameBytesMax}`);
      }
    }
    return text;
  }

  /** The client gets fixed words, the log the cause, unless the error is meant for the client. */
  #failure(message, error) {
    if (error instanceof HttpError) return this.#encode(message, problem(error.status, error.message, message));
    this.log("error", "handler failed", {
      error: String(error),
      method: message.method,
      path: message.path.split("?", 1)[0],
      request_id: message.headers.find(([name]) => name === "x-request-id")?.[1] ?? message.requestId,
      stack: error?.stack,
    });
    return this.#encode(message, problem(500, UNTOLD, message));
  }

  // `init`

  async #takeInit(connection, init) {
    connection.protocol = init.protocol;
    this.#core = connection;
    const context = this.#context;
    context.instanceId = init.instanceId || context.instanceId;
    context.pluginId = init.pluginId || context.pluginId;
    context.config = init.config ?? {};
    context.dataDir = init.dataDir;
    if (init.maxMessageBytes > 0) {
      this.frameBytesMax = Math.min(init.maxMessageBytes, FRAME_BYTES_MAX_LIMIT);
      for (const each of this.#connections) each.decoder.frameBytesMax = this.frameBytesMax;
    }
    // A later `init` tries again after a failure.
    if (this.#init?.state === "failed") this.#init = null;
    // A 1.0 core reads no answer and closes; a person with socat wants one.
    const wantsReply = init.protocol !== "1.0" || connection.decoder.framing === "lines";
    if (wantsReply) this.#begin(connection);
    let reply;
    try {
      await this.#initialized();
      reply = messages.encodeReady();
    } catch (error) {
      reply = messages.encodeFailed(error.cause ? String(error.cause) : error.message);
    }
    if (!wantsReply) return;
    connection.send(reply);
    this.#end(connection);
  }

  /** When `init` of the definition is done; only by hand a request comes before any. Errors: HttpError 503. */
  async #initialized() {
    this.#init ??= this.#runInit();
    await this.#init.done;
  }

  #runInit() {
    const init = { state: "running" };
    init.done = (async () => {
      try {
        await this.#definition.init?.(this.#context);
        init.state = "ready";
      } catch (error) {
        init.state = "failed";
        this.log("error", "init failed", { error: String(error), stack: error?.stack });
        const told = new HttpError(503, "the plugin failed to start");
        told.cause = error;
        throw told;
      }
    })();
    // Whoever waits hears of it; that nobody may wait is no fault.
    init.done.catch(() => {});
    return init;
  }

  // Questions of kv to the plugin itself

  async #answerKv(connection, { requestId, request }) {
    const { kv } = this.#definition;
    if (kv === undefined) {
      connection.send(messages.encodeKvError(requestId, "unsupported", "the plugin takes no kv requests"));
      return;
    }
    this.#begin(connection);
    let text;
    try {
      await this.#initialized();
      const answer = await kv.call(this.#definition, request, this.#context);
      const isKeys = Array.isArray(answer) && answer.every((key) => typeof key === "string");
      if (answer !== undefined && answer !== null && typeof answer !== "string" && !isKeys) {
        throw new TypeError("a kv handler returns a string, null or an array of strings");
      }
      text = messages.encodeKvReply(requestId, answer);
      if (Buffer.byteLength(text) > this.frameBytesMax) {
        text = messages.encodeKvError(requestId, "too_large", "the answer does not fit into a message");
      }
    } catch (error) {
      if (error instanceof KvError) text = messages.encodeKvError(requestId, error.code, error.message);
      else if (error instanceof HttpError) text = messages.encodeKvError(requestId, "unavailable", error.message);
      else {
        this.log("error", "kv handler failed", { error: String(error), action: request.action, stack: error?.stack });
        text = messages.encodeKvError(requestId, "failed", UNTOLD);
      }
    }
    connection.send(text);
    this.#end(connection);
  }

  // What `Context` stands on

  ask(action, fields) {
    const core = this.#core;
    if (core === null || core.protocol === "1.0") {
      return Promise.reject(new KvError("unavailable", "no core that answers kv is connected"));
    }
    this.#kvSequence += 1;
    const requestId = `k${this.#kvSequence}`;
    const text = messages.encodeKv(requestId, action, fields);
    const bytes = Buffer.byteLength(text);
    if (bytes > this.frameBytesMax) {
      return Promise.reject(new KvError("too_large", `${bytes} bytes; a message may have ${this.frameBytesMax}`));
    }
    return new Promise((resolve, reject) => {
      const settle = (reply) => {
        clearTimeout(timer);
        this.#kvWaiting.delete(requestId);
        if (reply instanceof KvError) reject(reply);
        else if (reply.error !== null) reject(new KvError(reply.error.code, reply.error.message));
        else resolve(reply);
      };
      const late = () => settle(new KvError("timeout", `the core did not answer within ${KV_TIMEOUT_MS} ms`));
      const timer = setTimeout(late, KV_TIMEOUT_MS);
      this.#kvWaiting.set(requestId, settle);
      core.send(text);
    });
  }

  log(level, message, fields) {
    const core = this.#core;
    let line;
    try {
      line = messages.encodeLog(level, String(message), fields);
    } catch {
      // A value that contains itself, or a BigInt.
      line = messages.encodeLog(level, String(message), { fields: String(fields) });
    }
    if (core !== null && core.protocol !== "1.0" && !core.isBehind && core.socket.writable) {
      if (Buffer.byteLength(line) <= this.frameBytesMax) {
        core.send(line);
        return;
      }
    }
    const { timestamp, payload } = JSON.parse(line);
    const plain = { timestamp, level, plugin_id: this.#context.pluginId, message: payload.message, ...payload.fields };
    process.stderr.write(`${JSON.stringify(plain)}\n`);
  }

  waitUntil(work) {
    this.#inFlight += 1;
    Promise.resolve(work)
      .catch((error) => this.log("error", "work after an answer failed", { error: String(error), stack: error?.stack }))
      .finally(() => this.#less());
  }

  // The end

  lost(connection) {
    this.#connections.delete(connection);
    for (const call of [...connection.calls.values()]) call.abort();
    if (this.#core !== connection) return;
    this.#core = null;
    const error = new KvError("unavailable", "the connection to the core is lost");
    for (const settle of [...this.#kvWaiting.values()]) settle(error);
  }

  /** Stops accepting, answers what has come, and ends the process. Only the first call counts. */
  async #stop(deadlineMs) {
    if (this.#stopping) return;
    this.#stopping = true;
    const end = Date.now() + deadlineMs;
    this.#listener?.close();
    // What was sent before the end was said is in the sockets: two turns of the loop read it.
    await nextTurn();
    await nextTurn();
    while (this.#inFlight > 0 && Date.now() < end) {
      await this.#within(new Promise((resolve) => (this.#whenIdle = resolve)), end);
      await nextTurn();
      await nextTurn();
    }
    for (const connection of this.#connections) {
      for (const call of [...connection.calls.values()]) call.abort();
    }
    try {
      const done = await this.#within((async () => this.#definition.shutdown?.(this.#context))(), end);
      if (!done) this.log("error", "shutdown took too long", { deadline_ms: deadlineMs });
    } catch (error) {
      this.log("error", "shutdown failed", { error: String(error), stack: error?.stack });
    }
    const closed = [...this.#connections].map(
      (connection) => new Promise((resolve) => {
        connection.socket.once("close", resolve);
        // The core's side may stay open: what matters is that what was written is out.
        connection.socket.once("finish", resolve);
        connection.close();
      }),
    );
    await this.#within(Promise.all(closed), end);
    process.exit(0);
  }

  /** Whether `work` was done by `end`. Errors: those of the work. */
  async #within(work, end) {
    let timer;
    const late = new Promise((resolve) => {
      timer = setTimeout(() => resolve(false), Math.max(50, end - Date.now()));
    });
    try {
      return await Promise.race([work.then(() => true), late]);
    } finally {
      clearTimeout(timer);
    }
  }
}
