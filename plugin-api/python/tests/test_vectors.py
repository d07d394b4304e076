"""The golden vectors, fed whole, byte by byte and with trailing bytes, to every reader of this package."""

from __future__ import annotations

import random
import unittest
from collections.abc import Callable
from typing import Any
from unittest import mock

from support import FRAMINGS, TRAILING, Json, frame_ways, pieces, read_plugin_message, vector_bytes, vectors

from toru_plugin import MetadataError, Request, messages
from toru_plugin.frames import Decoder, encode_frame
from toru_plugin.messages import (
    BadKv,
    Cancel,
    Init,
    KvReply,
    KvRequest,
    MessageError,
    Ping,
    Shutdown,
    Unknown,
    read_message,
)
from toru_plugin.metadata import parse_metadata, read_metadata


def decoder_for(case: Json) -> Decoder:
    framing = None if case["framing"] == "detect" else case["framing"]
    return Decoder(framing, case["limit"])


class Frames(unittest.TestCase):
    def check(self, case: Json, decoder: Decoder, frames: list[bytes], way: str) -> None:
        with self.subTest(case["name"], way=way):
            self.assertEqual([vector_bytes(frame) for frame in case["frames"]], frames)
            self.assertEqual(case.get("error"), decoder.error.word if decoder.error else None)
            if "detected" in case:
                self.assertEqual(case["detected"], decoder.framing)

    def test_whole(self) -> None:
        for case in vectors("frames.json"):
            decoder = decoder_for(case)
            self.check(case, decoder, decoder.feed(vector_bytes(case["input"])), "whole")
            self.assertEqual(case.get("mid_frame", False), decoder.mid_frame, case["name"])

    def test_byte_by_byte(self) -> None:
        for case in vectors("frames.json"):
            decoder = decoder_for(case)
            frames = [frame for piece in pieces(vector_bytes(case["input"])) for frame in decoder.feed(piece)]
            self.check(case, decoder, frames, "byte by byte")
            self.assertEqual(case.get("mid_frame", False), decoder.mid_frame, case["name"])

    def test_trailing_bytes(self) -> None:
        for case in vectors("frames.json"):
            framing = str(case.get("detected") or case["framing"])
            if case.get("mid_frame") or framing == "detect":
                continue
            decoder = decoder_for(case)
            self.check(case, decoder, decoder.feed(vector_bytes(case["input"]) + TRAILING[framing]), "trailing")
            self.assertEqual("error" not in case, decoder.mid_frame, case["name"])

    def test_an_error_is_final(self) -> None:
        for case in vectors("frames.json"):
            if "error" in case:
                decoder = decoder_for(case)
                decoder.feed(vector_bytes(case["input"]))
                error = decoder.error
                self.assertEqual([], decoder.feed(b"\0\0\0\x02{}{}\n"))
                self.assertIs(error, decoder.error)

    def test_any_cut_gives_the_same(self) -> None:
        seed = random.randrange(1 << 32)
        chance = random.Random(seed)
        texts = [b'{"n":%d,"x":"%s"}' % (n, b"x" * chance.randrange(300)) for n in range(200)]
        for framing in FRAMINGS:
            data = b"".join(encode_frame(framing, text) for text in texts)
            for _ in range(20):
                decoder = Decoder()
                frames: list[bytes] = []
                at = 0
                while at < len(data):
                    step = chance.choice((1, 2, 3, 5, 100, 5000))
                    frames += decoder.feed(data[at : at + step])
                    at += step
                self.assertEqual(texts, frames, f"seed {seed}")
                self.assertFalse(decoder.mid_frame)

    def test_random_bytes_never_raise(self) -> None:
        seed = random.randrange(1 << 32)
        chance = random.Random(seed)
        for _ in range(2000):
            data = bytes(chance.choice(b'\0\0\0\0\x01\x05{}[]"\n\r a') for _ in range(chance.randrange(60)))
            whole = Decoder(None, 32)
            frames = whole.feed(data)
            dripped = Decoder(None, 32)
            self.assertEqual(frames, [f for n in range(len(data)) for f in dripped.feed(data[n : n + 1])], f"{seed}")
            for frame in frames:
                try:
                    read_message(frame)
                except MessageError:
                    pass


def core_means(message: messages.CoreMessage) -> Json:
    """A message of the core in the words of the vectors."""
    if isinstance(message, Request):
        means: Json = {
            "kind": "http",
            "request_id": message.request_id,
            "method": message.method,
            "path": message.target,
            "headers": [[name, value] for name in message.headers for value in message.headers.get_all(name)],
            "remote_addr": message.remote_addr,
            "timeout_ms": message.timeout_ms,
        }
        try:
            means["body_text"] = message.body.decode()
        except UnicodeDecodeError:
            means["body_hex"] = message.body.hex()
        return means
    if isinstance(message, Init):
        return {"kind": "init", **vars(message)}
    if isinstance(message, KvReply):
        error = None if message.error is None else {"code": message.error[0], "message": message.error[1]}
        return {"kind": "kv_reply", **vars(message), "error": error}
    if isinstance(message, KvRequest):
        named = {"list": ("prefix", "limit"), "set": ("key", "value")}.get(message.action, ("key",))
        fields = {name: getattr(message, name) for name in named}
        return {
            "kind": "kv_request",
            "request_id": message.request_id,
            "request": {"action": message.action, **fields},
        }
    if isinstance(message, BadKv):
        return {"kind": "bad_kv", "request_id": message.request_id, "reason": message.reason}
    if isinstance(message, Unknown):
        return {"kind": "unknown"}
    names: dict[type, str] = {Shutdown: "shutdown", Ping: "ping", Cancel: "cancel"}
    return {"kind": names[type(message)], **vars(message)}


