/** A plugin process of this package, spoken to over its socket as the core does it. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import { fileURLToPath } from "node:url";

import { encodeFrames } from "../lib/frames.js";
import { listen } from "../lib/listen.js";
import { kv, lifecycle, pieces, PluginProcess, request } from "./support.js";

const FIXTURE = fileURLToPath(new URL("fixture.js", import.meta.url));

/** A test with a plugin process of its own. */
function withPlugin(name, body, ...arguments_) {
  test(name, async () => {
    const plugin = await PluginProcess.start(...arguments_);
    try {
      await body(plugin);
    } finally {
      await plugin.stop();
    }
  });
}

test("metadata is printed before any socket", () => {
  const ran = spawnSync(process.execPath, [FIXTURE, "--metadata"], { encoding: "utf8" });
  assert.deepEqual([ran.status, ran.stderr], [0, ""]);
  const expected = { id: "fixture", name: "Fixture", version: "1.0.0", author: null, icon: "🧩", route: "/fixture", protocol: "1.1" };
  assert.deepEqual(JSON.parse(ran.stdout), expected);
});

test("a failure to listen is one clear line", () => {
  const env = { ...process.env, TORU_PLUGIN_SOCKET: "/nonexistent/p.sock" };
  const ran = spawnSync(process.execPath, [FIXTURE], { encoding: "utf8", env });
  assert.equal(ran.status, 1);
  assert.match(ran.stderr, /^cannot listen on \/nonexistent\/p\.sock: .*\n$/);
});

test("a socket takes nobody else's place", async () => {
  const directory = mkdtempSync(join(tmpdir(), "toru"));
  const path = join(directory, "p.sock");
  try {
    const first = createServer();
    await listen(first, path);
    assert.equal(statSync(path).mode & 0o777, 0o600);
    await assert.rejects(listen(createServer(), path), /another process/);
    first.close();
    writeFileSync(path, "precious");
    await assert.rejects(listen(createServer(), path), /no socket/);
    rmSync(path);
    const ran = spawnSync("python3", ["-c", "import socket,sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])", path]);
    if (ran.status === 0) {
      const second = createServer();
      await listen(second, path);
      second.close();
    }
    await assert.rejects(listen(createServer(), join(directory, "x".repeat(107))), /107/);
  } finally {
    rmSync(directory, { recursive: true });
  }
});

withPlugin("the socket is private and goes away", async (plugin) => {
  assert.equal(statSync(plugin.path).mode & 0o777, 0o600);
  plugin.process.kill("SIGTERM");
  assert.equal(await plugin.wait(), 0);
  assert.ok(!existsSync(plugin.path));
  assert.equal(plugin.stdout, "fixture shut down\n");
});

withPlugin("by hand, with a half-closed connection", async (plugin) => {
  const core = await plugin.connect("lines");
  core.send({ type: "http", request_id: "r1", payload: { method: "GET", path: "/" } });
  core.socket.end();
  assert.equal((await core.receive()).payload.body, '{"hello":"wörld"}');
  assert.equal(await core.receive(), null);
  const other = await plugin.connect("lines");
  other.send({ type: "lifecycle", payload: { action: "init", instance_id: "test" } }, { type: "lifecycle", payload: { action: "ping" } });
  const said = [await other.receive(), await other.receive()].map(({ payload }) => payload.action);
  assert.deepEqual(said.toSorted?.() ?? said.sort(), ["pong", "ready"]);
});

withPlugin("a core that speaks 1.0", async (plugin) => {
  const init = await plugin.connect();
  init.send({ type: "lifecycle", payload: { type: "lifecycle", action: "init", instance_id: "i" } });
  init.socket.end();
  assert.equal(await init.receive(), null);
  const core = await plugin.connect();
  assert.equal((await core.ask("GET", "/")).status, 200);
  const kvAnswer = await (await plugin.connect()).ask("GET", "/kv?a=get&a=b");
  assert.deepEqual(JSON.parse(kvAnswer.body), { code: "unavailable", isKvError: true });
});

withPlugin("byte by byte, and many in one write", async (plugin) => {
  const core = await plugin.started();
  for (const piece of pieces(encodeFrames("length", [JSON.stringify(request("GET", "/"))]))) core.sendBytes(piece);
  assert.equal((await core.receive()).payload.status, 200);
  const ids = Array.from({ length: 500 }, (_, number) => `r${number}`);
  core.send(...ids.map((id) => request("GET", `/wait?for=${id}`, id)));
  core.send(...ids.toReversed?.().map((id) => request("GET", `/open?for=${id}`, `o${id}`)) ?? ids.map((id) => request("GET", `/open?for=${id}`, `o${id}`)));
  const answers = new Map();
  while (answers.size < 1000) {
    const message = await core.receive();
    answers.set(message.request_id, message.payload.body);
  }
  for (const id of ids) assert.equal(answers.get(id), id);
});

