"""The command `mimo-rt`, run as a process."""

import argparse
import json
import pathlib
import re
import signal
import subprocess
import threading
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

import mimo_rt
from mimo_rt.checkpoints import write_tiny_checkpoint
from mimo_rt.cli import doctor, inspect
from mimo_rt.cli._options import add_engine_options, engine_arguments
from mimo_rt.loading import engine_options

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
COMMAND = [sys.executable, "-m", "mimo_rt"]
FAST = ("--threads", "1", "--quiet")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny"
    return str(write_tiny_checkpoint(path, seed=6, max_position_embeddings=200_000))


def cli(*arguments, stdin="", code=0):
    run = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=stdin, capture_output=True, text=True, timeout=120, errors="replace",
    )
    assert run.returncode == code, f"exit code {run.returncode}\n{run.stdout}\n{run.stderr}"
    assert "Traceback" not in run.stderr
    return run


# -- generate


def test_generate_streams_what_the_session_generates(model):
    options = ("-n", 12, "--temperature", 0, "--ignore-eos")
    with mimo_rt.Session(model, num_threads=1) as session:
        expected = session.generate("Hello", max_tokens=12, temperature=0.0, ignore_eos=True)
    run = cli("generate", model, "-p", "Hello", *options, "--threads", 1)
    # Text mode turns what is not UTF-8 text or "\r" into other characters on its way here.
    assert run.stdout.split() == expected.text.split()
    assert "output tokens" in run.stderr and "seed" in run.stderr
    assert run.stderr.count("\n") == 1  # no progress line: stderr is not a terminal
    record = json.loads(cli("generate", model, "-p", "Hello", *options, *FAST, "--json").stdout)
    assert record["token_ids"] == expected.token_ids and record["text"] == expected.text
    assert record["usage"]["completion_tokens"] == 12 and record["backend"].startswith("cpu-")
    assert record["stats"]["draft"].keys() == expected.stats.draft.to_dict().keys()
    other = json.loads(cli("generate", model, "-p", "Hallo", *options, *FAST, "--json").stdout)
    assert other["token_ids"] != expected.token_ids


def test_where_the_prompt_comes_from(model, tmp_path):
    (tmp_path / "prompt.txt").write_text("Hello")
    tail = ("-n", 4, "--seed", 1, "--json", *FAST)
    ids = ",".join(map(str, b"Hello"))
    outputs = {
        json.dumps(json.loads(run.stdout)["token_ids"])
        for run in (
            cli("generate", model, "-p", "Hello", *tail),
            cli("generate", model, "-f", tmp_path / "prompt.txt", *tail),
            cli("generate", model, "-f", "-", *tail, stdin="Hello"),
            cli("generate", model, *tail, stdin="Hello"),
            cli("generate", model, "--prompt-ids", ids, *tail),
        )
    }
    assert len(outputs) == 1
    chat = json.loads(cli("generate", model, "-p", "Hello", "--chat", *tail).stdout)
    assert chat["usage"]["prompt_tokens"] > len("Hello")


def test_weights_can_be_read_instead_of_mapped(model):
    tail = ("-p", "Hello", "-n", 4, "--seed", 1, "--json", *FAST)
    mapped = json.loads(cli("generate", model, *tail).stdout)
    read = json.loads(cli("generate", model, "--no-mmap", *tail).stdout)
    assert read["token_ids"] == mapped["token_ids"]
    parser = argparse.ArgumentParser()
    add_engine_options(parser)
    for flags, expected in (((), True), (("--no-mmap",), False)):
        options = engine_options(**engine_arguments(parser.parse_args(flags)))
        assert options.use_mmap is expected
    with mimo_rt.Session(model, num_threads=1, use_mmap=False) as session:
        assert session.generate("Hello", max_tokens=4, seed=1).token_ids == mapped["token_ids"]


def test_sampling_flags_reach_the_engine(model):
    head = ("generate", model, "-p", "x", "--json", *FAST)
    record = json.loads(cli(*head, "-n", 3, "--logprobs", 2, "--seed", 7).stdout)
    assert record["seed"] == 7 and len(record["logprobs"][0]["alternatives"]) == 2
    stop_id = record["token_ids"][0]
    record = json.loads(cli(*head, "--seed", 7, "--stop-token-id", stop_id).stdout)
    assert record["stop_reason"] == stop_id and len(record["token_ids"]) == 1


