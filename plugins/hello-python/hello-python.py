#!/usr/bin/env python3
"""The smallest honest plugin in Python."""

import sys
from pathlib import Path

# Without an installed SDK: the package beside this file, or the one of the source tree.
here = Path(__file__).resolve().parent
sys.path += [str(here), str(here.parent.parent / "plugin-api" / "python" / "src")]

from toru_plugin import Plugin  # noqa: E402

plugin = Plugin(id="hello-python", name="Hello, Python", version="1.0.0", icon="🐍", author="Toru")


@plugin.get("/")
async def index(request, ctx):
    return {"hello": "world"}


@plugin.get("/hello/{name}")
async def hello(request, ctx, name):
    ctx.log.info("greeted", name=name)
    return {"hello": name}


if __name__ == "__main__":
    plugin.run()
