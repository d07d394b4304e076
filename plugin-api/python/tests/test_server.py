"""A plugin process of this package, spoken to over its socket as the core does it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any

from support import DEADLINE_S, FRAMINGS, HERE, PLUGINS, SOURCE, Core, Json, PluginProcess, lifecycle, pieces, request

from toru_plugin import Plugin, listen
from toru_plugin.metadata import parse_metadata

FIXTURE = HERE / "fixture_plugin.py"


def kv_question(core: Core) -> tuple[str, Json]:
    means = core.receive_kind("kv")
    return means["request_id"], means["request"]


def kv_request(request_id: str, **payload: object) -> Json:
    more = {"type": "kv", "request_id": request_id}
    return {"type": "kv", "timestamp": "t", "request_id": request_id, "payload": {**more, **payload}}


def kv_reply(request_id: str, **payload: object) -> Json:
    return {"type": "kv", "timestamp": "t", "request_id": request_id, "payload": payload}


class WithoutACore(unittest.TestCase):
    def test_metadata_is_printed_before_any_socket(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "p.sock")
            ran = subprocess.run(
                [sys.executable, str(FIXTURE), "--metadata"],
                capture_output=True,
                env={**os.environ, "PYTHONPATH": str(SOURCE), "TORU_PLUGIN_SOCKET": path},
                timeout=DEADLINE_S,
            )
            self.assertEqual((0, b""), (ran.returncode, ran.stderr))
            self.assertEqual(
                {
                    "id": "fixture",
                    "name": "Fixture",
                    "version": "1.0.0",
                    "author": None,
                    "icon": "🔧",
                    "route": "/fixture",
                    "protocol": "1.1",
                },
                json.loads(ran.stdout),
            )
            self.assertFalse(os.path.exists(path))

    def test_uvloop_is_used_where_it_is(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            text = """
import asyncio

def new_event_loop():
    print("a faster loop")
    return asyncio.new_event_loop()