# -- errors


@pytest.mark.parametrize(
    ("arguments", "code", "needle"),
    [
        ((), 2, "COMMAND"),
        (("generate",), 2, "MODEL"),
        (("generate", "MODEL", "-p", "x", "--bogus"), 2, "--bogus"),
        (("generate", "MODEL", "-p", "x", "-f", "y"), 2, "not allowed"),
        (("bench", "nothing"), 2, "invalid choice"),
        (("generate", "absent", "-p", "x"), 1, "absent"),
        (("generate", "MODEL", "-p", "x", "--top-p", "3"), 1, r"top_p: expected"),
        (("generate", "MODEL", "-p", ""), 1, "at least one token"),
        (("generate", "MODEL", "--prompt-ids", "1,a"), 1, "expected integers"),
        (("generate", "MODEL", "-p", "x", "--device", "abacus"), 1, "abacus"),
        (("generate", "MODEL", "-p", "x", "--threads", "0"), 1, "num_threads: expected"),
        (("inspect", "absent"), 1, "absent"),
        (("plan", "absent.json"), 1, "absent.json"),
        (("bench", "decode", "--seconds", "nan"), 1, "--seconds"),
        (("bench", "decode", "--layers", "0"), 1, "--layers"),
    ],
)
def test_errors_are_one_line_and_have_codes(model, arguments, code, needle):
    run = cli(*(model if a == "MODEL" else a for a in arguments), code=code)
    assert needle in run.stderr and run.stdout == ""
    if code == 1:
        assert run.stderr.startswith("mimo-rt: error: ") and run.stderr.count("\n") == 1


def test_debug_shows_the_traceback(tmp_path):
    run = subprocess.run(
        [*COMMAND, "inspect", tmp_path, "--debug"], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 1 and "Traceback" in run.stderr
    cli("inspect", "--", "--debug", code=1)  # the name of a model: no traceback


@pytest.fixture
def start():
    """Starts a command that Ctrl-C reaches even where the test runner ignores it (as shells do in the background),
    and kills it after a minute, so that a fault fails the test and never hangs it."""
    started = []

    def launch(*arguments, **options):
        process = subprocess.Popen(
            [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        killer = threading.Timer(60, process.kill)
        killer.start()
        started.append((process, killer))
        return process

    yield launch
    for process, killer in started:
        killer.cancel()
        process.kill()
        process.wait()


def test_ctrl_c_exits_with_130(model, start):
    process = start("generate", model, "-p", "x", "--ignore-eos", "--max-context", "200000", *FAST)
    assert process.stdout.read(20)  # it is running
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert time.monotonic() - begin < 10
    assert errors.decode().strip() == "mimo-rt: interrupted"


def test_a_closed_pipe_is_no_error(model, start):
    process = start("generate", model, "-p", "x", "--ignore-eos", "--max-context", "200000", *FAST)
    assert process.stdout.read(10)
    process.stdout.close()
    errors = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(timeout=30) == 0
    assert errors == ""


# -- chat


def test_chat_keeps_the_conversation(model):
    run = cli("chat", model, "-n", 6, "--seed", 1, "--threads", 1,
              stdin="hi\nagain\n/reset\nhi\n/exit\nnot read\n")
    stats = [line for line in run.stderr.splitlines() if "prompt tokens" in line]
    prompts = [int(line.split("; ")[1].split()[0]) for line in stats]
    assert len(prompts) == 3
    assert prompts[1] > prompts[0] == prompts[2]  # history, then none
    assert "conversation forgotten" in run.stderr


def test_chat_survives_a_full_context(model):
    run = cli("chat", model, "-n", 6, "--max-context", 64, "--threads", 1,
              stdin=f"{'long ' * 40}\nhi\n")
    assert "[error: " in run.stderr and "output tokens" in run.stderr


def test_chat_without_template(model, tmp_path):
    path = write_tiny_checkpoint(tmp_path / "plain", tokenizer=False)
    assert "chat_template" in cli("chat", path, *FAST, stdin="hi\n", code=1).stderr


def test_ctrl_c_in_chat_cancels_the_answer_only(model, start):
    process = start("chat", model, "--ignore-eos", "--max-context", "200000", *FAST, stdin=subprocess.PIPE, bufsize=0)
    process.stdin.write(b"hi\n")
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    while b"[cancelled]" not in (line := process.stderr.readline()):
        assert line, "the process ended"
    process.stdin.write(b"/reset\n/exit\n")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert b"conversation forgotten" in errors


# -- inspect, plan


def test_inspect(model):
    run = cli("inspect", model, "--check", "--tensors")
    for needle in ("mimo_v2", "experts", "mxfp4", "fp8_e4m3", "model.norm.weight", "finite"):
        assert needle in run.stdout
    record = json.loads(cli("inspect", model, "--json", "--tensors").stdout)
    assert record["num_tensors"] == len(record["tensors"]) > 100
    assert record["num_bytes"] == sum(tensor["num_bytes"] for tensor in record["tensors"])
    assert record["config"]["expert_format"] == "mxfp4"
    assert len(record["config"]["layers"]) == record["config"]["num_layers"]


def test_inspect_shows_the_end_tokens_of_all_files(tmp_path):
    path = write_tiny_checkpoint(tmp_path / "tiny")  # its tokenizer's is 258
    for name, ids in (("config", [7]), ("generation_config", 9)):
        file = path / f"{name}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": ids}))
    assert re.search(r"end tokens +7 9 258\n", cli("inspect", path).stdout)
    record = json.loads(cli("inspect", path, "--json").stdout)
    assert (record["eos_token_ids"], record["config"]["eos_token_ids"]) == ([7, 9, 258], [7, 9])


