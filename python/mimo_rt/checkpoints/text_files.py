"""Tokenizer and generation files of a model directory, written without the tokenizer library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .writer import write_json

CHATML_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' "
    "+ message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
BYTE_SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def byte_alphabet() -> list[str]:
    """The printable character that stands for each byte in byte-level BPE (GPT-2's mapping)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    stand_in = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(stand_in)) for byte in range(256)]


@dataclass(frozen=True)
class ByteLevelVocab:
    """A byte-level BPE vocabulary.

    ``split_digits`` makes every digit a word of its own, as SmolLM's pre-tokenizer does.
    """

    tokens: Sequence[str]  # the id is the place in the list
    merges: Sequence[str]  # "left right", best first
    special_ids: Sequence[int]
    split_digits: bool


def tokenizer_json(vocab: ByteLevelVocab) -> dict[str, Any]:
    """Contents of tokenizer.json as the `tokenizers` library reads it."""
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    pre_tokenizer: dict[str, Any] = byte_level
    if vocab.split_digits:
        digits = {"type": "Digits", "individual_digits": True}
        pre_tokenizer = {"type": "Sequence", "pretokenizers": [digits, byte_level]}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(vocab, token_id) for token_id in vocab.special_ids],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: token_id for token_id, token in enumerate(vocab.tokens)},
            "merges": list(vocab.merges),
        },
    }


def _added_token(vocab: ByteLevelVocab, token_id: int) -> dict[str, Any]:
    return {
        "id": token_id,
        "content": vocab.tokens[token_id],
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def write_tokenizer(
    directory: Path, vocab: ByteLevelVocab, tokenizer_config: dict[str, Any]
) -> None:
    """Write tokenizer.json and tokenizer_config.json (special tokens are added to the latter)."""
    added = {}
    for token_id in vocab.special_ids:
        entry = _added_token(vocab, token_id)
        del entry["id"]
        added[str(token_id)] = entry
    write_json(directory / "tokenizer.json", tokenizer_json(vocab))
    write_json(
        directory / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "added_tokens_decoder": added,
            "clean_up_tokenization_spaces": False,
            "tokenizer_class": "GPT2Tokenizer",
            **tokenizer_config,
        },
    )


def write_byte_tokenizer(directory: Path) -> None:
    """A tokenizer without merges: ids 0..255 are the bytes, then three ChatML specials."""
    vocab = ByteLevelVocab(
        tokens=[*byte_alphabet(), *BYTE_SPECIAL_TOKENS],
        merges=[],
        special_ids=range(256, 256 + len(BYTE_SPECIAL_TOKENS)),
        split_digits=False,
    )
    config = {
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "chat_template": CHATML_TEMPLATE,
    }
    write_tokenizer(directory, vocab, config)
