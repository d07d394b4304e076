"""python3 -m unittest, from this folder."""

import asyncio
import sys
import unittest
from types import SimpleNamespace

sys.path.insert(0, "src")

import plugin  # noqa: E402
from toru_plugin import HttpError  # noqa: E402


class Kv(dict):
    async def get(self, key):
        return super().get(key)


class Notes(unittest.TestCase):
    def test_index(self):
        self.assertEqual({"hello": "@ID@"}, asyncio.run(plugin.index()))

    def test_a_note_that_is_there_and_one_that_is_not(self):
        ctx = SimpleNamespace(kv=Kv(a="text"))
        self.assertEqual("text", asyncio.run(plugin.read_note(None, ctx, "a")))
        with self.assertRaises(HttpError):
            asyncio.run(plugin.read_note(None, ctx, "b"))


if __name__ == "__main__":
    unittest.main()
