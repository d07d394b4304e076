"""Messages: what the core says, as values, and what a plugin says, as JSON text.

No I/O and no framing; the only clock is `timestamp`.
Source: PROTOCOL.md, "Messages".
"""

from __future__ import annotations

import json
import json.encoder
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from .http import Request


class MessageError(Exception):
    """The peer's message breaks the protocol: close the connection.

    `word` is fixed, for programs (`bad_utf8`, `bad_json`, `too_deep`, `not_object`, `no_type`, `no_request_id`).
    """

    def __init__(self, word: str, message: str) -> None:
        super().__init__(message)
        self.word = word


@dataclass(frozen=True)
class Init:
    """The first message. Fields that the core did not send are None; `protocol` is then "1.0"."""

    protocol: str
    instance_id: str | None
    plugin_socket: str | None
    log_path: str | None
    plugin_id: str | None
    max_message_bytes: int | None
    data_dir: str | None
    config: dict[str, Any] | None


@dataclass(frozen=True)
class Shutdown:
    deadline_ms: int | None


@dataclass(frozen=True)
class Ping:
    seq: int | None


@dataclass(frozen=True)
class Cancel:
    request_id: str


@dataclass(frozen=True)
class KvReply:
    """An answer to `kv`: a value or None for `get`, keys for `list`, or an error's code and message."""

    request_id: str
    value: str | None
    keys: list[str] | None
    error: tuple[str, str] | None


@dataclass(frozen=True)
class KvRequest:
    """A kv request to the plugin itself, which a core of 1.0 may send, or a person.

    `action` is `get`, `set`, `delete` or `list`, in lower case. `key` is for the first three, `value` for `set`,
    `prefix` ("" where absent) and `limit` (None where absent) for `list`.
    """

    request_id: str
    action: str
    key: str = ""
    value: str = ""
    prefix: str = ""
    limit: int | None = None


@dataclass(frozen=True)
class BadKv:
    """A kv request that cannot be carried out: answered with an error. `reason` is a fixed word, `message` says it."""

    request_id: str
    reason: str
    message: str


@dataclass(frozen=True)
class Unknown:
    """A type or lifecycle action of a later version: to be ignored."""

    kind: str


CoreMessage = Request | Init | Shutdown | Ping | Cancel | KvReply | KvRequest | BadKv | Unknown


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


# json.loads looks at the text with two regular expressions besides; its scanner alone takes 0.55 of the time.
_scan: Final[Callable[[str, int], tuple[Any, int]]] = cast(
    Any, json.JSONDecoder(parse_constant=_refuse_constant)
).scan_once


def _parse_exactly(frame: bytes) -> Any:
    """The one JSON value in `frame`. Errors: MessageError, with the reason."""
    try:
        text = str(frame, "utf-8")
    except UnicodeDecodeError as error:
        raise MessageError("bad_utf8", f"invalid UTF-8 at byte {error.start}") from None
    start = len(text) - len(text.lstrip(" \t\r\n"))
    try:
        value, end = _scan(text, start)
    except StopIteration as stop:
        raise MessageError("bad_json", f"invalid JSON at character {stop.value}") from None
    except RecursionError:
        raise MessageError("too_deep", "JSON is nested too deeply") from None
    except ValueError as error:
        raise MessageError("bad_json", f"invalid JSON: {error}") from None
    if text[end:].strip(" \t\r\n"):
        raise MessageError("bad_json", f"more than one JSON value: character {end}")
    return value


def _parse_plain(frame: bytes) -> Any:
    try:
        text = str(frame, "utf-8")
        value, end = _scan(text, 0)
        if end == len(text):
            return value
    except (StopIteration, ValueError, RecursionError):
        pass
    # White space around it, or a fault: find out which.
    return _parse_exactly(frame)


_ORJSON_MIN: Final = (3, 9, 15)
"""Before it, deeply nested JSON ends the process with a segmentation fault (seen with 3.8.3; CVE-2024-27454)."""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())


def _find_orjson() -> Any:
    """The module, or None."""
    try:
        import orjson
    except ImportError:
        return None
    return orjson if _numbers(orjson.__version__) >= _ORJSON_MIN else None


