"""The command `mimo-rt` used in odd ways: useless options, closed streams, unreadable files, early errors."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import types

import pytest

import mimo_rt
from mimo_rt import _C
from mimo_rt.checkpoints import write_tiny_checkpoint
from mimo_rt.checkpoints.draft import write_tiny_draft
from mimo_rt.cli import _machine, _output, chat, doctor
from mimo_rt.cli import main as cli_main
from mimo_rt.cli import plan as plan_command

COMMAND = [sys.executable, "-m", "mimo_rt"]
FAST = ("--threads", "1", "--quiet")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny", seed=6))


@pytest.fixture
def never_loads(monkeypatch):
    """The weights are not read."""

    def fail(*_arguments):
        raise AssertionError("the engine was opened")

    monkeypatch.setattr(_C, "Engine", type("Engine", (), {"open": fail, "synthetic": fail}))


def run_here(capsys, *arguments):
    """Exit code and stderr of a command, in this process."""
    try:
        code = cli_main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        code = exit_.code
    return code, capsys.readouterr().err


# -- options that would be ignored


@pytest.mark.parametrize(
    ("arguments", "needle"),
    [
        (("generate", "m", "-p", "x", "--system", "s"), "--system needs --chat"),
        (("generate", "m", "-p", "x", "--logprobs", "2"), "--logprobs needs --json"),
        (("chat", "m", "--logprobs", "2"), "unrecognized arguments: --logprobs"),
        (("plan", "m", "--workers", "2", "--threads", "2"), "give one"),
        (("plan", "m", "--no-pin"), "need --trace"),
        (("bench", "decode", "--model", "m", "--layers", "3"), "--layers"),
        (("plan", "m", "--no-mmap"), "need --trace"),
        (("plan", "m", "--json", "--dump"), "--dump"),
        (("doctor", "--window-tokens", "128"), "unrecognized arguments: --window-tokens"),
        (("bench", "decode", "--no-mmap"), "need --model"),
        (("bench", "decode", "--window-tokens", "128"), "need --model"),
        (("bench", "bandwidth", "--layers", "3"), "--layers"),
        (("bench", "bandwidth", "--context", "3"), "--context"),
        (("bench", "bandwidth", "--seconds", "3"), "--seconds"),
        (("bench", "bandwidth", "--window-tokens", "3"), "--window-tokens"),
        (("bench", "bandwidth", "--activations", "int8"), "--activations means nothing here"),
        (("bench", "acceptance", "--adversarial", "--draft", "dir"), "need --model"),
        (("bench", "acceptance", "--adversarial", "--draft", "none"), "need --model"),
        (("bench", "acceptance", "--adversarial", "--packed-cache", "auto"), "need --model"),
        (("bench", "acceptance", "--adversarial", "--no-mmap"), "need --model"),
        (("bench", "acceptance", "--adversarial", "--window-tokens", "128"), "need --model"),
        (("kbench", "edges", "--tokens", "8"), "--tokens means nothing for edges"),
        (("plan", "m", "--trace", ""), "--trace: expected a file, got ''"),
        (("bench", "verify", "--rows", "5-2"), "expected numbers like 1-8,16, got '5-2'"),
        (("train", "generate", "m", "d", "--seed", "-1"), "--seed: expected a number in 0..2**63-1"),
    ],
)
def test_options_without_effect_are_wrong_usage(capsys, arguments, needle):
    code, errors = run_here(capsys, *arguments)
    assert code == 2 and needle in errors


def test_demo_help_names_its_own_default(capsys):
    with pytest.raises(SystemExit):
        cli_main(["demo", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "upper limit (default: 256)" in shown and "until a stop" not in shown


# -- errors come before the weights are loaded


@pytest.mark.parametrize(
    ("arguments", "needle"),
    [
        (("generate", "MODEL", "-p", "x", "--max-context", "100000"), "max_position_embeddings"),
        (("generate", "MODEL", "-p", "x" * 200, "--max-context", "100"), "Raise --max-context"),
        (("generate", "MODEL", "-p", "x", "--max-context", "-5"), "max_context: expected an integer in 1.."),
        (("generate", "MODEL", "--prompt-ids", "1,999999"), "expected ids in 0..514"),
        (("generate", "MODEL", "-p", ""), "at least one token"),
        (("generate", "MODEL", "-p", "x", "--stop-token-id", "515"), "stop_token_ids: expected"),
        (("plan", "MODEL", "--trace", "absent/x.json"), "--trace: expected a file"),
        (("plan", "MODEL", "--workers", "0"), "--workers: expected an integer in 1..4096"),
        (("plan", "MODEL", "--max-tokens", "4097"), "--max-tokens: expected"),
        (("bench", "decode", "--plot", "absent/x.png"), "--plot: expected a file that can be written"),
        (("bench", "decode", "--plot", "x.png", "--kernels", "absent.jsonl"), "absent.jsonl"),
        (("bench", "plot", "-o", "absent/x.png", "a.jsonl"), "--output: expected a file that can"),
        (("generate", "MODEL", "-f", "/dev/zero"), "/dev/zero: expected at most"),
        (("generate", "", "-p", "x"), "model: expected a directory, got ''"),
        (("inspect", ""), "model: expected a directory, got ''"),
    ],
)
def test_cheap_errors_come_first(capsys, model, never_loads, arguments, needle):
    code, errors = run_here(capsys, *(model if a == "MODEL" else a for a in arguments))
    assert code == 1 and needle in errors and errors.count("\n") == 1


@pytest.mark.parametrize("name", ["x", "x.nothing"])
def test_a_picture_of_no_format_is_told_first(capsys, never_loads, name):
    pytest.importorskip("matplotlib")
    code, errors = run_here(capsys, "bench", "decode", "--plot", name)
    assert code == 1 and "expected a file name that ends in ." in errors and ".png" in errors


def test_the_guard_of_these_tests_sees_a_load(capsys, model, never_loads):
    code, errors = run_here(capsys, "generate", model, "-p", "x", *FAST)
    assert code == 1 and "the engine was opened" in errors


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_broken_tokenizer_is_told_before_loading(capsys, tmp_path, never_loads, text):
    path = write_tiny_checkpoint(tmp_path / "tiny")
    (path / "tokenizer.json").write_text(text)
    code, errors = run_here(capsys, "generate", path, "--prompt-ids", "1")
    assert code == 1 and "tokenizer.json" in errors and "opened" not in errors


def test_a_prompt_that_is_no_utf8_names_its_file(capsys, model, tmp_path):
    (tmp_path / "prompt.txt").write_bytes(b"ab\xff")
    code, errors = run_here(capsys, "generate", model, "-f", tmp_path / "prompt.txt", *FAST)
    assert code == 1 and "prompt.txt" in errors and "byte 0xff at 2" in errors
    code, errors = run_here(capsys, "generate", model, "-f", tmp_path / "absent.txt", *FAST)
    assert code == 1 and "absent.txt" in errors


def test_stop_strings_without_a_tokenizer_are_told_before_loading(capsys, tmp_path, never_loads):
    path = write_tiny_checkpoint(tmp_path / "tiny", tokenizer=False)
    code, errors = run_here(capsys, "generate", path, "--prompt-ids", "1", "--stop", "x")
    assert code == 1 and "stop: stop strings need" in errors


def test_bench_context_is_checked_against_the_model(capsys, model):
    code, errors = run_here(capsys, "bench", "decode", "--model", model, "--context", "900000",
                            "--threads", "1")
    assert code == 1 and "--context: expected" in errors


# -- standard streams


@pytest.mark.parametrize("closing", ["", ">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_closed_standard_streams(model, closing):
    head = " ".join(COMMAND)
    run = subprocess.run(
        ["sh", "-c", f"{head} generate {model} -p Hi -n 4 --temperature 0 --threads 1 {closing}"],
        capture_output=True, timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert b"Traceback" not in run.stderr
    assert bool(run.stdout) == (" >&-" not in f" {closing}"), "the text goes to stdout if there is one"
    run = subprocess.run(
        ["sh", "-c", f"{head} generate {model} {closing}"], capture_output=True, timeout=120,
        input=b"" if "<" not in closing else None,
    )
    assert run.returncode == 1 and b"Traceback" not in run.stderr  # an empty prompt


@pytest.mark.parametrize(
    "arguments", [["--cmake-dir"], ["--help"], ["--version"], ["inspect", "MODEL"], ["plan", "MODEL", "--dump"]]
)
def test_a_full_disk_behind_stdout_is_one_line(model, arguments):
    command = [*COMMAND, *(model if a == "MODEL" else a for a in arguments)]
    for unbuffered in ("", "1"):  # the error comes at the end, or at once
        environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
        with open("/dev/full", "w") as full:
            run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, env=environment)
        assert run.returncode == 1
        assert run.stderr.startswith("mimo-rt: error:") and "No space left" in run.stderr
        assert run.stderr.count("\n") == 1


def test_ctrl_c_with_a_full_disk_behind_stdout_exits_with_130():
    script = (
        "import sys; from mimo_rt import cli\n"
        "def run(*_):\n  print('kept in the buffer')\n  raise KeyboardInterrupt\n"
        "cli._run = run\nsys.exit(cli.main([]))"
    )
    environment = os.environ | {"PYTHONUNBUFFERED": ""}
    with open("/dev/full", "w") as full:
        run = subprocess.run([sys.executable, "-c", script], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60,
                             env=environment)
    assert run.returncode == 130 and run.stderr.strip() == "mimo-rt: interrupted"


def test_paths_that_are_no_utf8(model, tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff-model"
    shutil.copytree(model, os.fsdecode(path))
    run = subprocess.run([*COMMAND, "inspect", path], capture_output=True, timeout=120)
    assert run.returncode == 0, run.stderr
    os.unlink(path + b"/config.json")
    run = subprocess.run([*COMMAND, "inspect", path], capture_output=True, timeout=120)
    assert run.returncode == 1 and b"Unicode" not in run.stderr
    assert b"-model" in run.stderr and b"xff" in run.stderr and run.stderr.count(b"\n") == 1


def test_draft_and_cache_at_paths_that_are_no_utf8(model, tmp_path):
    """As arguments of the command and of a session: loaded, found again, named in errors."""
    path = os.fsencode(tmp_path) + b"/\xff"
    shutil.copytree(model, os.fsdecode(path))
    cache = path + b"/cache"
    command = [*COMMAND, "generate", path, "--prompt-ids", "1,2", "-n", "2", "--packed-cache", cache, *FAST]
    for _ in range(2):
        run = subprocess.run(command, capture_output=True, timeout=120)
        assert run.returncode == 0 and b"packed cache" not in run.stderr, run.stderr
    with mimo_rt.Session(os.fsdecode(path), num_threads=1, packed_cache=os.fsdecode(cache)) as session:
        (report,) = session.engine.packed_cache
        assert report.state == "hit" and os.fsencode(report.file).startswith(cache)
        assert session.engine.options.packed_cache == os.fsdecode(cache)
    run = subprocess.run([*COMMAND, "cache", "list", "--json", "--packed-cache", cache], capture_output=True, timeout=120)
    (entry,) = json.loads(run.stdout)["files"]
    assert entry["part"] == "target"
    draft = path + b"/draft"
    shutil.move(write_tiny_draft(os.fsdecode(path)), os.fsdecode(draft))
    with mimo_rt.Session(model, num_threads=1, draft=os.fsdecode(draft)) as session:
        assert session.engine.draft_config is not None
        assert session.engine.options.draft == os.fsdecode(draft)
    with pytest.raises(_C.IoError, match=r"xff/absent"):
        mimo_rt.Session(model, draft=os.fsdecode(path + b"/absent"))
    for name in ("draft", "packed_cache"):
        for text in ("\ud800", "a\0b"):  # no path has it
            with pytest.raises(_C.InvalidArgumentError, match=rf"{name}: expected .* got {re.escape(repr(text))}"):
                mimo_rt.Session(model, **{name: text})


# -- plan, doctor, bench


def test_more_workers_than_cores_are_told_once(capsys, model):
    too_many = str(_C.num_usable_cores() + 3)
    arguments = ["generate", model, "--prompt-ids", "1,2,3", "--max-tokens", "2", "--temperature", "0"]
    assert cli_main([*arguments, "--threads", too_many]) == 0
    told = capsys.readouterr()
    assert told.err.count(f"num_threads: {too_many} workers share") == 1
    assert cli_main([*arguments, "--threads", "1"]) == 0
    one = capsys.readouterr()
    assert one.out == told.out and "workers share" not in one.err  # the same text; control
    assert cli_main([*arguments, "--threads", too_many, "--quiet"]) == 0
    assert "workers share" not in capsys.readouterr().err


def test_sessions_have_the_same_notes(model):
    with mimo_rt.Session(model, num_threads=1) as session:
        assert session.notes == []  # the tiny model is too small for huge pages to matter
    with mimo_rt.Session(model, num_threads=_C.num_usable_cores() + 1) as session:
        (note,) = session.notes
    assert "workers share" in note and f"at most {_C.num_usable_cores()}" in note
    with pytest.raises(_C.InvalidArgumentError, match="notes"):
        _ = session.notes  # closed


@pytest.mark.parametrize("count", ["0", "-1", "1025", "99999999999", "two"])
def test_impossible_worker_counts(capsys, model, never_loads, count):
    with pytest.raises(SystemExit) if count == "two" else contextlib.nullcontext():
        assert cli_main(["generate", model, "-p", "x", "--threads", count]) == 1
    assert "threads" in capsys.readouterr().err


def test_doctor_tells_what_the_machine_does_not_grant(capsys):
    num_threads = _C.num_usable_cores() + 1
    assert cli_main(["doctor", "--device", "cpu", "--threads", str(num_threads)]) == 0
    assert f"tokens generated; note: num_threads: {num_threads} workers share" in capsys.readouterr().out
    assert cli_main(["doctor", "--device", "cpu", "--threads", "1"]) == 0
    assert "note:" not in capsys.readouterr().out


def test_huge_pages_are_probed(monkeypatch):
    monkeypatch.setattr(_C, "probe_huge_pages", lambda num_bytes: num_bytes // 4)
    assert "16 of 64 MiB granted (reading" in _machine.huge_pages()
    monkeypatch.setattr(_C, "probe_huge_pages", lambda num_bytes: num_bytes)
    assert _machine.huge_pages().endswith("64 of 64 MiB granted")


def test_plan_traces_the_plan_that_it_prints(capsys, model, tmp_path, monkeypatch):
    opened = []
    real = plan_command.open_engine
    monkeypatch.setattr(plan_command, "open_engine", lambda *a: opened.append(real(*a)) or opened[-1])
    for max_tokens in (1, 5, 100):
        cli_main(["plan", model, "--workers", "2", "--max-tokens", str(max_tokens), "--json",
                  "--trace", str(tmp_path / "t.json")])
        shown = json.loads(capsys.readouterr().out)["hash"]
        assert f"{opened[-1].decode_plan.hash():016x}" == shown
    default = _C.Engine.open(model, _C.EngineOptions(num_threads=2))  # control: 8 rows
    assert f"{default.decode_plan.hash():016x}" != shown


real_session = _C.Session


def test_plan_traces_the_plan_of_a_gpu(capsys, model, tmp_path, monkeypatch):
    ours = _C.Engine.open(model, _C.EngineOptions(num_threads=3, draft="none"))
    wanted = []

    class OnGpu:  # its plan is for its own number of workers
        backend = "cuda"
        decode_plan, round_plan, config, draft_config = ours.decode_plan, None, ours.config, None
        set_tracing, trace_json = ours.set_tracing, ours.trace_json

    monkeypatch.setattr(plan_command, "open_engine", lambda *a: wanted.append(a[2]["num_threads"]) or OnGpu())
    monkeypatch.setattr(plan_command._C, "Session", lambda engine, **limits: real_session(ours, **limits))
    shown = []
    for extra in ((), ("--workers", "7")):
        cli_main(["plan", model, "--device", "cuda", "--json", "--trace", str(tmp_path / "t.json"), *extra])
        shown.append(json.loads(capsys.readouterr().out))
    assert wanted == [None, 7]
    assert all(each["hash"] == f"{ours.decode_plan.hash():016x}" and each["num_workers"] == 3 for each in shown)
    assert "measured" in (tmp_path / "t.json").read_text()


def test_plan_shows_the_plans_of_a_model_with_a_draft(capsys, tmp_path):
    model = write_tiny_checkpoint(tmp_path / "tiny", seed=6)
    draft = write_tiny_draft(model)

    def shown(*extra):
        assert cli_main(["plan", str(model), "--workers", "2", "--verify", "--json", *extra]) == 0
        record = json.loads(capsys.readouterr().out)
        round_record = record["round"] or {"hash": None}
        return record["hash"], round_record["hash"]

    engine = _C.Engine.open(str(model), _C.EngineOptions(num_threads=2))
    hashes = tuple(f"{plan.hash():016x}" for plan in (engine.decode_plan, engine.round_plan))
    assert shown() == shown("--draft", str(draft)) == hashes
    step, without = shown("--draft", "none")
    assert step != hashes[0] and without is None  # control
    assert shown("--draft", "ngram")[0] == step
    shutil.rmtree(draft)
    engine = _C.Engine.open(str(model), _C.EngineOptions(num_threads=2))
    lookups = tuple(f"{plan.hash():016x}" for plan in (engine.decode_plan, engine.round_plan))
    assert shown() == shown("--draft", "ngram") == lookups and lookups[0] == step
    write_tiny_draft(model)
    cli_main(["plan", str(model), "--workers", "2", "--verify", "--dump"])
    text = capsys.readouterr().out
    assert text.count("without deadlock") == 2 and "tokens per round" in text
    assert " accept tiles" in text and "+capture" in text
    code, err = run_here(capsys, "plan", str(model), "--draft", str(tmp_path / "absent"))
    assert code == 1 and "absent" in err


def test_plan_for_a_gpu_leaves_out_the_draft_that_its_engine_leaves_out(capsys, tmp_path):
    model = write_tiny_checkpoint(tmp_path / "tiny", seed=6)

    def shown(*extra):
        assert cli_main(["plan", str(model), "--device", "cuda", "--workers", "2", "--json", *extra]) == 0
        captured = capsys.readouterr()
        record = json.loads(captured.out)
        return (record["hash"], record["round"]["hash"]), captured.err

    without = shown("--draft", "ngram")
    assert shown() == without and not without[1]
    plain = shown("--draft", "none")
    assert plain[0][0] == without[0][0] and plain[0][1] != without[0][1]  # rounds of one
    draft = write_tiny_draft(model, block_size=8)
    fitting = shown()
    assert fitting == shown("--draft", str(draft)) and not fitting[1] and fitting[0] != without[0]  # control
    write_tiny_draft(model, block_size=9, overwrite=True)
    plans, note = shown()
    assert plans == without[0] and "is not used: its blocks have 9 tokens, the CUDA engine verifies 8" in note
    code, err = run_here(capsys, "plan", str(model), "--device", "cuda", "--workers", "2", "--draft", str(draft))
    assert code == 1 and "draft block_size: expected at most 8 on device 'cuda', got 9" in err


def test_doctor_skips_what_needs_the_config(capsys, tmp_path):
    path = write_tiny_checkpoint(tmp_path / "tiny")
    (path / "config.json").write_text("{}")
    assert cli_main(["doctor", str(path), "--threads", "1"]) == 1
    shown = capsys.readouterr().out
    assert shown.count("skipped: no config") == 3 and shown.count("FAILED (") == 1


def test_doctor_does_not_compare_ref_with_itself(capsys):
    assert cli_main(["doctor", "--device", "ref", "--threads", "1"]) == 0
    shown = capsys.readouterr().out
    assert "ref repeats itself" in shown and "relative error" not in shown


def test_doctor_knows_the_control_group(monkeypatch, model):
    files = {"/proc/meminfo": "MemAvailable: 1000000 kB\n",
             "/sys/fs/cgroup/memory.max": "1000\n"}
    monkeypatch.setattr(_machine, "_read", lambda path: files.get(path, ""))
    assert _machine.usable_memory_bytes() == 1000
    with pytest.raises(_C.OutOfMemoryError):
        doctor._check_memory(model)
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert _machine.usable_memory_bytes() == 1024 * 10**6
    assert "weights need" in doctor._check_memory(model)


def test_doctor_looks_at_the_memory_of_a_gpu(capsys, monkeypatch, tmp_path):
    """Where there is one; what does not fit is a fault only for who wants the GPU."""
    path = write_tiny_checkpoint(tmp_path / "tiny", preset="multiples_of_32")
    refused = write_tiny_checkpoint(tmp_path / "refused")  # 208 hidden units of the dense MLP
    needed = _C.cuda_weight_bytes(path)
    assert cli_main(["doctor", str(path), "--threads", "1"]) == 0
    assert "GPU" not in capsys.readouterr().out
    gpu = types.SimpleNamespace(name="cuda", available=True, reason="a GPU")
    backends = [*_C.list_backends()[:-1], gpu]
    monkeypatch.setattr(_C, "list_backends", lambda: backends)
    monkeypatch.setattr(_C, "free_gpu_bytes", lambda: free)

    def gpu_line(device, model, code):
        with monkeypatch.context() as patch:
            patch.setattr(doctor, "_self_test", lambda args: "")
            if device == "cuda":
                patch.setattr(_C, "resolve_backend", lambda name: name)
            assert cli_main(["doctor", str(model), "--device", device, "--threads", "1"]) == code
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  GPU memory ")]
        return line.split(maxsplit=2)[2]

    free = 80 * 10**9
    assert gpu_line("cuda", path, 0) == gpu_line("cpu", path, 0)
    assert gpu_line("cuda", path, 0).startswith(f"ok: weights need {_output.format_bytes(needed)} of 80.00 GB that are free")
    free = needed - 1
    assert gpu_line("cuda", path, 1).startswith("FAILED (out_of_memory): [doctor] weights: expected at most ")
    assert gpu_line("cpu", path, 0).startswith("WARNING: not for device 'cuda': [doctor] weights: expected at most ")
    assert "intermediate_size: expected 1 equal parts of a multiple of 32, got 208" in gpu_line("cuda", refused, 1)


def test_the_memory_of_a_gpu_holds_the_draft_as_well(tmp_path):
    path = write_tiny_checkpoint(tmp_path / "tiny", preset="multiples_of_32")  # as those of bench/gpu_*.py
    alone = _C.cuda_weight_bytes(path)
    assert 0.9 * _C.Engine.open(path).weight_bytes < alone < 3 * _C.Engine.open(path).weight_bytes
    draft = write_tiny_draft(path, seed=2)
    assert _C.cuda_weight_bytes(path) > alone == _C.cuda_weight_bytes(path, "none")
    other = write_tiny_checkpoint(tmp_path / "other", preset="multiples_of_32")
    assert _C.cuda_weight_bytes(other, str(draft)) == _C.cuda_weight_bytes(path)
    write_tiny_draft(path, seed=2, block_size=9, overwrite=True)  # the engine leaves it out
    assert _C.cuda_weight_bytes(path) == alone
    with pytest.raises(mimo_rt.errors.UnsupportedShapeError, match="block_size: expected at most 8 on device 'cuda', got 9"):
        _C.cuda_weight_bytes(path, str(draft))


def test_estimated_numbers_align_right():
    lines = _output.format_table([("a", "12.5"), ("b", "~7")], ("case", "GB/s")).splitlines()
    assert lines[1:] == ["a     12.5", "b       ~7"]


def test_paths_for_cpp_builds_from_the_console_script():
    script = "import sys; from mimo_rt.cli import main; sys.exit(main())"
    run = subprocess.run([sys.executable, "-c", script, "--cmake-dir"], capture_output=True, text=True)
    assert run.stdout == mimo_rt.get_cmake_dir() + "\n"


def test_ctrl_c_while_the_bandwidth_is_measured_leaves_the_conversation(monkeypatch, capsys, model):
    def interrupted(*_):
        raise KeyboardInterrupt

    with mimo_rt.Session(model, num_threads=1) as session:
        conversation = chat.Conversation(session, {"max_tokens": 2}, None, False)
        with monkeypatch.context() as patch:
            patch.setattr(chat, "with_bandwidth", interrupted)
            conversation._answer("hi")
        said = capsys.readouterr().err
        assert "output tokens" in said and "bandwidth" not in said
        conversation._answer("hi")
        assert "% of measured bandwidth" in capsys.readouterr().err  # control


def test_only_what_drives_a_terminal_is_escaped():
    for text in ("a\n\tb", "\u4f60\u597d\u3000\u4e16\u754c", "prix\u00a0: 3\u202f000",
                 "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
                 "\U0001f468\u200d\U0001f469\u200d\U0001f467"):
        assert _output.escape_controls(text) == text
    for control in ("\x1b", "\r", "\x7f", "\x85", "\u202e", "\u2066", "\u200b", "\ufeff", "\u2028", "\u2029", "\ue000",
                    "\ud800", "\U000e0041"):
        assert _output.escape_controls(control) == ascii(control)[1:-1]
