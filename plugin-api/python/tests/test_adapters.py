"""ASGI and WSGI applications as plugins, by their command line, spoken to as the core does it."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import unittest
from typing import Any

from support import DEADLINE_S, HERE, SOURCE, Core, Json, PluginProcess, kv_answers, lifecycle, request

from toru_plugin import _adapter


def adapter(kind: str, app: str, *more: str, environment: dict[str, str] | None = None) -> PluginProcess:
    arguments = [app, "--id", "fixture", "--app-dir", str(HERE), *more]
    return PluginProcess(f"toru_plugin.{kind}", environment, arguments)


def run(kind: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"toru_plugin.{kind}", *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env={**os.environ, "PYTHONPATH": str(SOURCE), "TORU_PLUGIN_SOCKET": "/nonexistent/p.sock"},
    )


def shown(answer: Json) -> dict[str, Any]:
    found: dict[str, Any] = ast.literal_eval(answer["body"])
    return found


def log_line(core: Core, message: str) -> Json:
    while True:
        said = core.receive()
        if said["type"] == "log" and said["payload"]["message"] == message:
            fields: Json = said["payload"]["fields"]
            return fields


class CommandLine(unittest.TestCase):
    def test_metadata_needs_no_application(self) -> None:
        for kind in ("asgi", "wsgi"):
            ran = run(
                kind, "nothing:app", "--id", "a-b", "--name", "A", "--route", "/r", "--timeout-ms=9", "--metadata"
            )
            self.assertEqual((0, ""), (ran.returncode, ran.stderr))
            said = json.loads(ran.stdout)
            self.assertEqual(["a-b", "A", "/r", 9], [said[name] for name in ("id", "name", "route", "timeout_ms")])

    def test_metadata_needs_no_event_loop(self) -> None:
        for kind in ("asgi", "wsgi"):
            ran = subprocess.run(
                [
                    sys.executable,
                    "-S",
                    "-X",
                    "importtime",
                    "-m",
                    f"toru_plugin.{kind}",
                    "a:b",
                    "--id",
                    "a",
                    "--metadata",
                ],
                capture_output=True,
                text=True,
                timeout=DEADLINE_S,
                env={**os.environ, "PYTHONPATH": str(SOURCE)},
            )
            self.assertEqual(0, ran.returncode, ran)
            imported = {line.rpartition("|")[2].strip() for line in ran.stderr.splitlines()}
            self.assertIn("toru_plugin._adapter", imported)
            self.assertNotIn("asyncio", imported, "the core waits for this answer")

    def test_mistakes_are_named(self) -> None:
        for arguments, words in (
            (["app"], "--id"),
            (["app", "--id", "a"], "'app' is not MODULE:APP"),
            (["app:x", "--id", "a b"], "field `id`"),
            (["nothing_of_the_kind:app", "--id", "a"], "there is no module 'nothing_of_the_kind'"),
            (["fixture_wsgi:nothing", "--id", "a", "--app-dir", str(HERE)], "has no 'nothing'"),
            (["x:y", "--id", "a", "--threads", "0"], "--threads"),
        ):
            for kind in ("asgi", "wsgi"):
                ran = run(kind, *arguments)
                self.assertEqual(2, ran.returncode, ran)
                self.assertIn(words, ran.stderr)
                self.assertNotIn("Traceback", ran.stderr)

    def test_addresses(self) -> None:
        for address, expect in (
            ("127.0.0.1:5", ("127.0.0.1", 5)),
            ("[::1]:5", ("::1", 5)),
            ("[::1]", ("::1", 80)),
            ("::1", ("::1", 80)),
            ("example.org", ("example.org", 80)),
            ("example.org:8443", ("example.org", 8443)),
        ):
            self.assertEqual(expect, _adapter.host_and_port(address, 80))


class Asgi(unittest.TestCase):
    def test_the_scope(self) -> None:
        with adapter("asgi", "fixture_asgi:app") as plugin, plugin.started() as core:
            answer = core.ask(
                "POST",
                "/scope/%C3%A9?a=%20b",
                headers={"host": "panel.example:8443", "x-a": ["1", "2"], "x-é": "ü"},
                remote_addr="[::1]:7",
            )
            self.assertEqual([["content-type", "text/plain"]], answer["headers"])
            scope = shown(answer)
            self.assertEqual(
                {
                    "type": "http",
                    "asgi": {"version": "3.0", "spec_version": "2.4"},
                    "http_version": "1.1",
                    "method": "POST",
                    "scheme": "http",
                    "path": "/scope/é",
                    "raw_path": b"/api/plugins/fixture/scope/%C3%A9",
                    "query_string": b"a=%20b",
                    "root_path": "/api/plugins/fixture",
                    "headers": [
                        (b"host", b"panel.example:8443"),
                        (b"x-a", b"1"),
                        (b"x-a", b"2"),
                        ("x-é".encode(), "ü".encode()),
                    ],
                    "client": ("::1", 7),
                    "server": ("panel.example", 8443),
                    "state": {"started": "yes"},
                    "context": "fixture",
                },
                scope,
            )

    def test_where_it_is_mounted_can_be_said(self) -> None:
        arguments = ("--root-path", "/shop/", "--scheme", "https")
        with adapter("asgi", "fixture_asgi:app", *arguments) as plugin, plugin.started() as core:
            scope = shown(core.ask("GET", "/scope/%C3%A9", headers={"host": "a"}))
            self.assertEqual(("/shop", "https", ("a", 443)), (scope["root_path"], scope["scheme"], scope["server"]))

    def test_bodies_and_headers(self) -> None:
        with adapter("asgi", "fixture_asgi:app") as plugin, plugin.started() as core:
            answer = core.ask("POST", "/echo", body="AP8=", body_encoding="base64")
            self.assertEqual((201, "00ff", []), (answer["status"], answer["body"], answer["headers"]))
            answer = core.ask("GET", "/headers")
            self.assertEqual(
                [["set-cookie", "a=1"], ["set-cookie", "b=2"], ["x-latin", "é"]],
                answer["headers"],
            )
            self.assertEqual("abc", core.ask("GET", "/pieces")["body"])

    def test_work_after_the_answer_goes_on_and_is_waited_for(self) -> None:
        with adapter("asgi", "fixture_asgi:app") as plugin, plugin.started() as core:
            self.assertEqual("answered", core.ask("GET", "/background")["body"])
            core.send(lifecycle("shutdown", deadline_ms=20_000), request("GET", "/open", "r2"))
            self.assertEqual("opened", core.receive_kind("http_response")["body_text"])
            self.assertEqual(b"background done\n", plugin.stdout().readline())
            self.assertEqual(b"lifespan.shutdown\n", plugin.stdout().readline())
            self.assertEqual(0, plugin.wait())

    def test_a_client_that_goes_is_heard_of(self) -> None:
        with adapter("asgi", "fixture_asgi:app") as plugin, plugin.started() as core:
            cancel = {"type": "cancel", "timestamp": "t", "request_id": "r1", "payload": {}}
            core.send(request("GET", "/disconnect"), cancel)
            while (found := core.ask("GET", "/gone", "r2")["body"]) == "[]":
                pass
            self.assertEqual("['http.disconnect ClientGone']", found)

    def test_failures_become_500(self) -> None:
        with adapter("asgi", "fixture_asgi:app") as plugin, plugin.started() as core:
            for path, reason in (
                ("/fails", "the reason"),
                ("/silent", "without a complete answer"),
                ("/bad-header", "is no value for the header x"),
            ):
                core.send(request("GET", path))
                self.assertIn(reason, log_line(core, "handler failed")["error"])
                answer = core.receive_kind("http_response")
                self.assertEqual(500, answer["status"])
                self.assertNotIn(reason, answer["body_text"])
            core.send(request("GET", "/fails-late"))
            self.assertEqual("sorry", core.receive_kind("http_response")["body_text"])
            self.assertIn("the late reason", log_line(core, "handler failed")["traceback"])

    def test_calls_that_come_together_are_apart(self) -> None:
        with adapter("asgi", "fixture_asgi:app") as plugin, plugin.started() as core:
            ways = ["", "waits", "", "cancels-itself", "waits", "raises", "", "waits"]
            core.send(*(request("GET", f"/task?{way}", f"{number}") for number, way in enumerate(ways)))
            answers: dict[str, tuple[int, str]] = {}
            while len(answers) < len(ways):
                said = core.receive()
                if said["type"] == "http":
                    payload = said["payload"]
                    answers[said["request_id"]] = (payload["status"], payload["body"])
            told = {"": "fresh", "waits": "fresh timeout", "cancels-itself": "cancelled itself"}
            for number, way in enumerate(ways):
                status, body = answers.pop(f"{number}")
                if way == "raises":
                    self.assertEqual(500, status)
                else:
                    self.assertEqual((200, told[way]), (status, body), number)

    def test_an_application_without_a_lifespan_serves(self) -> None:
        with adapter("asgi", "fixture_asgi:app", environment={"LIFESPAN": "none"}) as plugin:
            with plugin.started() as core:
                self.assertEqual("abc", core.ask("GET", "/pieces")["body"])
                core.send(lifecycle("shutdown", deadline_ms=20_000))
                self.assertEqual(0, plugin.wait())

    def test_a_lifespan_that_fails_is_told_to_the_core(self) -> None:
        with adapter("asgi", "fixture_asgi:app", environment={"LIFESPAN": "failed"}) as plugin:
            with plugin.connect() as core:
                answer = core.init()
                while answer["type"] == "log":
                    answer = core.receive()
                self.assertEqual("failed", answer["payload"]["action"])
                self.assertIn("no licence", answer["payload"]["error"])


class Wsgi(unittest.TestCase):
    def test_the_environ(self) -> None:
        with adapter("wsgi", "fixture_wsgi:app") as plugin, plugin.started() as core:
            answer = core.ask(
                "POST",
                "/environ/%C3%A9?a=%20b",
                headers={
                    "host": "panel.example:8443",
                    "x-a": ["1", "2"],
                    "cookie": ["a=1", "b=2"],
                    "content-type": "text/é",
                    "content-length": "999",
                    "x_a": "forged",
                },
                body="four",
                remote_addr="127.0.0.1:7",
            )
            self.assertEqual([["content-type", "text/plain"]], answer["headers"])
            self.assertEqual(
                {
                    "REQUEST_METHOD": "POST",
                    "SCRIPT_NAME": "/api/plugins/fixture",
                    "PATH_INFO": "/environ/Ã©",
                    "QUERY_STRING": "a=%20b",
                    "RAW_URI": "/api/plugins/fixture/environ/%C3%A9?a=%20b",
                    "SERVER_PROTOCOL": "HTTP/1.1",
                    "SERVER_NAME": "panel.example",
                    "SERVER_PORT": "8443",
                    "REMOTE_ADDR": "127.0.0.1",
                    "REMOTE_PORT": "7",
                    "CONTENT_LENGTH": "4",
                    "CONTENT_TYPE": "text/Ã©",
                    "HTTP_HOST": "panel.example:8443",
                    "HTTP_X_A": "1,2",
                    "HTTP_COOKIE": "a=1; b=2",
                    "wsgi.url_scheme": "http",
                    "wsgi.input_terminated": True,
                    "wsgi.multithread": True,
                    "wsgi.multiprocess": False,
                    "wsgi.run_once": False,
                },
                shown(answer),
            )

    def test_answers(self) -> None:
        with adapter("wsgi", "fixture_wsgi:make", "--factory") as plugin, plugin.started() as core:
            answer = core.ask("POST", "/echo", body="AP8=", body_encoding="base64")
            self.assertEqual((201, "00ff"), (answer["status"], answer["body"]))
            self.assertEqual([["set-cookie", "a=1"], ["set-cookie", "b=2"]], answer["headers"])
            self.assertEqual("one two", core.ask("GET", "/closes")["body"])
            self.assertEqual(b"closed\n", plugin.stdout().readline())
            self.assertEqual("written", core.ask("GET", "/write")["body"])
            answer = core.ask("GET", "/replaced")
            self.assertEqual((409, [["x-second", "2"]]), (answer["status"], answer["headers"]))

    def test_the_context_reaches_the_application(self) -> None:
        with adapter("wsgi", "fixture_wsgi:app") as plugin, plugin.started() as core:
            core.send(request("GET", "/kv"))
            kv_answers(core, value=None)
            self.assertEqual("fixture", core.receive_kind("http_response")["body_text"])

    def test_failures_become_500(self) -> None:
        with adapter("wsgi", "fixture_wsgi:app") as plugin, plugin.started() as core:
            for path, reason in (("/fails", "the reason"), ("/nothing", "without calling start_response")):
                core.send(request("GET", path))
                self.assertIn(reason, log_line(core, "handler failed")["error"])
                self.assertEqual(500, core.receive_kind("http_response")["status"])


if __name__ == "__main__":
    unittest.main()
