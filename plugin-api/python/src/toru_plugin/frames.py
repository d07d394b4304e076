"""Frames: where one message ends and the next begins.

No I/O, no JSON: bytes in, the bytes of frames out.
The server feeds it what a socket gave; tests feed it the golden vectors.
Source: PROTOCOL.md, "Framing".
"""

from __future__ import annotations

from typing import Final, Literal

Framing = Literal["length", "lines"]

FRAME_BYTES_MAX_DEFAULT: Final = 1_048_576
"""The largest frame until `init` says otherwise, in bytes of JSON."""

FRAME_BYTES_MAX_LIMIT: Final = 16 * 1024 * 1024
"""The largest limit that can be set: beyond it a length could be mistaken for a line."""

_BLANK: Final = b" \t\r"
_BRACE: Final = 0x7B


class FrameError(Exception):
    """The peer broke the framing: close the connection.

    `word` is fixed, for programs (`zero_length`, `too_long`, `not_object`); the text is for people.
    """

    def __init__(self, word: str, message: str) -> None:
        super().__init__(message)
        self.word = word


class Decoder:
    """Cuts a stream of bytes into frames.

    `framing=None` lets the first byte decide: `{` means lines, anything else a length.
    Bounds: a frame has 1 to `frame_bytes_max` bytes; the announced length is compared before anything is kept for it.
    Errors: sticky. `feed` returns the frames before the fault, `error` then says what it was, and nothing more comes.
    """

    __slots__ = ("_buffer", "_need", "error", "frame_bytes_max", "framing")

    def __init__(self, framing: Framing | None = None, frame_bytes_max: int = FRAME_BYTES_MAX_DEFAULT) -> None:
        self.framing: Framing | None = framing
        self.frame_bytes_max = frame_bytes_max
        self.error: FrameError | None = None
        # The start of an unfinished frame, its length prefix included.
        self._buffer = bytearray()
        # Length framing: how many bytes the buffer must hold before looking at it again pays.
        self._need = 0

    @property
    def mid_frame(self) -> bool:
        """Whether part of a frame is kept: a deadline belongs on it."""
        return self.error is None and bool(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that are complete with `data`, without prefix or newline."""
        if self.error is not None or not data:
            return []
        if self.framing is None:
            self.framing = "lines" if data[0] == _BRACE else "length"
        if self.framing == "length":
            return self._feed_length(data)
        return self._feed_lines(data)

    def _feed_length(self, data: bytes) -> list[bytes]:
        buffer = self._buffer
        if buffer:
            buffer += data
            # Without this, a frame that drips in would be looked at once a byte.
            if len(buffer) < self._need:
                return []
            data = bytes(buffer)
            buffer.clear()
        frames: list[bytes] = []
        end = len(data)
        at = 0
        while end - at >= 4:
            length = int.from_bytes(data[at : at + 4], "big")
            if length > self.frame_bytes_max:
                self._fail("too_long", f"a frame of {length} bytes; the limit is {self.frame_bytes_max}")
                return frames
            if length == 0:
                self._fail("zero_length", "a frame of 0 bytes")
                return frames
            stop = at + 4 + length
            if stop > end:
                self._need = 4 + length
                buffer += data[at:]
                return frames
            frames.append(data[at + 4 : stop])
            at = stop
        if at < end:
            self._need = 4
            buffer += data[at:]
        return frames

    def _feed_lines(self, data: bytes) -> list[bytes]:
        buffer = self._buffer
        frames: list[bytes] = []
        at = 0
        while True:
            newline = data.find(b"\n", at)
            if newline < 0:
                break
            if buffer:
                buffer += data[at:newline]
                line = bytes(buffer)
                buffer.clear()
            else:
                line = data[at:newline]
            at = newline + 1
            if len(line) > self.frame_bytes_max:
                self._fail_line(len(line))
                return frames
            if line.endswith(b"\r"):
                line = line[:-1]
            content = line.lstrip(_BLANK)
            if not content:
                self._fail("zero_length", "an empty line")
                return frames
            if content[0] != _BRACE:
                self._fail("not_object", "a line that does not start with `{`")
                return frames
            frames.append(line)
        if at < len(data):
            buffer += data[at:] if at else data
            if len(buffer) > self.frame_bytes_max:
                self._fail_line(len(buffer))
        return frames

    def _fail_line(self, length: int) -> None:
        self._fail("too_long", f"a line of {length} bytes or more; the limit is {self.frame_bytes_max}")

    def _fail(self, word: str, message: str) -> None:
        self.error = FrameError(word, message)
        self._buffer.clear()


def encode_frame(framing: Framing, message: bytes) -> bytes:
    """One frame around the JSON text `message`, which holds no line break outside its strings."""
    if framing == "length":
        return len(message).to_bytes(4, "big") + message
    return message + b"\n"
