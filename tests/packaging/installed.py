"""What this environment's plugins bring, as JSON: `python installed.py`. Run in environments that hold only wheels."""

from __future__ import annotations

import json
from typing import Any

from qwenimage_core.catalogue import known_fields
from qwenimage_core.errors import QwenImageError
from qwenimage_core.registry import PluginRegistry
from qwenimage_core.request import CoreRequest


def seen() -> dict[str, Any]:
    """Names of the plugins found, the request fields they add, and what is said of every other first-party field."""
    registry = PluginRegistry.discover()
    added = set(registry.request_model().model_fields) - set(CoreRequest.model_fields)
    refused = {}
    for field in set(known_fields()) - added:
        try:
            registry.request(prompt="a circle", **{field: "x.png"})
        except QwenImageError as error:
            refused[field] = str(error)
    return {
        "plugins": [record.name for record in registry.records],
        "fields": sorted(added),
        "refused": refused,
    }


if __name__ == "__main__":
    print(json.dumps(seen()))
