/** What the tests share: the vectors, a core played by hand, a plugin process. */

import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { fileURLToPath } from "node:url";

import { Decoder, encodeFrames, FRAME_BYTES_MAX_LIMIT } from "../lib/frames.js";

/** Nothing in these tests takes longer on a slow machine, unless it never comes. */
export const DEADLINE_MS = 30_000;

const here = (name) => fileURLToPath(new URL(name, import.meta.url));

export function vectors(name) {
  return JSON.parse(readFileSync(here(`../../vectors/${name}`)));
}

export function vectorBytes(notation) {
  if (typeof notation === "string") return Buffer.from(notation);
  return Buffer.concat(
    notation.map(({ text, hex, repeat = 1 }) => {
      const part = text === undefined ? Buffer.from(hex, "hex") : Buffer.from(text);
      return Buffer.concat(Array(repeat).fill(part));
    }),
  );
}

/** Byte by byte; large inputs in larger pieces, as the vectors' README says. */
export function* pieces(data) {
  const size = data.length <= 65_536 ? 1 : 4093;
  for (let at = 0; at < data.length; at += size) yield data.subarray(at, at + size);
}

export function request(method, path, requestId = "r1", more = {}) {
  const inner = { method, path, headers: {}, body: null, ...more };
  return { type: "http", timestamp: "t", request_id: requestId, payload: { type: "http", request_id: requestId, payload: inner } };
}

export function lifecycle(action, more = {}) {
  return { type: "lifecycle", timestamp: "t", payload: { type: "lifecycle", action, ...more } };
}

export function kv(requestId, payload) {
  return { type: "kv", timestamp: "t", request_id: requestId, payload };
}

async function within(what, promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`waited for ${what}`)), DEADLINE_MS);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** One connection to a plugin. */
export class Core {
  #decoder = new Decoder(null, FRAME_BYTES_MAX_LIMIT);
  #read = [];
  #waiting = [];
  #ended = false;

  constructor(socket, framing) {
    this.socket = socket;
    this.framing = framing;
    socket.on("data", (data) => {
      this.#read.push(...this.#decoder.feed(data).map((frame) => JSON.parse(frame)));
      this.#wake();
    });
    socket.on("error", () => {});
    socket.on("close", () => {
      this.#ended = true;
      this.#wake();
    });
    socket.on("end", () => socket.end());
  }

  #wake() {
    while (this.#waiting.length > 0 && (this.#read.length > 0 || this.#ended)) this.#waiting.shift()();
  }

  send(...sent) {
    this.sendBytes(encodeFrames(this.framing, sent.map((message) => JSON.stringify(message))));
  }

  sendBytes(bytes) {
    this.socket.write(bytes);
  }

  /** The next message, null at the end. */
  async receive() {
    if (this.#read.length === 0 && !this.#ended) {
      await within("a message", new Promise((resolve) => this.#waiting.push(resolve)));
    }
    return this.#read.shift() ?? null;
  }

  /** The next message that is no log line, or the next that is, as asked for. */
  async receiveBut(kind = "log", not = true) {
    for (;;) {
      const message = await this.receive();
      if (message === null || (message.type === kind) !== not) return message;
    }
  }

  async init(more = {}) {
    this.send(lifecycle("init", { instance_id: "i-1", protocol: "1.1", plugin_id: "fixture", config: {}, ...more }));
    return this.receiveBut();
  }

  async ask(method, path, requestId = "r1", more = {}) {
    this.send(request(method, path, requestId, more));
    return (await this.receiveBut()).payload;
  }

  async log() {
    return (await this.receiveBut("log", false)).payload;
  }
}

/** A plugin process in a directory of its own. */
export class PluginProcess {
  #cores = [];
  stdout = "";
  stderr = "";

  static async start(program = "fixture.js", environment = {}) {
    const plugin = new PluginProcess();
    plugin.directory = mkdtempSync(join(tmpdir(), "toru"));
    plugin.path = join(plugin.directory, "p.sock");
    plugin.process = spawn(process.execPath, [here(program)], {
      env: { ...process.env, TORU_PLUGIN_SOCKET: plugin.path, TORU_PLUGIN_ID: "fixture", ...environment },
    });
    plugin.exited = new Promise((resolve) => plugin.process.on("close", (code) => resolve(code)));
    plugin.process.stdout.on("data", (data) => (plugin.stdout += data));
    plugin.process.stderr.on("data", (data) => (plugin.stderr += data));
    const end = Date.now() + DEADLINE_MS;
    for (;;) {
      try {
        (await plugin.#open()).destroy();
        return plugin;
      } catch (error) {
        if (plugin.process.exitCode !== null || Date.now() > end) {
          throw new Error(`the plugin does not listen: ${error.message} ${plugin.stderr}`);
        }
        await pause(10);
      }
    }
  }

  #open() {
    return new Promise((resolve, reject) => {
      const socket = connect({ path: this.path, allowHalfOpen: true });
      socket.once("connect", () => resolve(socket));
      socket.once("error", reject);
    });
  }

  async connect(framing = "length") {
    const core = new Core(await this.#open(), framing);
    this.#cores.push(core);
    return core;
  }

  /** The connection of the supervisor, when `ready` has come. */
  async started(more = {}) {
    const core = await this.connect();
    const answer = await core.init(more);
    if (answer.payload.action !== "ready") throw new Error(JSON.stringify(answer));
    return core;
  }

  wait() {
    return within("the plugin's end", this.exited);
  }

  async stop() {
    for (const core of this.#cores) core.socket.destroy();
    this.process.kill("SIGKILL");
    await this.exited;
    rmSync(this.directory, { recursive: true, force: true });
  }
}
