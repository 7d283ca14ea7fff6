"""`mimo-rt bench startup`: stages of fresh processes, and a page cache that is really cold."""

import json
import os

import pytest

from mimo_rt import _C
from mimo_rt.bench import startup
from mimo_rt.checkpoints import write_tiny_checkpoint
from mimo_rt.cli import main as cli_main
from mimo_rt.errors import MimoRtError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


def test_stages_are_the_gaps_between_stamps():
    assert startup.stage_times(10**9, [2 * 10**9, 2 * 10**9 + 5, 4 * 10**9, 8 * 10**9]) == pytest.approx(
        (1.0, 5e-9, 2.0, 4.0))
    runs = startup.StartupTimes("warm", ((1.0, 2.0, 3.0, 4.0), (2.0, 2.0, 3.0, 4.0)))
    assert runs.stage_s("total") == [10.0, 11.0] and runs.stage_s("process") == [1.0, 2.0]
    assert [r["case"].split("/")[-1] for r in runs.records()] == [*startup.STAGES, "total"]


def test_pages_are_dropped_or_it_says_why(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(1 << 20))
    path.read_bytes()
    resident, pages = startup.resident_pages(path)
    assert resident == pages == 256  # control: just read
    reason = startup.drop_pages(tmp_path)
    left = startup.resident_pages(path)[0]
    assert (left <= 0.01 * pages) if reason is None else f"{left} of" in reason


def test_startup_command(capsys, model):
    arguments = ["bench", "startup", "--model", str(model), "--runs", "1", "--threads", "1"]
    assert cli_main([*arguments, "--json"]) == 0
    lines = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    warm = {line["case"]: line["median_us"] for line in lines if line["cache"] == "warm"}
    stages = [warm[f"startup/warm/{stage}"] for stage in startup.STAGES]
    assert all(stage > 0 for stage in stages)
    assert warm["startup/warm/total"] == pytest.approx(sum(stages), rel=1e-3)
    assert {"commit", "machine", "repeat"} <= set(lines[0])
    (cold, *_) = [line for line in lines if line["cache"] == "cold"]
    assert cold.get("median_us") or cold["skipped"]
    assert cli_main([*arguments, "--warm-only"]) == 0
    shown = capsys.readouterr().out
    assert "first_token ms" in shown and "cold" not in shown


def test_first_starts_write_a_packed_cache_of_their_own(capsys, model, tmp_path):
    directory = tmp_path / "packed"
    arguments = ["bench", "startup", "--model", str(model), "--runs", "2", "--threads", "1", "--warm-only"]
    assert cli_main([*arguments, "--json", "--packed-cache", str(directory)]) == 0
    lines = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    first = {line["case"]: line for line in lines if line["cache"] == "first"}
    assert first["startup/first/total"]["n"] == 2 and first["startup/first/open"]["median_us"] > 0
    assert len(_C.list_packed_cache(directory)) == 1 and not list(directory.glob("startup-*"))
    assert cli_main(arguments) == 0
    assert "\nfirst " not in capsys.readouterr().out  # control: no packed cache


def test_a_cache_that_stays_warm_is_no_cold_run(capsys, monkeypatch, model):
    monkeypatch.setattr(startup, "drop_pages", lambda *_: "7 of 8 pages stayed in the page cache")
    assert cli_main(["bench", "startup", "--model", str(model), "--runs", "1", "--threads", "1"]) == 0
    assert "cold: skipped (7 of 8 pages" in capsys.readouterr().out


def test_a_process_that_fails_is_reported(tmp_path):
    with pytest.raises(MimoRtError, match="config.json"):
        startup.start_once(tmp_path, {})
