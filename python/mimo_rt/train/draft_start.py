"""Training that starts at a finished draft instead of random weights: more answers, another recipe."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path

from .. import _C
from ..checkpoints.draft_layout import DraftShape
from .draft import DraftModel
from .draft_files import import_draft

# What a new run may choose anew: notes on training.
_FREE = frozenset({"loss_decay_gamma", "num_anchors"})


def start_at_draft(directory: Path, shape: DraftShape) -> DraftModel:
    """The finished draft, with its own vocabulary, ready to be trained as ``shape`` says.

    Raises:
        InvalidArgumentError: it has another shape. IoError, MissingTensorError, BadFormatError: as
            :func:`import_draft`.
    """
    found = import_draft(directory)
    wanted, has = asdict(shape), asdict(found.shape)
    for name in wanted.keys() - _FREE:
        if wanted[name] != has[name]:
            raise _C.InvalidArgumentError(
                f"[train] {directory}: expected a draft with {name} = {wanted[name]} as in this "
                f"run, got {has[name]}. Give the options that it was trained with."
            )
    draft = DraftModel(shape, vocab_ids=found.vocab_ids)
    draft.load_state_dict(found.state_dict())
    return draft


def weights_digest(draft: DraftModel) -> str:
    """Hex digits by which a run knows where it was started."""
    digest = hashlib.sha256()
    for name, value in sorted(draft.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
