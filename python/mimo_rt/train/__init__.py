"""Training with torch (extra ``[train]``): a DFlash draft for a model, and MXFP4 experts.

  generations   prompts -> the target's own answers, made by this engine (JSON lines)
  answers_meta  whose answers a directory holds
  target        a torch forward of a MiMo checkpoint: logits, and features after given layers
  batch_target, batch_answers, feature_table   the same for many sequences at once: answers and
                features on a GPU
  draft         the DFlash draft as a torch module; reads and writes the published ``dflash/`` form
  blocks, loss  anchors, masks, labels; the weighted loss and the acceptance it promises
  draft_trainer the resumable loop: Muon for matrices, AdamW for the rest
  experts       quantisation-aware training of MXFP4 experts by distillation

Nothing here is imported by ``import mimo_rt``; torch is needed only inside this package.
"""

from __future__ import annotations

from .. import _C


def require_torch() -> None:
    """Raise UnavailableError with the command to run when torch or safetensors is missing."""
    try:
        import safetensors  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise _C.UnavailableError(
            f"[train] training needs torch and safetensors: {error}. "
            "Install them with: pip install 'mimo_rt[train]'"
        ) from None
