"""What the adapters for other frameworks share: their command line, and how an application is found.

Imports no framework: the application brings its own.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final, NoReturn, Protocol

from .metadata import MAX_IN_FLIGHT_DEFAULT, MetadataError
from .plugin import Plugin

FRAMED_BY_THE_CORE: Final = frozenset(
    (
        "connection",
        "content-length",
        "date",
        "keep-alive",
        "proxy-connection",
        "server",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
"""Header fields of an answer that the core writes itself and drops where a plugin sends them."""


class Mount(Protocol):
    """`mount` of an adapter: hangs the application into the plugin."""

    def __call__(
        self, plugin: Plugin, application: Callable[[], Any], *, root_path: str | None, scheme: str
    ) -> None: ...


class NoApplication(Exception):
    """The application cannot be had; the text says why, for the one who wrote the command line."""


def load(reference: str, *, factory: bool) -> Any:
    """The application that `MODULE:APP` names; APP may be dotted, and is called where it is a factory.

    Errors: NoApplication. What the module itself raises comes through, with its traceback.
    """
    module_name, colon, attributes = reference.partition(":")
    if not colon or not module_name or not attributes:
        raise NoApplication(f"{reference!r} is not MODULE:APP, as in `main:app`")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # Only if the module itself is what is missing, not something that it imports.
        if error.name is None or not (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise
        raise NoApplication(f"there is no module {module_name!r} in {sys.path[0] or os.getcwd()}") from None
    for name in attributes.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise NoApplication(f"the module {module_name!r} has no {attributes!r}") from None
    return found() if factory else found


def main(kind: str, mount: Mount, argv: Sequence[str] | None = None) -> NoReturn:
    """The command line `python -m toru_plugin.KIND MODULE:APP --id ID …`.

    With `--metadata` the application is not imported: the core waits for that answer.
    Exit codes: those of `Plugin.run`, 2 for bad usage.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m toru_plugin.{kind}",
        description=f"Serves a {kind.upper()} application as a Toru plugin.",
        allow_abbrev=False,
    )
    parser.add_argument("app", metavar="MODULE:APP", help="where the application is, as in `main:app`")
    parser.add_argument("--id", required=True, help="the plugin's id: letters, digits and `-`")
    parser.add_argument("--name", help="for people; the id where it is missing")
    parser.add_argument("--version", default="0.0.0", help="of the plugin; %(default)s where it is missing")
    parser.add_argument("--author")
    parser.add_argument("--icon", default="🐍")
    parser.add_argument("--route", help="one segment, `/ID` where it is missing")
    parser.add_argument("--timeout-ms", type=int, help="how long the core waits for an answer")
    parser.add_argument("--max-in-flight", type=int, default=MAX_IN_FLIGHT_DEFAULT, help="requests at once")
    parser.add_argument("--threads", type=int, default=32, help="for what blocks; %(default)s where it is missing")
    parser.add_argument("--app-dir", default=".", help="where MODULE is looked for first; the current directory")
    parser.add_argument("--factory", action="store_true", help="APP is a function that makes the application")
    parser.add_argument("--root-path", help="where clients see the application; `/api/plugins/ID`")
    parser.add_argument("--scheme", choices=("http", "https"), default="http", help="which clients use")
    parser.add_argument("--metadata", action="store_true", help="print the metadata and exit")
    arguments = parser.parse_args(argv)
    try:
        plugin = Plugin(
            id=arguments.id,
            name=arguments.name or arguments.id,
            version=arguments.version,
            icon=arguments.icon,
            route=arguments.route,
            author=arguments.author,
            max_in_flight=arguments.max_in_flight,
            timeout_ms=arguments.timeout_ms,
            threads=arguments.threads,
        )
    except MetadataError as error:
        parser.error(str(error))
    if arguments.threads < 1:
        parser.error("--threads must be at least 1")
    if arguments.metadata:
        plugin.run(["--metadata"])
    root = None if arguments.root_path is None else arguments.root_path.rstrip("/")
    sys.path.insert(0, os.path.abspath(arguments.app_dir))

    def application() -> Any:
        return load(arguments.app, factory=arguments.factory)

    try:
        mount(plugin, application, root_path=root, scheme=arguments.scheme)
    except NoApplication as error:
        parser.error(str(error))
    plugin.run([])


@lru_cache(maxsize=256)
def host_and_port(address: str, port: int) -> tuple[str, int]:
    """`address:port` in two, `port` where it has none; brackets of IPv6 are taken away."""
    host, colon, digits = address.rpartition(":")
    if not colon or not digits.isdigit() or (":" in host and not host.startswith("[")):
        host, digits = address, ""
    return host.removeprefix("[").removesuffix("]"), int(digits) if digits else port
