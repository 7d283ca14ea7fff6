"""Make checkpoints: number formats, a safetensors writer, tiny random models, the demo model.

Start at :func:`write_tiny_checkpoint` (``PRESETS`` names the variants),
:func:`write_tiny_draft` and :func:`ensure_demo_model` (SmolLM2-135M in the MiMo-V2.5-Pro-FP4 format).
"""

from .demo import ensure_demo_model
from .draft import write_tiny_draft
from .presets import PRESETS
from .tiny import write_tiny_checkpoint
from .writer import CheckpointWriter, TensorSpec, atomic_directory

__all__ = [
    "PRESETS",
    "CheckpointWriter",
    "TensorSpec",
    "atomic_directory",
    "ensure_demo_model",
    "write_tiny_checkpoint",
    "write_tiny_draft",
]
