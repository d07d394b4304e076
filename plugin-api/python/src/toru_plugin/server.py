"""The plugin's side of the socket, on asyncio: all I/O of this package is in this file, but for making the socket that
`listen.py` binds.

One `_Connection` for each connection of the core; `_Server` is what they share.
A read may bring many frames; everything that is ready in one turn of the loop goes out in one write.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import select
import signal
import socket
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import Context as Variables
from contextvars import copy_context
from pathlib import Path
from types import coroutine as generator_based
from typing import TYPE_CHECKING, Any, Final, cast

from . import messages
from .context import Context, KvError
from .frames import FRAME_BYTES_MAX_DEFAULT, FRAME_BYTES_MAX_LIMIT, Decoder, FrameError
from .http import ClientGone, HttpError, Request, problem
from .listen import FALLBACK_DIRECTORY, bind, make_private_directory
from .messages import BadKv, Cancel, CoreMessage, Init, KvReply, KvRequest, MessageError, Ping, Shutdown
from .results import encode_result

if TYPE_CHECKING:
    from .plugin import Handler, Plugin

KV_TIMEOUT_S: Final = 5.0
"""PROTOCOL.md gives the core this long for an answer."""

STOP_GRACE_S: Final = 5.0
"""The deadline of a shutdown that names none (1.0, SIGTERM): the core's default grace period."""

_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

# From Python 3.12 a task can take its first step at once and needs no turn of the loop where that is all.
_EAGER: Final = sys.version_info >= (3, 12)

# In Python 3.11 calls share a task until they suspend; 3.10 cannot tell that one of them has cancelled it.
_SHARES_TASKS: Final = (3, 11) <= sys.version_info < (3, 12)

_UNTOLD: Final = "the plugin failed to answer"


def serve(plugin: Plugin) -> tuple[int, bool]:
    """Serves until told to stop: the exit code, and whether sync handlers are still running."""
    path = os.environ.get("TORU_PLUGIN_SOCKET") or f"{FALLBACK_DIRECTORY}/{plugin.metadata.id}.sock"
    # Whoever sees the socket may signal: until the loop handles them, signals wait.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        if not os.environ.get("TORU_PLUGIN_SOCKET"):
            make_private_directory(FALLBACK_DIRECTORY)
        listener = bind(path)
    except OSError as error:
        print(f"cannot listen on {path}: {error}", file=sys.stderr)
        return 1, False
    loop = _new_event_loop()
    try:
        asyncio.set_event_loop(loop)
        server = _Server(plugin, loop, listener, path)
        code = loop.run_until_complete(server.run())
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            # Past the deadline: only for what a handler still closes when it is cancelled.
            loop.run_until_complete(asyncio.wait(left, timeout=0.2))
        loop.run_until_complete(loop.shutdown_asyncgens())
        return code, server.threads_busy > 0
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def _new_event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


class _Call:
    """One request that is not answered yet. `over` once it is answered or cancelled: what comes later is dropped."""

    __slots__ = ("connection", "future", "handler", "key", "on_over", "over", "request", "task")

    def __init__(self, connection: _Connection, key: str | tuple[str, str]) -> None:
        self.connection = connection
        # In `calls`: the id of an HTTP request, or ("kv", id), since ids of kv are apart.
        self.key = key
        self.task: asyncio.Task[None] | None = None
        self.future: Future[None] | None = None
        self.over = False
        # Of an application alone, which answers through `send` and may go on after that.
        self.request: Request | None = None
        self.handler: Handler | None = None
        self.on_over: Callable[[], None] | None = None

    def send(self, status: int, headers: str, body: bytes) -> None:
        """`plugin.Reply`."""
        if not self.over:
            self.connection.server.answer(self, status, headers, body)


