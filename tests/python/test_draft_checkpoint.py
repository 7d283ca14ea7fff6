"""Draft folders: both styles and all places of the mask embedding load; broken ones say what to do."""

import json
import random
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import mimo_rt
from mimo_rt import _C
from mimo_rt.checkpoints import write_tiny_checkpoint, write_tiny_draft
from mimo_rt.checkpoints.draft import _write_mask as write_mask
from reference_model import read_tensors

PROMPT = list(range(40, 60))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("draft") / "tiny", seed=4)


@pytest.fixture
def copy(model, tmp_path):
    return shutil.copytree(model, tmp_path / "model")


def drafted(directory, draft="auto", **options):
    with mimo_rt.Session(directory, num_threads=1, draft=draft, max_context=256) as session:
        result = session.generate(PROMPT, max_tokens=24, temperature=0.0, ignore_eos=True,
                                  draft_mode="fixed", **options)
        return list(result.token_ids), result.stats.draft


def vocabulary(seed):
    """Random ids of the tiny model, a third of them."""
    rng = random.Random(seed)
    return sorted(rng.sample(range(515), 170))


def edit_config(directory, **changes):
    """Changes fields where they are: at the top or in dflash_config."""
    path = directory / "dflash" / "config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        (config if key in config else config["dflash_config"])[key] = value
    if "block_size" in changes:
        config["dflash_config"]["block_size"] = changes["block_size"]
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("style", ["mimo", "qwen3"])
@pytest.mark.parametrize("block_size", [2, 8, 16])
def test_both_styles_load_and_change_no_text(copy, style, block_size):
    plain, no_draft = drafted(copy, draft=None)
    directory = write_tiny_draft(copy, seed=1, style=style, block_size=block_size)
    assert sorted(p.name for p in directory.glob("*.safetensors"))[0].startswith("dflash_draft_model-")
    config = _C.DraftConfig.from_directory(directory)
    assert (config.has_sink, config.block_size) == (style == "mimo", block_size)
    assert config.window_tokens == [24 if style == "mimo" else 0] * 2
    tokens, stats = drafted(copy)
    assert tokens == plain
    assert no_draft.num_draft_tokens == 0 < stats.num_draft_tokens


@pytest.mark.parametrize("options", [{"vocab_ids": [7]}, {"vocab_ids": vocabulary(1)}, {"draft_vocab_size": 20},
                                     {"vocab_ids": range(515)}, {"style": "qwen3", "vocab_ids": vocabulary(2)}])
def test_a_part_of_the_vocabulary_changes_no_text(copy, options):
    plain, _ = drafted(copy)
    sampling = {"temperature": 0.9, "seed": 3, "repetition_penalty": 1.2}
    drawn = {}
    for draft in ("none", "auto"):
        if draft == "auto":
            write_tiny_draft(copy, seed=1, **options)
        with mimo_rt.Session(copy, num_threads=1, draft=draft, max_context=256) as session:
            drawn[draft] = session.generate(PROMPT, max_tokens=24, ignore_eos=True, **sampling).token_ids
            if draft == "auto":  # only the distribution is promised; here, that it runs
                session.generate(PROMPT, max_tokens=24, ignore_eos=True, draft_mode="fixed", draft_proposal="sampled",
                                 **sampling)
    assert drawn["none"] == drawn["auto"]
    tokens, stats = drafted(copy)
    assert tokens == plain
    assert stats.num_draft_tokens > 0


def test_a_draft_that_never_knows_the_best_token_accepts_nothing(copy):
    plain, _ = drafted(copy)
    write_tiny_draft(copy, seed=1, vocab_ids=[i for i in range(515) if i not in plain])
    tokens, stats = drafted(copy)
    assert tokens == plain and stats.num_accepted_tokens == 0 < stats.num_draft_tokens
    (best,) = {plain[5]}  # a draft of one token proposes it every time
    write_tiny_draft(copy, seed=1, vocab_ids=[best], overwrite=True)
    tokens, stats = drafted(copy)
    assert tokens == plain and stats.num_accepted_tokens > 0


