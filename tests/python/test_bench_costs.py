"""``mimo-rt bench costs``: the table is measured, kept and used."""

import json
import subprocess
import sys

import mimo_rt
import pytest
from mimo_rt import _C
from mimo_rt.checkpoints import write_tiny_checkpoint
from mimo_rt.cli import main as cli_main


def run_mimo_rt(*arguments, code=0):
    run = subprocess.run([sys.executable, "-m", "mimo_rt", *arguments], capture_output=True, text=True, timeout=300,
                         check=False)
    assert run.returncode == code, run.stderr
    assert "Traceback" not in run.stderr
    return run


def costs(*arguments, code=0):
    return run_mimo_rt("bench", "costs", *arguments, code=code)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MIMO_RT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_table_is_kept_used_and_forgotten(cache, tmp_path):
    record = json.loads(costs("--threads", "1", "--json").stdout)
    key = _C.cost_key(record["backend"], 1)
    assert (record["kernel_set"] or "") == key.kernel_set and record["device"] is None
    assert record["num_workers"] == 1 and _C.cost_key(record["backend"]).num_workers == _C.num_usable_cores()
    assert record["file"] == str(_C.cost_table_path(key)) and record["file"].startswith(str(cache))
    table = _C.load_cost_table(key)
    assert table.is_measured and table.edge_ns == 0  # one worker has nobody to wait for
    assert record["matrix_ns"]["bf16"] == table.matrix_ns[2]
    for times in record["matrix_ns"].values():
        assert len(times) == len(record["tokens"]) and all(ns > 0 for ns in times)

    model = write_tiny_checkpoint(tmp_path / "model")
    with mimo_rt.Session(model, device=record["backend"], num_threads=1) as session:
        assert session._engine.decode_plan.options.costs.is_measured
    with mimo_rt.Session(model, device="ref", num_threads=1) as session:
        assert not session._engine.decode_plan.options.costs.is_measured
    shown = json.loads(run_mimo_rt("plan", str(model), "--threads", "1", "--json").stdout)
    with mimo_rt.Session(model, device=record["backend"], num_threads=1) as session:
        assert shown["hash"] == f"{session._engine.decode_plan.hash():016x}"
    assert "removed" in costs("--threads", "1", "--forget").stdout
    with mimo_rt.Session(model, device=record["backend"], num_threads=1) as session:
        assert not session._engine.decode_plan.options.costs.is_measured
    assert "nothing to remove" in costs("--threads", "1", "--forget").stdout
    forgotten = json.loads(costs("--threads", "1", "--forget", "--json").stdout)
    assert forgotten == {"file": record["file"], "removed": False}


def test_broken_table_costs_no_answer(cache, tmp_path):
    model = write_tiny_checkpoint(tmp_path / "model")
    backend = _C.resolve_backend("cpu")
    path = _C.cost_table_path(_C.cost_key(backend, 1))
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    with mimo_rt.Session(model, device=backend, num_threads=1) as session:
        assert any("costs not used" in text and str(path) in text for text in session.notes)
        assert session.generate([1, 2, 3], max_tokens=2).token_ids
    with mimo_rt.Session(model, device=backend, num_threads=2) as session:
        assert not any("costs not used" in text for text in session.notes)  # control: another table


@pytest.mark.usefixtures("cache")
def test_plans_for_a_gpu_follow_its_table(tmp_path, capsys, monkeypatch):
    model = str(write_tiny_checkpoint(tmp_path / "model"))

    def planned(*arguments):
        assert cli_main(["plan", model, "--device", "cuda", "--workers", "4", "--json", *arguments]) == 0
        return json.loads(capsys.readouterr().out)

    plain = planned("--verify")  # no GPU is needed
    assert plain["num_workers"] == 4 and plain["verified"] and plain["round"]["verified"]
    prompts = planned("--max-tokens", "64", "--verify")
    assert prompts["hash"] != plain["hash"] and prompts["verified"]
    assert planned("--max-tokens", "4096")["hash"] == prompts["hash"]  # no step has more rows
    key = _C.CostKey(backend="cuda", num_workers=4, processor="a GPU")
    monkeypatch.setattr(_C, "cost_key", lambda device, num_workers: key)
    assert planned()["hash"] == plain["hash"]
    times = [[100.0] * len(_C.CostTable.tokens)] * len(_C.CostTable.formats)
    _C.save_cost_table(key, _C.CostTable(matrix_ns=times, edge_ns=1e4, edge_worker_ns=1e5))
    assert planned()["hash"] != plain["hash"]
    key.processor = "another GPU"
    assert planned()["hash"] == plain["hash"]


def test_a_gpu_that_is_not_there_is_named(cache, tmp_path):
    cuda = next(b for b in _C.list_backends() if b.name == "cuda")
    if cuda.available:
        pytest.skip("there is a GPU")
    assert "backend 'cuda'" in costs("--device", "cuda", code=1).stderr
    model = str(write_tiny_checkpoint(tmp_path / "model"))
    assert "backend 'cuda'" in run_mimo_rt("plan", model, "--device", "cuda", code=1).stderr
    assert "device" in run_mimo_rt("plan", model, "--device", "tpu", code=1).stderr


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(("arguments", "text"), [
    (["--device", "ref"], "CPU backend"),
    (["--device", "nonsense"], "nonsense"),
    (["--threads", "-1"], "-1"),
    (["--no-pin"], "--no-pin"),
])
def test_what_cannot_be_measured_is_refused(arguments, text):
    code = 2 if arguments == ["--no-pin"] else 1
    assert text in costs(*arguments, code=code).stderr