_orjson: Final = _find_orjson()


def _parser() -> Callable[[bytes], Any]:
    if _orjson is None:
        return _parse_plain
    loads: Callable[[bytes], Any] = _orjson.loads

    def parse(frame: bytes) -> Any:
        try:
            return loads(frame)
        except ValueError:
            return _parse_exactly(frame)

    return parse


# orjson reads a frame in less than half the time; what it refuses is read again, so that both refuse the same.
parse_frame: Final[Callable[[bytes], Any]] = _parser()


def read_message(frame: bytes) -> CoreMessage:
    """What the core says in `frame`.

    Errors: MessageError where the protocol is broken; unknown types and lifecycle actions are `Unknown`.
    """
    message = parse_frame(frame)
    if type(message) is not dict:
        raise MessageError("not_object", "the top level is no object")
    kind = message.get("type")
    if type(kind) is not str:
        raise MessageError("no_type", "a message without `type`")
    payload = message.get("payload")
    if type(payload) is not dict:
        payload = {}
    if kind == "http":
        return _read_http(message, payload)
    if kind == "lifecycle":
        return _read_lifecycle(payload)
    if kind == "cancel":
        return Cancel(_request_id(message, payload))
    if kind == "kv":
        return _read_kv(message, payload)
    return Unknown(kind)


def _request_id(message: dict[str, Any], payload: dict[str, Any]) -> str:
    request_id = message.get("request_id")
    if type(request_id) is str:
        return request_id
    request_id = payload.get("request_id")
    if type(request_id) is str:
        return request_id
    raise MessageError("no_request_id", f"a message of type `{message['type']}` without `request_id`")


def _read_http(message: dict[str, Any], payload: dict[str, Any]) -> Request:
    request_id = message.get("request_id")
    if type(request_id) is not str:
        request_id = _request_id(message, payload)
    # By hand the request may stand in `payload` itself.
    inner = payload.get("payload", payload)
    if type(inner) is not dict:
        inner = {}
    method = inner.get("method", "GET")
    target = inner.get("path", "/")
    if type(method) is not str or type(target) is not str:
        raise MessageError("bad_json", "`method` and `path` of a request are strings")
    headers = inner.get("headers")
    body = inner.get("body")
    if not body:
        content = b""
    elif type(body) is not str:
        content = encode_json(body).encode()
    elif inner.get("body_encoding") == "base64":
        try:
            content = b64decode(body, validate=True)
        except ValueError as error:
            raise MessageError("bad_json", f"`body` is no base64: {error}") from None
    else:
        content = _encode_text(body)
    return Request(
        method,
        target,
        headers if type(headers) is dict else {},
        content,
        request_id,
        inner.get("remote_addr"),
        inner.get("timeout_ms"),
    )


