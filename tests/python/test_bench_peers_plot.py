"""bench/peers/plot.py: which lines of arena.py become bars, and that the committed ones can be drawn."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "bench" / "peers" / "plot.py"
sys.path.insert(0, str(SCRIPT.parent))
import peers  # noqa: E402
import plot  # noqa: E402

del sys.path[0]


def record(case, engine, ratio, model="m", **more):
    return {"case": f"peers/{case}/{engine}", "engine": engine, "model": model, "median_us": 1e4 * ratio,
            "over_mimo_rt": ratio, "over_mimo_rt_p10": ratio * 0.9, "over_mimo_rt_p90": ratio * 1.1,
            "machine": "M", "backend": "cpu-avx2", "date": "2026-01-01", **more}


def write(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def test_a_panel_for_every_file_and_model_of_what_was_timed(tmp_path):
    skipped = {"case": "peers/rows8/xllamacpp", "engine": "xllamacpp", "model": "m", "skipped": "one row only"}
    first = write(tmp_path / "a", [record("decode", "mimo_rt", 1), record("decode", "llama_cpp", 1.5), skipped,
                                   record("text8", "llama_cpp", 3), record("decode", "mimo_rt", 1, model="n")])
    second = write(tmp_path / "b", [record("rows8", "mimo_rt", 1), record("rows8", "ik_llama", 2),
                                    record("decode", "llama_cpp", 2, model="without ours")])
    panels = plot.read_panels([first, second])
    assert [[r["case"] for r in records] for _, records in panels] == [
        ["peers/decode/mimo_rt", "peers/decode/llama_cpp"], ["peers/decode/mimo_rt"],
        ["peers/rows8/mimo_rt", "peers/rows8/ik_llama"]]
    assert panels[1][0].startswith("n\nM, cpu-avx2")


def test_every_engine_of_the_arena_has_a_name():
    assert set(plot._NAMES) == set(peers.ENGINES) - {"mimo_rt", "mimo_rt_drafts"}


def test_the_committed_lines_can_be_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    records = sorted((ROOT / "bench" / "results").glob("*peers*.jsonl"))
    assert records
    out = tmp_path / "p.png"
    subprocess.run([sys.executable, SCRIPT, *records, "--out", out], check=True)
    assert out.read_bytes().startswith(b"\x89PNG")


def test_lines_without_times_are_an_error(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, write(tmp_path / "a", []), "--out", tmp_path / "p.png"],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "no line" in done.stderr
