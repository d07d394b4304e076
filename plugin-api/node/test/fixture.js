/** The plugin that the tests talk to: one path for each thing that a plugin can do. */

import { KvError, serve } from "../index.js";

const gates = new Map();
const aborted = [];

function gate(name) {
  if (!gates.has(name)) {
    let open;
    const opened = new Promise((resolve) => (open = resolve));
    gates.set(name, { open, opened });
  }
  return gates.get(name);
}

const paths = {
  "/": () => Response.json({ hello: "wörld" }),
  "/request": async (request, url, ctx) =>
    Response.json({
      method: request.method,
      url: request.url,
      headers: [...request.headers],
      text: await request.text(),
      of: ctx.of(request),
    }),
  "/echo": async (request) => new Response(await request.arrayBuffer()),
  "/context": (_request, _url, ctx) =>
    Response.json([ctx.pluginId, ctx.instanceId, ctx.dataDir, ctx.config]),
  "/headers": () => {
    const headers = new Headers([["set-cookie", "a=1"], ["set-cookie", "b=2"], ["content-length", "99"]]);
    headers.append("x-umlaut", Buffer.from("ü€").toString("latin1"));
    headers.append("x-latin", "\xe9");
    return new Response(null, { status: 204, headers });
  },
  "/stream": () =>
    new Response(
      new ReadableStream({
        async start(controller) {
          for (const piece of ["a", "b", "c"]) controller.enqueue(new TextEncoder().encode(piece));
          controller.close();
        },
      }),
    ),
  "/wait": async (_request, url) => {
    const name = url.searchParams.get("for");
    await gate(name).opened;
    return new Response(name);
  },
  "/open": (_request, url) => {
    gate(url.searchParams.get("for")).open();
    return new Response("opened");
  },
  "/hang": (request) =>
    new Promise((_, reject) => {
      request.signal.addEventListener("abort", () => {
        aborted.push(request.signal.reason.message);
        reject(request.signal.reason);
      });
    }),
  "/aborted": () => Response.json(aborted),
  "/throws": () => {
    throw new Error("the reason");
  },
  "/rejects": async () => {
    throw new Error("the reason");
  },
  "/nothing": () => {},
  "/error": () => Response.error(),
  "/used": async () => {
    const response = new Response("once");
    await response.text();
    return response;
  },
  "/large": (_request, url) => new Response("x".repeat(Number(url.searchParams.get("bytes")))),
  "/log": (_request, _url, ctx) => {
    ctx.log.info("a line", { number: 1 });
    return new Response("logged");
  },
  "/background": (_request, _url, ctx) => {
    ctx.waitUntil(gate("background").opened.then(() => console.log("background done")));
    return new Response("answered");
  },
  "/kv": async (_request, url, ctx) => {
    const [action, ...rest] = url.searchParams.getAll("a");
    try {
      return Response.json({ answer: (await ctx.kv[action](...rest)) ?? null });
    } catch (error) {
      return Response.json({ code: error.code, isKvError: error instanceof KvError });
    }
  },
};

serve({
  id: "fixture",
  name: "Fixture",
  version: "1.0.0",
  async init(ctx) {
    if (ctx.config.fail) throw new Error(ctx.config.fail);
    if (ctx.config.store) await ctx.kv.set("from-init", ctx.config.store);
  },
  fetch(request, ctx) {
    const url = new URL(request.url);
    return paths[url.pathname]?.(request, url, ctx) ?? new Response("none", { status: url.pathname === "/nothing" ? 0 : 404 });
  },
  kv(request) {
    if (request.key === "refused") throw new KvError("refused", "no");
    return request.action === "list" ? [request.prefix] : request.key;
  },
  shutdown(ctx) {
    console.log(`${ctx.pluginId} shut down`);
  },
});
