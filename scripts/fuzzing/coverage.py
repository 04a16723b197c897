"""Which lines of our packages an input reaches. Cheap enough to run all the time: other code is not traced at all."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

from scripts.fuzzing.target import REPOSITORY

_PACKAGES = ("protocols", "peers")
_BORROWED = "hivemind/utils/multiaddr"
"""Somebody else's, in Python, that reads what strangers announce."""

_VARIABLE = re.compile(r"'[^']*'|\"[^\"]*\"|0x[0-9a-f]+|[0-9a-fA-F.]{3,}|-?\d+(\.\d+)?(e[+-]?\d+)?|\b(inf|nan)\b")
_MAX_SENTENCES = 32
"""A few targets repeat in their refusals what others say."""


class Coverage:
    """Collects features: (code object, line), and refusals without what varies in them, since one line may refuse for several reasons."""

    def __init__(self) -> None:
        self._ours: dict[CodeType, bool] = {}
        self._roots = tuple(f"{REPOSITORY / name}/" for name in _PACKAGES)
        self._hits: set[tuple[CodeType, int]] = set()
        self.lines: set[tuple[CodeType, int]] = set()
        self.sentences: set[str] = set()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Trace what runs inside."""
        self._hits = set()
        before = sys.gettrace()
        sys.settrace(self._call)
        try:
            yield
        finally:
            sys.settrace(before)

    def is_news(self, refusal: str | None) -> bool:
        """Whether the last run reached something new, which counts as known from now on."""
        fresh = not self._hits <= self.lines
        self.lines |= self._hits
        sentence = _VARIABLE.sub("#", refusal)[:60] if refusal else ""
        if sentence not in self.sentences and len(self.sentences) < _MAX_SENTENCES:
            self.sentences.add(sentence)
            return True
        return fresh

    def _call(self, frame: FrameType, event: str, arg: Any) -> Any:
        code = frame.f_code
        ours = self._ours.get(code)
        if ours is None:
            ours = self._ours[code] = code.co_filename.startswith(self._roots) or _BORROWED in code.co_filename
        return self._line if ours else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":
            self._hits.add((frame.f_code, frame.f_lineno))
        return self._line
