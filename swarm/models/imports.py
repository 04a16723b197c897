"""The heavy libraries, loaded once and quickly: a volunteer should be training seconds after the command.

Importing torch, its optimizers and the BLOOM of `transformers` takes about five CPU-seconds. A tenth of that is the cyclic garbage
collector, which walks the hundreds of thousands of objects that imports create and that all stay alive; so it pauses meanwhile.
The rest is the libraries' own: torch's compiler comes with its optimizers, and `transformers` reads its 1,600 model files twice.
"""

from __future__ import annotations

import gc
import importlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_lock = threading.Lock()


@contextmanager
def paused_garbage_collection() -> Iterator[None]:
    """Pause the cyclic collector while many objects are made that all stay; it goes on afterwards if it was on before."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def import_libraries(between: Callable[[], None] = lambda: None) -> None:
    """Import what the first training step of a BLOOM needs. Idempotent; safe from any thread.

    Worth calling in the training thread while the network still waits for answers.

    Args:
        between: called between the parts, each of which takes a second or two; may raise to break off.
    """
    parts = (
        "torch",
        "torch._dynamo",  # the first optimizer step imports it otherwise
        "transformers",
        "transformers.models.bloom.modeling_bloom",
    )
    with _lock, paused_garbage_collection():
        for part in parts:
            between()
            importlib.import_module(part)
