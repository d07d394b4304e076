"""Metadata: what a plugin says of itself before it runs.

Read here by the same rules as in the core, so that a plugin hears of a mistake from its own traceback.
Source: PROTOCOL.md, "Metadata".
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final

from .frames import Framing
from .messages import MessageError, encode_json, parse_frame

MAX_IN_FLIGHT_DEFAULT: Final = 1024

_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}")
# What a client cannot send, or only in several spellings.
_NOT_IN_ROUTE: Final = re.compile(r"[/?#%\\\s\x00-\x1f\x7f-\x9f]")
_PROTOCOL: Final = re.compile(r"([0-9]+)\.([0-9]+)")


class MetadataError(ValueError):
    """`field` is the field at fault, empty where the output as a whole is."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"field `{field}`: {reason}" if field else reason)
        self.field = field


@dataclass(frozen=True)
class Metadata:
    """What `--metadata` prints. Errors: MetadataError from `checked`."""

    id: str
    name: str
    version: str
    icon: str
    route: str
    author: str | None = None
    protocol: str = "1.1"
    framing: Framing = "length"
    max_in_flight: int = MAX_IN_FLIGHT_DEFAULT
    timeout_ms: int | None = None

    def to_json(self) -> str:
        """One line of JSON; what is as by default is left out."""
        fields: dict[str, Any] = {
            "id": self.id,
            "name": self.name,
            "version": self.version,
            "author": self.author,
            "icon": self.icon,
            "route": self.route,
            "protocol": self.protocol,
        }
        if self.framing != "length":
            fields["framing"] = self.framing
        if self.max_in_flight != MAX_IN_FLIGHT_DEFAULT:
            fields["max_in_flight"] = self.max_in_flight
        if self.timeout_ms is not None:
            fields["timeout_ms"] = self.timeout_ms
        return encode_json(fields)


def parse_metadata(output: bytes) -> Metadata:
    """The metadata in what `--metadata` printed. Errors: MetadataError."""
    try:
        fields = parse_frame(output)
    except MessageError as error:
        raise MetadataError("", str(error)) from None
    if not isinstance(fields, dict):
        raise MetadataError("", "the output is no JSON object")
    return read_metadata(fields)


def read_metadata(fields: dict[str, Any]) -> Metadata:
    """Checks every rule. Errors: MetadataError with the first field at fault."""
    plugin_id = _text(fields, "id")
    if not _ID.fullmatch(plugin_id):
        raise MetadataError("id", "must be 1 to 64 of A-Z a-z 0-9 -, the first a letter or digit")
    if plugin_id == "route":
        raise MetadataError("id", "`route` is taken: `/api/plugins/route/…` finds plugins by their route")
    name = _characters(_text(fields, "name"), "name")
    version = _characters(_text(fields, "version"), "version")
    author = None
    if fields.get("author") is not None:
        author = _characters(_text(fields, "author"), "author")
    icon = _text(fields, "icon")
    if len(icon.encode("utf-8", "surrogatepass")) > 100:
        raise MetadataError("icon", "must have up to 100 bytes")
    route = _text(fields, "route")
    if not route.startswith("/"):
        raise MetadataError("route", "must start with `/`")
    segment = route[1:]
    if segment in ("", ".") or ".." in segment or _NOT_IN_ROUTE.search(segment):
        raise MetadataError("route", "must be one segment, without `..`, `?`, `#`, `%`, `\\`, white space or controls")
    return Metadata(
        plugin_id,
        name,
        version,
        icon,
        route,
        author,
        _protocol(fields),
        _framing(fields),
        _positive(fields, "max_in_flight") or MAX_IN_FLIGHT_DEFAULT,
        _positive(fields, "timeout_ms"),
    )


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if value is None:
        raise MetadataError(name, "is missing")
    if not isinstance(value, str):
        raise MetadataError(name, f"must be a string, is {json.dumps(value)[:50]}")
    return value


def _characters(value: str, name: str) -> str:
    if len(value) > 100:
        raise MetadataError(name, f"must have up to 100 characters, has {len(value)}")
    return value


def _protocol(fields: dict[str, Any]) -> str:
    if fields.get("protocol") is None:
        return "1.0"
    value = _text(fields, "protocol")
    match = _PROTOCOL.fullmatch(value)
    if match is None:
        raise MetadataError("protocol", 'must be "1.0" or "1.1"')
    if int(match[1]) != 1:
        raise MetadataError("protocol", f"major version {match[1]} is not served, only 1")
    return "1.0" if int(match[2]) == 0 else "1.1"


def _framing(fields: dict[str, Any]) -> Framing:
    if fields.get("framing") is None:
        return "length"
    value = _text(fields, "framing")
    if value == "length":
        return "length"
    if value == "lines":
        return "lines"
    raise MetadataError("framing", 'must be "length" or "lines"')


def _positive(fields: dict[str, Any], name: str) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    if type(value) is not int or value < 1:
        raise MetadataError(name, "must be a whole number from 1")
    return value
