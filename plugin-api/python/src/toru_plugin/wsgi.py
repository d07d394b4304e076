"""Any WSGI application as a plugin: Flask, Django, and what else speaks PEP 3333.

```sh
python -m toru_plugin.wsgi main:app --id my-app
```

Requests run in a pool of threads (`--threads`); an answer is sent whole, when its iterable has ended.
`environ["toru.context"]` is the plugin's `Context`; its `kv.blocking` is for here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import lru_cache
from io import BytesIO
from types import TracebackType
from typing import Any, NoReturn
from urllib.parse import unquote_to_bytes

from . import _adapter
from ._adapter import FRAMED_BY_THE_CORE, host_and_port
from .context import Context
from .http import Answer, Request, check_response
from .messages import encode_headers
from .plugin import Plugin

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]
Environ = dict[str, Any]
Application = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]


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

    def handle(request: Request, ctx: Context) -> Answer:
        return _answer(app, _environ(request, ctx, root, scheme))

    plugin.http(handle)


@lru_cache(maxsize=256)
def _key(name: str) -> str:
    """A field's name in an environ; empty for one that is left out."""
    key = name.upper().replace("-", "_")
    # `a_b` would pass for `a-b`: a client must not be able to say what a proxy said.
    if "_" in name or key == "CONTENT_LENGTH":
        return ""
    return key if key == "CONTENT_TYPE" else f"HTTP_{key}"


@lru_cache(maxsize=1024)
def _path(path: str) -> str:
    """Without its percent-encoding, as PEP 3333 has text: bytes, each as the character of its number."""
    return unquote_to_bytes(path).decode("latin-1")


def _latin(text: str) -> str:
    return text if text.isascii() else text.encode().decode("latin-1")


def _environ(request: Request, ctx: Context, root: str, scheme: str) -> Environ:
    environ: Environ = {
        "REQUEST_METHOD": request.method,
        "SCRIPT_NAME": _path(root),
        "PATH_INFO": _path(request.path),
        "QUERY_STRING": _latin(request.query_string),
        "RAW_URI": root + request.target,
        "SERVER_PROTOCOL": "HTTP/1.1",
        "CONTENT_LENGTH": str(len(request.body)),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scheme,
        "wsgi.input": BytesIO(request.body),
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "toru.context": ctx,
    }
    for name, value in (request.raw_headers or {}).items():
        key = _key(name)
        if not key or value is None:
            continue
        joint = "; " if key == "HTTP_COOKIE" else ","
        text = _latin(joint.join(map(str, value)) if type(value) is list else str(value))
        # Only a person writes one name in two ways.
        environ[key] = f"{environ[key]}{joint}{text}" if key in environ else text
    host, port = host_and_port(environ.get("HTTP_HOST", "localhost"), 443 if scheme == "https" else 80)
    environ["SERVER_NAME"] = host
    environ["SERVER_PORT"] = str(port)
    if request.remote_addr:
        address, port = host_and_port(request.remote_addr, 0)
        environ["REMOTE_ADDR"] = address
        environ["REMOTE_PORT"] = str(port)
    return environ


def _answer(app: Application, environ: Environ) -> Answer:
    """What the application answers. Errors: whatever it raises; RuntimeError or ValueError where it breaks PEP 3333."""
    started: list[tuple[str, list[tuple[str, str]]]] = []
    pieces: list[bytes] = []

    def start_response(
        status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], None]:
        # Nothing is sent before the end, so that with `exc_info` the answer can still be replaced.
        if started and exc_info is None:
            raise RuntimeError("start_response was called twice without exc_info")
        started[:] = [(status, headers)]
        return pieces.append

    iterable = app(environ, start_response)
    try:
        pieces.extend(iterable)
    finally:
        close = getattr(iterable, "close", None)
        if close is not None:
            close()
    if not started:
        raise RuntimeError("the application returned without calling start_response")
    line, fields = started[0]
    status = int(line.split(" ", 1)[0])
    check_response(status, ())
    try:
        headers = _headers(tuple(fields))
    except TypeError:
        headers = _headers(tuple([(name, value) for name, value in fields]))  # Pairs may be lists.
    return Answer(status, headers, b"".join(pieces))


@lru_cache(maxsize=256)
def _headers(fields: tuple[tuple[str, str], ...]) -> str:
    """The fields of an answer as JSON text. Applications answer with the same few again and again.

    Errors: ValueError, what is no name or value of a field. TypeError, what cannot be hashed.
    """
    kept = [(name.lower(), _text(value)) for name, value in fields if name.lower() not in FRAMED_BY_THE_CORE]
    check_response(200, kept)
    return encode_headers(kept)


def _text(value: str) -> str:
    """A value of PEP 3333, bytes as characters, as the text that it is."""
    if value.isascii():
        return value
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value


def main() -> NoReturn:
    """`python -m toru_plugin.wsgi`."""
    _adapter.main("wsgi", mount)


if __name__ == "__main__":
    main()
