"""What a handler is given besides the request: configuration, key-value storage, log.

The server stands behind it through `Link`; nothing here touches a socket.
"""

from __future__ import annotations

import threading
from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from .messages import KvReply

if TYPE_CHECKING:
    import asyncio
    from pathlib import Path

T = TypeVar("T")
Keys = list[str]


class Link(Protocol):
    """The way to the core."""

    async def ask(self, action: str, fields: Mapping[str, object]) -> KvReply: ...

    def log(self, level: str, message: str, fields: Mapping[str, object]) -> None: ...

    def loop(self) -> asyncio.AbstractEventLoop: ...


class KvError(Exception):
    """The core could not do it, or did not answer.

    `code` is the core's own word, or `unavailable` (no core, or one that speaks 1.0), `timeout` (5 s) or `too_large`
    (it does not fit into a message).
    Raised in a `@plugin.kv` handler it is the answer.
    """

    def __init__(self, code: str, message: str = "") -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code
        self.message = message


class Kv:
    """This plugin's stored values, in the core's database. Errors of every method: KvError.

    A key has 1 to 512 bytes, with its value it fits into a message, and all of a plugin's fit into its quota.
    For sync handlers there are the same methods on `blocking`.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self.blocking = BlockingKv(self, link)

    async def get(self, key: str) -> str | None:
        """The value, or None where there is none."""
        return (await self._ask("get", {"key": key})).value

    async def set(self, key: str, value: str) -> None:
        """Returns when the value is on the disk."""
        await self._ask("set", {"key": key, "value": value})

    async def delete(self, key: str) -> None:
        """Removing what isn't there is no error."""
        await self._ask("delete", {"key": key})

    async def list(self, prefix: str = "", limit: int | None = None) -> Keys:
        """The keys that start with `prefix`, in order; at most `limit`, and never more than 1000."""
        fields: dict[str, object] = {"prefix": prefix}
        if limit is not None:
            fields["limit"] = limit
        return (await self._ask("list", fields)).keys or []

    async def _ask(self, action: str, fields: Mapping[str, object]) -> KvReply:
        reply = await self._link.ask(action, fields)
        if reply.error is not None:
            raise KvError(*reply.error)
        return reply


class BlockingKv:
    """`Kv` for sync handlers. Called on the event loop's own thread it would wait for itself: RuntimeError."""

    def __init__(self, kv: Kv, link: Link) -> None:
        self._kv = kv
        self._link = link

    def get(self, key: str) -> str | None:
        return self._wait(self._kv.get(key))

    def set(self, key: str, value: str) -> None:
        self._wait(self._kv.set(key, value))

    def delete(self, key: str) -> None:
        self._wait(self._kv.delete(key))

    def list(self, prefix: str = "", limit: int | None = None) -> Keys:
        return self._wait(self._kv.list(prefix, limit))

    def _wait(self, question: Coroutine[Any, Any, T]) -> T:
        # Not at the top: `--metadata` needs no event loop, and loading it takes longer than all the rest.
        import asyncio

        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run_coroutine_threadsafe(question, self._link.loop()).result()
        question.close()
        raise RuntimeError(f"kv.blocking was called in {threading.current_thread().name}'s loop; await kv there")


class Log:
    """Lines for this plugin's log; keyword arguments become fields. Callable from any thread, never blocks."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def debug(self, message: str, **fields: object) -> None:
        self._link.log("debug", message, fields)

    def info(self, message: str, **fields: object) -> None:
        self._link.log("info", message, fields)

    def warn(self, message: str, **fields: object) -> None:
        self._link.log("warn", message, fields)

    def error(self, message: str, **fields: object) -> None:
        self._link.log("error", message, fields)


class Context:
    """One for the whole plugin, complete once `init` has come.

    `config` is the table `[plugins.ID]` of the core's configuration.
    `data_dir` is a directory of the plugin's own, None where the core named none (by hand, or a core that speaks 1.0).
    """

    def __init__(self, link: Link, plugin_id: str, instance_id: str) -> None:
        self.plugin_id = plugin_id
        self.instance_id = instance_id
        self.config: dict[str, Any] = {}
        self.data_dir: Path | None = None
        self.kv = Kv(link)
        self.log = Log(link)
