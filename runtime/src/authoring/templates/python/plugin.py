"""The plugin @ID@: its routes. `__main__.py` runs it."""

from toru_plugin import HttpError, Plugin

plugin = Plugin(id="@ID@", name="@NAME@", version="0.1.0", icon="🐍")


@plugin.get("/")
async def index():
    return {"hello": "@ID@"}


@plugin.get("/notes/{name}")
async def read_note(request, ctx, name):
    note = await ctx.kv.get(name)
    if note is None:
        raise HttpError(404, "no such note")
    return note


@plugin.put("/notes/{name}")
async def write_note(request, ctx, name):
    await ctx.kv.set(name, request.text)
    ctx.log.info("wrote a note", note=name)