class _Connection(asyncio.Protocol):
    """One connection of the core, in the framing that its first byte chose."""

    def __init__(self, server: _Server) -> None:
        self.server = server
        self.decoder = Decoder(None, server.frame_bytes_max)
        self.transport: asyncio.Transport
        self.calls: dict[str | tuple[str, str], _Call] = {}
        # Answers that are still to come here: requests and `ready`. A half-closed connection stays open for them.
        self.pending = 0
        self.protocol = "1.0"
        self.lost = False
        self.paused = False
        self._out: list[bytes] = []
        # A flush will come in this turn of the loop anyway.
        self._flushing = False
        self._eof = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.server.connections.add(self)

    def data_received(self, data: bytes) -> None:
        self._flushing = True
        server = self.server
        decoder = self.decoder
        for frame in decoder.feed(data):
            try:
                message = messages.read_message(frame)
            except MessageError as error:
                self._fail(error)
                return
            if type(message) is Request:
                server.handle(self, message)
            else:
                server.take(self, message)
        if decoder.error is not None:
            self._fail(decoder.error)
            return
        self._flush()

    def eof_received(self) -> bool:
        # `echo … | socat` closes its sending side first and then waits: what was asked is still answered.
        # A core that is gone altogether waits for nothing.
        self._eof = True
        return (self.pending > 0 or bool(self._out)) and not _hung_up(self.transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self.server.connection_lost(self)

    def pause_writing(self) -> None:
        # The core does not read: don't take on more for it either.
        self.paused = True
        if not self.transport.is_closing() and not self._eof:
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.paused = False
        if not self.transport.is_closing() and not self._eof:
            self.transport.resume_reading()

    def send(self, message: bytes) -> None:
        """Puts a message on its way; it is written at the end of this turn of the loop."""
        out = self._out
        if self.decoder.framing == "lines":
            out.append(message + b"\n")
        else:
            out.append(len(message).to_bytes(4, "big"))
            out.append(message)
        if not self._flushing:
            self._flushing = True
            self.server.event_loop.call_soon(self._flush)

    def settled(self) -> None:
        """One of the answers that were to come is out, or will never be."""
        self.pending -= 1
        if self._eof and not self._flushing:
            self._flushing = True
            self.server.event_loop.call_soon(self._flush)

    def close(self) -> None:
        self._flush()
        self.transport.close()

    def _flush(self) -> None:
        self._flushing = False
        out = self._out
        if out:
            self._out = []
            if not self.transport.is_closing():
                self.transport.write(b"".join(out))
        if self._eof and self.pending == 0:
            self.transport.close()

    def _fail(self, error: FrameError | MessageError) -> None:
        self.server.log("error", "connection closed: the core broke the protocol", {"error": str(error)})
        self.close()


class _Server:
    """What the connections share: handlers, the calls in flight, the way to the core, start and stop."""

    def __init__(self, plugin: Plugin, loop: asyncio.AbstractEventLoop, listener: socket.socket, path: str) -> None:
        self.event_loop = loop
        self.connections: set[_Connection] = set()
        self.frame_bytes_max = FRAME_BYTES_MAX_DEFAULT
        self.threads_busy = 0
        self._plugin = plugin
        self._find = plugin.router.find
        self._listener = listener
        self._listening: asyncio.AbstractServer | None = None
        self._socket_path = path
        self._socket_inode = os.lstat(path).st_ino
        self._context = Context(
            self,
            os.environ.get("TORU_PLUGIN_ID") or plugin.metadata.id,
            os.environ.get("TORU_INSTANCE_ID", ""),
        )
        self._thread = threading.get_ident()
        self._pool: ThreadPoolExecutor | None = None
        # From the pool to the loop: one wake-up for all that are done together.
        self._done: deque[tuple[_Call, bytes | None]] = deque()
        self._woken = False
        # The connection of the supervisor, known by `init` or `ping`: questions and log lines go there.
        self._core: _Connection | None = None
        self._kv_sequence = 0
        self._kv_waiting: dict[str, asyncio.Future[KvReply]] = {}
        self._initialized = not plugin.init_hooks
        self._init_error: str | None = None
        self._init_task: asyncio.Task[None] | None = None
        self._init_replies: list[_Connection] = []
        self._init_requests: list[tuple[_Connection, Request | KvRequest]] = []
        self._in_flight = 0
        # Calls that the next turn of the loop runs, where they share a task.
        self._starting: deque[tuple[_Call, Coroutine[Any, Any, None]]] = deque()
        self._shared_tasks: set[asyncio.Task[None]] = set()
        self._applications: set[_Call] = set()
        self._idle: asyncio.Future[None] | None = None
        self._all_closed: asyncio.Future[None] | None = None
        self._stop_task: asyncio.Task[None] | None = None
        self._stopped: asyncio.Future[int] = loop.create_future()
        self._signals = 0

    async def run(self) -> int:
        """Listens until stopped: the exit code."""
        loop = self.event_loop
        for number in _STOP_SIGNALS:
            loop.add_signal_handler(number, self._on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
        self._listening = await loop.create_unix_server(lambda: _Connection(self), sock=self._listener, backlog=1024)
        try:
            return await self._stopped
        finally:
            self._listening.close()
            self._unlink()
            if self._pool is not None:
                self._pool.shutdown(wait=False, cancel_futures=True)

    # -----------------------------------------------------------------------------------------------------------------
    # Requests

    def handle(self, connection: _Connection, request: Request) -> None:
        """Answers `request`, at once or later. Runs for each request: keep it short."""
        if not self._initialized:
            self._wait_for_init(connection, request)
            return
        try:
            handler = self._find(request)
        except HttpError as error:
            connection.send(self._encode(request, problem(error, request)))
            return
        if handler.kind == "inline":
            try:
                message = self._encode(request, _run_at_once(handler.call(request, self._context)), handler)
            except Exception as error:
                message = self._failure(request, error, handler)
            connection.send(message)
            return
        call = self._open_call(connection, request.request_id)
        if handler.kind == "task":
            self._start(call, self._run_task(call, request, handler))
        elif handler.kind == "application":
            call.request = request
            call.handler = handler
            # The loop itself keeps no task alive, and this one may outlive its call.
            self._applications.add(call)
            self._start(call, self._run_application(call, request, handler))
        else:
            self.threads_busy += 1
            call.future = self._threads().submit(self._run_in_thread, call, request, handler)

    def _open_call(self, connection: _Connection, key: str | tuple[str, str]) -> _Call:
        call = _Call(connection, key)
        connection.calls[key] = call
        connection.pending += 1
        self._in_flight += 1
        return call

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._plugin.threads, "toru-plugin")
        return self._pool

    def _start(self, call: _Call, coroutine: Coroutine[Any, Any, None]) -> None:
        if _EAGER:
            eager: Callable[..., asyncio.Task[None]] = asyncio.Task
            call.task = eager(coroutine, loop=self.event_loop, eager_start=True)
        elif _SHARES_TASKS:
            # While there are any, a task is on its way to them.
            self._starting.append((call, coroutine))
            if len(self._starting) == 1:
                self._share_a_task()
        else:
            call.task = self.event_loop.create_task(coroutine)

    def _share_a_task(self) -> None:
        task = self.event_loop.create_task(self._run_starting())
        # The loop itself keeps no task alive.
        self._shared_tasks.add(task)
        task.add_done_callback(self._shared_tasks.discard)

    async def _run_starting(self) -> None:
        """Runs the calls of one turn of the loop in this task, until one suspends: it keeps the task.

        To make a task costs as much as the rest of a small application's call.
        """
        task = asyncio.current_task()
        assert task is not None
        starting = self._starting
        while starting:
            call, coroutine = starting.popleft()
            # As a task of its own would have it.
            variables = copy_context()
            waited_for: object = None
            has_ended = False
            try:
                waited_for = variables.run(coroutine.send, None)
            except (StopIteration, asyncio.CancelledError):
                has_ended = True
            # What one has cancelled must not meet the next.
            if has_ended and not (sys.version_info >= (3, 11) and task.cancelling()):
                continue
            if starting:
                self._share_a_task()
            if not has_ended:
                call.task = task
                await _rest(coroutine, variables, waited_for)
            return

    async def _run_task(self, call: _Call, request: Request, handler: Handler) -> None:
        if call.over:
            return  # Cancelled before it began.
        try:
            message = self._encode(request, await handler.call(request, self._context), handler)
        except asyncio.CancelledError:
            if call.over:
                raise
            # Not by the core: the handler gave up by itself.
            message = self._failure(request, RuntimeError("the handler was cancelled"), handler)
        except Exception as error:
            message = self._failure(request, error, handler)
        self._finish(call, message)

    async def _run_application(self, call: _Call, request: Request, handler: Handler) -> None:
        try:
            await handler.call(request, self._context, call)
            if not call.over:
                raise RuntimeError("the application returned without a complete answer")
        except asyncio.CancelledError:
            if call.over:
                raise
            # Nobody else cancels it: it gave up by itself.
            self._finish(call, self._failure(request, RuntimeError("the application was cancelled"), handler))
        except Exception as error:
            if not call.over:
                self._finish(call, self._failure(request, error, handler))
            elif not _is_gone(error):
                self._log_exception(request, error, handler)
        finally:
            if not call.over:
                self._finish(call, None)
            self._applications.discard(call)
            self._less_in_flight()

    def answer(self, call: _Call, status: int, headers: str, body: bytes) -> None:
        """An application's answer."""
        request = call.request
        assert request is not None, "only applications answer so"
        message = messages.encode_http_response(request.request_id, status, headers, body)
        self._finish(call, self._bounded(message, request, call.handler))

    def _run_in_thread(self, call: _Call, request: Request, handler: Handler) -> None:
        message: bytes | None = None
        try:
            if not call.over:
                message = self._encode(request, handler.call(request, self._context), handler)
        except BaseException as error:  # sys.exit in a thread would end nothing but the answer.
            message = self._failure(request, error, handler)
        self._done.append((call, message))
        # `_drain` clears the flag before it looks: an item is seen by the wake-up that is on its way, or sends one.
        if not self._woken:
            self._woken = True
            with contextlib.suppress(RuntimeError):  # The loop is closed: past the deadline.
                self.event_loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        self._woken = False
        while self._done:
            call, message = self._done.popleft()
            self.threads_busy -= 1
            self._finish(call, message)

    def _finish(self, call: _Call, message: bytes | None) -> None:
        if call.over:
            return
        call.over = True
        connection = call.connection
        if connection.calls.get(call.key) is call:
            del connection.calls[call.key]
        if message is not None:
            connection.send(message)
        connection.settled()
        if call.on_over is not None:
            call.on_over()
        # An application is in flight until it returns.
        if call.handler is None:
            self._less_in_flight()

    def _less_in_flight(self) -> None:
        self._in_flight -= 1
        if self._in_flight == 0 and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def _cancel(self, call: _Call) -> None:
        self._finish(call, None)
        if call.handler is not None:
            return  # It hears of it through `on_over`.
        if call.task is not None:
            call.task.cancel()
        elif call.future is not None and call.future.cancel():
            self.threads_busy -= 1

    def _encode(self, request: Request, result: object, handler: Handler | None = None) -> bytes:
        return self._bounded(encode_result(request.request_id, result), request, handler)

    def _bounded(self, message: bytes, request: Request, handler: Handler | None) -> bytes:
        """`message` if it may be sent, else the answer that says that the plugin failed."""
        if len(message) > self.frame_bytes_max:
            reason = f"the answer takes {len(message)} bytes; a message may have {self.frame_bytes_max}"
            self._log_failure(request, handler, reason, None)
            return self._untold(request)
        return message

    def _failure(self, request: Request, error: BaseException, handler: Handler) -> bytes:
        if isinstance(error, HttpError):
            try:
                return self._encode(request, problem(error, request), handler)
            except Exception as second:
                error = second
        self._log_exception(request, error, handler)
        return self._untold(request)

    def _log_exception(self, request: Request, error: BaseException, handler: Handler) -> None:
        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        self._log_failure(request, handler, f"{type(error).__name__}: {error}", trace)

    def _untold(self, request: Request) -> bytes:
        """The client gets fixed words, the log the cause."""
        return encode_result(request.request_id, problem(HttpError(500, _UNTOLD), request))

    def _log_failure(self, request: Request, handler: Handler | None, reason: str, trace: str | None) -> None:
        fields: dict[str, object] = {
            "error": reason,
            "method": request.method,
            "path": request.path,
            "request_id": request.known_id,
        }
        if handler is not None:
            fields["handler"] = handler.name
        if trace is not None:
            fields["traceback"] = trace
        self.log("error", "handler failed", fields)

    # -----------------------------------------------------------------------------------------------------------------
    # Questions of kv to the plugin itself

    def handle_kv(self, connection: _Connection, request: KvRequest | BadKv) -> None:
        """Answers a kv request, so that nobody waits. They are rare: each is a task."""
        if isinstance(request, BadKv):
            connection.send(messages.encode_kv_error(request.request_id, "invalid", request.message))
            return
        handler = self._plugin.kv_handler
        if handler is None:
            error = messages.encode_kv_error(request.request_id, "unsupported", "the plugin takes no kv requests")
            connection.send(error)
        elif not self._initialized:
            self._wait_for_init(connection, request)
        else:
            call = self._open_call(connection, ("kv", request.request_id))
            self._start(call, self._run_kv(call, request, handler))

    async def _run_kv(self, call: _Call, request: KvRequest, handler: Handler) -> None:
        request_id = request.request_id
        try:
            if handler.kind == "thread":
                result = await self._call_in_thread(handler, request)
            else:
                result = await handler.call(request, self._context)
            message = self._encode_kv(request_id, result)
        except asyncio.CancelledError:
            if call.over:
                raise
            message = self._kv_failure(request, RuntimeError("the handler was cancelled"), handler)
        except Exception as error:
            message = self._kv_failure(request, error, handler)
        self._finish(call, message)

    async def _call_in_thread(self, handler: Handler, request: KvRequest) -> object:
        def call() -> object:
            try:
                return handler.call(request, self._context)
            except (SystemExit, KeyboardInterrupt) as error:  # Out of the loop it would end the plugin.
                raise RuntimeError(f"{type(error).__name__}: {error}") from error

        def done(future: asyncio.Future[object]) -> None:
            self.threads_busy -= 1
            if not future.cancelled():
                future.exception()  # Where nobody waits for it any more, it is no news.

        self.threads_busy += 1
        future = self.event_loop.run_in_executor(self._threads(), call)
        future.add_done_callback(done)
        # A thread cannot be stopped: the task goes, the count of busy threads stays true.
        return await asyncio.shield(future)

    def _encode_kv(self, request_id: str, result: object) -> bytes:
        if isinstance(result, (list, tuple)):
            if not all(isinstance(key, str) for key in result):
                raise TypeError("the keys that a kv handler returns are str")
            message = messages.encode_kv_reply(request_id, list(result))
        elif result is None or isinstance(result, str):
            message = messages.encode_kv_reply(request_id, result)
        else:
            raise TypeError(f"a kv handler returns str, None or a list of str, not {type(result).__name__}")
        if len(message) > self.frame_bytes_max:
            return messages.encode_kv_error(request_id, "too_large", "the answer does not fit into a message")
        return message

    def _kv_failure(self, request: KvRequest, error: Exception, handler: Handler) -> bytes:
        if isinstance(error, KvError):
            try:
                return messages.encode_kv_error(request.request_id, error.code, error.message)
            except Exception as second:  # Half a surrogate pair in the words.
                error = second
        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        fields = {
            "error": f"{type(error).__name__}: {error}",
            "action": request.action,
            "request_id": request.request_id,
            "handler": handler.name,
            "traceback": trace,
        }
        self.log("error", "kv handler failed", fields)
        return messages.encode_kv_error(request.request_id, "failed", "the plugin failed to handle the request")

    # -----------------------------------------------------------------------------------------------------------------
    # Everything that is no request

    def take(self, connection: _Connection, message: CoreMessage) -> None:
        if isinstance(message, Cancel):
            call = connection.calls.get(message.request_id)
            if call is not None:
                self._cancel(call)
        elif isinstance(message, Ping):
            if message.seq is not None and self._core is None:
                # The supervisor lost its connection and made another; its `init` was said and stands.
                connection.protocol = "1.1"
                self._core = connection
            # Without `seq` it is from a core that expects no answer, or from a person, who does.
            if message.seq is not None or connection.decoder.framing == "lines":
                connection.send(messages.encode_pong(message.seq))
        elif isinstance(message, KvReply):
            waiting = self._kv_waiting.pop(message.request_id, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(message)
        elif isinstance(message, (KvRequest, BadKv)):
            self.handle_kv(connection, message)
        elif isinstance(message, Init):
            self._init(connection, message)
        elif isinstance(message, Shutdown):
            self.stop(STOP_GRACE_S if message.deadline_ms is None else message.deadline_ms / 1000)

    def connection_lost(self, connection: _Connection) -> None:
        self.connections.discard(connection)
        if self._all_closed is not None and not self.connections and not self._all_closed.done():
            self._all_closed.set_result(None)
        for call in list(connection.calls.values()):
            self._cancel(call)
        if self._core is connection:
            self._core = None
            lost = [waiting for waiting in self._kv_waiting.values() if not waiting.done()]
            self._kv_waiting.clear()
            for waiting in lost:
                waiting.set_exception(KvError("unavailable", "the connection to the core is lost"))

    def _init(self, connection: _Connection, init: Init) -> None:
        connection.protocol = init.protocol
        self._core = connection
        context = self._context
        context.instance_id = init.instance_id or context.instance_id
        context.plugin_id = init.plugin_id or context.plugin_id
        context.config = init.config or {}
        context.data_dir = Path(init.data_dir) if init.data_dir else None
        if init.max_message_bytes is not None and init.max_message_bytes > 0:
            self.frame_bytes_max = min(init.max_message_bytes, FRAME_BYTES_MAX_LIMIT)
            for each in self.connections:
                each.decoder.frame_bytes_max = self.frame_bytes_max
        # A 1.0 core reads no answer and closes; a person with socat wants one.
        wants_reply = init.protocol != "1.0" or connection.decoder.framing == "lines"
        if self._initialized:
            if wants_reply:
                connection.send(messages.encode_ready())
            return
        if wants_reply:
            connection.pending += 1
            self._init_replies.append(connection)
        self._start_init()

    def _wait_for_init(self, connection: _Connection, request: Request | KvRequest) -> None:
        if self._init_error is not None:
            words = "the plugin failed to start"
            if isinstance(request, KvRequest):
                connection.send(messages.encode_kv_error(request.request_id, "unavailable", words))
            else:
                connection.send(self._encode(request, problem(HttpError(503, words), request)))
            return
        connection.pending += 1
        self._in_flight += 1
        self._init_requests.append((connection, request))
        # Only by hand does a request come before any `init`: then the environment has to do.
        self._start_init()

    def _start_init(self) -> None:
        if self._init_task is None:
            self._init_task = self.event_loop.create_task(self._run_init())

    async def _run_init(self) -> None:
        self._init_error = None
        try:
            await self._run_hooks(self._plugin.init_hooks)
            self._initialized = True
            reply = messages.encode_ready()
        except Exception as error:
            self._init_error = f"{type(error).__name__}: {error}"
            trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
            self.log("error", "init failed", {"error": self._init_error, "traceback": trace})
            reply = messages.encode_failed(self._init_error)
        # A later `init` tries again after a failure.
        self._init_task = None
        replies, self._init_replies = self._init_replies, []
        for connection in replies:
            if not connection.lost:
                connection.send(reply)
            connection.settled()
        requests, self._init_requests = self._init_requests, []
        for connection, request in requests:
            if not connection.lost:
                if isinstance(request, KvRequest):
                    self.handle_kv(connection, request)
                else:
                    self.handle(connection, request)
            connection.settled()
            self._less_in_flight()

    async def _run_hooks(self, hooks: list[Callable[[Context], Any]]) -> None:
        for hook in hooks:
            if inspect.iscoroutinefunction(hook):
                await hook(self._context)
                continue
            self.threads_busy += 1
            try:
                result = await self.event_loop.run_in_executor(None, hook, self._context)
            except Exception:
                self.threads_busy -= 1
                raise
            # Not counted down when cancelled: the thread is still in the hook.
            self.threads_busy -= 1
            if inspect.isawaitable(result):
                await result

    # -----------------------------------------------------------------------------------------------------------------
    # `context.Link`

    def loop(self) -> asyncio.AbstractEventLoop:
        return self.event_loop

    async def ask(self, action: str, fields: Mapping[str, object]) -> KvReply:
        core = self._core
        if core is None or core.protocol == "1.0":
            raise KvError("unavailable", "no core that answers kv is connected")
        self._kv_sequence += 1
        request_id = f"k{self._kv_sequence}"
        message = messages.encode_kv(request_id, action, fields)
        if len(message) > self.frame_bytes_max:
            raise KvError("too_large", f"{len(message)} bytes; a message may have {self.frame_bytes_max}")
        waiting: asyncio.Future[KvReply] = self.event_loop.create_future()
        self._kv_waiting[request_id] = waiting
        timer = self.event_loop.call_later(KV_TIMEOUT_S, _time_out, waiting)
        core.send(message)
        try:
            return await waiting
        finally:
            timer.cancel()
            self._kv_waiting.pop(request_id, None)

    def log(self, level: str, message: str, fields: Mapping[str, object]) -> None:
        if threading.get_ident() == self._thread:
            self._log(level, message, fields)
            return
        try:
            self.event_loop.call_soon_threadsafe(self._log, level, message, fields)
        except RuntimeError:  # The loop is closed.
            _log_to_stderr(self._context.plugin_id, level, message, fields)

    def _log(self, level: str, message: str, fields: Mapping[str, object]) -> None:
        core = self._core
        if core is not None and core.protocol != "1.0" and not core.paused and not core.transport.is_closing():
            try:
                line = messages.encode_log(level, message, fields)
            except (TypeError, ValueError, RecursionError):
                line = messages.encode_log(level, *_printable(message, fields))
            if len(line) <= self.frame_bytes_max:
                core.send(line)
                return
        _log_to_stderr(self._context.plugin_id, level, message, fields)

    # -----------------------------------------------------------------------------------------------------------------
    # The end

    def _on_signal(self) -> None:
        self._signals += 1
        if self._signals == 1:
            self.stop(STOP_GRACE_S)
        elif not self._stopped.done():
            self._stopped.set_result(1)

    def stop(self, deadline_s: float) -> None:
        """Stops accepting, answers what has come, and ends; `deadline_s` bounds it. Only the first call counts."""
        if self._stop_task is None:
            self._stop_task = self.event_loop.create_task(self._stop(deadline_s))

    async def _stop(self, deadline_s: float) -> None:
        end = self.event_loop.time() + deadline_s
        await self._one_look_at_the_sockets()
        if self._listening is not None:
            self._listening.close()
        self._unlink()
        self._idle = self.event_loop.create_future()
        while self._in_flight:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._idle), max(0.0, end - self.event_loop.time()))
            if self.event_loop.time() >= end:
                break
            # What came while the last answers were made is answered too.
            await self._one_look_at_the_sockets()
            self._idle = self.event_loop.create_future()
        for connection in self.connections:
            for call in list(connection.calls.values()):
                self._cancel(call)
        try:
            remaining = max(0.05, end - self.event_loop.time())
            await asyncio.wait_for(self._run_hooks(self._plugin.shutdown_hooks), remaining)
        except asyncio.TimeoutError:
            self.log("error", "shutdown hook took too long", {"deadline_ms": int(deadline_s * 1000)})
        except Exception as error:
            trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
            self.log("error", "shutdown hook failed", {"error": str(error), "traceback": trace})
        for connection in list(self.connections):
            connection.close()
        # `close` writes what is left first; a core that does not read must not keep the plugin.
        if self.connections:
            self._all_closed = self.event_loop.create_future()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._all_closed, max(0.05, end - self.event_loop.time()))
        if not self._stopped.done():
            self._stopped.set_result(0)

    async def _one_look_at_the_sockets(self) -> None:
        # A turn of the loop asks the kernel and queues what came; the next one runs it.
        for _ in range(3):
            await asyncio.sleep(0)

    def _unlink(self) -> None:
        # Another process may have taken the path since.
        with contextlib.suppress(OSError):
            if os.lstat(self._socket_path).st_ino == self._socket_inode:
                os.unlink(self._socket_path)


