"""Small JSON files with a checksum of their own, so that what is read is what was written, and of the kind that is meant."""

import hashlib
import json
from typing import Any

MOST_BYTES = 64 << 20  # of a sealed file: a manifest of a thousand ranks has half a megabyte


def sealed(kind: str, body: dict[str, Any]) -> dict[str, Any]:
    """`body` with its `kind` and a checksum over everything in it."""
    whole = {"kind": kind, **body}
    return {**whole, "seal": _seal(whole)}


def unsealed(kind: str, name: str, text: str | bytes) -> tuple[dict[str, Any], str]:
    """(body, seal) of what `sealed` made. Raises `ValueError` saying what is wrong with the file called `name`."""
    try:
        match value := json.loads(text):
            case {"seal": str(seal)}:
                body = {key: item for key, item in value.items() if key != "seal"}
                right = seal == _seal(body)
            case _:
                raise ValueError(f"{name} has no checksum")
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(f"{name} is not JSON") from None
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply") from None
    if not right:
        raise ValueError(f"{name} does not match its own checksum")
    found = body.pop("kind", None)
    if found != kind:
        raise ValueError(f"{name} holds a {found if isinstance(found, str) else 'file of another kind'}, not a {kind}")
    return body, seal


def _seal(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
