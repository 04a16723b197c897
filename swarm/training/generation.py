"""Sample text from a byte-level model, one byte at a time, with a key-value cache.

Letters: V vocabulary.
"""

from __future__ import annotations

import torch
from torch import nn

from protocols.errors import ConfigError
from swarm.models.vocabulary import BYTES
from swarm.training.gradients import device_of

DEFAULT_PROMPT = b"\n"
MAX_CONTEXT_BYTES = 1024
"""Most bytes that the cache holds; when full, generation goes on from the newer half."""


def generate_bytes(
    model: nn.Module, prompt: bytes, count: int, *, temperature: float = 0.8, seed: int = 0, context_bytes: int = MAX_CONTEXT_BYTES
) -> bytes:
    """Continue `prompt` by `count` bytes. Repeatable: the same model, arguments and device give the same bytes.

    Args:
        model: causal language model whose first 256 ids are bytes.
        prompt: text to continue; a line break when empty.
        count: bytes to generate.
        temperature: above 0; divides the logits. 0 takes the likeliest byte.
        seed: of the drawing, which runs on the CPU.
        context_bytes: most bytes that the model looks back on, at least 2; a model with learned positions is held to their number.

    Returns:
        The new bytes, without the prompt.

    Raises:
        ConfigError: a temperature below 0 or a negative count.
    """
    if not 0 <= temperature < float("inf") or count < 0:
        raise ConfigError(f"Temperature {temperature} and length {count} cannot be used: choose numbers of at least 0.")
    limit = max(2, min(context_bytes, getattr(model.config, "max_position_embeddings", None) or context_bytes))
    generator = torch.Generator().manual_seed(seed)
    text = bytearray(prompt or DEFAULT_PROMPT)
    start = len(text)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            cache, pending = None, text[-limit:]
            held = 0
            for _ in range(count):
                if held + len(pending) > limit:
                    cache, pending, held = None, text[-max(1, limit // 2) :], 0
                logits_V, cache = _forward(model, pending, cache)
                held += len(pending)
                pending = bytearray([_draw(logits_V, temperature, generator)])
                text += pending
    finally:
        model.train(was_training)
    return bytes(text[start:])


def _forward(model: nn.Module, pending: bytearray, cache: object) -> tuple[torch.Tensor, object]:
    device = device_of(model)
    tokens = torch.tensor([list(pending)], dtype=torch.int64, device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
        output = model(input_ids=tokens, past_key_values=cache, use_cache=True)
    return output.logits[0, -1, :BYTES].float().cpu(), output.past_key_values


def _draw(logits_V: torch.Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    probabilities_V = torch.softmax(logits_V / temperature, dim=0)
    return int(torch.multinomial(probabilities_V, 1, generator=generator))
