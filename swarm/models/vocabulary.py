"""Byte-level vocabulary: the id of a byte is its value, so text needs no tokenizer file to be read or checked."""

from __future__ import annotations

BYTES = 256
"""Ids 0 to 255 are the bytes themselves."""

END_OF_TEXT = 256
"""Begins and ends a text for tools that want such a token; training windows never contain it."""

PADDING = 257
"""Fills a batch for tools that want such a token; training windows all have one length."""

BYTE_VOCABULARY = 258
"""Rows of the embedding of a model that reads bytes only."""