def test_logits_of_a_part_are_those_of_the_whole_vocabulary(copy):
    logits = []
    ids = vocabulary(1)
    for options in ({}, {"vocab_ids": ids}):
        write_tiny_draft(copy, seed=1, overwrite=True, **options)
        with mimo_rt.Session(copy, num_threads=1) as session:
            logits.append(session.draft_logits(PROMPT))
            per_round = session.engine.draft_bytes_per_round
    whole, part = logits
    assert part.shape == whole.shape == (7, 515)
    assert (part[:, ids] == whole[:, ids]).all()
    others = np.delete(part, ids, axis=1)
    assert np.isneginf(others).all() and others.shape == (7, 345)
    write_tiny_draft(copy, seed=1, overwrite=True)
    with mimo_rt.Session(copy, num_threads=1) as session:
        rows = (515 + 15) // 16 * 16
        assert session.engine.draft_bytes_per_round > per_round - (2 << 20) + (rows - 176) * 160 * 2


@pytest.mark.parametrize(
    ("d2t", "match"),
    [([3, 2], "element 1: expected 3..513, .* got 2"), ([3, 514], "element 1: expected 3..513"),
     ([-1, 0], "element 0: expected 0..514"), ([2**63 - 1, 0], "element 0"), ([0, -(2**63)], "element 1")])
def test_vocabularies_that_do_not_ascend_are_refused(copy, d2t, match):
    directory = write_tiny_draft(copy, vocab_ids=[3, 4])
    path = next(p for p in directory.glob("dflash*.safetensors") if b'"d2t"' in p.read_bytes())
    good = np.array([3, 3], dtype="<i8").tobytes()
    data = path.read_bytes()
    assert data.count(good) == 1
    path.write_bytes(data.replace(good, np.array(d2t, dtype="<i8").tobytes()))
    with pytest.raises(_C.BadFormatError, match=f"'d2t' .*{match}"):
        drafted(copy)


def test_a_vocabulary_needs_its_size_and_its_tensor(copy):
    write_tiny_draft(copy, vocab_ids=[3, 4])
    path = copy / "dflash" / "config.json"
    config = json.loads(path.read_text())
    for size, error, match in [(3, _C.ShapeMismatchError, r"expected i64 \[3\], got i64 \[2\]"),
                               (0, _C.BadFormatError, "draft_vocab_size"), (None, _C.BadFormatError, "'d2t'"),
                               (516, _C.BadFormatError, r"expected at most vocab_size \(515\), got 516")]:
        path.write_text(json.dumps(config | {"draft_vocab_size": size}))
        with pytest.raises(error, match=match):
            drafted(copy)
    write_tiny_draft(copy, overwrite=True)
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"draft_vocab_size": 2}))
    with pytest.raises(_C.MissingTensorError, match="'d2t'"):
        drafted(copy)


def test_equal_seeds_give_equal_drafts(copy, model, tmp_path):
    other = shutil.copytree(model, tmp_path / "other")
    files = [
        {p.name: p.read_bytes() for p in write_tiny_draft(path, seed=seed).iterdir()}
        for path, seed in ((copy, 1), (other, 1))
    ]
    assert files[0] == files[1]
    write_tiny_draft(other, seed=2, overwrite=True)
    assert files[0] != {p.name: p.read_bytes() for p in (other / "dflash").iterdir()}


@pytest.mark.parametrize("mask_format", ["tensor", "pt"])
def test_the_mask_embedding_is_the_same_in_every_place(copy, mask_format):
    if mask_format == "pt":
        pytest.importorskip("torch", reason="torch is not installed")
    write_tiny_draft(copy, seed=1)
    expected = drafted(copy)
    write_tiny_draft(copy, seed=1, mask_format=mask_format, overwrite=True)
    assert not (copy / "dflash" / "mask_embedding.safetensors").exists()
    tokens, stats = drafted(copy)
    assert (tokens, stats) == expected


