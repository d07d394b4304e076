/** The golden vectors, fed whole, byte by byte and with trailing bytes. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { Decoder, encodeFrames } from "../lib/frames.js";
import * as messages from "../lib/messages.js";
import { metadataLine, parseMetadata, readMetadata } from "../lib/metadata.js";
import { pieces, vectorBytes, vectors } from "./support.js";

const TRAILING = { length: Buffer.from([0, 0, 0, 9, 0x7b]), lines: Buffer.from('{"more') };
const decoderFor = ({ framing, limit }) => new Decoder(framing === "detect" ? null : framing, limit);

function checkFrames(vector, decoder, frames, way) {
  const name = `${vector.name}, ${way}`;
  assert.deepEqual(frames.map(String), vector.frames.map((frame) => String(vectorBytes(frame))), name);
  assert.equal(decoder.error?.word, vector.error, name);
  if (vector.detected) assert.equal(decoder.framing, vector.detected, name);
}

test("frames", () => {
  for (const vector of vectors("frames.json")) {
    const input = vectorBytes(vector.input);
    let decoder = decoderFor(vector);
    checkFrames(vector, decoder, decoder.feed(input), "whole");
    assert.equal(decoder.midFrame, vector.mid_frame ?? false, vector.name);
    decoder = decoderFor(vector);
    checkFrames(vector, decoder, [...pieces(input)].flatMap((piece) => decoder.feed(piece)), "byte by byte");
    assert.equal(decoder.midFrame, vector.mid_frame ?? false, vector.name);
    const framing = vector.detected ?? vector.framing;
    if (vector.mid_frame || framing === "detect") continue;
    decoder = decoderFor(vector);
    checkFrames(vector, decoder, decoder.feed(Buffer.concat([input, TRAILING[framing]])), "trailing");
    assert.equal(decoder.midFrame, vector.error === undefined, vector.name);
  }
});

test("an error is final", () => {
  for (const vector of vectors("frames.json").filter(({ error }) => error)) {
    const decoder = decoderFor(vector);
    decoder.feed(vectorBytes(vector.input));
    const { error } = decoder;
    assert.deepEqual(decoder.feed(Buffer.from("\0\0\0\x02{}{}\n")), []);
    assert.equal(decoder.error, error);
  }
});

/** The one frame that comes out of a decoder for `message`: both framings, each fed in three ways. */
function* frameWays(message) {
  for (const framing of ["length", "lines"]) {
    if (framing === "lines" && (message.includes("\n") || !/^[ \t\r]*\{/.test(message))) continue;
    const prefix = Buffer.alloc(4);
    prefix.writeUInt32BE(message.length);
    const data = Buffer.concat(framing === "lines" ? [message, Buffer.from("\n")] : [prefix, message]);
    const limit = Math.max(message.length, 64);
    const dripping = new Decoder(framing, limit);
    const ways = {
      whole: new Decoder(framing, limit).feed(data),
      "byte by byte": [...pieces(data)].flatMap((piece) => dripping.feed(piece)),
      trailing: new Decoder(framing, limit).feed(Buffer.concat([data, TRAILING[framing]])),
    };
    for (const [way, frames] of Object.entries(ways)) {
      assert.equal(frames.length, 1, `${framing}, ${way}`);
      yield [`${framing}, ${way}`, frames[0]];
    }
  }
}

/** A message in the words of the vectors. */
function means(message) {
  const { kind, requestId: request_id } = message;
  switch (kind) {
    case "http": {
      const { method, path, headers, remoteAddr: remote_addr, timeoutMs: timeout_ms, body } = message;
      const text = body.toString("utf8");
      const content = Buffer.from(text).equals(body) ? { body_text: text } : { body_hex: body.toString("hex") };
      return { kind, request_id, method, path, headers, remote_addr, timeout_ms, ...content };
    }
    case "init":
      return {
        kind,
        protocol: message.protocol,
        instance_id: message.instanceId,
        plugin_socket: message.pluginSocket,
        log_path: message.logPath,
        plugin_id: message.pluginId,
        max_message_bytes: message.maxMessageBytes,
        data_dir: message.dataDir,
        config: message.config,
      };
    case "shutdown":
      return { kind, deadline_ms: message.deadlineMs };
    case "ping":
      return { kind, seq: message.seq };
    case "cancel":
      return { kind, request_id };
    case "kvReply":
      return { kind: "kv_reply", request_id, value: message.value, keys: message.keys, error: message.error };
    case "kvRequest": {
      const { requestId, ...request } = message.request;
      assert.equal(requestId, request_id);
      return { kind: "kv_request", request_id, request };
    }
    case "badKv":
      return { kind: "bad_kv", request_id, reason: message.reason };
    default:
      return { kind };
  }
}

const sorted = (read) => (read.headers ? { ...read, headers: read.headers.toSorted?.(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0)) ?? read.headers } : read);

test("what the core says", () => {
  for (const vector of vectors("core_messages.json")) {
    for (const [way, frame] of frameWays(vectorBytes(vector.input))) {
      const name = `${vector.name}, ${way}`;
      if (vector.error) {
        assert.throws(() => messages.readMessage(frame), { word: vector.error }, name);
      } else {
        assert.deepEqual(sorted(means(messages.readMessage(frame))), sorted(vector.means), name);
      }
    }
  }
});

test("metadata", () => {
  for (const vector of vectors("metadata.json")) {
    const input = vectorBytes(vector.input);
    if (vector.error) {
      assert.throws(() => parseMetadata(input), { field: vector.error.field }, vector.name);
      continue;
    }
    const metadata = parseMetadata(input);
    assert.deepEqual(metadata, vector.means, vector.name);
    assert.deepEqual(parseMetadata(Buffer.from(metadataLine(readMetadata(vector.means)))), metadata, vector.name);
  }
});

test("what this package writes", () => {
  const read = (text) => JSON.parse(text);
  const body = '{"é":"\\n"}\u2028\u0000🐍';
  const pairs = [["a", "1"], ["set-cookie", "x"], ["set-cookie", "y"], ["set-cookie", "z"], ["__proto__", "p"]];
  const answer = read(messages.encodeHttpResponse('r"1', 200, pairs, body));
  assert.equal(answer.request_id, 'r"1');
  assert.equal(answer.payload.body, body);
  assert.deepEqual(Object.entries(answer.payload.headers), [["a", "1"], ["set-cookie", ["x", "y", "z"]], ["__proto__", "p"]]);
  const binary = read(messages.encodeHttpResponse("r1", 200, [], Buffer.from([0xff, 0]))).payload;
  assert.deepEqual([binary.body, binary.body_encoding], ["/wA=", "base64"]);
  assert.match(answer.timestamp, /^20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d\d\dZ$/);
  assert.deepEqual(read(messages.encodePong(7)).payload, { type: "lifecycle", action: "pong", seq: 7 });
  assert.deepEqual(
    encodeFrames("length", ["{}", '{"é":1}']),
    Buffer.concat([Buffer.from([0, 0, 0, 2]), Buffer.from("{}"), Buffer.from([0, 0, 0, 8]), Buffer.from('{"é":1}')]),
  );
  assert.equal(String(encodeFrames("lines", ["{}", "{}"])), "{}\n{}\n");
});
