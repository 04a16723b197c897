"""`swarm-peer generate`: text from an exported folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from swarm.cli.common import AsJson, err, out, print_json, printable

HELP = """Load an exported folder with `transformers` and let the model write.

Example:

    swarm-peer generate ./my-model --prompt "def " --bytes 200
"""


def command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What `swarm-peer export` wrote.")],
    prompt: Annotated[str, typer.Option("--prompt", help="How the text begins.")] = "def ",
    length_bytes: Annotated[int, typer.Option("--bytes", min=1, max=100_000, help="How much to write.")] = 200,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0: always the likeliest byte.")] = 0.8,
    seed: Annotated[int, typer.Option("--seed", help="The same seed gives the same text.")] = 0,
    as_json: AsJson = False,
) -> None:
    """See `HELP`."""
    from swarm.checkpoint.export import load_exported
    from swarm.training.generation import generate_bytes

    with err.status("Loading the model ..."):
        model = load_exported(folder)
    begun = prompt.encode("utf-8", errors="surrogateescape")  # exactly the bytes that the shell gave us
    written = generate_bytes(model, begun, length_bytes, temperature=temperature, seed=seed)
    before, text = (part.decode("utf-8", errors="replace") for part in (begun, written))
    if as_json:
        print_json(json.dumps({"prompt": before, "text": text}))
    else:
        out.print(printable(before + text), markup=False, soft_wrap=True)
