"""Export and import of a draft: the ``dflash/`` folder of a checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from .. import _C
from ..checkpoints.draft_layout import (
    FILE_STEM,
    MAX_SHARD_BYTES,
    decode_vocab_ids,
    draft_config,
    draft_shape,
    draft_specs,
    encode_vocab_ids,
)
from ..checkpoints.writer import CheckpointWriter, atomic_directory, write_json
from .draft import DraftModel
from .tensors import CheckpointTensors, read_config

MASK_FILE = "mask_embedding.pt"


def export_draft(
    model: DraftModel,
    directory: Path,
    *,
    acceptance_length: float | None = None,
    overwrite: bool = False,
) -> Path:
    """Write ``directory`` (usually MODEL/dflash); weights are rounded to BF16.

    Files are at most 16 MiB each, unless a single tensor is larger.

    Args:
        acceptance_length: what was measured on held-out answers; `mimo-rt doctor` reads it in
            config.json as what the draft promises.
    """
    shape = model.shape
    tensors = {name: value.detach().cpu().bfloat16() for name, value in model.state_dict().items()}
    mask = tensors.pop("mask_embedding")
    promise = {}
    if acceptance_length is not None:
        promise["acceptance_length"] = round(acceptance_length, 4)
    with atomic_directory(Path(directory), overwrite=overwrite) as partial:
        write_json(partial / "config.json", draft_config(shape) | promise)
        torch.save({"mask_token_id": shape.mask_token_id, "embedding": mask}, partial / MASK_FILE)
        with CheckpointWriter(
            partial, draft_specs(shape), max_shard_bytes=MAX_SHARD_BYTES, stem=FILE_STEM
        ) as writer:
            for name, value in tensors.items():
                writer.write(name, value.contiguous().view(torch.uint16).numpy())
            if model.vocab_ids is not None:
                writer.write("d2t", encode_vocab_ids(model.vocab_ids.cpu().numpy()))
    return Path(directory)


def import_draft(directory: Path) -> DraftModel:
    """The draft that :func:`export_draft` wrote, or a published one of the same dialect.

    Raises:
        IoError, MissingTensorError, BadFormatError: naming the file or tensor.
    """
    directory = Path(directory)
    try:
        shape = draft_shape(read_config(directory))
    except KeyError as error:
        raise _C.BadFormatError(f"[{directory}/config.json] expected field {error}.") from None
    tensors = CheckpointTensors(directory)
    state = {name: tensors.raw(name) for name in draft_specs(shape)}
    for name, spec in draft_specs(shape).items():
        if tuple(state[name].shape) != spec.shape:
            raise _C.ShapeMismatchError(
                f"[draft] tensor '{name}': expected {list(spec.shape)}, "
                f"got {list(state[name].shape)}."
            )
    path = directory / MASK_FILE
    if not path.is_file():
        raise _C.IoError(f"[draft] {directory}: expected {MASK_FILE}, found none.")
    state["mask_embedding"] = torch.load(path, weights_only=True)["embedding"].float()
    vocab_ids = None
    if "d2t" in state:
        d2t = state.pop("d2t")
        if d2t.dtype != torch.int64:
            raise _C.BadFormatError(f"[draft] tensor 'd2t': expected int64, got {d2t.dtype}.")
        vocab_ids = torch.from_numpy(decode_vocab_ids(d2t.numpy(), shape.vocab_size))
    model = DraftModel(shape, vocab_ids=vocab_ids)
    model.load_state_dict(state)
    return model