def _encode_text(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise MessageError("bad_json", "half a surrogate pair in `body`") from None


def _read_lifecycle(payload: dict[str, Any]) -> CoreMessage:
    action = payload.get("action")
    if action == "ping":
        return Ping(_int(payload, "seq"))
    if action == "shutdown":
        return Shutdown(_int(payload, "deadline_ms"))
    if action == "init":
        config = payload.get("config")
        return Init(
            _str(payload, "protocol") or "1.0",
            _str(payload, "instance_id"),
            _str(payload, "plugin_socket"),
            _str(payload, "log_path"),
            _str(payload, "plugin_id"),
            _int(payload, "max_message_bytes"),
            _str(payload, "data_dir"),
            config if isinstance(config, dict) else None,
        )
    return Unknown("lifecycle")


def _read_kv(message: dict[str, Any], payload: dict[str, Any]) -> KvReply | KvRequest | BadKv:
    # An answer has no `action`; in a question of 1.0 it may stand one level deeper, as in `http`.
    inner = payload.get("payload")
    for fields in (payload, inner if type(inner) is dict else {}):
        if fields.get("action") is not None:
            return _read_kv_request(_request_id(message, payload), fields)
    return _read_kv_reply(message, payload)


def _read_kv_request(request_id: str, fields: dict[str, Any]) -> KvRequest | BadKv:
    action = fields["action"]
    action = action.lower() if type(action) is str else ""
    if action not in ("get", "set", "delete", "list"):
        return BadKv(request_id, "bad_action", "action must be get, set, delete or list")
    if action == "list":
        prefix, limit = fields.get("prefix"), fields.get("limit")
        if prefix is not None and type(prefix) is not str:
            return BadKv(request_id, "bad_prefix", "prefix must be a string")
        if limit is not None and (type(limit) is not int or limit < 0):
            return BadKv(request_id, "bad_limit", "limit must be a number of keys")
        return KvRequest(request_id, action, prefix=prefix or "", limit=limit)
    key, value = fields.get("key"), fields.get("value")
    if type(key) is not str:
        return BadKv(request_id, "bad_key", "key must be a string")
    if action != "set":
        return KvRequest(request_id, action, key)
    if type(value) is not str:
        return BadKv(request_id, "bad_value", "value must be a string")
    return KvRequest(request_id, action, key, value)


def _read_kv_reply(message: dict[str, Any], payload: dict[str, Any]) -> KvReply:
    keys = payload.get("keys")
    error = payload.get("error")
    return KvReply(
        _request_id(message, payload),
        _str(payload, "value"),
        [key for key in keys if isinstance(key, str)] if isinstance(keys, list) else None,
        (str(error.get("code", "")), str(error.get("message", ""))) if isinstance(error, dict) else None,
    )


def _str(payload: dict[str, Any], name: str) -> str | None:
    value = payload.get(name)
    return value if isinstance(value, str) else None


def _int(payload: dict[str, Any], name: str) -> int | None:
    value = payload.get(name)
    return value if type(value) is int else None


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def _no_default(value: object) -> Any:
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON")


def _json_encoder() -> Callable[[object], str]:
    slow = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_no_default).encode
    make = cast(Any, json.encoder).c_make_encoder
    if make is None:
        return slow
    try:
        # JSONEncoder.encode makes this object anew for each call, which is more than half of its time for a small
        # value. Without the dictionary of markers a value that contains itself is a RecursionError.
        encode = make(None, _no_default, json.encoder.encode_basestring, None, ":", ",", False, False, False)
        if "".join(encode({"é": [1, None]}, 0)) != '{"é":[1,null]}':
            return slow
    except Exception:
        return slow

    def fast(value: object) -> str:
        return "".join(encode(value, 0))

    return fast


encode_json: Final[Callable[[object], str]] = _json_encoder()
"""Compact JSON text, characters beyond ASCII as themselves. Errors: TypeError, ValueError, RecursionError."""

quote: Final[Callable[[str], str]] = json.encoder.encode_basestring
"""A JSON string, with its quotes."""

_LARGE_CHARACTERS: Final = 128
"""From this length on orjson quotes a text faster than `quote`, at 4 000 characters up to 17 times."""


def _large_quoter() -> Callable[[str], bytes]:
    if _orjson is None:
        return lambda text: quote(text).encode()
    dumps: Callable[[str], bytes] = _orjson.dumps

    def quote_large(text: str) -> bytes:
        try:
            return dumps(text)
        except TypeError:
            return quote(text).encode()  # Half a surrogate pair: refused in the same words.

    return quote_large


_quote_large: Final[Callable[[str], bytes]] = _large_quoter()


def _with_text(head: str, text: str, tail: str) -> bytes:
    """A message: `head`, the text as a JSON string, `tail`. Errors: UnicodeEncodeError for half a surrogate pair."""
    if len(text) < _LARGE_CHARACTERS:
        return f"{head}{quote(text)}{tail}".encode()
    return b"".join((head.encode(), _quote_large(text), tail.encode()))


_stamp: tuple[int, str] = (-1, "")


