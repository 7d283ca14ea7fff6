"""Drafts that are looked up in the text: which sessions have them, and that no text depends on it."""

import json

import pytest

from mimo_rt import Session, errors
from mimo_rt.checkpoints import write_tiny_draft

PROMPT = "a b c a b c a b c a b"
# Two tokens, so that about half of the drafts are right.
REPETITIVE = {"logit_bias": {40: 60.0, 41: 60.0}, "ignore_eos": True, "max_tokens": 120}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, write_model):
    return write_model(tmp_path_factory.mktemp("model") / "tiny", seed=3)


@pytest.fixture(scope="module")
def with_draft_model(tmp_path_factory, write_model):
    path = write_model(tmp_path_factory.mktemp("model") / "tiny", seed=3)
    write_tiny_draft(path, seed=2)
    return path


def test_a_model_without_a_draft_model_looks_up(model_dir):
    with Session(model_dir, num_threads=2) as session, Session(model_dir, draft=None) as plain:
        assert session.engine.max_draft_tokens == 7 and session.engine.draft_config is None
        assert plain.engine.max_draft_tokens == 0
        for temperature in (0.0, 0.8):
            arguments = {**REPETITIVE, "temperature": temperature, "seed": 4}
            expected = plain.generate(PROMPT, **arguments)
            assert expected.stats.draft.num_rounds == 0
            for mode in ("off", "fixed", "adaptive"):
                result = session.generate(PROMPT, draft_mode=mode, **arguments)
                assert result.token_ids == expected.token_ids and result.text == expected.text
                accepted = result.stats.draft.num_accepted_tokens
                assert result.stats.draft.num_rounds + accepted == 119
                assert accepted > 20 if mode == "fixed" else mode == "adaptive" or accepted == 0
            streamed = "".join(chunk.text for chunk in session.stream(PROMPT, **arguments))
            assert streamed == expected.text


def test_a_draft_model_is_preferred_and_can_be_left_out(with_draft_model):
    for draft, has_model, most in (("auto", True, 3), ("ngram", False, 7), (None, False, 0)):
        with Session(with_draft_model, draft=draft) as session:
            engine = session.engine
            assert (engine.draft_config is not None) == has_model
            assert engine.max_draft_tokens == (engine.draft_config.block_size - 1 if has_model else most)
            assert engine.draft_bytes_per_round > 0 if has_model else engine.draft_bytes_per_round == 0


@pytest.mark.cpu_only(reason="the reference runs on the CPU")
def test_the_reference_looks_up_when_it_is_told_to(model_dir):
    arguments = {**REPETITIVE, "temperature": 0.0, "max_tokens": 40, "draft_mode": "fixed"}
    with Session(model_dir, device="ref") as plain, Session(model_dir, device="ref", draft="ngram") as session:
        assert plain.engine.max_draft_tokens == 0 and session.engine.max_draft_tokens == 7
        result = session.generate(PROMPT, **arguments)
        assert result.token_ids == plain.generate(PROMPT, **arguments).token_ids
        assert result.stats.draft.num_accepted_tokens > 5


def test_every_result_carries_the_acceptance_record(model_dir):
    with Session(model_dir, num_threads=1) as session:
        result = session.generate(PROMPT, **REPETITIVE, temperature=0.0, draft_mode="fixed")
        record, draft = result.to_dict()["stats"]["draft"], result.stats.draft
        assert session.stats.to_dict()["last"]["draft"] == record == json.loads(json.dumps(draft.to_dict()))
    histogram = {int(n): count for n, count in record["acceptance_histogram"].items()}
    assert sum(histogram.values()) == record["num_spec_steps"] == draft.num_rounds
    num_accepted = sum(n * count for n, count in histogram.items())
    assert num_accepted == sum(record["accepted_at_pos"]) == record["num_accepted_draft_tokens"] > 20
    assert record["mean_acceptance_length"] == pytest.approx(1 + num_accepted / draft.num_rounds, abs=1e-4)
    assert 1 < record["mean_acceptance_length"] != pytest.approx(num_accepted / draft.num_rounds, abs=1e-4)  # control
    one_fact = {"acceptance_length", "acceptance_rate", "num_rounds", "num_accepted_tokens", "accepted_histogram"}
    assert not one_fact & record.keys()


def test_an_unknown_name_is_taken_for_a_directory(model_dir):
    with pytest.raises(errors.IoError, match="ngrams"):
        Session(model_dir, draft="ngrams")
