"""What the tests share: the vectors, a reader of what plugins say, a core played by hand, a plugin process."""

from __future__ import annotations

import binascii
import json
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from base64 import b64decode
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent / "src"
VECTORS = HERE.parent.parent / "vectors"
PLUGINS = HERE.parent.parent.parent / "plugins"
if str(SOURCE) not in sys.path:
    sys.path.insert(0, str(SOURCE))

from toru_plugin import messages  # noqa: E402
from toru_plugin.frames import Decoder, Framing, encode_frame  # noqa: E402
from toru_plugin.messages import MessageError  # noqa: E402

DEADLINE_S = 20.0
"""Nothing in these tests takes longer on a slow machine, unless it never comes."""

Json = dict[str, Any]

FRAMINGS: tuple[Framing, ...] = ("length", "lines")


# ---------------------------------------------------------------------------------------------------------------------
# Vectors


def vectors(name: str) -> list[Json]:
    cases: list[Json] = json.loads((VECTORS / name).read_bytes())
    assert cases
    return cases


def vector_bytes(notation: str | list[Json]) -> bytes:
    if isinstance(notation, str):
        return notation.encode()
    return b"".join(
        (part["text"].encode() if "text" in part else bytes.fromhex(part["hex"])) * part.get("repeat", 1)
        for part in notation
    )


def pieces(data: bytes) -> Iterator[bytes]:
    """Byte by byte; large inputs in larger pieces, as the vectors' README says."""
    size = 1 if len(data) <= 65_536 else 4093
    for at in range(0, len(data), size):
        yield data[at : at + size]


def frame_ways(message: bytes) -> Iterator[tuple[str, bytes]]:
    """The one frame that comes out of a decoder for `message`: both framings, each fed in three ways."""
    for framing in FRAMINGS:
        if framing == "lines" and (b"\n" in message or message.lstrip(b" \t\r")[:1] != b"{"):
            continue
        data = encode_frame(framing, message)
        limit = max(len(message), 64)
        whole = Decoder(framing, limit).feed(data)
        decoder = Decoder(framing, limit)
        dripped = [frame for piece in pieces(data) for frame in decoder.feed(piece)]
        decoder = Decoder(framing, limit)
        trailed = decoder.feed(data + TRAILING[framing])
        assert decoder.mid_frame
        for way, frames in (("whole", whole), ("byte by byte", dripped), ("trailing", trailed)):
            assert len(frames) == 1, (framing, way, len(frames))
            yield f"{framing}, {way}", frames[0]


TRAILING: dict[str, bytes] = {"length": b"\0\0\0\x09{", "lines": b'{"more'}


# ---------------------------------------------------------------------------------------------------------------------
# What a plugin says, read as the core reads it


class Bad(Exception):
    """The word of a `bad_response` or `bad_kv`."""


_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


def read_plugin_message(frame: bytes) -> Json:
    """The `means` of the vectors. Errors: MessageError."""
    # orjson stops at half a surrogate pair.
    message = messages._parse_plain(frame)
    half = has_half_pair(message)
    message = without_half_pairs(message)
    if not isinstance(message, dict):
        raise MessageError("not_object", "the top level is no object")
    kind = message.get("type")
    if not isinstance(kind, str):
        raise MessageError("no_type", "no type")
    payload = message.get("payload")
    fields: Json = payload if isinstance(payload, dict) else {}
    if kind == "lifecycle":
        return _read_lifecycle(fields)
    if kind == "log":
        return {
            "kind": "log",
            "level": fields.get("level", "info"),
            "message": fields.get("message", ""),
            "fields": fields.get("fields"),
        }
    if kind not in ("http", "kv"):
        return {"kind": "unknown"}
    request_id = message.get("request_id", fields.get("request_id"))
    if not isinstance(request_id, str):
        raise MessageError("no_request_id", "no request_id")
    try:
        if half:
            raise Bad("bad_text")
        if kind == "kv":
            return {"kind": "kv", "request_id": request_id, "request": _read_kv(fields)}
        if not isinstance(payload, dict):
            raise Bad("bad_payload")
        return {"kind": "http_response", "request_id": request_id, **_read_response(payload)}
    except Bad as bad:
        return {"kind": "bad_response" if kind == "http" else "bad_kv", "request_id": request_id, "reason": str(bad)}


