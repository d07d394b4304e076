"""The plugin that test_server talks to: one route for each thing a plugin can do."""

from __future__ import annotations

import asyncio
import contextvars
import threading

from toru_plugin import Context, HttpError, KvError, KvRequest, Plugin, Request, Response

plugin = Plugin(id="fixture", name="Fixture", version="1.0.0", icon="🔧", threads=8)

events: dict[str, asyncio.Event] = {}
cancelled: list[str] = []
barrier = threading.Barrier(4, timeout=20)
gate = threading.Event()
seen: contextvars.ContextVar[str] = contextvars.ContextVar("seen", default="nothing")


@plugin.on_init
async def init(ctx: Context) -> None:
    if "fail" in ctx.config:
        raise RuntimeError(ctx.config["fail"])
    if "store" in ctx.config:
        await ctx.kv.set("from-init", ctx.config["store"])


@plugin.on_shutdown
def shutdown(ctx: Context) -> None:
    print(f"{ctx.plugin_id} shut down")


@plugin.get("/")
async def index(request: Request, ctx: Context) -> object:
    return {"hello": "wörld", "id": request.request_id}


@plugin.route("/request", ["GET", "POST"])
async def request_(request: Request, ctx: Context) -> object:
    return {
        "method": request.method,
        "path": request.path,
        "query": request.query,
        "accept": request.headers.get_all("Accept"),
        "text": request.text,
        "remote_addr": request.remote_addr,
        "timeout_ms": request.timeout_ms,
    }


@plugin.get("/context")
async def context(request: Request, ctx: Context) -> object:
    return [ctx.plugin_id, ctx.instance_id, str(ctx.data_dir), ctx.config]


@plugin.get("/straße/{nummer}")
async def street(nummer: str) -> str:
    return nummer


@plugin.get("/text")
async def text() -> str:
    return "grüß"


@plugin.get("/bytes")
async def bytes_(request: Request) -> bytes:
    return b"\x00\xff"


@plugin.get("/none")
async def none() -> None:
    return None


@plugin.post("/made")
async def made(request: Request) -> object:
    return 201, {"made": request.json()}, {"location": "/made/1"}


@plugin.post("/echo")
async def echo(request: Request, ctx: Context) -> Response:
    return Response(request.body, headers={"content-type": request.headers.get("content-type", "a/b")})


@plugin.get("/cookies")
async def cookies() -> Response:
    return Response("ok", 200, {"set-cookie": ["a=1", "b=2"]}).add_header("set-cookie", "c=3")


@plugin.get("/items/{id}/{part}")
async def item(request: Request, ctx: Context, part: str) -> object:
    return {"id": request.params["id"], "part": part}


@plugin.get("/wait/{name}")
async def wait(request: Request, ctx: Context, name: str) -> object:
    try:
        await events.setdefault(name, asyncio.Event()).wait()
    except asyncio.CancelledError:
        cancelled.append(name)
        raise
    return {"waited": name, "id": request.request_id}


@plugin.get("/release/{name}")
async def release(request: Request, ctx: Context, name: str) -> object:
    events.setdefault(name, asyncio.Event()).set()
    return "released"


@plugin.get("/cancelled")
async def cancelled_(request: Request, ctx: Context) -> object:
    await asyncio.sleep(0)
    return cancelled


@plugin.get("/timeout")
async def timeout(request: Request, ctx: Context) -> object:
    # Its first step asks for the current task.
    await asyncio.wait_for(asyncio.sleep(0), 10)
    return {"task": asyncio.current_task() is not None}


@plugin.get("/together")
def together(request: Request, ctx: Context) -> object:
    """Answers only when four of it run at the same time."""
    barrier.wait()
    return {"id": request.request_id}


@plugin.get("/gate")
def at_the_gate(request: Request, ctx: Context) -> str:
    assert gate.wait(20)
    return "through"


@plugin.get("/open-gate")
async def open_gate() -> str:
    gate.set()
    return "open"


@plugin.get("/stuck")
def stuck(request: Request, ctx: Context) -> None:
    threading.Event().wait()


@plugin.get("/seen")
async def seen_(request: Request, ctx: Context) -> str:
    before = seen.get()
    seen.set("another request")
    return before


@plugin.get("/raise")
async def raise_(request: Request, ctx: Context) -> object:
    raise RuntimeError("secret cause")


@plugin.get("/raise-later")
async def raise_later(request: Request, ctx: Context) -> object:
    await asyncio.sleep(0)
    raise RuntimeError("secret cause")


@plugin.get("/raise-sync")
def raise_sync(request: Request, ctx: Context) -> object:
    raise RuntimeError("secret cause")


@plugin.get("/exit-sync")
def exit_sync(request: Request, ctx: Context) -> object:
    raise SystemExit(3)


@plugin.get("/teapot")
async def teapot(request: Request, ctx: Context) -> object:
    raise HttpError(418, "short and stout", title="I'm a Teapot", headers={"x-tea": "yes"})


@plugin.get("/huge")
async def huge(request: Request, ctx: Context) -> str:
    return "x" * 1_048_576


@plugin.get("/bad/{what}")
async def bad(request: Request, ctx: Context, what: str) -> object:
    answers: dict[str, object] = {
        "status": Response("x", 99),
        "name": Response("x", headers={"a b": "1"}),
        "value": Response("x", headers={"a": "1\r\nb: 2"}),
        "type": 3.5,
        "json": {"a": object()},
        "nan": {"a": float("nan")},
        "surrogate": "\ud800",
    }
    return answers[what]


@plugin.get("/log")
async def log(request: Request, ctx: Context) -> object:
    ctx.log.warn("odd", count=3, thing=object)
    return "logged"


@plugin.get("/print")
def print_(request: Request, ctx: Context) -> str:
    print("printed at once")
    ctx.log.info("from a thread")
    return "printed"


@plugin.get("/kv/{key}")
async def kv_get(request: Request, ctx: Context, key: str) -> object:
    try:
        return {"value": await ctx.kv.get(key)}
    except KvError as error:
        return 503, {"code": error.code}


@plugin.put("/kv/{key}")
def kv_put(request: Request, ctx: Context, key: str) -> object:
    ctx.kv.blocking.set(key, request.text)
    return ctx.kv.blocking.list(key[:1], 10)


@plugin.delete("/kv/{key}")
async def kv_delete(request: Request, ctx: Context, key: str) -> None:
    await ctx.kv.delete(key)


@plugin.get("/kv-wrongly")
async def kv_wrongly(request: Request, ctx: Context) -> object:
    return ctx.kv.blocking.get("a")


@plugin.kv
async def kv(request: KvRequest, ctx: Context) -> object:
    if request.action == "list":
        return [f"{request.prefix}{request.limit}"]
    if request.action == "set" and request.key != request.value:
        raise KvError("invalid", "differ")
    if request.action == "get":
        await asyncio.sleep(0)
    if request.key == "fail":
        raise RuntimeError("secret cause")
    if request.key == "hold":
        await asyncio.Event().wait()
    if request.key == "core":
        return await ctx.kv.get("from-kv")
    answers: dict[str, object] = {"none": None, "large": "x" * 1_048_576, "type": 3, "keys": [1], "surrogate": "\ud800"}
    return answers.get(request.key, request.key) if request.action == "get" else None


if __name__ == "__main__":
    plugin.run()