withPlugin("what a handler sees", async (plugin) => {
  const core = await plugin.started();
  const answer = await core.ask("POST", "/request?a=%20b", "r1", {
    headers: { host: "panel.example:8443", "x-a": ["1", "2"], "x-umlaut": "ü€" },
    body: "grüß",
    remote_addr: "[::1]:7",
    timeout_ms: 5000,
  });
  const seen = JSON.parse(answer.body);
  assert.equal(seen.url, "http://panel.example:8443/request?a=%20b");
  assert.deepEqual([seen.method, seen.text], ["POST", "grüß"]);
  assert.deepEqual(seen.of, { requestId: "r1", remoteAddr: "[::1]:7", timeoutMs: 5000 });
  const headers = new Map(seen.headers);
  assert.equal(headers.get("x-a"), "1, 2");
  assert.equal(Buffer.from(headers.get("x-umlaut"), "latin1").toString(), "ü€");
  const bytes = Buffer.from(Array.from({ length: 256 }, (_, byte) => byte));
  const echoed = await core.ask("POST", "/echo", "r2", { body: bytes.toString("base64"), body_encoding: "base64" });
  assert.deepEqual([echoed.body, echoed.body_encoding], [bytes.toString("base64"), "base64"]);
  const odd = await core.ask("GET", "/request", "r3", { headers: { host: "not a host/" } });
  assert.equal(JSON.parse(odd.body).url, "http://localhost/request");
  assert.equal((await core.ask("TRACE", "/request")).status, 501);
});

withPlugin("what a handler may return", async (plugin) => {
  const core = await plugin.started({ data_dir: "/d", config: { a: [1] } });
  const { status, headers, body } = await core.ask("GET", "/headers");
  assert.deepEqual([status, headers, body], [204, { "set-cookie": ["a=1", "b=2"], "x-umlaut": "ü€", "x-latin": "é" }, ""]);
  assert.equal((await core.ask("GET", "/stream")).body, "abc");
  assert.equal((await core.ask("GET", "/context")).body, '["fixture","i-1","/d",{"a":[1]}]');
});

withPlugin("exceptions are 500 and the cause is only in the log", async (plugin) => {
  const core = await plugin.started();
  for (const [path, reason] of [
    ["/throws", "the reason"],
    ["/rejects", "the reason"],
    ["/error", "status 0"],
    ["/used", "Body"],
    ["/large?bytes=1100000", "a message may have 1048576"],
  ]) {
    core.send(request("GET", path, "r1", { headers: { "x-request-id": "x-7" } }));
    const log = await core.log();
    assert.match(log.fields.error, new RegExp(reason), path);
    assert.equal(log.fields.request_id, "x-7");
    const { payload } = await core.receive();
    assert.equal(payload.status, 500, path);
    const problem = JSON.parse(payload.body);
    assert.deepEqual([problem.detail, problem.request_id], ["the plugin failed to answer", "x-7"]);
  }
});

withPlugin("cancel aborts the request's signal, and nothing is answered", async (plugin) => {
  const core = await plugin.started();
  core.send(request("GET", "/hang"), { type: "cancel", request_id: "r1", payload: {} });
  assert.equal((await core.ask("GET", "/aborted", "r2")).body, '["the client has gone or the time is up"]');
  const other = await plugin.connect();
  other.send(request("GET", "/hang"), lifecycle("ping", { seq: 1 }));
  await other.receive();
  other.socket.destroy();
  while (JSON.parse((await core.ask("GET", "/aborted", "r3")).body).length < 2) await pause(10);
});

withPlugin("log lines and kv go to the core", async (plugin) => {
  const core = await plugin.started();
  core.send(request("GET", "/log"));
  assert.deepEqual(await core.log(), { level: "info", message: "a line", fields: { number: 1 } });
  assert.equal((await core.receive()).payload.body, "logged");
  for (const [query, asked, reply, answer] of [
    ["get&a=k", { action: "get", key: "k" }, { value: "v" }, { answer: "v" }],
    ["get&a=k", { action: "get", key: "k" }, { value: null }, { answer: null }],
    ["set&a=k&a=v", { action: "set", key: "k", value: "v" }, { value: null }, { answer: null }],
    ["delete&a=k", { action: "delete", key: "k" }, { value: null }, { answer: null }],
    ["list&a=p", { action: "list", prefix: "p" }, { keys: ["p1"] }, { answer: ["p1"] }],
    ["get&a=k", { action: "get", key: "k" }, { error: { code: "busy", message: "m" } }, { code: "busy", isKvError: true }],
  ]) {
    core.send(request("GET", `/kv?a=${query}`));
    const question = await core.receive();
    const { type, request_id, ...fields } = question.payload;
    assert.deepEqual([type, request_id, fields], ["kv", question.request_id, asked]);
    core.send(kv(question.request_id, reply));
    assert.deepEqual(JSON.parse((await core.receive()).payload.body), answer);
  }
});

