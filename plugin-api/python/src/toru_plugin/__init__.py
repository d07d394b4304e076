"""Write Toru plugins in Python.

```python
from toru_plugin import Plugin

plugin = Plugin(id="hello", name="Hello", version="1.0.0", icon="👋")

@plugin.get("/")
async def index(request, ctx):
    return {"hello": "world"}

if __name__ == "__main__":
    plugin.run()
```
"""

from .context import Context, Kv, KvError, Log
from .http import Headers, HttpError, Request, Response
from .messages import KvRequest
from .metadata import Metadata, MetadataError
from .plugin import Plugin

__all__ = [
    "Context",
    "Headers",
    "HttpError",
    "Kv",
    "KvError",
    "KvRequest",
    "Log",
    "Metadata",
    "MetadataError",
    "Plugin",
    "Request",
    "Response",
]