def test_inspect_names_what_text_does_not_need():
    names = ["visual.blocks.0.attn.qkv_proj.weight", "audio_encoder.layers.0.mlp.gate_proj.weight",
             "speech_embeddings.0.weight", "model.mtp.layers.0.mlp.gate_proj.weight",
             "model.layers.0.mlp.gate_proj.weight"]
    tensors = [SimpleNamespace(name=n, dtype="bf16", num_bytes=2, file_name="f") for n in names]
    groups = {row[0]: row[1] for row in inspect._group_table(tensors)[0]}
    assert groups == {"mtp (unused)": 1, "vision (unused)": 1, "audio (unused)": 2, "dense mlp": 1,
                      "all, in 1 file(s)": 5}


@pytest.mark.parametrize(
    ("suffix", "value"),
    [(".weight_scale", b"\xff"), (".weight_scale_inv", b"\x00\x00\xc0\x7f")],
    ids=["e8m0", "f32"],
)
def test_inspect_finds_bad_scales(tmp_path, suffix, value):
    path = write_tiny_checkpoint(tmp_path / "tiny")
    file = path / "model.safetensors"
    data = bytearray(file.read_bytes())
    header_bytes = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + header_bytes])
    name = sorted(name for name in header if name.endswith(suffix))[-1]
    begin = 8 + header_bytes + header[name]["data_offsets"][0]
    cli("inspect", path, "--check")  # the untouched file passes
    data[begin + 4 : begin + 4 + len(value)] = value
    file.write_bytes(data)
    run = cli("inspect", path, "--check", code=1)
    assert name in run.stderr and "element" in run.stderr
    cli("inspect", path)  # without --check only headers are read


def test_plan_of_a_model(model, tmp_path):
    run = cli("plan", model, "--workers", 3, "--max-tokens", 4, "--verify", "--dump")
    assert "without deadlock" in run.stdout and "expert_down" in run.stdout
    assert "deadlock" not in cli("plan", model).stdout
    record = json.loads(cli("plan", model, "--workers", 3, "--json", "--verify").stdout)
    assert record["num_workers"] == 3 and record["verified"]["num_tasks"] == record["num_tasks"] > 0
    again = json.loads(cli("plan", model, "--workers", 3, "--json").stdout)
    other = json.loads(cli("plan", model, "--workers", 2, "--json").stdout)
    assert again["hash"] == record["hash"] != other["hash"]