class Messages(unittest.TestCase):
    def check(self, name: str, read: Callable[[bytes], Any], means: Callable[[Any], Json]) -> None:
        for case in vectors(name):
            if case.get("exact_numbers"):
                continue
            for way, frame in frame_ways(vector_bytes(case["input"])):
                with self.subTest(case["name"], way=way):
                    if "error" in case:
                        with self.assertRaises(MessageError) as caught:
                            read(frame)
                        self.assertEqual(case["error"], caught.exception.word)
                    else:
                        self.assertEqual(case["means"], means(read(frame)))

    def test_core_messages(self) -> None:
        self.check("core_messages.json", read_message, core_means)

    def test_plugin_messages(self) -> None:
        self.check("plugin_messages.json", read_plugin_message, lambda means: means)

    def test_without_orjson(self) -> None:
        with mock.patch.object(messages, "parse_frame", messages._parse_plain):
            self.check("core_messages.json", read_message, core_means)
            self.check("plugin_messages.json", read_plugin_message, lambda means: means)


class Orjson(unittest.TestCase):
    def test_one_that_crashes_on_deep_json_is_not_used(self) -> None:
        crashing = mock.Mock(__version__="3.9.14")
        sound = mock.Mock(__version__="3.9.15")
        with mock.patch.dict("sys.modules", orjson=crashing):
            self.assertIsNone(messages._find_orjson())
        with mock.patch.dict("sys.modules", orjson=sound):
            self.assertIs(sound, messages._find_orjson())
        with mock.patch.dict("sys.modules", orjson=None):
            self.assertIsNone(messages._find_orjson())

    def test_it_reads_and_writes_where_it_is(self) -> None:
        sound = mock.Mock(**{"loads.return_value": {}, "dumps.return_value": b'"quoted"'})
        with mock.patch.object(messages, "_orjson", sound):
            self.assertEqual({}, messages._parser()(b"{ }"))
            self.assertEqual(b'"quoted"', messages._large_quoter()("text"))
        with mock.patch.object(messages, "_orjson", None):
            self.assertIs(messages._parse_plain, messages._parser())
            self.assertEqual(b'"text"', messages._large_quoter()("text"))


class WhatThisPackageWrites(unittest.TestCase):
    def check(self, message: bytes, means: Json) -> None:
        self.assertEqual(means, read_plugin_message(message))

    def test_responses(self) -> None:
        body = '{"é":"\\n"}\u2028\u0000🐍'
        common = {"kind": "http_response", "request_id": 'r"1', "status": 200}
        json_header = [["content-type", "application/json"]]
        text_header = [["content-type", "text/plain; charset=utf-8"]]
        self.check(messages.encode_ok_json('r"1', body), {**common, "headers": json_header, "body_text": body})
        self.check(messages.encode_ok_text('r"1', body), {**common, "headers": text_header, "body_text": body})
        pairs = [("a", "1"), ("set-cookie", "x"), ("set-cookie", "y"), ("set-cookie", "z")]
        self.check(
            messages.encode_http_response('r"1', 200, messages.encode_headers(pairs), b"\xff\x00"),
            {**common, "headers": [list(pair) for pair in pairs], "body_hex": "ff00"},
        )
        self.check(messages.encode_http_response('r"1', 200, "{}", b"ok"), {**common, "headers": [], "body_text": "ok"})

    def test_texts_of_any_length(self) -> None:
        for text in ("x", '"\\\n\x00\x1f\x7f', "é\u2028🐍"):
            for times in (1, 126, 127, 128, 129, 5000):
                body = text * times
                message = messages.encode_http_response("r", 200, "{}", body)
                self.check(
                    message,
                    {"kind": "http_response", "request_id": "r", "status": 200, "headers": [], "body_text": body},
                )
        for times in (1, 1000):
            with self.assertRaises(UnicodeEncodeError):
                messages.encode_ok_text("r", "\ud800" * times)

    def test_the_rest(self) -> None:
        self.check(messages.encode_ready(), {"kind": "ready"})
        self.check(messages.encode_failed("no"), {"kind": "failed", "error": "no"})
        self.check(messages.encode_pong(7), {"kind": "pong", "seq": 7})
        log = {"kind": "log", "level": "info", "message": "m", "fields": {"a": [1]}}
        self.check(messages.encode_log("info", "m", {"a": [1]}), log)
        kv = {"kind": "kv", "request_id": "k1", "request": {"action": "set", "key": "a", "value": "b"}}
        self.check(messages.encode_kv("k1", "set", {"key": "a", "value": "b"}), kv)

    def test_timestamp(self) -> None:
        self.assertRegex(messages.timestamp(), r"^20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d\d\dZ$")
        with mock.patch("time.time_ns", return_value=1_767_225_600_007_999_999):
            self.assertEqual("2026-01-01T00:00:00.007Z", messages.timestamp())
        with mock.patch("time.time_ns", return_value=1_767_225_599_999_999_999):
            self.assertEqual("2025-12-31T23:59:59.999Z", messages.timestamp())


class MetadataVectors(unittest.TestCase):
    def test_vectors(self) -> None:
        for case in vectors("metadata.json"):
            with self.subTest(case["name"]):
                data = vector_bytes(case["input"])
                if "error" in case:
                    with self.assertRaises(MetadataError) as caught:
                        parse_metadata(data)
                    self.assertEqual(case["error"]["field"], caught.exception.field)
                else:
                    self.assertEqual(case["means"], vars(parse_metadata(data)))

    def test_what_is_written_is_read(self) -> None:
        for case in vectors("metadata.json"):
            if "means" in case:
                metadata = read_metadata(case["means"])
                self.assertEqual(metadata, parse_metadata(metadata.to_json().encode()))


if __name__ == "__main__":
    unittest.main()
