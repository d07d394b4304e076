"""An ASGI application without a framework: one path for each thing that test_adapters asks about."""

from __future__ import annotations

import asyncio
import os
from contextvars import ContextVar
from typing import Any

gate = asyncio.Event()
gone: list[str] = []
variable: ContextVar[str] = ContextVar("variable", default="fresh")


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await lifespan(scope, receive, send)
        return
    scope["path"] = path = scope["path"].removeprefix(scope["root_path"])
    await PATHS[path](scope, receive, send)


async def lifespan(scope: dict[str, Any], receive: Any, send: Any) -> None:
    how = os.environ.get("LIFESPAN")
    if how == "none":
        raise RuntimeError("no lifespan here")
    assert (await receive())["type"] == "lifespan.startup"
    if how == "failed":
        await send({"type": "lifespan.startup.failed", "message": "no licence"})
        return
    scope["state"]["started"] = "yes"
    await send({"type": "lifespan.startup.complete"})
    assert (await receive())["type"] == "lifespan.shutdown"
    print("lifespan.shutdown", flush=True)
    await send({"type": "lifespan.shutdown.complete"})


async def answer(send: Any, body: bytes, status: int = 200, headers: Any = ()) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body})


async def scope_(scope: dict[str, Any], receive: Any, send: Any) -> None:
    shown = {name: value for name, value in scope.items() if name != "toru.context"}
    shown["context"] = scope["toru.context"].plugin_id
    await answer(send, repr(shown).encode(), headers=[(b"content-type", b"text/plain")])


async def echo(scope: dict[str, Any], receive: Any, send: Any) -> None:
    event = await receive()
    assert event["type"] == "http.request" and not event["more_body"]
    await answer(send, event["body"], 201)


async def headers(scope: dict[str, Any], receive: Any, send: Any) -> None:
    fields = [(b"Set-Cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"content-length", b"2"), (b"x-latin", b"\xe9")]
    await answer(send, b"ok", headers=fields)


async def pieces(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200})
    for piece in (b"a", b"b"):
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"c"})


async def background(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await answer(send, b"answered")
    await gate.wait()
    print("background done", flush=True)


async def open_gate(scope: dict[str, Any], receive: Any, send: Any) -> None:
    gate.set()
    await answer(send, b"opened")


async def disconnect(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await receive()
    event = await receive()
    try:
        await answer(send, b"too late")
    except OSError as error:
        gone.append(f"{event['type']} {type(error).__name__}")
        raise


async def how_it_went(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await answer(send, repr(gone).encode())


async def fails(scope: dict[str, Any], receive: Any, send: Any) -> None:
    raise ValueError("the reason")


async def fails_late(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await answer(send, b"sorry", 500)
    raise ValueError("the late reason")


async def silent(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200})


async def bad_header(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await answer(send, b"", headers=[(b"x", b"a\r\nset-cookie: b")])


async def task_(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """What is the task's own: its variables, its timeouts, its cancellation."""
    task = asyncio.current_task()
    assert task is not None
    before = variable.get()
    variable.set("mine")
    how = scope["query_string"].decode()
    if how == "cancels-itself":
        await answer(send, b"cancelled itself")
        task.cancel()
        return
    if how == "raises":
        raise asyncio.CancelledError
    if how == "waits":
        try:
            await asyncio.wait_for(asyncio.Event().wait(), 0.001)
        except asyncio.TimeoutError:
            before += " timeout"
        await asyncio.gather(asyncio.sleep(0), asyncio.sleep(0.001))
    assert variable.get() == "mine" and asyncio.current_task() is task
    await answer(send, before.encode())


PATHS = {
    "/scope/é": scope_,
    "/echo": echo,
    "/headers": headers,
    "/pieces": pieces,
    "/background": background,
    "/open": open_gate,
    "/disconnect": disconnect,
    "/gone": how_it_went,
    "/fails": fails,
    "/fails-late": fails_late,
    "/silent": silent,
    "/bad-header": bad_header,
    "/task": task_,
}
