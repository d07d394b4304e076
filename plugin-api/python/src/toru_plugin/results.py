"""What handlers return, as messages to the core."""

from __future__ import annotations

from . import messages
from .http import Answer, Response, check_response


def encode_result(request_id: str, result: object) -> bytes:
    """The message for what a handler returned. Errors: TypeError or ValueError, and the answer is a 500."""
    kind = type(result)
    if kind is dict or kind is list:
        return messages.encode_ok_json(request_id, messages.encode_json(result))
    if kind is str:
        return messages.encode_ok_text(request_id, result)  # type: ignore[arg-type]
    if isinstance(result, Answer):
        return messages.encode_http_response(request_id, result.status, result.headers, result.body)
    if isinstance(result, Response):
        answer = result
    elif result is None:
        answer = Response(None, 204)
    elif isinstance(result, tuple) and len(result) in (2, 3) and type(result[0]) is int:
        answer = Response(result[1], result[0], result[2] if len(result) == 3 else None)
    else:
        answer = Response(result)
    body = answer.body
    content: str | bytes
    content_type: str | None
    if body is None:
        content, content_type = "", None
    elif isinstance(body, str):
        content, content_type = body, "text/plain; charset=utf-8"
    elif isinstance(body, (bytes, bytearray, memoryview)):
        content, content_type = bytes(body), "application/octet-stream"
    elif isinstance(body, (dict, list)):
        content, content_type = messages.encode_json(body), "application/json"
    else:
        words = "a handler returns dict, list, str, bytes, None, Response or (status, body)"
        raise TypeError(f"{words}, not {type(body).__name__}")
    headers = answer.headers
    if content_type is not None and not any(name.lower() == "content-type" for name, _ in headers):
        headers = [("content-type", content_type), *headers]
    check_response(answer.status, headers)
    return messages.encode_http_response(request_id, answer.status, messages.encode_headers(headers), content)
