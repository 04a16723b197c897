"""`swarm-peer export`: write a checkpoint as a Hugging Face folder."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protocols.errors import ExitCode, StateDirError
from swarm.cli.common import AsJson, StateDir, configure, err, out, print_json

if TYPE_CHECKING:
    from swarm.checkpoint.export import ExportCard
    from swarm.config import PeerConfig

HELP = """Write a checkpoint as a folder that `transformers` loads: config.json and model.safetensors.

Exit code 20 if the state directory holds no checkpoint.

Example:

    swarm-peer export ./my-model --state-dir ~/.swarm-peer
"""


def command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="New or empty folder to write.")],
    state_dir: StateDir = None,
    epoch: Annotated[int | None, typer.Option("--epoch", help="Which checkpoint [the newest].")] = None,
    as_json: AsJson = False,
) -> None:
    """See `HELP`."""
    config = configure({"state_dir": state_dir}, None)
    with err.status("Writing the model ..."):
        written, card = _export(config, folder, epoch)
    if as_json:
        print_json(json.dumps({**asdict(card), "folder": str(written)}))
    else:
        out.print(f"Epoch {card.epoch} of {card.run_name}, state {card.state_hash}: {written}", markup=False, soft_wrap=True)


def _export(config: PeerConfig, folder: Path, epoch: int | None) -> tuple[Path, ExportCard]:
    import torch

    from swarm.checkpoint.export import ExportCard, export_model
    from swarm.checkpoint.store import CheckpointStore, load_checkpoint
    from swarm.models.build import build_model
    from swarm.runfile import load_spec

    signed = load_spec(config.state_dir)
    if epoch is None:
        snapshot = CheckpointStore(config.checkpoints_dir).newest()
    else:
        path = config.checkpoints_dir / f"epoch-{epoch:06d}"
        snapshot = load_checkpoint(path) if path.exists() else None
    if snapshot is None:
        which = "no checkpoint" if epoch is None else f"no checkpoint of epoch {epoch}"
        raise StateDirError(
            f"{config.checkpoints_dir} holds {which}: let the peer train longer, or name another --state-dir.", ExitCode.NO_STATE
        )
    model = build_model(signed.spec.model.model_dump(exclude_none=True), signed.spec.run.seed)
    saved = {name.removeprefix("param/"): tensor for name, tensor in snapshot.tensors() if name.startswith("param/")}
    parameters = dict(model.named_parameters())
    if {name: tensor.shape for name, tensor in saved.items()} != {name: tensor.shape for name, tensor in parameters.items()}:
        raise StateDirError(f"The checkpoints in {config.checkpoints_dir} belong to another model than the run file beside them.")
    with torch.no_grad():
        for name, tensor in saved.items():
            parameters[name].copy_(tensor)
    card = ExportCard(
        run_name=signed.spec.run.name,
        run_id=str(signed.run_id),
        epoch=snapshot.epoch,
        accepted_samples=snapshot.manifest.accepted_samples,
        state_hash=snapshot.state_hash.hex(),
        dataset=signed.spec.data.source,
    )
    return export_model(model, folder, card), card
