"""bench/soak.py: a sound session passes, and whatever differs is seen."""

import json

import pytest
from mimo_rt import Session


@pytest.fixture
def script(load_bench_script):
    return load_bench_script("soak")


def run(script, capsys, *arguments):
    code = script.main(["--seed", "1", *arguments])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("num_threads", ["1", "3"])
def test_a_sound_session_passes(script, capsys, num_threads):
    code, record = run(script, capsys, "--seconds", "2", "--threads", num_threads)
    assert code == 0 and record["passed"] and not record["differences"]
    assert record["num_requests"] > record["num_cancelled"] > 0 and record["num_tokens"] > 0 and record["soak"] == "tiny"


@pytest.mark.parametrize("extra", [[], ["--draft", "ngram"], ["--draft", "none"]], ids=["draft", "lookups", "shared steps"])
def test_sound_sessions_pass_at_the_same_time(script, capsys, extra):
    code, record = run(script, capsys, "--seconds", "2", "--threads", "2", "--sessions", "5", *extra)
    assert code == 0 and record["passed"] and record["num_sessions"] == 5
    assert record["num_requests"] > record["num_cancelled"] > 0


def test_an_error_of_one_session_is_seen(script, capsys, monkeypatch, quiet_start):
    generate = script.Soak._whole

    def breaks(self, session, ids, arguments):
        if quiet_start:
            raise RuntimeError("broken")
        return generate(self, session, ids, arguments)

    breaks.__name__ = "_whole"
    monkeypatch.setattr(script.Soak, "_whole", breaks)
    code, record = run(script, capsys, "--seconds", "5", "--sessions", "2")
    assert code == 1 and any("RuntimeError: broken" in line for line in record["differences"])


@pytest.fixture
def quiet_start(script, monkeypatch):
    """What a request must give is written down before anything goes wrong."""
    begun = []
    run_soak = script.Soak.run
    monkeypatch.setattr(script.Soak, "run", lambda self, seconds: begun.append(True) or run_soak(self, seconds))
    return begun


def test_one_wrong_token_is_seen(script, capsys, monkeypatch, quiet_start):
    generate = script.Soak._whole

    def wrong(self, session, ids, arguments):
        token_ids = generate(self, session, ids, arguments)
        return (*token_ids[:-1], token_ids[-1] ^ 1) if quiet_start and arguments["draft_mode"] == "fixed" else token_ids

    wrong.__name__ = "_whole"
    monkeypatch.setattr(script.Soak, "_whole", wrong)
    code, record = run(script, capsys, "--seconds", "20")
    assert code == 1 and not record["passed"] and len(record["differences"]) == script.MAX_DIFFERENCES
    assert all("'fixed'" in line and "whole" in line for line in record["differences"])


def test_other_bits_of_logits_are_seen(script, capsys, monkeypatch, quiet_start):
    logits = Session.logits
    monkeypatch.setattr(Session, "logits",
                        lambda self, ids, **more: logits(self, ids, **more) * (1 + 1e-6 * bool(quiet_start)))
    code, record = run(script, capsys, "--seconds", "20")
    assert code == 1 and all("other bits" in line for line in record["differences"])