withPlugin("kv to the plugin itself", async (plugin) => {
  const core = await plugin.started();
  const ask = async (payload) => {
    core.send(kv("k1", payload));
    return (await core.receive()).payload;
  };
  assert.deepEqual(await ask({ action: "Get", key: "a" }), { value: "a" });
  assert.deepEqual(await ask({ action: "list", prefix: "p" }), { keys: ["p"] });
  assert.equal((await ask({ action: "get", key: "refused" })).error.code, "refused");
  assert.equal((await ask({ action: "fly" })).error.code, "invalid");
});

withPlugin("init that asks kv before ready, fails, and is better the next time", async (plugin) => {
  const core = await plugin.connect();
  core.send(lifecycle("init", { protocol: "1.1", config: { store: "s" } }));
  const question = await core.receive();
  assert.equal(question.payload.value, "s");
  core.send(kv(question.request_id, { error: { code: "quota", message: "full" } }));
  const failed = (await core.receiveBut()).payload;
  assert.equal(failed.action, "failed");
  assert.match(failed.error, /quota: full/);
  assert.equal((await core.ask("GET", "/")).status, 503);
  assert.equal((await core.init({ config: {} })).payload.action, "ready");
  assert.equal((await core.ask("GET", "/")).status, 200);
});

withPlugin("ping, unknown messages, and a new connection of the supervisor", async (plugin) => {
  const core = await plugin.started();
  core.send({ type: "websocket", payload: {} }, lifecycle("hibernate"), lifecycle("ping", { seq: 7 }));
  assert.equal((await core.receive()).payload.seq, 7);
  core.socket.destroy();
  const other = await plugin.connect();
  for (let code = ""; code !== "asked"; ) {
    // The end of the first connection is seen some time; then a ping makes this one the supervisor's.
    other.send(lifecycle("ping", { seq: 8 }));
    await other.receive();
    other.send(request("GET", "/kv?a=get&a=b"));
    const said = await other.receive();
    if (said.type === "kv") {
      other.send(kv(said.request_id, { value: "v" }));
      await other.receive();
      code = "asked";
    }
  }
});

withPlugin("a broken frame closes that connection only", async (plugin) => {
  const core = await plugin.started();
  for (const bytes of [Buffer.from([0, 0, 0, 0]), Buffer.from([0x7f, 0, 0, 0]), Buffer.from("\0\0\0\x01["), Buffer.from("{}\n")]) {
    const other = await plugin.connect();
    other.sendBytes(bytes);
    assert.equal(await other.receiveBut(), null);
  }
  assert.equal((await core.ask("GET", "/")).status, 200);
});

withPlugin("the limit is taken from init", async (plugin) => {
  const core = await plugin.started({ max_message_bytes: 4 * 1_048_576 });
  assert.equal((await core.ask("GET", "/large?bytes=3000000")).body.length, 3_000_000);
  const body = "y".repeat(3_000_000);
  assert.equal((await core.ask("POST", "/echo", "r2", { body })).body, body);
});

withPlugin("shutdown answers what is in flight and waits for work after answers", async (plugin) => {
  const core = await plugin.started();
  const other = await plugin.connect();
  assert.equal((await core.ask("GET", "/background")).body, "answered");
  other.send(request("GET", "/wait?for=it"));
  core.send(lifecycle("shutdown", { deadline_ms: 20_000 }));
  core.send(request("GET", "/open?for=it", "r2"), request("GET", "/open?for=background", "r3"));
  assert.equal((await other.receive()).payload.body, "it");
  assert.equal(await plugin.wait(), 0);
  assert.equal(plugin.stdout, "background done\nfixture shut down\n");
});

withPlugin("shutdown ends at its deadline", async (plugin) => {
  const core = await plugin.started();
  core.send(request("GET", "/hang"), lifecycle("shutdown", { deadline_ms: 100 }));
  assert.equal(await plugin.wait(), 0);
});

withPlugin("a second signal ends at once", async (plugin) => {
  const core = await plugin.started();
  core.send(request("GET", "/hang"));
  await core.ask("GET", "/", "r2");
  plugin.process.kill("SIGTERM");
  // The socket goes away with the first signal; only then is the second one a second.
  while (existsSync(plugin.path)) await pause(5);
  plugin.process.kill("SIGTERM");
  assert.equal(await plugin.wait(), 1);
});