def test_plan_trace(model, tmp_path):
    trace = tmp_path / "trace.json"
    run = cli("plan", model, "--workers", 2, "--trace", trace)
    assert "seen late" in run.stdout and "unexplained: between tasks" in run.stdout
    events = json.loads(trace.read_text())
    events = events["traceEvents"] if isinstance(events, dict) else events
    assert sum(event.get("ph") == "X" for event in events) > 10


def test_plan_of_a_config_without_weights():
    config = GOLDEN / "mimo_v2_5_pro_fp4_config.json"
    run = cli("plan", config, "--workers", 132, "--max-tokens", 8)
    assert "70 layers" in run.stdout
    assert "weights" in cli("plan", config, "--workers", 1, "--trace", "x", code=1).stderr


# -- bench, doctor


def test_bench_prints_bytes_and_the_command(model):
    head = ("--model", model, "--seconds", 0.2, "--threads", 1)
    run = cli("bench", "decode", *head)
    for needle in ("median ms", "%bandwidth", "decode/ctx16/1", "decode/ctx0/8", "measured",
                   f"repeat: mimo-rt bench decode --model {model}"):
        assert needle in run.stdout
    lines = cli("bench", "prefill", *head, "--json").stdout.splitlines()
    prefill, decode = map(json.loads, lines)
    assert prefill["case"] == "prefill/512" and decode["case"] == "decode/ctx16/1"
    ratio = prefill["tokens_per_s"] / decode["tokens_per_s"]
    assert prefill["prefill_over_decode"] == pytest.approx(ratio, rel=0.01)
    for record in (prefill, decode):
        assert record["p10_us"] <= record["median_us"] <= record["p90_us"] and record["n"] >= 3
        gbs = record["bytes"] / record["median_us"] / 1e3
        assert record["gbs"] == pytest.approx(gbs, rel=0.01, abs=2e-3)
        assert {"commit", "dirty", "machine", "date", "repeat", "bandwidth_gbs"} <= set(record)
    run = cli("bench", "bandwidth", "--model", model, "--threads", 1, "--json")
    (record,) = map(json.loads, run.stdout.splitlines())
    assert record["bandwidth_gbs"] >= record["low_gbs"] > 0
    assert "breakdown" not in decode
    traced = cli("bench", "decode", *head, "--breakdown", "--json").stdout.splitlines()[0]
    parts = json.loads(traced)["breakdown"]
    assert parts["step_us"] > parts["busy_us"][0]["lm_head"] > 0 and parts["host_us"] is not None
    assert "seen late" in cli("bench", "decode", *head, "--breakdown").stdout


def test_bench_of_random_weights():
    num_threads = mimo_rt._C.num_usable_cores() + 1
    run = cli("bench", "decode", "--layers", 2, "--seconds", 0.1, "--threads", num_threads, "--json")
    assert f"{num_threads} workers share" in run.stderr
    record = json.loads(run.stdout.splitlines()[0])
    # At least the experts of one layer and lm_head: 4 of 3.3 MB in MXFP4, 134 MB in BF16.
    assert record["model"] == "synthetic-2" and record["bytes"] > 145e6


def test_doctor(model, tmp_path):
    run = cli("doctor", model, "--threads", 1)
    for needle in ("usable cores", "huge pages", "tokenizers", "self-test", "cuda", "ok: ",
                   "all checks passed"):
        assert needle in run.stdout
    broken = write_tiny_checkpoint(tmp_path / "tiny")
    (broken / "config.json").write_text("{}")
    run = cli("doctor", broken, "--threads", 1, code=1)
    assert "FAILED (bad_format)" in run.stdout and "FAILED: config" in run.stdout


def test_the_bound_of_the_self_test_sees_one_key_less(tmp_path):
    path = write_tiny_checkpoint(tmp_path / "tiny", seed=1)
    ids = list(range(1, 25))
    with mimo_rt.Session(path, device="ref") as session:
        expected = session.logits(ids)
    errors = []
    for window_tokens in (8, 7):
        with mimo_rt.Session(path, num_threads=1, window_tokens=window_tokens) as session:
            difference = session.logits(ids) - expected
        errors.append(np.linalg.norm(difference) / np.linalg.norm(expected))
    assert errors[0] < doctor._MAX_RELATIVE_ERROR < errors[1]


def test_console_script_is_declared():
    assert mimo_rt.__version__ in cli("--version").stdout
