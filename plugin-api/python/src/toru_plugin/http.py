"""Requests and responses as a handler sees them, and which handler gets which request.

No I/O and no JSON messages; `messages` makes the requests, `server` calls the handlers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Generic, TypeVar
from urllib.parse import parse_qs, quote, unquote

_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE_REFUSED: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class Headers(Mapping[str, str]):
    """Header fields; names are compared without case.

    `headers["accept"]` joins a repeated field with ", "; `get_all` keeps them apart.
    """

    __slots__ = ("_fields",)

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields: dict[str, list[str]] = {}
        for name, value in fields.items():
            values = self._fields.setdefault(name.lower(), [])
            if isinstance(value, list):
                values.extend(str(one) for one in value)
            elif value is not None:
                values.append(value if isinstance(value, str) else str(value))

    def __getitem__(self, name: str) -> str:
        values = self._fields[name.lower()]
        return values[0] if len(values) == 1 else ", ".join(values)

    def get_all(self, name: str) -> list[str]:
        """Every value of the field, in order; empty where it isn't there."""
        return list(self._fields.get(name.lower(), ()))

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __repr__(self) -> str:
        return f"Headers({self._fields!r})"


class Request:
    """One HTTP request.

    `target` is what follows `/api/plugins/<id>`, as sent; `path` is the part before `?`, still percent-encoded.
    `params` are the decoded parts of the path that the route names: `/items/{id}`.
    `remote_addr` and `timeout_ms` are None where the core did not say.
    """

    __slots__ = (
        "_headers",
        "_query",
        "body",
        "method",
        "params",
        "path",
        "query_string",
        "raw_headers",
        "remote_addr",
        "request_id",
        "target",
        "timeout_ms",
    )

    def __init__(
        self,
        method: str,
        target: str,
        headers: Mapping[str, Any] | None = None,
        body: bytes = b"",
        request_id: str = "",
        remote_addr: str | None = None,
        timeout_ms: int | None = None,
    ) -> None:
        self.method = method
        self.target = target
        if "?" in target:
            self.path, _, self.query_string = target.partition("?")
        else:
            self.path = target
            self.query_string = ""
        self.raw_headers = headers
        self.body = body
        self.request_id = request_id
        self.remote_addr = remote_addr
        self.timeout_ms = timeout_ms
        self.params: dict[str, str] = {}
        self._headers: Headers | None = None
        self._query: dict[str, list[str]] | None = None

    @property
    def headers(self) -> Headers:
        """As the client sent them, without those that concern its connection alone."""
        if self._headers is None:
            self._headers = Headers(self.raw_headers or {})
        return self._headers

    @property
    def known_id(self) -> str:
        """The request's id outside of this connection: the `x-request-id` of the client and of the core's log."""
        return self.headers.get("x-request-id", self.request_id)

    def query_all(self, name: str) -> list[str]:
        """Every value of a query parameter, decoded, in order."""
        if self._query is None:
            self._query = parse_qs(self.query_string, keep_blank_values=True)
        return list(self._query.get(name, ()))

    @property
    def query(self) -> dict[str, str]:
        """The query, decoded; of a repeated parameter the first value."""
        if self._query is None:
            self._query = parse_qs(self.query_string, keep_blank_values=True)
        return {name: values[0] for name, values in self._query.items()}

    @property
    def text(self) -> str:
        """The body as text. Errors: HttpError 400 where it isn't UTF-8."""
        try:
            return self.body.decode()
        except UnicodeDecodeError:
            raise HttpError(400, "the body is not UTF-8") from None

    def json(self) -> Any:
        """The body read as JSON. Errors: HttpError 400 where it isn't."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise HttpError(400, f"the body is not JSON: {error}") from None

    def __repr__(self) -> str:
        return f"Request({self.method!r}, {self.target!r}, request_id={self.request_id!r})"


HeaderValues = Mapping[str, "str | Iterable[str]"] | Iterable[tuple[str, str]]


class Response:
    """An answer.

    `body`: dict or list goes as JSON, str as text, bytes as they are; each sets `content-type` where `headers` don't.
    `headers`: a mapping (a list of strings repeats a field) or pairs; `add_header` appends one.
    Bounds: status 200 to 599; no control character but tab in a header; all fits into a message (1 MiB, or what the
    core says). Where that is not so, the client gets a 500 and the plugin's log the reason.
    The core frames the answer, so `content-length` and the like are dropped there.
    """

    __slots__ = ("body", "headers", "status")

    def __init__(self, body: object = None, status: int = 200, headers: HeaderValues | None = None) -> None:
        self.status = status
        self.body = body
        self.headers: list[tuple[str, str]] = []
        if headers is None:
            return
        if isinstance(headers, Mapping):
            for name, value in headers.items():
                for one in (value,) if isinstance(value, str) else value:
                    self.headers.append((name, one))
        else:
            self.headers.extend(headers)

    def add_header(self, name: str, value: str) -> Response:
        """Appends; two `set-cookie` stay two."""
        self.headers.append((name, value))
        return self

    def __repr__(self) -> str:
        return f"Response({self.body!r}, status={self.status})"


class ClientGone(OSError):
    """What an application meets when it answers and nobody waits for it any more."""


class Answer:
    """An answer that is complete as it is: nothing is added, and its headers are checked.

    `headers` is the JSON text of `messages.encode_headers`. The adapter for WSGI makes these.
    """

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, headers: str, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body


def check_response(status: object, headers: Iterable[tuple[object, object]]) -> None:
    """Refuses here, with the handler's name in the log, what the core would turn into a 502. Errors: ValueError."""
    if type(status) is not int or not 200 <= status <= 599:
        raise ValueError(f"status {status!r} is not 200 to 599")
    for name, value in headers:
        if not isinstance(name, str) or not _TOKEN.fullmatch(name):
            raise ValueError(f"{name!r} is no header name")
        if not isinstance(value, str) or _VALUE_REFUSED.search(value):
            raise ValueError(f"{value!r} is no value for the header {name}")


