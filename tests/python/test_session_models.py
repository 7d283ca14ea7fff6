"""`Session`: loading, logprobs, scoring, closing, models without text, what engines share."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from mimo_rt import _C, Session, errors
from mimo_rt.tokenizer import Tokenizer

IDS = list(range(40, 60))
GREEDY = {"temperature": 0.0, "ignore_eos": True}
ANOTHER_PROCESS = pytest.mark.cpu_only(reason="CUDA takes seconds to start in one more process")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, write_model):
    return write_model(tmp_path_factory.mktemp("model") / "tiny", seed=7)


@pytest.fixture(scope="module")
def session(model_dir):
    with Session(model_dir, num_threads=1) as session:
        yield session


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def test_logprobs_are_the_log_softmax_of_the_logits(session):
    result = session.generate(IDS, max_tokens=6, logprobs=3, **GREEDY)
    tokens = [*IDS, *result.token_ids]
    expected = log_softmax(session.logits(tokens))[len(IDS) - 1 : -1]
    vocab_size = expected.shape[1]
    # FP32: a sum of vocab_size terms and one logarithm, then a difference of logits below 64.
    bound = (vocab_size + 64) * 2.0**-24
    assert len(result.logprobs) == 6
    for row, token_id, entry in zip(expected, result.token_ids, result.logprobs, strict=True):
        assert entry.chosen.token_id == token_id == entry.alternatives[0].token_id
        best = np.sort(row)[::-1][:3]
        got = [alternative.logprob for alternative in entry.alternatives]
        assert np.abs(np.asarray(got) - best).max() <= bound
        assert abs(entry.chosen.logprob - row[token_id]) <= bound
        assert abs(got[1] - best[0]) > bound  # the comparison can tell two tokens apart
    alone = session.generate(IDS, max_tokens=2, logprobs=0, **GREEDY)
    assert [len(entry.alternatives) for entry in alone.logprobs] == [0, 0]


def test_score(session):
    logits = session.logits(IDS)
    assert logits.shape == (len(IDS), session.config.vocab_size) and logits.dtype == np.float32
    expected = log_softmax(logits)[np.arange(len(IDS) - 1), IDS[1:]]
    score = session.score(IDS)
    assert score.logprobs[0] is None and score.num_scored_tokens == len(IDS) - 1
    np.testing.assert_allclose(score.logprobs[1:], expected, rtol=0, atol=1e-12)
    assert score.loss == pytest.approx(-expected.mean(), abs=1e-12)
    shifted = log_softmax(logits)[np.arange(len(IDS) - 1), IDS[:-1]]
    assert score.loss != pytest.approx(-shifted.mean(), abs=1e-3)
    with pytest.raises(errors.InvalidArgumentError, match="at least 2"):
        session.score([1])


def test_logits_do_not_depend_on_the_step_size(session):
    logits = session.logits(IDS)
    for step_tokens in (1, 3, 8):
        assert session.logits(IDS, step_tokens=step_tokens).tobytes() == logits.tobytes()
    other = [*IDS[:-1], IDS[-1] + 1]
    assert session.logits(other).tobytes() != logits.tobytes()


def test_number_of_threads_changes_nothing(session, model_dir):
    expected = session.generate(IDS, max_tokens=12, **GREEDY).token_ids
    for num_threads in (2, 3):
        with Session(model_dir, threads=num_threads) as other:
            assert other.stats.num_workers == num_threads
            assert other.generate(IDS, max_tokens=12, **GREEDY).token_ids == expected


def test_sessions_share_an_engine_from_several_threads(session):
    expected = [session.generate([i, *IDS], max_tokens=8, **GREEDY).token_ids for i in range(4)]
    got = [None] * 4

    def work(index):
        with session.new_session() as own:
            for _ in range(3):
                got[index] = own.generate([index, *IDS], max_tokens=8, **GREEDY).token_ids

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == expected and expected[0] != expected[1]


def test_close_is_idempotent_and_final(model_dir):
    session = Session(model_dir, num_threads=1)
    sibling = session.new_session()
    stream = session.stream(IDS, max_tokens=4)
    session.close()
    session.close()
    assert session.closed and "closed" in repr(session)
    for call in (
        lambda: session.generate(IDS),
        lambda: session.stream(IDS),
        lambda: session.logits(IDS),
        lambda: session.backend,
        lambda: session.stats,
        session.reset,
        session.__enter__,
    ):
        with pytest.raises(errors.InvalidArgumentError, match="closed"):
            call()
    session.cancel()
    assert session.decode(session.encode("text")) == "text"  # needs no engine
    with pytest.raises(errors.InvalidArgumentError, match="closed"):
        next(stream)  # had not begun
    assert len(sibling.generate(IDS, max_tokens=2, **GREEDY).token_ids) == 2


def test_model_without_tokenizer(tmp_path, write_model):
    model_dir = write_model(tmp_path / "tiny", tokenizer=False)
    with Session(model_dir, num_threads=1) as session:
        assert not session.has_tokenizer
        result = session.generate(IDS, max_tokens=3, **GREEDY)
        assert result.text == "" and len(result.token_ids) == 3
        for call in (
            lambda: session.generate("text"),
            lambda: session.encode("text"),
            lambda: session.decode([1]),
        ):
            with pytest.raises(errors.InvalidArgumentError, match="tokenizer.json"):
                call()
        with pytest.raises(errors.InvalidArgumentError, match="chat_template"):
            session.chat([{"role": "user", "content": "x"}])
        with pytest.raises(errors.InvalidArgumentError, match="stop_token_ids"):
            session.generate(IDS, stop="x")


def change_json(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_model_without_end_tokens_ends_at_the_tokenizers(model_dir, tmp_path):
    copy = shutil.copytree(model_dir, tmp_path / "model")
    change_json(copy / "config.json", eos_token_id=None)
    (copy / "generation_config.json").unlink()
    names = json.loads((copy / "tokenizer.json").read_text())["model"]["vocab"]

    def answer(eos_token, **options):
        change_json(copy / "tokenizer_config.json", eos_token=eos_token)
        with Session(copy, num_threads=1) as session:
            assert session.config.eos_token_ids == []
            return session.generate(IDS, max_tokens=32, temperature=0.0, **options).token_ids

    endless = answer(None)
    assert len(endless) == 32
    token, eos = next((token, i) for token, i in names.items() if i in endless[3:])
    until_eos = endless[: endless.index(eos) + 1]
    assert answer(token) == answer({"content": token, "lstrip": False}) == until_eos
    assert answer(token, ignore_eos=True) == endless
    for other in ("no token", "\ud800", 5, ""):
        assert answer(other) == endless


def test_broken_tokenizer(model_dir, tmp_path):
    copy = shutil.copytree(model_dir, tmp_path / "model")
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(errors.MimoRtError, match="tokenizer.json"):
        Session(copy, num_threads=1).generate("text")


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json", "tokenizer_config.json"])
def test_a_link_that_leads_nowhere_is_no_missing_file(model_dir, tmp_path, name):
    path = tmp_path / "copy"
    shutil.copytree(model_dir, path)
    (path / name).unlink(missing_ok=True)
    (path / name).symlink_to("../blobs/0123")

    def read():
        with Session(path, num_threads=1) as session:
            session.chat([{"role": "user", "content": "x"}], max_tokens=1)

    with pytest.raises(errors.IoError, match=rf"{name}\] expected a file, got a link to '../blobs/0123'"):
        read()
    (path / name).unlink()
    (path / name).mkdir()
    with pytest.raises(errors.IoError, match=rf"{name}\] expected a file, got something else"):
        read()


def test_no_directory_is_not_the_current_one(model_dir, monkeypatch):
    monkeypatch.chdir(model_dir)
    with pytest.raises(errors.IoError, match="model_dir: expected a directory, got ''"):
        Session("")
    Session(".", num_threads=1).close()  # control: said so, it is


def test_bandwidth_is_what_statistics_refer_to(session):
    gbs = session.measure_bandwidth(0.6)  # more than one look after signals
    stats = session.generate([1, 2, 3], max_tokens=3).stats
    assert session.stats.bandwidth_gbs == gbs > 0
    assert stats.bandwidth_fraction * gbs == pytest.approx(stats.decode_gbs)


def test_measuring_bandwidth_ends_with_a_signal(session):
    before = session.measure_bandwidth(0.01)
    timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    # Python has no handler where SIGINT was ignored from the start, as in a shell's background jobs.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        timer.start()
        begin = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            session.measure_bandwidth(60)
        assert time.monotonic() - begin < 50
        timer.join()
    finally:
        signal.signal(signal.SIGINT, handler)
    assert session.stats.bandwidth_gbs == before
    stats = session.generate([1, 2, 3], max_tokens=3).stats
    assert stats.bandwidth_fraction * before == pytest.approx(stats.decode_gbs)


@pytest.mark.parametrize("call", ["set_tracing(False)", pytest.param("trace_json()", marks=ANOTHER_PROCESS)])
def test_tracing_waits_for_the_engine_without_the_interpreter(model_dir, call):
    script = (f"import threading, time, mimo_rt\n"
              f"session = mimo_rt.Session({str(model_dir)!r}, num_threads=1)\n"
              f"session.generate([1, 2, 3], max_tokens=1)\n"
              f"threading.Thread(target=session.measure_bandwidth, args=(2,)).start()\n"  # looks after signals
              f"time.sleep(0.3)\n"
              f"session.engine.{call}\n")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_options_of_an_engine_are_copies(session):
    engine = session.engine
    options, planned = engine.options, engine.prefill_plan.options
    chunk = options.prefill_chunk_tokens
    options.prefill_chunk_tokens = planned.max_tokens = 4096
    assert engine.options.prefill_chunk_tokens == engine.prefill_plan.options.max_tokens == chunk < 4096
    assert options.prefill_chunk_tokens == planned.max_tokens == 4096  # control: they can be set


def test_progress(model_dir):
    calls = []
    Session(model_dir, num_threads=1, progress=lambda *call: calls.append(call)).close()
    assert calls and calls[-1][0] == calls[-1][1] > 0
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    with pytest.raises(errors.CancelledError):
        Session(model_dir, num_threads=1, progress=lambda done, total: False)

    def failing(done, total):
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        Session(model_dir, num_threads=1, progress=failing)


def test_sessions_run_on_the_device_under_test(session, device):
    assert session.backend.startswith("cpu-" if device == "cpu" else device)


def test_devices(model_dir):
    with Session(model_dir, device="ref") as session:
        assert session.backend == "ref"
    with Session(model_dir, device="cpu", num_threads=1) as session:
        assert session.backend.startswith("cpu-")
    with pytest.raises(errors.InvalidArgumentError, match="abacus"):
        Session(model_dir, device="abacus")
    has_gpu = _C.list_backends()[-1].available
    with contextlib.nullcontext() if has_gpu else pytest.raises(errors.UnavailableError):
        assert Session(model_dir, device="cuda").backend == "cuda"


@pytest.mark.parametrize(
    "options",
    [{"num_threads": 0}, {"max_context": 0}, {"seed": -1}, {"timeout_ms": "long"}, {"threads": 1.5},
     {"window_tokens": -1}, {"generation_config": "vllm"}],
)
def test_bad_options(model_dir, options):
    with pytest.raises(errors.InvalidArgumentError, match="expected"):
        Session(model_dir, **options)


def test_not_a_model(tmp_path):
    with pytest.raises(errors.IoError, match="nowhere"):
        Session(tmp_path / "nowhere")
    with pytest.raises(errors.MimoRtError, match="config.json"):
        Session(tmp_path)


def test_a_tokenizer_cuts_and_pads_nothing_whatever_its_file_says(tmp_path, write_model):
    plain = write_model(tmp_path / "plain")
    changed = write_model(tmp_path / "changed")
    path = changed / "tokenizer.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    fields["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    fields["padding"] = {"strategy": {"Fixed": 40}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0,
                         "pad_type_id": 0, "pad_token": "!"}
    path.write_text(json.dumps(fields), encoding="utf-8")
    text = "Once upon a time there was"
    expected = Tokenizer.from_directory(plain).encode(text)
    assert Tokenizer.from_directory(changed).encode(text) == expected and 4 < len(expected) < 40
