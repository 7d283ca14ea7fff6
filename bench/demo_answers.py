"""Answers of the demo model that come with the source, for whoever trains its draft."""

from __future__ import annotations

import json
import pathlib
import tarfile

# Of 'train generate --per-set 1500', as far as it had come.
ANSWERS = pathlib.Path(__file__).resolve().parent / "prompts" / "demo_answers.tar.xz"


def demo_answers(model: pathlib.Path) -> dict[str, bytes]:
    """Names and contents of the files part-*.jsonl.

    Their meta.json, which is not among them, is older than checkpoint_digest. Whose they are says the model's name
    there, which counts the revisions of the demo's weights; who takes them records the digest of the model at hand.

    Raises:
        InvalidArgumentError: ``model`` is not called so.
    """
    from mimo_rt import _C

    with tarfile.open(ANSWERS) as archive:
        files = {name: archive.extractfile(name).read() for name in archive.getnames()}
    name = json.loads(files.pop("meta.json"))["model"]
    if model.resolve().name != name:
        raise _C.InvalidArgumentError(f"[{ANSWERS.name}] answers of {name}, expected those of {model}. "
                                      "Make its own with 'mimo-rt train generate'.")
    return files