def test_torch_files_of_other_shapes_are_refused(copy):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    draft = write_tiny_draft(copy, mask_format="pt")
    path = draft / "mask_embedding.pt"
    good = torch.load(path, weights_only=True)
    vector, token_id = good["embedding"], good["mask_token_id"]
    wide = torch.stack([vector * 2, vector], dim=1)

    def save(value, **options):
        torch.save(value, path, **options)

    def refused(match):
        with pytest.raises(_C.MimoRtError, match=match):
            drafted(copy)

    save(good | {"per_position": False, "embedding": wide[:, 1]})  # a strided view
    drafted(copy)
    advice = "Save it as mask_embedding.safetensors"
    for value in (
        good | {"embedding": torch.nn.Parameter(vector)},
        good | {"embedding": vector.double()},
        good | {"embedding": vector[None]},
        good | {"per_position": True},
        good | {"optimizer": {}},
        good | {"mask_token_id": torch.tensor(token_id)},
        {"embedding": vector},
        [good],
        vector,
        print,
    ):
        save(value)
        refused(advice)
    save(good, _use_new_zipfile_serialization=False)
    refused(advice)
    save(good, pickle_protocol=4)
    refused("protocol 2.*" + advice)
    save(good | {"mask_token_id": token_id - 1})
    refused("mask_token_id: expected the config's")
    save(good | {"embedding": vector[:-1]})
    refused("hidden_size")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"hidden_size": 320}, "hidden_size: expected the model's 160, got 320"),
        ({"num_target_layers": 6}, "num_target_layers: expected the model's 5 layers, got 6"),
        ({"vocab_size": 516}, "vocab_size: expected at most the model's 515, got 516"),
        ({"mask_token_id": 515}, "mask_token_id: expected a token below"),
        ({"target_layer_ids": [0, 5], "num_target_layers": None}, "target_layer_ids: expected layers"),
        ({"block_size": 17}, "block_size"),
        ({"is_causal": True}, "is_causal"),
    ],
)
def test_drafts_for_other_targets_are_refused(copy, changes, match):
    write_tiny_draft(copy)
    edit_config(copy, **changes)
    with pytest.raises(_C.MimoRtError, match=match):
        drafted(copy)
    assert drafted(copy, draft=None)[1].num_draft_tokens == 0  # the model itself is fine


def test_a_missing_mask_embedding_is_refused(copy):
    (write_tiny_draft(copy) / "mask_embedding.safetensors").unlink()
    with pytest.raises(_C.MissingTensorError, match="Copy the file from where the draft was published"):
        drafted(copy)


def test_a_qwen3_draft_takes_its_mask_from_the_target(copy):
    draft = write_tiny_draft(copy, style="qwen3")

    def draft_logits():
        with mimo_rt.Session(copy, num_threads=1, max_context=256) as session:
            return session.draft_logits(PROMPT)

    own = draft_logits()
    (draft / "mask_embedding.safetensors").unlink()
    taken = draft_logits()
    token_id = _C.DraftConfig.from_directory(draft).mask_token_id
    row = read_tensors(copy)["model.embed_tokens.weight"][1][token_id]
    write_mask(draft, "safetensors", token_id, row)
    assert np.array_equal(taken, draft_logits()) and not np.array_equal(taken, own)


@pytest.mark.parametrize(
    "options",
    [{"style": "eagle"}, {"mask_format": "gguf"}, {"block_size": 1}, {"color": 1},
     {"style": "qwen3", "has_sink": True}, {"target_layer_ids": (5,)}, {"vocab_ids": [3, 3]},
     {"vocab_ids": [4, 3]}, {"vocab_ids": [515]}, {"draft_vocab_size": 516}],
)
def test_bad_options_of_the_generator(copy, options):
    with pytest.raises(_C.InvalidArgumentError):
        write_tiny_draft(copy, **options)
    assert not (copy / "dflash").exists()


def inspect(directory, *options, code=0):
    run = subprocess.run([sys.executable, "-m", "mimo_rt", "inspect", str(directory), *options],
                         capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == code, run.stdout + run.stderr
    return run.stdout + run.stderr


def test_inspect_shows_the_draft(copy):
    assert "no: plain decoding" in inspect(copy)
    assert json.loads(inspect(copy, "--json"))["draft"] is None
    write_tiny_draft(copy)
    text = inspect(copy, "--check")
    assert "8 tokens, mask token 514" in text and "4 q / 2 kv heads of 32/16" in text
    record = json.loads(inspect(copy, "--json"))["draft"]
    assert record["target_layer_ids"] == [0, 2, 4] and record["has_sink"] is True
    assert record["draft_vocab_size"] == 0 and re.search(r"vocabulary +all", text)
    write_tiny_draft(copy, vocab_ids=[3, 4, 9], overwrite=True)
    assert re.search(r"vocabulary +3 tokens", inspect(copy, "--check"))
    assert json.loads(inspect(copy, "--json"))["draft"]["draft_vocab_size"] == 3
    edit_config(copy, hidden_size=320)
    assert "unusable" in inspect(copy)
    assert "hidden_size" in json.loads(inspect(copy, "--json"))["draft"]["error"]
    assert "the draft is for another model" in inspect(copy, "--check", code=1)