class HttpError(Exception):
    """Raise it in a handler to answer with `status` and a problem document (RFC 9457)."""

    def __init__(
        self, status: int, detail: str = "", title: str | None = None, headers: HeaderValues | None = None
    ) -> None:
        super().__init__(detail or title or str(status))
        self.status = status
        self.detail = detail
        self.title = title
        self.headers = headers


_TITLES: Final = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    410: "Gone",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    422: "Unprocessable Content",
    429: "Too Many Requests",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
}


def problem(error: HttpError, request: Request) -> Response:
    """The answer that says `error` (RFC 9457), under the id that the client knows the request by."""
    request_id = request.known_id
    document: dict[str, object] = {
        "type": "about:blank",
        "title": error.title or _TITLES.get(error.status, "Error"),
        "status": error.status,
    }
    if error.detail:
        document["detail"] = error.detail
    if request_id:
        document["request_id"] = request_id
    answer = Response(document, error.status, error.headers)
    return answer.add_header("content-type", "application/problem+json")


T = TypeVar("T")

# What a client may send as itself in a path (RFC 3986), the encoding's own sign, and the braces of parameters.
_SAFE_IN_ROUTE: Final = "/!$&'()*+,;=:@-._~%{}"

_PARAMETER: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


def path_parameters(pattern: str) -> list[str]:
    """The names in `/items/{id}/{part}`."""
    return _PARAMETER.findall(pattern)


class Router(Generic[T]):
    """Method and path to a handler.

    Order: a path without parameters, then patterns in the order they were added, then the catch-all.
    `{name}` stands for one segment, which is never empty. `HEAD` takes the handler of `GET`; the core drops the body.
    """

    def __init__(self) -> None:
        self._exact: dict[tuple[str, str], T] = {}
        self._paths: dict[str, set[str]] = {}
        self._patterns: list[tuple[re.Pattern[str], dict[str, T]]] = []
        self._sources: dict[str, dict[str, T]] = {}
        self.catch_all: T | None = None

    def add(self, method: str, pattern: str, handler: T) -> None:
        """Errors: ValueError for a pattern without `/` first, or a route that is already taken."""
        if not pattern.startswith("/"):
            raise ValueError(f"the route {pattern!r} does not start with `/`")
        # Requests come percent-encoded, and are compared so: decoded, `%2F` would pass for a slash.
        pattern = quote(pattern, safe=_SAFE_IN_ROUTE)
        if not path_parameters(pattern):
            if (method, pattern) in self._exact:
                raise ValueError(f"{method} {pattern} has a handler already")
            self._exact[method, pattern] = handler
            self._paths.setdefault(pattern, set()).add(method)
            return
        methods = self._sources.get(pattern)
        if methods is None:
            methods = self._sources[pattern] = {}
            parts = _PARAMETER.split(pattern)
            source = "".join(f"(?P<{part}>[^/]+)" if index % 2 else re.escape(part) for index, part in enumerate(parts))
            self._patterns.append((re.compile(source), methods))
        if method in methods:
            raise ValueError(f"{method} {pattern} has a handler already")
        methods[method] = handler

    def find(self, request: Request) -> T:
        """The handler; `request.params` are set. Errors: HttpError 404 or 405."""
        handler = self._exact.get((request.method, request.path))
        if handler is not None:
            return handler
        if self.catch_all is not None and not self._patterns and request.path not in self._paths:
            return self.catch_all
        return self._find_slowly(request)

    def _find_slowly(self, request: Request) -> T:
        wanted = ("HEAD", "GET") if request.method == "HEAD" else (request.method,)
        allowed = set(self._paths.get(request.path, ()))
        for method in wanted:
            if method in allowed:
                return self._exact[method, request.path]
        for pattern, methods in self._patterns:
            match = pattern.fullmatch(request.path)
            if match is None:
                continue
            for method in wanted:
                handler = methods.get(method)
                if handler is not None:
                    request.params = {name: unquote(value) for name, value in match.groupdict().items()}
                    return handler
            allowed.update(methods)
        if self.catch_all is not None:
            return self.catch_all
        if allowed:
            if "GET" in allowed:
                allowed.add("HEAD")
            raise HttpError(405, f"{request.method} is not served here", headers={"allow": ", ".join(sorted(allowed))})
        raise HttpError(404, "nothing is served under this path")
