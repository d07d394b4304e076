"""`Plugin`: what an author writes against.

Nothing here touches a socket; `run` hands over to `server`.
"""

from __future__ import annotations

import dis
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, NoReturn, Protocol, TypeVar

from .context import Context
from .frames import Framing
from .http import Router, path_parameters
from .metadata import MAX_IN_FLIGHT_DEFAULT, read_metadata

F = TypeVar("F", bound=Callable[..., Any])

Kind = Literal["inline", "task", "thread", "application"]

_SUSPENDING: Final = frozenset({"GET_AWAITABLE", "GET_ANEXT", "BEFORE_ASYNC_WITH", "YIELD_FROM", "SEND"})


class Handler:
    """A handler and how to call it.

    `inline`: a coroutine function without a single `await`, so that it cannot suspend: run at once, without a task.
    `task`: any other coroutine function. `thread`: a plain function, run in the pool since it may block.
    `application`: a coroutine function that answers through a `Reply` and may go on after that.
    """

    __slots__ = ("call", "kind", "name")

    def __init__(self, function: Callable[..., Any], parameters: Sequence[str] = (), kind: Kind | None = None) -> None:
        self.name: str = getattr(function, "__qualname__", repr(function))
        self.kind: Kind = kind or _kind(function)
        self.call: Callable[..., Any] = function if kind else _call(function, parameters)


class Reply(Protocol):
    """Where an application puts its answer.

    `over` once it is answered, or nobody waits for it any more; `on_over` is called at that moment where it is set.
    """

    over: bool
    on_over: Callable[[], None] | None

    def send(self, status: int, headers: str, body: bytes) -> None:
        """Answers, with the text of `messages.encode_headers`. Only the first call counts."""


def _kind(function: Callable[..., Any]) -> Kind:
    if inspect.iscoroutinefunction(function):
        code = getattr(function, "__code__", None)
        if code is not None and not any(step.opname in _SUSPENDING for step in dis.get_instructions(code)):
            return "inline"
        return "task"
    if inspect.iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004 - an object with async __call__
        return "task"
    return "thread"


def _call(function: Callable[..., Any], parameters: Sequence[str]) -> Callable[[Any, Context], Any]:
    """Handlers take (request, ctx), (request) or nothing, and path parameters by their name."""
    signature = inspect.signature(function)
    named: list[str] = []
    positional = 0
    for parameter in signature.parameters.values():
        if parameter.name in parameters:
            named.append(parameter.name)
        elif parameter.kind is parameter.VAR_POSITIONAL:
            positional = 2
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            if parameter.default is parameter.empty:
                positional += 1
    if positional > 2:
        raise TypeError(f"{function!r} must take (request, ctx) and the parameters of its path, not {signature}")
    if not named and positional == 2:
        return function
    if not named and positional == 1:
        return lambda request, ctx: function(request)
    if not named:
        return lambda request, ctx: function()

    def call(request: Any, ctx: Context) -> Any:
        values = {name: request.params[name] for name in named}
        return function(*(request, ctx)[:positional], **values)

    return call


def _hook(function: Callable[..., Any]) -> Callable[[Context], Any]:
    if inspect.signature(function).parameters:
        return function
    return lambda ctx: function()


