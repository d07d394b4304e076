"""The JSON Schema of the protocol, held against every golden vector."""

from __future__ import annotations

import json
import re
import unittest
from typing import Any

from support import VECTORS, Json, vector_bytes, vectors

SCHEMA: Json = json.loads((VECTORS.parent / "schema" / "protocol.schema.json").read_bytes())

TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}

KNOWN = {
    "$schema", "$id", "title", "description", "$defs", "$ref", "type", "const", "enum", "not", "pattern", "maxLength",
    "minimum", "maximum", "required", "properties", "propertyNames", "additionalProperties", "items", "anyOf", "allOf",
    "if", "then", "else",
}  # fmt: skip


def is_type(value: object, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    return isinstance(value, TYPES[name])


def fault(schema: Json, value: Any, at: str = "$") -> str | None:
    """Why `value` is not as `schema` has it: the words of JSON Schema 2020-12 that this schema uses."""
    assert set(schema) <= KNOWN, set(schema) - KNOWN
    if "$ref" in schema:
        inner = SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")]
        if found := fault(inner, value, at):
            return found
    types = schema.get("type", [])
    if types and not any(is_type(value, name) for name in ([types] if isinstance(types, str) else types)):
        return f"{at}: {value!r} is no {types}"
    if "const" in schema and value != schema["const"]:
        return f"{at}: not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{at}: {value!r} is none of {schema['enum']}"
    if "not" in schema and fault(schema["not"], value, at) is None:
        return f"{at}: {value!r} is refused"
    if isinstance(value, str):
        # Python's `$` matches before a last line feed, too; that of JSON Schema does not.
        if "pattern" in schema and not re.search(re.sub(r"\$$", r"\\Z", schema["pattern"]), value):
            return f"{at}: {value!r} does not match {schema['pattern']}"
        if len(value) > schema.get("maxLength", len(value)):
            return f"{at}: longer than {schema['maxLength']}"
    if isinstance(value, (int, float)) and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        return f"{at}: {value} is out of range"
    if isinstance(value, dict):
        for name in schema.get("required", []):
            if name not in value:
                return f"{at}: no {name}"
        properties = schema.get("properties", {})
        for name, inner in value.items():
            if "propertyNames" in schema and (found := fault(schema["propertyNames"], name, f"{at}.{name}")):
                return found
            rule = properties.get(name, schema.get("additionalProperties", {}))
            if found := fault(rule, inner, f"{at}.{name}"):
                return found
    if isinstance(value, list) and "items" in schema:
        for index, inner in enumerate(value):
            if found := fault(schema["items"], inner, f"{at}[{index}]"):
                return found
    if "anyOf" in schema:
        faults = [fault(inner, value, at) for inner in schema["anyOf"]]
        if None not in faults:
            return f"{at}: {faults}"
    for inner in schema.get("allOf", []):
        if found := fault(inner, value, at):
            return found
    if "if" in schema:
        branch = "then" if fault(schema["if"], value, at) is None else "else"
        return fault(schema.get(branch, {}), value, at)
    return None


class Schema(unittest.TestCase):
    def read(self, case: Json) -> Any:
        """The vector's JSON, None where it is none: that is beyond a schema."""
        try:
            return json.loads(vector_bytes(case["input"]).decode())
        except (ValueError, RecursionError):
            return None

    def check(self, name: str, definition: str, is_sound: Any, beyond: tuple[str, ...]) -> None:
        judged = 0
        for case in vectors(name):
            value = self.read(case)
            if value is None or any(words in case["name"] for words in beyond):
                continue
            with self.subTest(case["name"]):
                judged += 1
                found = fault(SCHEMA["$defs"][definition], value)
                if is_sound(case):
                    self.assertIsNone(found)
                else:
                    self.assertIsNotNone(found)
        self.assertGreater(judged, 30)

    def test_core_messages(self) -> None:
        self.check("core_messages.json", "core_message", lambda case: "means" in case, ("bad: NaN",))

    def test_plugin_messages(self) -> None:
        def is_sound(case: Json) -> bool:
            return "means" in case and not case["means"]["kind"].startswith("bad_")

        # A response inside of a JSON text is beyond a schema.
        self.check("plugin_messages.json", "plugin_message", is_sound, ("bad nested", "surrogate", "two first halves"))

    def test_metadata(self) -> None:
        self.check("metadata.json", "metadata", lambda case: "means" in case, ("bytes",))


if __name__ == "__main__":
    unittest.main()