"""
            Path(folder, "uvloop.py").write_text(text)
            with PluginProcess(environment={"PYTHONPATH": f"{folder}:{SOURCE}"}) as plugin, plugin.started():
                self.assertEqual(b"a faster loop\n", plugin.stdout().readline())

    def test_the_socket_is_private_and_goes_away(self) -> None:
        with PluginProcess() as plugin:
            mode = os.stat(plugin.socket).st_mode
            self.assertTrue(stat.S_ISSOCK(mode))
            self.assertEqual(0o600, stat.S_IMODE(mode))
            plugin.process.send_signal(signal.SIGTERM)
            self.assertEqual(0, plugin.wait())
            self.assertFalse(os.path.exists(plugin.socket))

    def test_bind_is_private_from_the_first_moment(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            before = os.umask(0)
            try:
                with listen.bind(os.path.join(directory, "a")):
                    self.assertEqual(0o600, stat.S_IMODE(os.stat(os.path.join(directory, "a")).st_mode))
                self.assertEqual(0, os.umask(0))
            finally:
                os.umask(before)

    def test_bind_takes_the_place_of_a_stale_socket_only(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "p.sock")
            listen.bind(path).close()
            with listen.bind(path):
                with self.assertRaisesRegex(OSError, "another process"):
                    listen.bind(path)
            os.unlink(path)
            Path(path).write_text("precious")
            with self.assertRaisesRegex(OSError, "no socket"):
                listen.bind(path)
            self.assertEqual("precious", Path(path).read_text())
            os.unlink(path)
            target = os.path.join(directory, "target")
            listen.bind(target).close()
            os.symlink(target, path)
            with self.assertRaisesRegex(OSError, "no socket"):
                listen.bind(path)
            self.assertTrue(os.path.exists(target))
            with self.assertRaisesRegex(OSError, "107"):
                listen.bind(os.path.join(directory, "x" * 107))

    def test_a_failure_to_listen_is_one_clear_line(self) -> None:
        ran = subprocess.run(
            [sys.executable, str(FIXTURE)],
            capture_output=True,
            env={**os.environ, "PYTHONPATH": str(SOURCE), "TORU_PLUGIN_SOCKET": "/nonexistent/p.sock"},
            timeout=DEADLINE_S,
        )
        self.assertEqual(1, ran.returncode)
        self.assertIn(b"cannot listen on /nonexistent/p.sock", ran.stderr)
        self.assertEqual(1, ran.stderr.count(b"\n"))

    def test_the_fallback_directory_is_private(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "toru-plugins")
            listen.make_private_directory(path)
            self.assertEqual(0o700, stat.S_IMODE(os.stat(path).st_mode))
            listen.make_private_directory(path)
            os.rmdir(path)
            os.symlink(directory, path)
            with self.assertRaises(OSError):
                listen.make_private_directory(path)

    def test_by_hand_with_a_half_closed_connection(self) -> None:
        with PluginProcess() as plugin, plugin.connect("lines") as hand:
            hand.socket.sendall(
                b'{"type":"lifecycle","timestamp":"2025-12-30T12:00:00Z","payload":{"action":"init","instance_id":"test"}}\r\n'
                b'{"type":"lifecycle","payload":{"action":"ping"}}\n'
                b'{"type":"http","request_id":"r1","payload":{"method":"GET","path":"/together"}}\n'
                b'{"type":"http","request_id":"r2","payload":{"method":"GET","path":"/together"}}\n'
                b'{"type":"http","request_id":"r3","payload":{"method":"GET","path":"/together"}}\n'
                b'{"type":"http","request_id":"r4","payload":{"method":"GET","path":"/together"}}\n'
                b'{"type":"http","request_id":"r5","payload":{"payload":{"method":"GET","path":"/context"}}}\n'
            )
            hand.socket.shutdown(socket.SHUT_WR)
            answers: list[Json] = []
            while True:
                try:
                    answers.append(hand.receive())
                except EOFError:
                    break
            actions = [answer["payload"]["action"] for answer in answers if answer["type"] == "lifecycle"]
            self.assertEqual(["pong", "ready"], sorted(actions))
            bodies = {answer["request_id"]: answer["payload"] for answer in answers if answer["type"] == "http"}
            self.assertEqual({"r1", "r2", "r3", "r4", "r5"}, set(bodies))
            self.assertEqual(["fixture", "test", "None", {}], json.loads(bodies["r5"]["body"]))

    def test_a_request_before_any_init(self) -> None:
        with PluginProcess() as plugin, plugin.connect() as core:
            answer = core.ask("GET", "/context")
            self.assertEqual(["fixture", "from-env", "None", {}], json.loads(answer["body"]))

    def test_a_core_that_speaks_1_0(self) -> None:
        """One connection for one exchange; nothing comes back for lifecycle."""
        with PluginProcess() as plugin:
            with plugin.connect() as core:
                core.send(lifecycle("init", instance_id="i-9", plugin_socket="s", log_path="l"))
                core.send(lifecycle("ping"))
                core.socket.shutdown(socket.SHUT_WR)
                self.assertTrue(core.at_end())
            for number in range(20):
                with plugin.connect() as core:
                    answer = core.ask("GET", "/context", f"r{number}")
                    self.assertEqual(["fixture", "i-9", "None", {}], json.loads(answer["body"]))
            with plugin.connect() as core:
                self.assertEqual('{"code":"unavailable"}', core.ask("GET", "/kv/a")["body"])
            with plugin.connect() as core:
                core.send(lifecycle("shutdown"))
            self.assertEqual(0, plugin.wait())


class Served(unittest.TestCase):
    """One plugin for all of these: they leave it as they found it."""

    plugin: PluginProcess
    supervisor: Core

    @classmethod
    def setUpClass(cls) -> None:
        cls.plugin = PluginProcess()
        cls.supervisor = cls.plugin.started()

    @classmethod
    def tearDownClass(cls) -> None:
        cls.supervisor.socket.close()
        cls.plugin.__exit__()

    def setUp(self) -> None:
        self.core = self.plugin.connect()
        self.addCleanup(self.core.socket.close)

    def body(self, path: str) -> Any:
        answer = self.core.ask("GET", path)
        self.assertEqual(200, answer["status"], answer)
        return json.loads(answer["body"])

    def test_both_framings(self) -> None:
        for framing in FRAMINGS:
            with self.plugin.connect(framing) as core:
                answer = core.ask("GET", "/", 'r"1')
                self.assertEqual('{"hello":"wörld","id":"r\\"1"}', answer["body"])
                self.assertEqual([["content-type", "application/json"]], answer["headers"])

    def test_byte_by_byte(self) -> None:
        for framing in FRAMINGS:
            with self.plugin.connect(framing) as core:
                for piece in pieces(core.encode(request("GET", "/?é=🐍", "r1"), request("GET", "/", "r2"))):
                    core.socket.sendall(piece)
                ids = {core.receive()["request_id"], core.receive()["request_id"]}
                self.assertEqual({"r1", "r2"}, ids)

    def test_what_a_handler_may_return(self) -> None:
        ask = self.core.ask
        self.assertEqual("grüß", ask("GET", "/text")["body"])
        answer = ask("GET", "/bytes")
        self.assertEqual(
            ("00ff", [["content-type", "application/octet-stream"]]), (answer["body_hex"], answer["headers"])
        )
        self.assertEqual((204, "", []), tuple(ask("GET", "/none")[name] for name in ("status", "body", "headers")))
        answer = ask("POST", "/made", body='{"a":[1]}')
        self.assertEqual((201, '{"made":{"a":[1]}}'), (answer["status"], answer["body"]))
        self.assertIn(["location", "/made/1"], answer["headers"])
        cookies = [value for name, value in ask("GET", "/cookies")["headers"] if name == "set-cookie"]
        self.assertEqual(["a=1", "b=2", "c=3"], cookies)

    def test_what_a_handler_sees(self) -> None:
        headers = {"accept": ["a/b", "c/d"]}
        more: dict[str, Any] = {"headers": headers, "body": "x", "remote_addr": "[::1]:5", "timeout_ms": 7}
        answer = self.core.ask("POST", "/request?a=1&b=%C3%A9&a=2&c", **more)
        self.assertEqual(
            {
                "method": "POST",
                "path": "/request",
                "query": {"a": "1", "b": "é", "c": ""},
                "accept": ["a/b", "c/d"],
                "text": "x",
                "remote_addr": "[::1]:5",
                "timeout_ms": 7,
            },
            json.loads(answer["body"]),
        )
        self.assertEqual(["fixture", "i-1", "/var/lib/toru/fixture", {}], self.body("/context"))

    def test_bodies_of_any_bytes_come_back(self) -> None:
        answer = self.core.ask(
            "POST", "/echo", body="AP/+gA==", body_encoding="base64", headers={"content-type": "x/y"}
        )
        self.assertEqual(("00fffe80", [["content-type", "x/y"]]), (answer["body_hex"], answer["headers"]))
        text = 'é\u0000\u2028"\\' * 40_000
        self.assertEqual(text, self.core.ask("POST", "/echo", body=text)["body"])

    def test_routes(self) -> None:
        self.assertEqual({"id": "a b", "part": "é"}, self.body("/items/a%20b/%C3%A9?x"))
        for path in ("/nowhere", "/items/a", "/items/a/", "/items//b", "/items/a/b/c", "/items/a\n/b\n"):
            answer = self.core.ask("GET", path)
            expected = 200 if path == "/items/a\n/b\n" else 404
            self.assertEqual(expected, answer["status"], path)
        self.assertEqual("1/2", self.core.ask("GET", "/stra%C3%9Fe/1%2F2")["body"])
        answer = self.core.ask("DELETE", "/request")
        self.assertEqual(405, answer["status"])
        self.assertIn(["allow", "GET, HEAD, POST"], answer["headers"])
        self.assertEqual(200, self.core.ask("HEAD", "/")["status"])
        self.assertEqual(200, self.core.ask("HEAD", "/items/a/b")["status"])

    def test_500_in_flight_are_answered_out_of_order_each_its_own(self) -> None:
        sent = [request("GET", f"/wait/many-{number}", f"r{number}") for number in range(500)]
        self.core.send(*sent)
        # Answers are read as they come: a core that reads none is read from no further.
        for number in (index * 7 % 500 for index in range(500)):
            self.core.send(request("GET", f"/release/many-{number}", f"release-{number}"))
            answers = {}
            for _ in range(2):
                answer = self.core.receive_kind("http_response")
                answers[answer["request_id"]] = answer["body_text"]
            self.assertEqual({f"r{number}", f"release-{number}"}, answers.keys())
            self.assertEqual(f'{{"waited":"many-{number}","id":"r{number}"}}', answers[f"r{number}"])

    def test_the_same_request_id_on_two_connections(self) -> None:
        with self.plugin.connect() as other:
            self.core.send(request("GET", "/wait/mine"))
            other.send(request("GET", "/wait/other"))
            self.core.ask("GET", "/release/other", "r2")
            self.assertIn("other", other.receive_kind("http_response")["body_text"])
            self.core.send(request("GET", "/release/mine", "r3"))
            answers = [self.core.receive_kind("http_response"), self.core.receive_kind("http_response")]
            self.assertIn("mine", next(answer["body_text"] for answer in answers if answer["request_id"] == "r1"))

    def test_ping(self) -> None:
        for seq in (0, 1, 9_007_199_254_740_991):
            self.supervisor.send(lifecycle("ping", seq=seq))
            self.assertEqual({"kind": "pong", "seq": seq}, self.supervisor.receive_kind("pong"))

    def test_cancel_stops_the_handler_and_nothing_is_answered(self) -> None:
        self.core.send(request("GET", "/wait/cancel-me", "r1"))
        self.core.send({"type": "cancel", "timestamp": "t", "request_id": "r1", "payload": {}})
        self.core.send({"type": "cancel", "timestamp": "t", "request_id": "unknown", "payload": {}})
        # From Python 3.12 the handler is in `wait` already; before, it was stopped before its first step.
        answer = self.core.ask("GET", "/cancelled", "r2")
        if sys.version_info >= (3, 12):
            self.assertIn("cancel-me", json.loads(answer["body"]))
        self.core.ask("GET", "/release/cancel-me", "r3")
        self.core.send(request("GET", "/wait/cancel-later", "r4"))
        self.assertEqual(200, self.core.ask("GET", "/cancelled", "r5")["status"])
        self.core.send({"type": "cancel", "timestamp": "t", "request_id": "r4", "payload": {}})
        self.assertIn("cancel-later", json.loads(self.core.ask("GET", "/cancelled", "r6")["body"]))

    def test_a_lost_connection_cancels_what_is_in_flight_there(self) -> None:
        with self.plugin.connect() as other:
            other.send(request("GET", "/wait/lost"))
            other.ask("GET", "/cancelled", "r2")
        # Each exchange is a turn of the plugin's loop, in which it may find the connection closed.
        for number in range(10_000):
            if "lost" in json.loads(self.core.ask("GET", "/cancelled", f"r{number}")["body"]):
                return
        self.fail("the handler still runs")

    def test_sync_handlers_run_at_the_same_time(self) -> None:
        self.core.send(*(request("GET", "/together", f"r{number}") for number in range(4)))
        bodies = {self.core.receive_kind("http_response")["body_text"] for _ in range(4)}
        self.assertEqual({f'{{"id":"r{number}"}}' for number in range(4)}, bodies)

    def test_async_handlers_go_on_while_a_sync_one_blocks(self) -> None:
        self.core.send(request("GET", "/gate", "blocked"))
        self.assertEqual(200, self.core.ask("GET", "/timeout", "r2")["status"])
        self.core.send(request("GET", "/open-gate", "r3"))
        answers = {means["request_id"]: means for means in (self.core.receive_kind("http_response") for _ in range(2))}
        self.assertEqual("through", answers["blocked"]["body_text"])

    def test_a_handler_is_a_task_where_it_awaits(self) -> None:
        self.assertEqual({"task": True}, self.body("/timeout"))

    def test_context_variables_are_the_requests_own(self) -> None:
        self.assertEqual("nothing", self.core.ask("GET", "/seen")["body"])
        self.assertEqual("nothing", self.core.ask("GET", "/seen")["body"])

    def test_exceptions_are_500_and_the_cause_is_only_in_the_log(self) -> None:
        for path in ("/raise", "/raise-later", "/raise-sync", "/exit-sync"):
            answer = self.core.ask("GET", path, "r7")
            self.assertEqual(500, answer["status"])
            self.assertIn(["content-type", "application/problem+json"], answer["headers"])
            document = json.loads(answer["body"])
            self.assertEqual((500, "r7"), (document["status"], document["request_id"]))
            self.assertNotIn("secret", answer["body"])
            line = self.supervisor.receive_kind("log")
            self.assertEqual(
                ("error", "handler failed", path), (line["level"], line["message"], line["fields"]["path"])
            )
            self.assertRegex(line["fields"]["error"], "secret cause|SystemExit")
            self.assertIn("fixture_plugin.py", line["fields"]["traceback"])

    def test_an_error_that_was_meant(self) -> None:
        answer = self.core.ask("GET", "/teapot", "r8")
        self.assertEqual(418, answer["status"])
        self.assertIn(["x-tea", "yes"], answer["headers"])
        document = json.loads(answer["body"])
        self.assertEqual(
            ("I'm a Teapot", "short and stout", "r8"), tuple(document[k] for k in ("title", "detail", "request_id"))
        )
        answer = self.core.ask("GET", "/teapot", "r8", headers={"x-request-id": "known outside"})
        self.assertEqual("known outside", json.loads(answer["body"])["request_id"])
        self.assertEqual(400, self.core.ask("POST", "/made", body="{")["status"])
        self.assertEqual(400, self.core.ask("POST", "/request", body="/w==", body_encoding="base64")["status"])

    def test_what_cannot_be_an_answer_is_500(self) -> None:
        for path in ("/huge", *(f"/bad/{w}" for w in ("status", "name", "value", "type", "json", "nan", "surrogate"))):
            self.assertEqual(500, self.core.ask("GET", path)["status"], path)
            self.assertEqual(path, self.supervisor.receive_kind("log")["fields"]["path"])
        self.assertEqual(200, self.core.ask("GET", "/")["status"])

    def test_log_lines_go_to_the_core(self) -> None:
        self.core.ask("GET", "/log")
        line = self.supervisor.receive_kind("log")
        self.assertEqual(("warn", "odd"), (line["level"], line["message"]))
        self.assertEqual({"count": 3, "thing": "<class 'object'>"}, line["fields"])

    def test_what_a_handler_prints_comes_out_at_once(self) -> None:
        self.core.ask("GET", "/print")
        self.assertEqual(b"printed at once\n", self.plugin.stdout().readline())
        self.assertEqual("from a thread", self.supervisor.receive_kind("log")["message"])

    def test_kv(self) -> None:
        self.core.send(request("GET", "/kv/visits"))
        request_id, question = kv_question(self.supervisor)
        self.assertEqual({"action": "get", "key": "visits"}, question)
        self.supervisor.send(kv_reply(request_id, value="42"))
        self.assertEqual('{"value":"42"}', self.core.receive_kind("http_response")["body_text"])

    def test_kv_from_a_sync_handler(self) -> None:
        self.core.send(request("PUT", "/kv/visits", body="é"))
        request_id, question = kv_question(self.supervisor)
        self.assertEqual({"action": "set", "key": "visits", "value": "é"}, question)
        self.supervisor.send(kv_reply(request_id, value=None))
        request_id, question = kv_question(self.supervisor)
        self.assertEqual({"action": "list", "prefix": "v", "limit": 10}, question)
        self.supervisor.send(kv_reply(request_id, keys=["visits"]))
        self.assertEqual('["visits"]', self.core.receive_kind("http_response")["body_text"])

    def test_kv_answers_in_any_order(self) -> None:
        self.core.send(*(request("GET", f"/kv/key-{number}", f"r{number}") for number in range(50)))
        questions = [kv_question(self.supervisor) for _ in range(50)]
        for request_id, question in reversed(questions):
            self.supervisor.send(kv_reply(request_id, value=question["key"]))
        for _ in range(50):
            answer = self.core.receive_kind("http_response")
            self.assertEqual(f'{{"value":"key-{answer["request_id"][1:]}"}}', answer["body_text"])

    def test_kv_errors(self) -> None:
        self.core.send(request("GET", "/kv/a"))
        request_id, _ = kv_question(self.supervisor)
        self.supervisor.send(kv_reply(request_id, error={"code": "too_large", "message": "m"}))
        self.assertEqual('{"code":"too_large"}', self.core.receive_kind("http_response")["body_text"])
        self.assertEqual(500, self.core.ask("GET", "/kv-wrongly")["status"])
        self.assertIn("kv.blocking", self.supervisor.receive_kind("log")["fields"]["error"])

    def kv_answer(self, core: Core, request_id: str, **payload: object) -> Any:
        core.send(kv_request(request_id, **payload))
        message = core.receive()
        self.assertEqual(("kv", request_id), (message["type"], message["request_id"]))
        return message["payload"]

    def test_a_kv_request_that_arrives_is_the_plugins_to_answer(self) -> None:
        large = {"code": "too_large", "message": "the answer does not fit into a message"}
        for framing in FRAMINGS:
            with self.plugin.connect(framing) as core:
                for request_, expected in (
                    ({"action": "Get", "key": "é\n", "value": None}, {"value": "é\n"}),
                    ({"payload": {"action": "get", "key": "a"}}, {"value": "a"}),
                    ({"action": "get", "key": "none"}, {"value": None}),
                    ({"action": "SET", "key": "a", "value": "a"}, {"value": None}),
                    ({"action": "delete", "key": "a"}, {"value": None}),
                    ({"action": "list"}, {"keys": ["None"]}),
                    ({"action": "list", "prefix": "p", "limit": 2}, {"keys": ["p2"]}),
                    ({"action": "set", "key": "a", "value": "b"}, {"error": {"code": "invalid", "message": "differ"}}),
                    ({"action": "get", "key": "large"}, {"error": large}),
                ):
                    self.assertEqual(expected, self.kv_answer(core, "ü", **request_), request_)
                for bad in ({"action": "add", "key": "a"}, {"action": "get"}, {"action": "list", "limit": -1}):
                    self.assertEqual("invalid", self.kv_answer(core, "k1", **bad)["error"]["code"])
                for key in ("fail", "type", "keys", "surrogate"):
                    error = {"code": "failed", "message": "the plugin failed to handle the request"}
                    self.assertEqual({"error": error}, self.kv_answer(core, "k1", action="get", key=key))
                    line = self.supervisor.receive_kind("log")
                    self.assertEqual("kv handler failed", line["message"])

    def test_kv_in_both_directions_is_kept_apart(self) -> None:
        # A question of ours under an id that the plugin uses too, answered with what the plugin asks for meanwhile.
        self.core.send(kv_request("k1", action="get", key="core"), request("GET", "/wait/k1", "k1"))
        request_id, question = kv_question(self.supervisor)
        self.assertEqual({"action": "get", "key": "from-kv"}, question)
        self.supervisor.send(kv_reply(request_id, value="7"))
        message = self.core.receive()
        self.assertEqual(
            ("kv", "k1", {"value": "7"}), tuple(message[name] for name in ("type", "request_id", "payload"))
        )
        # `cancel` is for requests of http.
        self.core.send({"type": "cancel", "timestamp": "t", "request_id": "k1", "payload": {}})
        self.assertEqual(200, self.core.ask("GET", "/release/k1", "r2")["status"])

    def test_a_core_that_reads_its_kv_answer_and_closes(self) -> None:
        for framing in FRAMINGS:
            with self.plugin.connect(framing) as core:
                core.send(kv_request("k1", action="get", key="a"))
                core.socket.shutdown(socket.SHUT_WR)
                self.assertEqual({"value": "a"}, core.receive()["payload"])
                self.assertTrue(core.at_end())

    def test_unknown_messages_are_ignored(self) -> None:
        self.core.send({"type": "websocket", "request_id": "w", "payload": {}}, lifecycle("hibernate"))
        self.assertEqual(200, self.core.ask("GET", "/")["status"])

    def test_a_broken_frame_closes_that_connection_only(self) -> None:
        for broken in (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\x02[]", b"\0\0\0\x02{]", b'{"a"}\n', b"{}\n\n"):
            with self.plugin.connect() as other:
                other.socket.sendall(broken)
                self.assertTrue(other.at_end(), broken)
            self.assertEqual("error", self.supervisor.receive_kind("log")["level"])
        self.assertEqual(200, self.core.ask("GET", "/")["status"])

    def test_an_answer_before_a_broken_frame_still_goes_out(self) -> None:
        self.core.socket.sendall(self.core.encode(request("GET", "/text")) + b"\xff\xff\xff\xff")
        self.assertEqual("grüß", self.core.receive_kind("http_response")["body_text"])
        self.assertTrue(self.core.at_end())
        self.supervisor.receive_kind("log")

    def test_a_core_that_does_not_read_is_not_read_either(self) -> None:
        body = "x" * 900_000
        with self.plugin.connect() as slow:
            slow.socket.setblocking(False)
            data = memoryview(slow.encode(request("POST", "/echo", body=body)) * 40)
            sent = 0
            with self.assertRaises(BlockingIOError):
                while sent < len(data):
                    sent += slow.socket.send(data[sent:])
                    # Each answer here means that the plugin had its turn at the slow one.
                    self.core.ask("GET", "/timeout")
            slow.socket.setblocking(True)
            slow.socket.settimeout(DEADLINE_S)
            self.assertEqual(900_000, len(slow.receive_kind("http_response")["body_text"]))


class Lifecycle(unittest.TestCase):
    def test_kv_requests_wait_for_init(self) -> None:
        with PluginProcess() as plugin, plugin.connect() as core, plugin.connect() as worker:
            core.send(lifecycle("init", protocol="1.1", instance_id="i", config={"store": "x"}))
            request_id, _ = kv_question(core)
            worker.send(kv_request("k9", action="get", key="a"))
            core.send(kv_reply(request_id, value=None))
            self.assertEqual({"value": "a"}, worker.receive()["payload"])
        with PluginProcess() as plugin, plugin.connect() as core:
            core.init(config={"fail": "no licence"})
            core.receive_kind("failed")
            core.send(kv_request("k9", action="get", key="a"))
            self.assertEqual("unavailable", core.receive()["payload"]["error"]["code"])

    def test_a_kv_request_does_not_outlive_its_connection(self) -> None:
        with PluginProcess() as plugin, plugin.started() as core:
            with plugin.connect() as worker:
                worker.send(kv_request("k1", action="get", key="hold"))
                worker.ask("GET", "/timeout")
            core.send(lifecycle("shutdown", deadline_ms=60_000))
            self.assertTrue(core.at_end())
            self.assertEqual(0, plugin.wait())

    def test_a_kv_handler_may_be_sync_or_missing(self) -> None:
        source = "from toru_plugin import Plugin\nplugin = Plugin(id='p', name='P', version='1')\n{}\nplugin.run()\n"
        exits = (
            "import sys\n@plugin.kv\ndef kv(request):\n    if request.key == 'x': sys.exit(3)\n    return request.key"
        )
        unsupported = {"error": {"code": "unsupported", "message": "the plugin takes no kv requests"}}
        failed = {"error": {"code": "failed", "message": "the plugin failed to handle the request"}}
        for handler, key, expected in (("", "a", unsupported), (exits, "a", {"value": "a"}), (exits, "x", failed)):
            with tempfile.TemporaryDirectory() as directory:
                program = Path(directory) / "plain.py"
                program.write_text(source.format(handler))
                with PluginProcess(program) as plugin:
                    for framing in FRAMINGS:
                        with plugin.connect(framing) as core:
                            core.send(kv_request("k1", action="get", key=key))
                            self.assertEqual(expected, core.receive()["payload"])
                    plugin.process.send_signal(signal.SIGTERM)
                    self.assertEqual(0, plugin.wait())

    def test_init_with_kv_then_ready(self) -> None:
        with PluginProcess() as plugin, plugin.connect() as core, plugin.connect() as worker:
            worker.send(request("GET", "/context"))
            init = lifecycle("init", protocol="1.1", instance_id="i", config={"store": "x"})
            core.send(init)
            # By hand the request came first, so its own init may have run already, and this one is the repetition.
            message = core.receive()
            if message["type"] == "kv":
                core.send(kv_reply(message["request_id"], value=None))
                message = core.receive()
            self.assertEqual("ready", message["payload"]["action"])
            self.assertEqual(200, worker.receive_kind("http_response")["status"])

    def test_init_asks_kv_before_ready(self) -> None:
        with PluginProcess() as plugin, plugin.connect() as core, plugin.connect() as worker:
            core.send(lifecycle("init", protocol="1.1", instance_id="i", config={"store": "x"}))
            request_id, question = kv_question(core)
            self.assertEqual({"action": "set", "key": "from-init", "value": "x"}, question)
            worker.send(request("GET", "/"))
            core.send(kv_reply(request_id, value=None))
            self.assertEqual("ready", core.receive()["payload"]["action"])
            self.assertEqual(200, worker.receive_kind("http_response")["status"])

    def test_failed_and_then_a_better_init(self) -> None:
        with PluginProcess() as plugin, plugin.connect() as core:
            answer = core.init(config={"fail": "no licence"})
            self.assertEqual("log", answer["type"])
            self.assertEqual({"kind": "failed", "error": "RuntimeError: no licence"}, core.receive_kind("failed"))
            self.assertEqual(503, core.ask("GET", "/")["status"])
            self.assertEqual("ready", core.init()["payload"]["action"])
            self.assertEqual(200, core.ask("GET", "/")["status"])

    def test_a_new_connection_of_the_supervisor_gets_ready_again(self) -> None:
        with PluginProcess() as plugin:
            plugin.started().socket.close()
            with plugin.started() as core:
                core.send(request("GET", "/kv/a"))
                request_id, _ = kv_question(core)
                core.send(kv_reply(request_id, value=None))
                self.assertEqual('{"value":null}', core.receive_kind("http_response")["body_text"])

    def test_a_new_connection_of_the_supervisor_may_only_ping(self) -> None:
        with PluginProcess() as plugin, plugin.connect() as worker:
            plugin.started().socket.close()
            with plugin.connect() as core:
                # Comes back when the plugin has found the first connection closed.
                self.assertEqual('{"code":"unavailable"}', worker.ask("GET", "/kv/a")["body"])
                core.send(lifecycle("ping", seq=3))
                self.assertEqual(3, core.receive_kind("pong")["seq"])
                worker.send(request("GET", "/kv/a"))
                request_id, _ = kv_question(core)
                core.send(kv_reply(request_id, value="1"))
                self.assertEqual('{"value":"1"}', worker.receive_kind("http_response")["body_text"])

    def test_kv_in_flight_fails_when_the_core_goes(self) -> None:
        with PluginProcess() as plugin, plugin.connect() as worker:
            with plugin.started() as core:
                worker.send(request("GET", "/kv/a"))
                kv_question(core)
            self.assertEqual('{"code":"unavailable"}', worker.receive_kind("http_response")["body_text"])

    def test_shutdown_answers_what_is_in_flight(self) -> None:
        with PluginProcess() as plugin, plugin.started() as core, plugin.connect() as worker:
            worker.send(request("GET", "/wait/a", "r1"), request("GET", "/gate", "r2"))
            worker.ask("GET", "/", "r3")
            core.send(lifecycle("shutdown", deadline_ms=20_000))
            # Not one that would be waited for: the socket goes when the shutdown is under way.
            while os.path.exists(plugin.socket):
                worker.ask("GET", "/timeout", "r4")
            with self.assertRaises(OSError):
                plugin.connect()
            worker.send(request("GET", "/release/a", "r5"), request("GET", "/open-gate", "r6"))
            answered = {worker.receive_kind("http_response")["request_id"] for _ in range(4)}
            self.assertEqual({"r1", "r2", "r5", "r6"}, answered)
            self.assertTrue(worker.at_end())
            self.assertEqual(0, plugin.wait())
            self.assertEqual(b"fixture shut down\n", plugin.stdout().read())

    def test_shutdown_reads_what_was_sent_before_it(self) -> None:
        with PluginProcess() as plugin, plugin.started() as core, plugin.connect() as worker:
            worker.send(*(request("GET", "/timeout", f"r{number}") for number in range(100)))
            core.send(lifecycle("shutdown", deadline_ms=20_000))
            for _ in range(100):
                worker.receive_kind("http_response")
            self.assertTrue(worker.at_end())
            self.assertEqual(0, plugin.wait())

    def test_shutdown_ends_at_its_deadline(self) -> None:
        with PluginProcess() as plugin, plugin.started() as core, plugin.connect() as worker:
            worker.send(request("GET", "/wait/for-ever", "r1"), request("GET", "/stuck", "r2"))
            worker.ask("GET", "/", "r3")
            core.send(lifecycle("shutdown", deadline_ms=50))
            self.assertTrue(worker.at_end())
            self.assertEqual(0, plugin.wait())

    def test_sigterm_answers_what_is_in_flight(self) -> None:
        with PluginProcess() as plugin, plugin.started(), plugin.connect() as worker:
            worker.send(request("GET", "/wait/a", "r1"))
            worker.ask("GET", "/", "r2")
            plugin.process.send_signal(signal.SIGTERM)
            while os.path.exists(plugin.socket):
                worker.ask("GET", "/timeout", "r3")
            worker.send(request("GET", "/release/a", "r4"))
            self.assertEqual({"r1", "r4"}, {worker.receive_kind("http_response")["request_id"] for _ in range(2)})
            self.assertEqual(0, plugin.wait())

    def test_a_second_signal_ends_at_once(self) -> None:
        with PluginProcess() as plugin, plugin.started(), plugin.connect() as worker:
            worker.send(request("GET", "/wait/a", "r1"), request("GET", "/stuck", "r2"))
            worker.ask("GET", "/", "r3")
            plugin.process.send_signal(signal.SIGTERM)
            while os.path.exists(plugin.socket):
                worker.ask("GET", "/timeout", "r4")
            plugin.process.send_signal(signal.SIGTERM)
            self.assertEqual(1, plugin.wait())

    def test_a_larger_limit_is_taken_from_init(self) -> None:
        with PluginProcess() as plugin, plugin.connect() as worker, plugin.connect() as core:
            core.init(max_message_bytes=4_000_000)
            body = "x" * 2_000_000
            self.assertEqual(body, worker.ask("POST", "/echo", body=body)["body"])
            self.assertEqual(200, worker.ask("GET", "/huge")["status"])

    def test_a_smaller_limit_too(self) -> None:
        with PluginProcess() as plugin, plugin.connect() as worker, plugin.connect() as core:
            core.init(max_message_bytes=1000)
            self.assertEqual(200, worker.ask("GET", "/text")["status"])
            self.assertEqual(500, worker.ask("GET", "/huge")["status"])


class Examples(unittest.TestCase):
    def test_hello_python(self) -> None:
        program = PLUGINS / "hello-python" / "hello-python.py"
        with PluginProcess(program, {"PYTHONPATH": ""}) as plugin, plugin.started() as core:
            self.assertEqual('{"hello":"world"}', core.ask("GET", "/")["body"])
            self.assertEqual('{"hello":"Ada"}', core.ask("GET", "/hello/Ada")["body"])

    def test_hello_python_staged_beside_the_package(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            program = Path(directory) / "hello-python.binary"
            shutil.copy(PLUGINS / "hello-python" / "hello-python.py", program)
            shutil.copytree(SOURCE / "toru_plugin", Path(directory) / "toru_plugin")
            with PluginProcess(program, {"PYTHONPATH": ""}) as plugin, plugin.started() as core:
                self.assertEqual('{"hello":"world"}', core.ask("GET", "/")["body"])

    @unittest.skipUnless(shutil.which("socat"), "socat is not installed")
    def test_hello_shell(self) -> None:
        program = PLUGINS / "hello-shell" / "hello-shell.sh"
        ran = subprocess.run([str(program), "--metadata"], capture_output=True, timeout=DEADLINE_S)
        metadata = parse_metadata(ran.stdout)
        self.assertEqual(("hello-shell", "1.0", "lines"), (metadata.id, metadata.protocol, metadata.framing))
        with PluginProcess(program) as plugin:
            self.assertEqual(0o600, stat.S_IMODE(os.stat(plugin.socket).st_mode))
            with plugin.connect("lines") as core:
                core.compact = True
                core.send(lifecycle("init", instance_id="i"), lifecycle("ping"))
                tricky: dict[str, Any] = {"headers": {"request_id": "no"}, "body": '"request_id":"no"'}
                self.assertEqual('{"hello":"shell"}', core.ask("POST", "/", "0-a.1", **tricky)["body"])
            with plugin.connect("lines") as core:
                core.compact = True
                core.send(lifecycle("shutdown"))
                self.assertEqual(0, plugin.wait())
        with PluginProcess(program) as plugin, plugin.connect("lines") as core:
            plugin.process.send_signal(signal.SIGTERM)
            self.assertEqual(0, plugin.wait())
            self.assertTrue(core.at_end())
            self.assertFalse(os.path.exists(plugin.socket))

    def test_mistakes_are_told_where_they_are_made(self) -> None:
        with self.assertRaisesRegex(ValueError, "field `id`"):
            Plugin(id="a b", name="x", version="1")
        with self.assertRaisesRegex(ValueError, "field `route`"):
            Plugin(id="a", name="x", version="1", route="/a/b")
        plugin = Plugin(id="a", name="x", version="1")
        plugin.get("/x")(lambda: None)
        with self.assertRaisesRegex(ValueError, "GET /x"):
            plugin.get("/x")(lambda: None)
        with self.assertRaisesRegex(ValueError, "does not start"):
            plugin.get("x")(lambda: None)
        with self.assertRaisesRegex(TypeError, "must take"):
            plugin.get("/y")(lambda a, b, c: None)


if __name__ == "__main__":
    unittest.main()