def has_half_pair(message: Any) -> bool:
    try:
        json.dumps(message, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def without_half_pairs(value: Any) -> Any:
    """The message with U+FFFD for each half of a surrogate pair."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [without_half_pairs(one) for one in value]
    if isinstance(value, dict):
        return {without_half_pairs(name): without_half_pairs(one) for name, one in value.items()}
    return value


def _read_lifecycle(fields: Json) -> Json:
    action = fields.get("action")
    if action == "ready":
        return {"kind": "ready"}
    if action == "failed":
        return {"kind": "failed", "error": fields.get("error", "")}
    if action == "pong" and type(fields.get("seq")) is int:
        return {"kind": "pong", "seq": fields["seq"]}
    return {"kind": "unknown"}


def _read_kv(fields: Json) -> Json:
    action = str(fields.get("action")).lower()
    if action not in ("get", "set", "delete", "list"):
        raise Bad("bad_action")
    if action == "list":
        limit = fields.get("limit")
        if limit is not None and (type(limit) is not int or limit < 0):
            raise Bad("bad_limit")
        if not isinstance(fields.get("prefix", ""), str):
            raise Bad("bad_prefix")
        return {"action": action, "prefix": fields.get("prefix", ""), "limit": limit}
    if not isinstance(fields.get("key"), str):
        raise Bad("bad_key")
    if action != "set":
        return {"action": action, "key": fields["key"]}
    if not isinstance(fields.get("value"), str):
        raise Bad("bad_value")
    return {"action": action, "key": fields["key"], "value": fields["value"]}


def _read_response(payload: Json) -> Json:
    inner = payload.get("payload")
    if isinstance(inner, dict):
        nested = inner.get("body")
        if isinstance(nested, str):
            try:
                nested = messages._parse_plain(nested.encode())
            except MessageError:
                raise Bad("bad_nested") from None
        if has_half_pair(nested):
            raise Bad("bad_text")
        if not isinstance(nested, dict):
            raise Bad("bad_nested")
        payload = nested
    status = payload.get("status")
    if type(status) is not int or not 200 <= status <= 599:
        raise Bad("bad_status")
    headers: list[list[str]] = []
    given = payload.get("headers")
    if given is not None and not isinstance(given, dict):
        raise Bad("bad_headers")
    for name, value in (given or {}).items():
        if not _TOKEN.fullmatch(name):
            raise Bad("bad_header_name")
        for one in value if isinstance(value, list) else [value]:
            if one is None:
                continue
            if isinstance(one, (dict, list)):
                raise Bad("bad_header_value")
            text = one if isinstance(one, str) else json.dumps(one)
            if re.search(r"[\r\n\0]", text):
                raise Bad("bad_header_value")
            headers.append([name, text])
    return {"status": status, "headers": headers, **_read_body(payload)}


def _read_body(payload: Json) -> Json:
    body = payload.get("body")
    encoding = payload.get("body_encoding")
    if encoding is None:
        if body is None:
            return {"body_text": ""}
        return {"body_text": body if isinstance(body, str) else messages.encode_json(body)}
    if encoding != "base64":
        raise Bad("bad_encoding")
    if not isinstance(body, str):
        raise Bad("bad_base64")
    try:
        content = b64decode(body, validate=True)
    except binascii.Error:
        raise Bad("bad_base64") from None
    return {"body_hex": content.hex()} if content else {"body_text": ""}


# ---------------------------------------------------------------------------------------------------------------------
# A core, played by hand


class Core:
    """One connection to a plugin."""

    def __init__(self, path: str, framing: Framing = "length") -> None:
        self.framing: Framing = framing
        self.compact = False
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(DEADLINE_S)
        try:
            self.socket.connect(path)
        except OSError:
            self.socket.close()
            raise
        self._decoder = Decoder(framing, 16 * 1024 * 1024)
        self._read: list[Json] = []

    def __enter__(self) -> Core:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *sent: Json) -> None:
        self.socket.sendall(self.encode(*sent))

    def encode(self, *sent: Json) -> bytes:
        separators = (",", ":") if self.compact else None
        texts = (json.dumps(message, separators=separators).encode() for message in sent)
        return b"".join(encode_frame(self.framing, text) for text in texts)

    def receive(self) -> Json:
        """The next message as JSON. Errors: EOFError, TimeoutError."""
        while not self._read:
            data = self.socket.recv(1 << 20)
            if not data:
                raise EOFError
            self._read += [json.loads(frame) for frame in self._decoder.feed(data)]
            assert self._decoder.error is None, self._decoder.error
        return self._read.pop(0)

    def receive_kind(self, kind: str) -> Json:
        """The next message of this kind as the core reads it; log lines between are passed over."""
        while True:
            message = self.receive()
            means = read_plugin_message(json.dumps(message).encode())
            assert means["kind"] in (kind, "log"), message
            if means["kind"] == kind:
                return means

    def at_end(self) -> bool:
        """Whether the plugin has closed the connection, log lines apart; a reset is a close with something unread."""
        try:
            while True:
                message = self.receive()
                if message["type"] != "log":
                    return False
        except (EOFError, ConnectionResetError):
            return True

    def init(self, **more: object) -> Json:
        payload = {
            "type": "lifecycle",
            "action": "init",
            "instance_id": "i-1",
            "plugin_socket": "s",
            "log_path": "l",
            "protocol": "1.1",
            "plugin_id": "fixture",
            "max_message_bytes": 1_048_576,
            "data_dir": "/var/lib/toru/fixture",
            "config": {},
            **more,
        }
        self.send({"type": "lifecycle", "timestamp": "2026-01-01T00:00:00.000Z", "payload": payload})
        return self.receive()

    def ask(self, method: str, path: str, request_id: str = "r1", **more: object) -> Json:
        """One request and its answer, with the body under `body`."""
        self.send(request(method, path, request_id, **more))
        answer = self.receive_kind("http_response")
        assert answer["request_id"] == request_id, answer
        answer["body"] = answer.get("body_text", answer.get("body_hex"))
        return answer


def request(method: str, path: str, request_id: str = "r1", **more: object) -> Json:
    inner = {"method": method, "path": path, "headers": {}, "body": None, **more}
    return {
        "type": "http",
        "timestamp": "2026-01-01T00:00:00.000Z",
        "request_id": request_id,
        "payload": {"type": "http", "request_id": request_id, "payload": inner},
    }


def kv_answers(core: Core, **payload: object) -> None:
    """Answers the plugin's next question of kv."""
    asked = core.receive_kind("kv")
    core.send({"type": "kv", "timestamp": "t", "request_id": asked["request_id"], "payload": payload})


def lifecycle(action: str, **more: object) -> Json:
    return {"type": "lifecycle", "timestamp": "t", "payload": {"type": "lifecycle", "action": action, **more}}


# ---------------------------------------------------------------------------------------------------------------------
# A plugin process


class PluginProcess:
    """A plugin in a directory of its own; killed and removed at the end."""

    def __init__(
        self,
        program: Path | str = HERE / "fixture_plugin.py",
        environment: dict[str, str] | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        self.directory = tempfile.mkdtemp(prefix="toru")
        self.socket = os.path.join(self.directory, "p.sock")
        if isinstance(program, str):  # A module.
            command = [sys.executable, "-m", program]
        else:
            command = [sys.executable, str(program)] if program.suffix == ".py" else [str(program)]
        command += arguments
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={
                **os.environ,
                "PYTHONPATH": str(SOURCE),
                "TORU_PLUGIN_SOCKET": self.socket,
                "TORU_PLUGIN_ID": "fixture",
                "TORU_INSTANCE_ID": "from-env",
                **(environment or {}),
            },
        )
        self._wait_until_it_listens()

    def _wait_until_it_listens(self) -> None:
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end:
            probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                probe.connect(self.socket)
                return
            except OSError:
                # Its stderr becomes readable at once where it fails to start; until then this is the pause.
                if self.process.poll() is not None:
                    break
                select.select([self.stderr()], [], [], 0.01)
            finally:
                probe.close()
        self.process.kill()
        raise AssertionError(f"the plugin does not listen: {self.process.communicate()}")

    def __enter__(self) -> PluginProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def connect(self, framing: Framing = "length") -> Core:
        return Core(self.socket, framing)

    def started(self) -> Core:
        """The connection of the supervisor, when `ready` has come."""
        core = self.connect()
        answer = core.init()
        assert answer["payload"]["action"] == "ready", answer
        return core

    def wait(self) -> int:
        return self.process.wait(DEADLINE_S)

    def stdout(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    def stderr(self) -> IO[bytes]:
        assert self.process.stderr is not None
        return self.process.stderr
