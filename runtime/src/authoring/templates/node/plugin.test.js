/** node --test, from this folder. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { plugin } from "./plugin.js";

const ask = (path, values) =>
  plugin.fetch(new Request(`http://localhost${path}`), { kv: { get: async (key) => values[key] ?? null } });

test("index", async () => {
  assert.deepEqual(await (await ask("/", {})).json(), { hello: "@ID@" });
});

test("a note that is there and one that is not", async () => {
  assert.equal(await (await ask("/notes/a", { a: "text" })).text(), "text");
  assert.equal((await ask("/notes/b", {})).status, 404);
});
