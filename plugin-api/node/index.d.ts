/** The whole of a plugin: who it is, and what it does with a request. */
export interface Definition {
  /** 1 to 64 of `A-Z a-z 0-9 -`, the first a letter or digit. */
  id: string;
  /** For people, up to 100 characters. */
  name: string;
  /** Up to 100 characters, semver by custom. */
  version: string;
  author?: string | null;
  /** Up to 100 bytes, usually one emoji; 🧩 where it is missing. */
  icon?: string;
  /** `/` and one segment; `/ID` where it is missing. */
  route?: string;
  /** How the core frames what it sends; `length` where it is missing. */
  framing?: "length" | "lines";
  /** Requests at once over all connections, at least 1; 1024 where it is missing. */
  maxInFlight?: number;
  /** How long the core waits for an answer, at least 1; as long as its configuration says where it is missing. */
  timeoutMs?: number | null;

  /**
   * Answers one request. `request.url` is what follows `/api/plugins/ID`, on the host that the client named.
   * `request.signal` is aborted when the client has gone or the time is up.
   * What it throws is a 500 for the client and a line in the plugin's log; so is an answer that does not fit into a
   * message (1 MiB, or what the core says).
   */
  fetch(request: Request, ctx: Context): Response | Promise<Response>;
  /** Runs once before the first request; what it throws tells the core `failed`. */
  init?(ctx: Context): unknown;
  /** Runs when everything is answered, within the core's deadline. */
  shutdown?(ctx: Context): unknown;
  /** Answers kv requests to the plugin itself, which a core of 1.0 may send. It is not the way to `ctx.kv`. */
  kv?(request: KvRequest, ctx: Context): KvAnswer | Promise<KvAnswer>;
}

export type KvAnswer = string | string[] | null | undefined;

export interface KvRequest {
  requestId: string;
  action: "get" | "set" | "delete" | "list";
  key?: string;
  value?: string;
  prefix?: string;
  limit?: number | null;
}

/** What a plugin is given besides the request; complete once the core has said `init`. */
export interface Context {
  readonly pluginId: string;
  /** Of this installation, the same for ever. */
  readonly instanceId: string;
  /** A directory of the plugin's own; null by hand and with a core that speaks 1.0. */
  readonly dataDir: string | null;
  /** The table `[plugins.ID]` of the core's configuration. */
  readonly config: Record<string, unknown>;
  readonly kv: Kv;
  readonly log: Log;
  /** What `request` was besides a `Request`: the core's id for it and the client's address. */
  of(request: Request): { requestId: string; remoteAddr: string | null; timeoutMs: number | null };
  /** Work that goes on after the answer: the plugin's end waits for it, within the deadline. */
  waitUntil(work: Promise<unknown>): void;
}

/**
 * This plugin's stored values, in the core's database. Every method rejects with a `KvError`.
 * A key has 1 to 512 bytes, with its value it fits into a message, and all of a plugin's fit into its quota.
 */
export interface Kv {
  /** Null where there is none. */
  get(key: string): Promise<string | null>;
  /** Resolves when the value is on the disk. */
  set(key: string, value: string): Promise<void>;
  /** That it was not there is no error. */
  delete(key: string): Promise<void>;
  /** The keys that start with `prefix`, in order; at most `limit`, and never more than 1000. */
  list(prefix?: string, limit?: number): Promise<string[]>;
}

/** Lines for the plugin's log; never waits. */
export interface Log {
  debug(message: string, fields?: Record<string, unknown>): void;
  info(message: string, fields?: Record<string, unknown>): void;
  warn(message: string, fields?: Record<string, unknown>): void;
  error(message: string, fields?: Record<string, unknown>): void;
}

/** `code` is the core's word, or `unavailable` (no core, or one that speaks 1.0), `timeout` (5 s), `too_large`. */
export class KvError extends Error {
  constructor(code: string, message?: string);
  readonly code: string;
}

/** A field of the definition breaks the protocol's rules; `field` names it. */
export class MetadataError extends Error {
  readonly field: string;
}

/**
 * Runs the plugin: the whole of its main module.
 * With `--metadata` it prints the metadata and ends the process; otherwise it serves until told to stop.
 * Exit codes: 0 stopped as asked, 1 failure with the reason on stderr.
 */
export function serve(definition: Definition): void;
