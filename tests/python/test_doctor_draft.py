"""The draft canary: a draft that computes wrongly or hardly helps is reported, not hidden."""

import json
import os
import shutil

import mimo_rt
import pytest
from mimo_rt import errors
from mimo_rt.checkpoints import write_tiny_checkpoint, write_tiny_draft
from mimo_rt.cli import _draft_check, main


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("doctor") / "model"
    write_tiny_checkpoint(directory, seed=3)
    write_tiny_draft(directory, seed=4)
    return directory


def doctor(capsys, *arguments):
    code = main(["doctor", *map(str, arguments)])
    return code, capsys.readouterr().out


def test_a_random_draft_is_reported(model, capsys):
    code, out = doctor(capsys, model)
    assert code == 1 and "FAILED: acceptance\n" in out
    assert "does not help" in out and "draft logits      ok" in out and "relative error" in out


def test_a_draft_that_is_good_enough_passes_and_its_promise_counts(model, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(_draft_check, "_MIN_ACCEPTANCE_LENGTH", 1.0)
    code, out = doctor(capsys, model)
    assert code == 0 and "greedy tokens equal plain decoding" in out
    assert "acceptance        WARNING: acceptance length" in out and "promises nothing" in out
    assert "3.18 or more" in out and out.endswith("no check failed; WARNING: acceptance\n")
    promising = shutil.copytree(model, tmp_path / "promising")
    config = promising / "dflash" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"acceptance_length": 5.0}))
    code, out = doctor(capsys, promising)
    assert code == 1 and "5.00 promised" in out
    config.write_text(json.dumps(json.loads(config.read_text()) | {"acceptance_length": 1.0}))
    code, out = doctor(capsys, promising)
    assert code == 0 and "acceptance        ok" in out and out.endswith("all checks passed\n")


def test_longer_blocks_are_not_held_to_more(model, capsys, monkeypatch, tmp_path):
    """Than the published draft has of blocks of 8; shorter ones are held to less."""
    monkeypatch.setattr(_draft_check, "_MIN_ACCEPTANCE_LENGTH", 1.0)
    longer = shutil.copytree(model, tmp_path / "model", ignore=shutil.ignore_patterns("dflash"))
    draft = write_tiny_draft(longer, seed=4, block_size=16)
    assert _draft_check._usual_length(draft) == 3.18
    code, out = doctor(capsys, longer)
    assert code == 0 and "the published draft with blocks of 8 has 3.18 or more: is it for" in out
    write_tiny_draft(longer, seed=4, block_size=4, overwrite=True)
    assert _draft_check._usual_length(draft) == pytest.approx(1.93, abs=0.01)


def test_what_was_not_compared_is_no_ok(model, capsys, monkeypatch):
    monkeypatch.setattr(_draft_check, "_MIN_ACCEPTANCE_LENGTH", 1.0)
    monkeypatch.setattr(_draft_check, "_MAX_REFERENCE_BYTES", 10)
    code, out = doctor(capsys, model)
    assert code == 0 and "draft logits      skipped: not compared" in out
    assert out.endswith("no check failed; skipped: draft logits, WARNING: acceptance\n")


