"""`mimo-rt bench prompt`: a prompt beside a session that decodes."""

import json
from pathlib import Path

import pytest

from mimo_rt.bench import prompt_beside
from mimo_rt.bench.prompt_beside import DecodingSession
from mimo_rt.checkpoints import write_tiny_checkpoint
from mimo_rt.cli import main as cli_main
from mimo_rt.errors import MimoRtError
from mimo_rt.loading import open_engine


@pytest.fixture
def tiny_model(tmp_path):
    return str(write_tiny_checkpoint(tmp_path / "tiny"))


def test_a_prompt_beside_a_session_that_decodes(tiny_model, capsys):
    arguments = ["bench", "prompt", "--model", tiny_model, "--seconds", "0.1", "--threads", "1"]
    assert cli_main([*arguments, "--json"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["case"].startswith("prompt/") and line["tokens"] > 100
    assert line["over_alone"] > 0.3
    assert 0 < line["longest_wait_ms"] < 60_000
    assert cli_main(arguments) == 0
    assert "others wait ms" in capsys.readouterr().out


def test_an_error_of_the_decoding_session_is_raised(tiny_model, monkeypatch):
    engine = open_engine(Path(tiny_model), None, {"draft": "none", "num_threads": 1})
    monkeypatch.setattr(prompt_beside, "spread_prompt", lambda *_args, **_options: [-1])
    with pytest.raises(MimoRtError, match="-1"), DecodingSession(engine, 64):
        pass
