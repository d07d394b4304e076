"""A WSGI application without a framework, and a factory of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any


def make() -> Any:
    return app


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    if path == "/environ/Ã©":  # PEP 3333: the bytes of UTF-8, each as a character.
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [repr({name: value for name, value in environ.items() if isinstance(value, (str, bool))}).encode()]
    if path == "/echo":
        start_response("201 Created", [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("Content-Length", "9")])
        return [environ["wsgi.input"].read()]
    if path == "/closes":
        return Closes(start_response)
    if path == "/write":
        write = start_response("200 OK", [])
        write(b"wri")
        return [b"tten"]
    if path == "/replaced":
        start_response("200 OK", [("x-first", "1")])
        try:
            raise ValueError("on second thought")
        except ValueError as error:
            start_response("409 Conflict", [("x-second", "2")], (ValueError, error, error.__traceback__))
        return [b"conflict"]
    if path == "/fails":
        raise ValueError("the reason")
    if path == "/kv":
        try:
            environ["toru.context"].kv.blocking.set("key", "value")
        finally:
            start_response("200 OK", [])
        return [environ["toru.context"].plugin_id.encode()]
    return []


class Closes:
    def __init__(self, start_response: Any) -> None:
        self.start_response = start_response

    def __iter__(self) -> Iterator[bytes]:
        self.start_response("200 OK", [])
        yield b"one "
        yield b"two"

    def close(self) -> None:
        print("closed", flush=True)
