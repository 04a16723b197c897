"""A run's model as a Hugging Face folder that `transformers` loads without this project, and back.

    config.json  generation_config.json  model.safetensors   what transformers reads
    tokenizer.json  tokenizer_config.json                     byte-level: the id of a byte is its value, any text round-trips
    README.md  swarm_export.json                              which run, epoch and state this is; the latter marks the folder as ours

The folder appears by one rename, so there is never half an export under its name.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protocols.errors import ConfigError, StateDirError
from swarm.models.vocabulary import BYTES, END_OF_TEXT, PADDING

if TYPE_CHECKING:
    from torch import nn

_log = logging.getLogger(__name__)

MARKER = "swarm_export.json"
_END_OF_TEXT_TEXT = "<|endoftext|>"
_PADDING_TEXT = "<|pad|>"


@dataclass(frozen=True, slots=True)
class ExportCard:
    """What an export says about itself.

    Args:
        run_name: the run's name.
        run_id: its fingerprint, hex.
        epoch: updates applied.
        accepted_samples: samples that went into the state.
        state_hash: hash of the shared state, hex, as members report it.
        dataset: description and fingerprint of the data.
        held_out_loss: nats per byte, where it was measured.
    """

    run_name: str
    run_id: str
    epoch: int
    accepted_samples: int
    state_hash: str
    dataset: str
    held_out_loss: float | None = None


def export_model(model: nn.Module, folder: Path, card: ExportCard) -> Path:
    """Write a model as a Hugging Face folder.

    Args:
        model: a `transformers` model that holds the parameters to export, on any device; weights are written in their own precision.
        folder: where; created, or replaced if it is an earlier export.
        card: what the folder says about itself.

    Returns:
        The folder, absolute.

    Raises:
        ConfigError: `folder` is a file, or holds something that is no earlier export.
        StateDirError: it cannot be written.
    """
    folder = folder.expanduser().absolute()
    _check_target(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-unfinished-", dir=folder.parent))
    except OSError as error:
        raise _unwritable(folder, error) from None
    try:
        _write(model, unfinished, card)
        unfinished.chmod(0o755)  # mkdtemp made it private
        _move_into_place(unfinished, folder)
    except OSError as error:
        raise _unwritable(folder, error) from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)  # gone already when all went well
    _log.info("model exported folder=%s epoch=%d", folder, card.epoch)
    return folder


def load_exported(folder: Path) -> nn.Module:
    """Load the model of a Hugging Face folder, on the CPU in evaluation mode. Never downloads and never runs the folder's code.

    Raises:
        ConfigError: the folder holds no model that `transformers` can load.
    """
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} holds no config.json: name a folder that swarm-peer export wrote.")
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        model: nn.Module = AutoModelForCausalLM.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split()).rstrip(".")[:200]
        raise ConfigError(f"The model in {folder} cannot be loaded ({reason}): export it again.") from None
    return model.eval()


def _check_target(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"{folder} is a file: choose a folder to export to.")
    if any(folder.iterdir()) and not (folder / MARKER).is_file():
        raise ConfigError(f"{folder} is not empty and is no earlier export: choose another folder, or empty it first.")


def _write(model: Any, folder: Path, card: ExportCard) -> None:
    from transformers import GenerationConfig

    model.save_pretrained(folder)
    config = model.config
    GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        do_sample=True,
        temperature=0.8,
        suppress_tokens=list(range(BYTES, config.vocab_size)) if config.vocab_size <= 2 * BYTES else None,
    ).save_pretrained(folder)
    _write_tokenizer(folder)
    (folder / MARKER).write_text(json.dumps(asdict(card), indent=2, sort_keys=True) + "\n")
    (folder / "README.md").write_text(_readme(card, sum(parameter.numel() for parameter in model.parameters())))
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _write_tokenizer(folder: Path) -> None:
    """A byte-level BPE without merges, its alphabet numbered by byte value; special tokens' texts in the input are plain text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = _byte_letters()
    tokenizer = Tokenizer(models.BPE(vocab={letters[byte]: byte for byte in range(BYTES)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in (_END_OF_TEXT_TEXT, _PADDING_TEXT)])
    numbers = [tokenizer.token_to_id(text) for text in (_END_OF_TEXT_TEXT, _PADDING_TEXT)]
    if numbers != [END_OF_TEXT, PADDING]:
        raise RuntimeError(f"the tokenizers library numbered the special tokens {numbers}")
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=_END_OF_TEXT_TEXT,
        eos_token=_END_OF_TEXT_TEXT,
        pad_token=_PADDING_TEXT,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(str(folder))


def _byte_letters() -> list[str]:
    """The character that the tokenizers library writes for each byte: itself if printable in Latin-1, else the next from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(BYTES) if byte not in printable]
    return [chr(byte) if byte in printable else chr(0x100 + others.index(byte)) for byte in range(BYTES)]


def _move_into_place(unfinished: Path, folder: Path) -> None:
    """Rename; an earlier export steps aside first and is deleted last."""
    try:
        unfinished.rename(folder)  # a missing or empty folder
        return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    _check_target(folder)  # it may have changed while the export was written
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-unfinished-", dir=folder.parent))
    folder.rename(aside)
    try:
        unfinished.rename(folder)
    except OSError:
        aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _readme(card: ExportCard, parameters: int) -> str:
    loss = "not measured" if card.held_out_loss is None else f"{card.held_out_loss:.3f} nats per byte"
    name, data = (" ".join(text.replace("|", "/").split()) for text in (card.run_name, card.dataset))
    return f"""---
library_name: transformers
pipeline_tag: text-generation
---

# {name}

A causal language model that a swarm of volunteers trained together.

| | |
|---|---|
| run | `{card.run_id}` |
| epoch | {card.epoch} |
| samples | {card.accepted_samples} |
| parameters | {parameters} |
| shared state | `{card.state_hash}` |
| data | {data} |
| held-out loss | {loss} |

The model reads bytes: the id of a byte is its value, {END_OF_TEXT} is `{_END_OF_TEXT_TEXT}` and {PADDING} is `{_PADDING_TEXT}`.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForCausalLM.from_pretrained(".")
inputs = tokenizer("def ", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=200)[0]))
```
"""


def _unwritable(folder: Path, error: OSError) -> StateDirError:
    return StateDirError(f"The export cannot be written to {folder} ({error.strerror or error}): make room or choose another folder.")