def test_a_model_of_few_positions(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(_draft_check, "_MIN_ACCEPTANCE_LENGTH", 1.0)
    write_tiny_checkpoint(tmp_path / "model", seed=3, max_position_embeddings=200)
    write_tiny_draft(tmp_path / "model", seed=4)
    code, out = doctor(capsys, tmp_path / "model")
    assert code == 0 and "relative error" in out and "greedy tokens equal plain decoding" in out


def test_logits_beyond_the_tolerance_fail(model, capsys, monkeypatch):
    monkeypatch.setattr(_draft_check, "_MAX_RELATIVE_ERROR", 1e-9)
    code, out = doctor(capsys, model)
    assert code == 1 and "draft logits      FAILED" in out


def test_a_draft_for_another_target_fails_at_its_config(model, capsys, tmp_path):
    other = shutil.copytree(model, tmp_path / "other")
    config = other / "dflash" / "config.json"
    fields = json.loads(config.read_text())
    fields["dflash_config"]["target_layer_ids"] = [0, 99]
    config.write_text(json.dumps(fields))
    code, out = doctor(capsys, other)
    assert code == 1 and "draft             FAILED" in out and "99" in out


def test_a_model_without_a_draft_says_so(tmp_path, capsys):
    write_tiny_checkpoint(tmp_path / "plain", seed=3)
    code, out = doctor(capsys, tmp_path / "plain")
    assert code == 0 and "no model (MODEL/dflash)" in out


def test_a_draft_beside_the_model(model, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(_draft_check, "_MIN_ACCEPTANCE_LENGTH", 1.0)
    plain = write_tiny_checkpoint(tmp_path / "plain", seed=3)
    draft = shutil.copytree(model / "dflash", tmp_path / "draft")
    code, out = doctor(capsys, plain, "--draft", draft)
    assert code == 0 and "draft logits      ok" in out and "greedy tokens equal plain decoding" in out
    config = draft / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"acceptance_length": 5.0}))
    code, out = doctor(capsys, model, "--draft", draft)  # before the model's own, which promises nothing
    assert code == 1 and "5.00 promised" in out
    code, out = doctor(capsys, plain, "--draft", tmp_path / "nowhere")
    assert code == 1 and "draft             FAILED" in out and "nowhere" in out
    with pytest.raises(SystemExit):
        main(["doctor", "--draft", str(draft)])
    assert "--draft needs MODEL" in capsys.readouterr().err


def test_a_draft_of_a_part_of_the_vocabulary_passes_and_says_so(model, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(_draft_check, "_MIN_ACCEPTANCE_LENGTH", 1.0)
    part = shutil.copytree(model, tmp_path / "part")
    write_tiny_draft(part, seed=4, draft_vocab_size=40, overwrite=True)
    code, out = doctor(capsys, part)
    assert code == 0 and "40 tokens" in out and "relative error" in out
    monkeypatch.setattr(_draft_check, "_MAX_RELATIVE_ERROR", 1e-9)
    code, out = doctor(capsys, part)
    assert code == 1 and "draft logits      FAILED" in out


def test_draft_logits_of_a_session(model):
    ids = list(range(1, 20))
    with mimo_rt.Session(model) as session, mimo_rt.Session(model, num_threads=1) as alone:
        block_size = session.engine.draft_config.block_size
        logits = session.draft_logits(ids)
        assert logits.shape == (block_size - 1, session.config.vocab_size)
        assert (logits == alone.draft_logits(ids)).all()
        assert (logits != session.draft_logits([7, *ids[1:]])).any()  # the context counts
        with pytest.raises(errors.InvalidArgumentError, match="at least one"):
            session.draft_logits([])
    with mimo_rt.Session(model, draft=None) as session, pytest.raises(errors.UnavailableError, match="draft"):
        session.draft_logits(ids)


def test_draft_arguments(model):
    with mimo_rt.Session(model, draft=os.fspath(model / "dflash")) as session:
        assert session.engine.draft_config is not None
        for arguments, needle in (
            ({"draft_mode": "sometimes"}, "draft_mode: expected 'off' or 'fixed' or 'adaptive'"),
            ({"draft_proposal": 1}, "draft_proposal"),
            ({"num_draft_tokens": 0}, "num_draft_tokens: expected an integer in 1..15"),
            ({"num_draft_tokens": 15}, "num_draft_tokens: expected 0..7"),
        ):
            with pytest.raises(errors.InvalidArgumentError, match=needle.replace(".", "[.]")):
                session.generate([1, 2], max_tokens=2, **arguments)
    with pytest.raises(errors.IoError, match="nowhere"):
        mimo_rt.Session(model, draft="/nowhere")
    with pytest.raises(errors.InvalidArgumentError, match="draft: expected"):
        mimo_rt.Session(model, draft=b"bytes")