def timestamp() -> str:
    """Now, in RFC 3339, UTC, with milliseconds."""
    global _stamp
    now_ms = time.time_ns() // 1_000_000
    at_ms, text = _stamp
    # A busy plugin writes a hundred messages within a millisecond; making the text is a tenth of its work for one.
    if at_ms != now_ms:
        second, millisecond = divmod(now_ms, 1000)
        text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)) + f".{millisecond:03d}Z"
        _stamp = (now_ms, text)
    return text


HeaderPairs = Iterable[tuple[str, str]]


def encode_headers(headers: HeaderPairs) -> str:
    """The fields of an answer as JSON text; a repeated one becomes an array."""
    together: dict[str, str | list[str]] = {}
    for name, value in headers:
        before = together.get(name)
        if before is None:
            together[name] = value
        elif isinstance(before, list):
            before.append(value)
        else:
            together[name] = [before, value]
    return encode_json(together)


def encode_http_response(request_id: str, status: int, headers: str, body: str | bytes) -> bytes:
    """An answer with the text of `encode_headers`; a body that is not UTF-8 goes in base64.

    Errors: UnicodeEncodeError for half a surrogate pair.
    """
    encoding = ""
    if isinstance(body, bytes):
        try:
            text = body.decode()
        except UnicodeDecodeError:
            text = b64encode(body).decode("ascii")
            encoding = ',"body_encoding":"base64"'
    else:
        text = body
    return _with_text(
        f'{{"type":"http","timestamp":"{timestamp()}","request_id":{quote(request_id)},"payload":{{"status":{status},'
        f'"headers":{headers},"body":',
        text,
        f"{encoding}}}}}",
    )


_OK_JSON: Final = ',"payload":{"status":200,"headers":{"content-type":"application/json"},"body":'
_OK_TEXT: Final = ',"payload":{"status":200,"headers":{"content-type":"text/plain; charset=utf-8"},"body":'


def encode_ok_json(request_id: str, text: str) -> bytes:
    """`encode_http_response` for the commonest answer: 200 and JSON."""
    head = f'{{"type":"http","timestamp":"{timestamp()}","request_id":{quote(request_id)}{_OK_JSON}'
    return _with_text(head, text, "}}")


def encode_ok_text(request_id: str, text: str) -> bytes:
    """`encode_http_response` for the next: 200 and text."""
    head = f'{{"type":"http","timestamp":"{timestamp()}","request_id":{quote(request_id)}{_OK_TEXT}'
    return _with_text(head, text, "}}")


def _encode(kind: str, payload: Mapping[str, object], request_id: str | None = None) -> bytes:
    message: dict[str, object] = {"type": kind, "timestamp": timestamp()}
    if request_id is not None:
        message["request_id"] = request_id
    message["payload"] = payload
    return encode_json(message).encode()


def encode_ready() -> bytes:
    return _encode("lifecycle", {"type": "lifecycle", "action": "ready"})


def encode_failed(error: str) -> bytes:
    return _encode("lifecycle", {"type": "lifecycle", "action": "failed", "error": error})


def encode_pong(seq: int | None) -> bytes:
    pong: dict[str, object] = {"type": "lifecycle", "action": "pong"}
    if seq is not None:
        pong["seq"] = seq
    return _encode("lifecycle", pong)


def encode_log(level: str, message: str, fields: Mapping[str, object]) -> bytes:
    """Errors: TypeError or ValueError for fields that JSON has no words for."""
    payload: dict[str, object] = {"level": level, "message": message}
    if fields:
        payload["fields"] = fields
    return _encode("log", payload)


def encode_kv_reply(request_id: str, answer: str | list[str] | None) -> bytes:
    """The answer to a kv request: the value, the keys of `list`, or None."""
    return _encode("kv", {"keys": answer} if isinstance(answer, list) else {"value": answer}, request_id)


def encode_kv_error(request_id: str, code: str, message: str) -> bytes:
    """The answer to a kv request that was not carried out; `code` is a fixed word."""
    return _encode("kv", {"error": {"code": code, "message": message}}, request_id)


def encode_kv(request_id: str, action: str, fields: Mapping[str, object]) -> bytes:
    return _encode("kv", {"type": "kv", "request_id": request_id, "action": action, **fields}, request_id)