class Plugin:
    """A plugin: its metadata, its handlers, and `run`.

    Bounds: those of PROTOCOL.md, "Metadata"; `threads` is how many sync handlers run at the same time.
    Errors: MetadataError at once, with the field and the reason.
    """

    def __init__(
        self,
        id: str,
        name: str,
        version: str,
        icon: str = "🧩",
        route: str | None = None,
        author: str | None = None,
        *,
        framing: Framing = "length",
        max_in_flight: int = MAX_IN_FLIGHT_DEFAULT,
        timeout_ms: int | None = None,
        threads: int = 32,
    ) -> None:
        self.metadata = read_metadata(
            {
                "id": id,
                "name": name,
                "version": version,
                "author": author,
                "icon": icon,
                "route": f"/{id}" if route is None else route,
                "protocol": "1.1",
                "framing": framing,
                "max_in_flight": max_in_flight,
                "timeout_ms": timeout_ms,
            }
        )
        self.threads = threads
        self.router: Router[Handler] = Router()
        self.kv_handler: Handler | None = None
        self.init_hooks: list[Callable[[Context], Any]] = []
        self.shutdown_hooks: list[Callable[[Context], Any]] = []

    def route(self, path: str, methods: Sequence[str] = ("GET",)) -> Callable[[F], F]:
        """Serves `path` with the function below. `{name}` stands for one segment of the path.

        The function may be `async def` (runs in the event loop) or `def` (runs in a thread).
        It returns a dict or list (JSON), str (text), bytes, None (204), a `Response`, or a tuple (status, body).
        """

        def register(function: F) -> F:
            handler = Handler(function, path_parameters(path))
            for method in methods:
                self.router.add(method.upper(), path, handler)
            return function

        return register

    def get(self, path: str) -> Callable[[F], F]:
        """`route` for GET, and HEAD with it."""
        return self.route(path, ("GET",))

    def post(self, path: str) -> Callable[[F], F]:
        return self.route(path, ("POST",))

    def put(self, path: str) -> Callable[[F], F]:
        return self.route(path, ("PUT",))

    def patch(self, path: str) -> Callable[[F], F]:
        return self.route(path, ("PATCH",))

    def delete(self, path: str) -> Callable[[F], F]:
        return self.route(path, ("DELETE",))

    def http(self, function: F) -> F:
        """Serves whatever no route takes, of any method."""
        if self.router.catch_all is not None:
            raise ValueError("the plugin has a catch-all already")
        self.router.catch_all = Handler(function)
        return function

    def application(self, function: Callable[..., Any]) -> None:
        """Serves whatever no route takes with a coroutine function of (request, ctx, reply), for adapters.

        It answers with `reply.send`, may go on after that, and is not cancelled with its request.
        """
        if self.router.catch_all is not None:
            raise ValueError("the plugin has a catch-all already")
        self.router.catch_all = Handler(function, kind="application")

    def kv(self, function: F) -> F:
        """Answers kv requests to the plugin itself: cores of 1.0 may send them, and people who try a plugin by hand.

        It is not the way to the core's storage, which is `ctx.kv`. The function takes (request, ctx), (request) or
        nothing, where `request` is a `KvRequest`, and may be `async def` or `def`. It returns a str (the value),
        None (there is none; done), or a list of str (the keys, for `list`). `raise KvError(code, message)` answers
        with that error. Without it a plugin answers `unsupported`.
        """
        if self.kv_handler is not None:
            raise ValueError("the plugin has a kv handler already")
        self.kv_handler = Handler(function)
        return function

    def on_init(self, function: F) -> F:
        """Runs once, before the first request; an exception says `failed` to the core."""
        self.init_hooks.append(_hook(function))
        return function

    def on_shutdown(self, function: F) -> F:
        """Runs when everything is answered, within the deadline."""
        self.shutdown_hooks.append(_hook(function))
        return function

    def run(self, argv: Sequence[str] | None = None) -> NoReturn:
        """The whole of a plugin's main: metadata, or serve until told to stop. Exits the process.

        Exit codes: 0 stopped as asked, 1 failure.
        """
        arguments = sys.argv[1:] if argv is None else argv
        if "--metadata" in arguments:
            sys.stdout.buffer.write(self.metadata.to_json().encode() + b"\n")
            sys.stdout.flush()
            sys.exit(0)
        # A pipe would keep what a handler prints until 8 KiB of it are together.
        for stream in (sys.stdout, sys.stderr):
            reconfigure = getattr(stream, "reconfigure", None)
            if reconfigure is not None:
                reconfigure(line_buffering=True)
        # Imported here: `--metadata` needs no event loop, and the core waits for it.
        from .server import serve

        code, threads_busy = serve(self)
        sys.stdout.flush()
        sys.stderr.flush()
        if threads_busy:
            # The interpreter would wait for a sync handler that is past the deadline.
            os._exit(code)
        sys.exit(code)
