/** The plugin @ID@: what it answers. `main.js` runs it. */

export const plugin = {
  id: "@ID@",
  name: "@NAME@",
  version: "0.1.0",
  icon: "🟢",

  async fetch(request, ctx) {
    const { pathname } = new URL(request.url);
    if (pathname === "/") return Response.json({ hello: "@ID@" });
    const note = /^\/notes\/([^/]+)$/.exec(pathname)?.[1];
    if (note === undefined) return new Response("nothing is here", { status: 404 });
    if (request.method === "PUT") {
      await ctx.kv.set(note, await request.text());
      ctx.log.info("wrote a note", { note });
      return new Response(null, { status: 204 });
    }
    const text = await ctx.kv.get(note);
    return text === null ? new Response("no such note", { status: 404 }) : new Response(text);
  },
};
