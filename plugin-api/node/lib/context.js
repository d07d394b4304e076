/** What a handler is given besides the request. The server stands behind it; nothing here touches a socket. */

export class KvError extends Error {
  constructor(code, message = "") {
    super(message ? `${code}: ${message}` : code);
    this.name = "KvError";
    this.code = code;
  }
}

/** What `Context.of` tells, by request; a request that is gone takes it along. */
const facts = new WeakMap();

export function remember(request, fact) {
  facts.set(request, fact);
}

export class Context {
  #link;

  /** `link` is the way to the core: `ask(action, fields)`, `log(level, message, fields)`, `waitUntil(promise)`. */
  constructor(link, pluginId, instanceId) {
    this.#link = link;
    this.pluginId = pluginId;
    this.instanceId = instanceId;
    this.dataDir = null;
    this.config = {};
    this.kv = new Kv(link);
    this.log = new Log(link);
  }

  of(request) {
    return facts.get(request) ?? { requestId: "", remoteAddr: null, timeoutMs: null };
  }

  waitUntil(work) {
    this.#link.waitUntil(work);
  }
}

class Kv {
  #link;

  constructor(link) {
    this.#link = link;
  }

  async get(key) {
    return (await this.#link.ask("get", { key })).value;
  }

  async set(key, value) {
    await this.#link.ask("set", { key, value });
  }

  async delete(key) {
    await this.#link.ask("delete", { key });
  }

  async list(prefix = "", limit = undefined) {
    return (await this.#link.ask("list", { prefix, limit })).keys ?? [];
  }
}

class Log {
  #link;

  constructor(link) {
    this.#link = link;
  }

  debug(message, fields) {
    this.#link.log("debug", message, fields);
  }

  info(message, fields) {
    this.#link.log("info", message, fields);
  }

  warn(message, fields) {
    this.#link.log("warn", message, fields);
  }

  error(message, fields) {
    this.#link.log("error", message, fields);
  }
}
