/** A listener of node:http as a plugin. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";

import { PluginProcess, request } from "./support.js";

test("a listener of node:http", async () => {
  const plugin = await PluginProcess.start("fixture-node-http.js");
  try {
    const core = await plugin.started();
    const more = { headers: { host: "h", "x-a": "1", "content-length": "99" }, body: "four", remote_addr: "127.0.0.1:7" };
    const seen = JSON.parse((await core.ask("POST", "/request?a=1", "r1", more)).body);
    assert.deepEqual(
      { ...seen, rawHeaders: undefined, headers: { ...seen.headers, "content-type": undefined } },
      {
        method: "POST", url: "/request?a=1", body: "four", id: "fixture", remoteAddress: "127.0.0.1", remotePort: 7,
        rawHeaders: undefined, headers: { host: "h", "x-a": "1", "content-length": "4", "content-type": undefined },
      },
    );
    const made = await core.ask("GET", "/head");
    assert.deepEqual([made.status, made.body], [201, "one two"]);
    assert.deepEqual(made.headers, { "set-cookie": ["a=1", "b=2"], "x-one": "1" });
    assert.equal((await core.ask("GET", "/raw")).headers.a, "1, 2");
    assert.equal((await core.ask("GET", "/none")).status, 304);
    core.send(request("GET", "/throws"));
    assert.match((await core.log()).fields.error, /the reason/);
    assert.equal((await core.receive()).payload.status, 500);
    core.send(request("GET", "/hang"));
    await core.ask("GET", "/none", "r2");
    core.send({ type: "cancel", request_id: "r1", payload: {} });
    while ((await core.ask("GET", "/closed", "r2")).body === "0") await pause(10);
  } finally {
    await plugin.stop();
  }
});