def _hung_up(transport: asyncio.Transport) -> bool:
    """Whether the peer has closed both directions, not only its sending side."""
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))


def _run_at_once(coroutine: Coroutine[Any, Any, object]) -> object:
    """What a coroutine without an `await` returns."""
    try:
        # In a context of its own, like a task: what it sets is not seen by the next request.
        copy_context().run(coroutine.send, None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise RuntimeError("suspended where it has no `await`")


@generator_based
def _rest(started: Coroutine[Any, Any, None], variables: Variables, waited_for: object) -> Generator[Any, Any, None]:
    """The steps of a coroutine behind its first, which waits for `waited_for`."""
    try:
        while True:
            try:
                sent = yield waited_for
            except GeneratorExit:
                started.close()
                raise
            except BaseException as error:
                waited_for = variables.run(started.throw, error)
            else:
                waited_for = variables.run(started.send, sent)
    except StopIteration:
        return


def _is_gone(error: BaseException | None) -> bool:
    """Whether an application failed because nobody waits for its answer."""
    if error is None or isinstance(error, ClientGone):
        return error is not None
    inner = getattr(error, "exceptions", ())  # Of an ExceptionGroup, from Python 3.11.
    return _is_gone(error.__cause__) or _is_gone(error.__context__) or any(_is_gone(one) for one in inner)


def _time_out(waiting: asyncio.Future[KvReply]) -> None:
    if not waiting.done():
        waiting.set_exception(KvError("timeout", f"the core did not answer within {KV_TIMEOUT_S:g} s"))


def _printable(message: str, fields: Mapping[str, object]) -> tuple[str, dict[str, object]]:
    """The same in words that JSON has."""
    plain: dict[str, object] = {}
    for name, value in fields.items():
        try:
            messages.encode_json(value).encode()
            plain[name] = value
        except (TypeError, ValueError, RecursionError):
            plain[name] = repr(value).encode("utf-8", "backslashreplace").decode()
    return message.encode("utf-8", "backslashreplace").decode(), plain


def _log_to_stderr(plugin_id: str, level: str, message: str, fields: Mapping[str, object]) -> None:
    message, plain = _printable(message, fields)
    line = {
        "timestamp": messages.timestamp(),
        "level": level,
        "plugin_id": plugin_id,
        "message": message,
        **plain,
    }
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(messages.encode_json(line) + "\n")
        sys.stderr.flush()
