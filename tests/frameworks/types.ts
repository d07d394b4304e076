// Compiled, never run: what authors write has to fit the SDK's types, and mistakes have to be found.
import express from "express";
import { Hono } from "hono";
import { type Context, KvError, type KvRequest, MetadataError, serve } from "toru-plugin";
import { fromListener } from "toru-plugin/node-http";

serve({ id: "a", name: "A", version: "1.0.0", fetch: () => new Response("ok") });

serve({
  id: "whole",
  name: "Whole",
  version: "1.0.0",
  author: null,
  icon: "🧩",
  route: "/whole",
  framing: "length",
  maxInFlight: 5,
  timeoutMs: 1000,
  async init(ctx: Context) {
    const directory: string | null = ctx.dataDir;
    ctx.log.info("started", { directory, config: ctx.config });
  },
  async fetch(request, ctx) {
    const value: string | null = await ctx.kv.get("key");
    const keys: string[] = await ctx.kv.list("prefix/", 10);
    await ctx.kv.set("key", "value");
    const { remoteAddr } = ctx.of(request);
    ctx.waitUntil(Promise.resolve());
    if (request.signal.aborted) throw new KvError("timeout");
    return Response.json({ value, keys, remoteAddr, id: ctx.pluginId });
  },
  kv: (request: KvRequest) => (request.action === "list" ? ["a"] : null),
  shutdown: () => undefined,
});

const hono = new Hono<{ Bindings: Context }>();
hono.get("/", async (c) => c.json(await c.env.kv.get("key")));
serve({ id: "hono", name: "Hono", version: "1.0.0", fetch: hono.fetch });

const app = express();
app.get("/", (_request, response) => void response.json({}));
serve({ id: "express", name: "Express", version: "1.0.0", fetch: fromListener(app) });

export const field = (error: unknown): string => (error instanceof MetadataError ? error.field : "");

// @ts-expect-error: no version.
serve({ id: "a", name: "A", fetch: () => new Response() });
// @ts-expect-error: an answer is a Response.
serve({ id: "a", name: "A", version: "1", fetch: () => "ok" });
// @ts-expect-error: values are text.
export const wrong = (ctx: Context) => ctx.kv.set("key", 1);
