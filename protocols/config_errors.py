"""pydantic's findings as sentences for the person who wrote the file: the dotted path, what is wrong, and the nearest valid key."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

MAX_SENTENCES = 8
_MAX_VALUE_CHARS = 60


def sentences(error: ValidationError, root: type[BaseModel], whole: str = "run spec") -> str:
    """One sentence for each mistake, in the order of the fields, at most `MAX_SENTENCES`.

    Args:
        error: from validating `root`.
        root: the model whose fields are the valid keys.
        whole: what it is called where a mistake is no single key's.
    """
    findings = error.errors(include_url=False, include_context=False)
    # A union reports one finding for each of its members; the first speaks for all.
    by_path: dict[str, str] = {}
    for finding in findings:
        *above, last = finding["loc"] or (whole,)
        tagged = finding["type"] != "extra_forbidden" and above and _is_union_tag(last)
        path = [part for part in above if not _is_union_tag(part)] + ([] if tagged else [last])
        by_path.setdefault(dotted(path), _sentence(path, finding, root))
    written = list(by_path.values())
    more = len(written) - MAX_SENTENCES
    return " ".join(written[:MAX_SENTENCES]) + (f" There are {more} more mistakes." if more > 0 else "")


def dotted(path: Sequence[int | str]) -> str:
    """A path as people write it: ("data", "files", 2) is "data.files[2]"."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f"{'.' if text else ''}{part}"
    return text


def _sentence(path: Sequence[int | str], finding: Any, root: type[BaseModel]) -> str:
    name = dotted(path)
    if finding["type"] == "json_invalid":
        return f"{name} is no JSON."
    message = str(finding["msg"]).removeprefix("Value error, ")
    message = (message[:1].lower() + message[1:]).replace("input should", "it should").replace("input was", "it is")
    match finding["type"]:
        case "extra_forbidden":
            return f"{name} is not a known setting{_suggestion(path, root)}"
        case "missing":
            return f"{name} is missing: add it."
        case "value_error":
            return f"{name}: {message}."
        case "model_type" | "model_attributes_type":
            return f"{name} must be a table: write [{name}] and its settings below it."
    value = repr(finding["input"])
    shown = value if len(value) <= _MAX_VALUE_CHARS else value[:_MAX_VALUE_CHARS] + "..."
    return f"{name} cannot be {shown}: {message}."


def _suggestion(path: Sequence[int | str], root: type[BaseModel]) -> str:
    """What the key was probably meant to be: a sibling, or the same name in another section."""
    fields: dict[str, Any] = dict(root.model_fields)
    prefix = list(path[:-1])
    for part in prefix:
        fields = _fields_below(fields.get(str(part)))
    near = difflib.get_close_matches(str(path[-1]), fields, n=1, cutoff=0.6)
    if near:
        return f": did you mean {dotted([*prefix, near[0]])}?"
    for section, field in root.model_fields.items():
        if path[-1] in _fields_below(field):
            return f": did you mean {section}.{path[-1]}?"
    return f": known here are {', '.join(fields)}." if fields else "."


def _fields_below(field: Any) -> dict[str, Any]:
    annotation = getattr(field, "annotation", None)
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return dict(candidate.model_fields)
    return {}


def _is_union_tag(part: int | str) -> bool:
    """Whether pydantic added this to the path: the name of a union's member ("constrained-str", "float")."""
    return isinstance(part, str) and (part in {"float", "int", "str", "bool", "list", "dict"} or "constrained-" in part or "[" in part)
