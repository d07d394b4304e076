"""Any ASGI application as a plugin: FastAPI, Starlette, Litestar, and what else speaks ASGI 3.

```sh
python -m toru_plugin.asgi main:app --id my-app
```

An answer is sent whole, when the application has said its last piece; what the application does after that
(background tasks) goes on, and the plugin waits for it when it stops.
When the client has gone or the time is up, `receive` gives `http.disconnect` and `send` raises `ClientGone`.
`scope["toru.context"]` is the plugin's `Context`. WebSockets are not carried by the protocol.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NoReturn
from urllib.parse import unquote

from . import _adapter
from ._adapter import FRAMED_BY_THE_CORE, host_and_port
from .context import Context
from .http import ClientGone, Request, check_response
from .messages import encode_headers
from .plugin import Plugin, Reply

if TYPE_CHECKING:  # Half of the time that `--metadata` takes, which needs none of it.
    import asyncio

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_VERSIONS: Final = {"version": "3.0", "spec_version": "2.4"}


class Misuse(RuntimeError):
    """The application broke the rules of ASGI; the client gets a 500."""


def mount(
    plugin: Plugin,
    application: Callable[[], Application],
    *,
    root_path: str | None = None,
    scheme: str = "http",
) -> None:
    """Makes the application answer whatever no route of `plugin` takes.

    `application` is called once, here. `root_path` is where clients see it, `/api/plugins/<id>` by default.
    """
    app = application()
    root = f"/api/plugins/{plugin.metadata.id}" if root_path is None else root_path
    state: dict[str, Any] = {}
    lifespan = _Lifespan(app, state)
    plugin.on_init(lifespan.start)
    plugin.on_shutdown(lifespan.stop)

    def handle(request: Request, ctx: Context, reply: Reply) -> Awaitable[None]:
        exchange = _Exchange(request, reply)
        return app(_scope(request, ctx, root, scheme, state), exchange.receive, exchange.send)

    plugin.application(handle)


# Names that most requests have, as they are in a scope.
_NAMES: Final = {
    name: name.encode()
    for name in (
        "accept",
        "accept-encoding",
        "accept-language",
        "authorization",
        "cache-control",
        "content-length",
        "content-type",
        "cookie",
        "forwarded",
        "host",
        "origin",
        "referer",
        "traceparent",
        "tracestate",
        "user-agent",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
        "x-request-id",
    )
}


def _scope(request: Request, ctx: Context, root: str, scheme: str, state: dict[str, Any]) -> Scope:
    headers: list[tuple[bytes, bytes]] = []
    host = ""
    for name, value in (request.raw_headers or {}).items():
        field = _NAMES.get(name) or name.lower().encode()
        if type(value) is str:
            headers.append((field, value.encode()))
            if field == b"host":
                host = value
        elif type(value) is list:
            headers.extend((field, str(one).encode()) for one in value)
    path, raw_path = _path(root, request.path)
    query = request.query_string
    return {
        "type": "http",
        "asgi": _VERSIONS,
        "http_version": "1.1",
        "method": request.method,
        "scheme": scheme,
        "path": path,
        "raw_path": raw_path,
        "query_string": query.encode() if query else b"",
        "root_path": root,
        "headers": headers,
        "client": host_and_port(request.remote_addr, 0) if request.remote_addr else None,
        "server": host_and_port(host, 443 if scheme == "https" else 80) if host else None,
        "state": state.copy(),
        "toru.context": ctx,
    }


@lru_cache(maxsize=1024)
def _path(root: str, path: str) -> tuple[str, bytes]:
    """`path` and `raw_path` of a scope."""
    return root + (unquote(path) if "%" in path else path), (root + path).encode()


@lru_cache(maxsize=256)
def _headers(fields: tuple[tuple[bytes, bytes], ...]) -> str:
    """The fields of an answer as JSON text. Applications answer with the same few again and again.

    Errors: ValueError, what is no name or value of a field. TypeError, names or values that are no bytes, and what
    cannot be hashed.
    """
    kept: list[tuple[str, str]] = []
    for name, value in fields:
        text = bytes(name).decode("latin-1").lower()
        if text not in FRAMED_BY_THE_CORE:
            kept.append((text, _decode(bytes(value))))
    check_response(200, kept)
    return encode_headers(kept)


def _decode(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


class _Exchange:
    """One request and its answer, as `receive` and `send`."""

    __slots__ = ("_body", "_gone", "_headers", "_pieces", "_reply", "_request", "_status")

    def __init__(self, request: Request, reply: Reply) -> None:
        self._request = request
        self._reply = reply
        self._body: bytes | None = request.body
        # Made when somebody waits for the client to go.
        self._gone: asyncio.Future[None] | None = None
        self._status = 0
        self._headers = ""
        self._pieces: list[bytes] = []

    async def receive(self) -> Event:
        body = self._body
        if body is not None:
            self._body = None
            return {"type": "http.request", "body": body, "more_body": False}
        if not self._reply.over:
            import asyncio

            if self._gone is None:
                self._gone = asyncio.get_running_loop().create_future()
                self._reply.on_over = self._wake
            # Several may wait, and one that gives up must not cancel it for the others.
            await asyncio.shield(self._gone)
        return {"type": "http.disconnect"}

    def _wake(self) -> None:
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)

    async def send(self, event: Event) -> None:
        kind = event["type"]
        if self._reply.over:
            raise ClientGone("nobody waits for this answer any more")
        if kind == "http.response.body":
            if not self._status:
                raise Misuse("`http.response.body` before `http.response.start`")
            body = event.get("body", b"")
            if type(body) is not bytes:
                body = bytes(body)
            if event.get("more_body", False):
                self._pieces.append(body)
                return
            if self._pieces:
                body = b"".join((*self._pieces, body))
            self._reply.send(self._status, self._headers, body)
        elif kind == "http.response.start":
            if self._status:
                raise Misuse("`http.response.start` twice for one request")
            status = int(event["status"])
            check_response(status, ())
            fields = tuple(event.get("headers", ()))
            try:
                self._headers = _headers(fields)
            except TypeError:
                # Pairs may be lists, and names and values whatever holds bytes.
                self._headers = _headers(tuple([(bytes(name), bytes(value)) for name, value in fields]))
            self._status = status
        else:
            raise Misuse(f"a plugin carries no event `{kind}`")


class _Lifespan:
    """`lifespan.startup` and `lifespan.shutdown`, said to one task that lives as long as the application."""

    def __init__(self, app: Application, state: dict[str, Any]) -> None:
        self._app = app
        self._state = state
        self._task: asyncio.Task[None] | None = None
        self._started: asyncio.Future[None]
        self._stopped: asyncio.Future[None]
        self._events: asyncio.Queue[Event]

    async def start(self, ctx: Context) -> None:
        """Errors: RuntimeError, the application says that it cannot start."""
        import asyncio

        loop = asyncio.get_running_loop()
        self._started = loop.create_future()
        self._stopped = loop.create_future()
        self._events = asyncio.Queue()
        self._events.put_nowait({"type": "lifespan.startup"})
        self._task = loop.create_task(self._run(ctx))
        await self._started

    async def stop(self) -> None:
        """Errors: RuntimeError, the application says that it failed."""
        if self._task is None or self._task.done():
            return
        self._events.put_nowait({"type": "lifespan.shutdown"})
        await self._stopped
        await self._task

    async def _run(self, ctx: Context) -> None:
        scope: Scope = {"type": "lifespan", "asgi": _VERSIONS, "state": self._state, "toru.context": ctx}
        try:
            await self._app(scope, self._events.get, self._send)
        except Exception:
            # An application without a lifespan raises at once, and serves none the less.
            if self._started.done():
                raise
        finally:
            for waited in (self._started, self._stopped):
                if not waited.done():
                    waited.set_result(None)

    async def _send(self, event: Event) -> None:
        kind = event["type"]
        waited = self._started if kind.startswith("lifespan.startup.") else self._stopped
        if waited.done():
            raise Misuse(f"`{kind}` twice")
        if kind.endswith(".failed"):
            waited.set_exception(RuntimeError(event.get("message") or f"the application says `{kind}`"))
        else:
            waited.set_result(None)


def main() -> NoReturn:
    """`python -m toru_plugin.asgi`."""
    _adapter.main("asgi", mount)


if __name__ == "__main__":
    main()
