"""bench/gpu_bits.py without a GPU: it compares a CPU engine's runs, and sees one other bit or token."""

import json
import os

import numpy as np
import pytest
from mimo_rt import errors


@pytest.fixture
def script(load_bench_script):
    return load_bench_script("gpu_bits")


def run(script, capsys, *arguments):
    code = script.main(["--device", "cpu", "--threads", "1", *arguments])
    return code, json.loads(capsys.readouterr().out)


def test_equal_runs_pass(script, capsys, monkeypatch):
    monkeypatch.setenv(script.DELAY_SEED, "77")
    seeds = []

    class Session(script.Session):
        def __init__(self, *arguments, **options):
            seeds.append(os.environ[script.DELAY_SEED])
            super().__init__(*arguments, **options)

    monkeypatch.setattr(script, "Session", Session)
    code, record = run(script, capsys, "--runs", "2", "--delay-seeds", "0", "5", "--seconds", "0")
    assert code == 0 and record["passed"] and record["has_draft"] and record["bits"] == "tiny"
    assert seeds == ["0", "5"] and os.environ[script.DELAY_SEED] == "77"
    assert record["num_runs"] == [1, 1] and record["num_left"] > 0  # no time for a second one
    assert record["num_compared"] == 2 * (len(script.STEP_ROWS) + 5)


def test_an_engine_of_small_steps_is_asked_for_no_more(script, capsys, monkeypatch):
    class Session(script.Session):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, prefill_chunk_tokens=8, max_decode_tokens=8, **options)

    monkeypatch.setattr(script, "Session", Session)
    code, record = run(script, capsys, "--runs", "1", "--delay-seeds", "0")
    assert code == 0 and record["step_rows"] == [1, 8] and record["num_compared"] == 2 + 5
    with script.tempfile.TemporaryDirectory() as parent:  # control: more are refused
        model = script.write_tiny_checkpoint(script.pathlib.Path(parent) / "tiny", seed=1)
        with Session(model, device="cpu") as session, pytest.raises(errors.InvalidArgumentError, match="step_tokens"):
            session.logits([1, 2], step_tokens=9)


def test_one_other_bit_is_seen(script, capsys, monkeypatch):
    class Session(script.Session):
        def logits(self, ids, *, step_tokens=0):
            logits = super().logits(ids, step_tokens=step_tokens).copy()
            if step_tokens == 8:
                logits.view(np.uint32)[40, 7] ^= 1
            return logits

    monkeypatch.setattr(script, "Session", Session)
    code, record = run(script, capsys, "--runs", "1", "--delay-seeds", "3")
    assert code == 1 and not record["passed"]
    assert record["differences"] == ["delay seed 3, run 0, logits in steps of 8: other bits from row 40 on"]


def the_difference(script, capsys):
    """What differs in one run without delays."""
    code, record = run(script, capsys, "--runs", "1", "--delay-seeds", "0")
    assert code == 1 and len(record["differences"]) == 1
    return record["differences"][0]


def test_one_other_token_is_seen(script, capsys, monkeypatch):
    class Session(script.Session):
        def generate(self, ids, **options):
            result = super().generate(ids, **options)
            if options["max_tokens"] == script.PIECE:
                result.token_ids[2] ^= 1
            return result

    monkeypatch.setattr(script, "Session", Session)
    assert the_difference(script, capsys).startswith("delay seed 0, run 0, in pieces: token 2 is ")


def test_one_other_token_of_an_event_is_seen(script, capsys, monkeypatch):
    class Session(script.Session):
        def stream(self, ids, **options):
            for place, event in enumerate(super().stream(ids, **options)):
                if place == 1:
                    event.token_ids[0] ^= 1
                yield event

    monkeypatch.setattr(script, "Session", Session)
    assert the_difference(script, capsys).startswith("delay seed 0, run 0, in events: token 1 is ")


def test_without_a_gpu_it_says_why(script):
    from mimo_rt import list_backends

    (cuda,) = [b for b in list_backends() if b.name == "cuda"]
    if cuda.available:
        pytest.skip("there is a GPU")
    with pytest.raises(errors.UnavailableError, match="backend 'cuda'"):
        script.main(["--runs", "1"])
