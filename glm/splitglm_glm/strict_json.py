"""JSON of model files, read as untrusted input: bounded size, no duplicate keys, no NaN, an object at the top."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from splitglm_core.errors import ModelInvalid, ModelNotFound


def parse_object(text: str | bytes, what: str) -> dict[str, Any]:
    """Parse one JSON object.

    Args:
        text: the document; bytes must be UTF-8.
        what: how to name the document in an error.

    Raises:
        ModelInvalid: not JSON, not an object, a key given twice, NaN or infinity, or nested too deeply.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ModelInvalid(f"{what} is not valid JSON: {reason}", "fetch the file again") from None
    if not isinstance(value, dict):
        raise ModelInvalid(f"{what} holds a JSON {type(value).__name__}, not an object", "fetch the file again")
    return value


def read_object(path: Path, max_bytes: int) -> dict[str, Any]:
    """Read and parse the JSON object in ``path``, which must not be longer than ``max_bytes``.

    Raises:
        ModelNotFound: there is no such file.
        ModelInvalid: too long, unreadable, or anything that ``parse_object`` refuses.
    """
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise ModelNotFound(f"{path} does not exist", "name a directory that holds a GLM checkpoint") from None
    except OSError as error:
        raise ModelInvalid(f"{path} cannot be read: {error.strerror}", "check the path and its permissions") from None
    if len(data) > max_bytes:
        raise ModelInvalid(f"{path} is longer than {max_bytes} bytes", "use the file as it was published")
    return parse_object(data, str(path))


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # The last of two equal keys would win silently, and another parser may let the first win.
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} is given twice")
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
