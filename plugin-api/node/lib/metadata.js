/**
 * Metadata: what a plugin says of itself before it runs, checked by the core's own rules.
 *
 * Source: PROTOCOL.md, "Metadata".
 */

import { parseFrame } from "./messages.js";

/** `field` is the one at fault, empty where the output as a whole is. */
export class MetadataError extends Error {
  constructor(field, reason) {
    super(field ? `field \`${field}\`: ${reason}` : reason);
    this.field = field;
  }
}

const MAX_IN_FLIGHT_DEFAULT = 1024;

/** The metadata of a definition, as the fields of the protocol. Errors: MetadataError. */
export function metadataOf(definition) {
  return readMetadata({
    id: definition.id,
    name: definition.name,
    version: definition.version,
    author: definition.author,
    icon: definition.icon ?? "🧩",
    route: definition.route ?? `/${definition.id}`,
    protocol: "1.1",
    framing: definition.framing,
    max_in_flight: definition.maxInFlight,
    timeout_ms: definition.timeoutMs,
  });
}

/** The metadata in what `--metadata` printed. Errors: MetadataError. */
export function parseMetadata(output) {
  let fields;
  try {
    fields = parseFrame(output);
  } catch (error) {
    throw new MetadataError("", error.message);
  }
  if (typeof fields !== "object" || fields === null || Array.isArray(fields)) {
    throw new MetadataError("", "the output is no JSON object");
  }
  return readMetadata(fields);
}

/** Checks every rule and fills in what is absent. Errors: MetadataError with the first field at fault. */
export function readMetadata(fields) {
  const id = string(fields, "id");
  if (!/^[A-Za-z0-9][A-Za-z0-9-]{0,63}$/.test(id)) {
    throw new MetadataError("id", "must be 1 to 64 of A-Z a-z 0-9 -, the first a letter or digit");
  }
  if (id === "route") throw new MetadataError("id", "`route` is taken: `/api/plugins/route/…` finds plugins by their route");
  const name = characters(fields, "name");
  const version = characters(fields, "version");
  const author = fields.author === undefined || fields.author === null ? null : characters(fields, "author");
  const icon = string(fields, "icon");
  if (Buffer.byteLength(icon) > 100) throw new MetadataError("icon", "must have up to 100 bytes");
  const route = string(fields, "route");
  if (!route.startsWith("/")) throw new MetadataError("route", "must start with `/`");
  const segment = route.slice(1);
  // What a client cannot send, or only in several spellings.
  if (segment === "" || segment === "." || segment.includes("..") || /[/?#%\\\s\u0000-\u001f\u007f-\u009f]/u.test(segment)) {
    throw new MetadataError("route", "must be one segment, without `..`, `?`, `#`, `%`, `\\`, white space or controls");
  }
  return {
    id,
    name,
    version,
    icon,
    route,
    author,
    protocol: protocol(fields),
    framing: framing(fields),
    max_in_flight: positive(fields, "max_in_flight") ?? MAX_IN_FLIGHT_DEFAULT,
    timeout_ms: positive(fields, "timeout_ms"),
  };
}

/** One line of JSON; what is as by default is left out. */
export function metadataLine(metadata) {
  const fields = { ...metadata };
  if (fields.framing === "length") delete fields.framing;
  if (fields.max_in_flight === MAX_IN_FLIGHT_DEFAULT) delete fields.max_in_flight;
  if (fields.timeout_ms === null) delete fields.timeout_ms;
  return JSON.stringify(fields);
}

function string(fields, name) {
  const value = fields[name];
  if (value === undefined || value === null) throw new MetadataError(name, "is missing");
  if (typeof value !== "string") throw new MetadataError(name, `must be a string, is ${JSON.stringify(value).slice(0, 50)}`);
  return value;
}

function characters(fields, name) {
  const value = string(fields, name);
  const length = [...value].length;
  if (length > 100) throw new MetadataError(name, `must have up to 100 characters, has ${length}`);
  return value;
}

function protocol(fields) {
  if (fields.protocol === undefined || fields.protocol === null) return "1.0";
  const match = /^([0-9]+)\.([0-9]+)$/.exec(string(fields, "protocol"));
  if (match === null) throw new MetadataError("protocol", 'must be "1.0" or "1.1"');
  if (BigInt(match[1]) !== 1n) throw new MetadataError("protocol", `major version ${match[1]} is not served, only 1`);
  return BigInt(match[2]) === 0n ? "1.0" : "1.1";
}

function framing(fields) {
  if (fields.framing === undefined || fields.framing === null) return "length";
  const value = string(fields, "framing");
  if (value !== "length" && value !== "lines") throw new MetadataError("framing", 'must be "length" or "lines"');
  return value;
}

function positive(fields, name) {
  const value = fields[name];
  if (value === undefined || value === null) return null;
  if (!Number.isInteger(value) || value < 1) throw new MetadataError(name, "must be a whole number from 1");
  return value;
}
