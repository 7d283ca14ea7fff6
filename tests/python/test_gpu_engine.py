"""bench/gpu_engine.py without a GPU: it compares CPU backends, and sees what is wrong."""

import json

import numpy as np
import pytest
from mimo_rt import errors


@pytest.fixture
def script(load_bench_script):
    return load_bench_script("gpu_engine")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    from mimo_rt.checkpoints import write_tiny_checkpoint

    return write_tiny_checkpoint(tmp_path_factory.mktemp("gpu-engine") / "tiny", seed=1)


def run(script, capsys, *arguments):
    code = script.main(list(arguments))
    return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_equal_devices_pass(script, capsys, model_dir):
    code, (record,) = run(script, capsys, "--device", "cpu-generic", "--model", str(model_dir))
    assert code == 0 and record["passed"] and record["same_bits"] and record["num_tokens"] == 32
    assert record["backends"][1] == "cpu-generic" and record["relative_error"] < 2**-5
    assert sum(record["worker_us"].values()) == pytest.approx(record["step_us"], abs=0.05)
    assert record["task_us"]["qkv_proj"]["num"] >= 4 and record["task_us"]["lm_head"]["us"] > 0


def test_times_of_tasks_by_kind(script):
    pieces = [("X", 1, "wait", 9, {}), ("X", 1, "fetch", 9, {}), ("X", 0, "o_proj", 9, {}), ("M", 1, "o_proj", 9, {}),
              ("X", 1, "o_proj", 2, {"weights_us": 1.5}), ("X", 1, "o_proj", 4, {}), ("X", 1, "router", 1, {})]
    trace = json.dumps({"traceEvents": [{"ph": ph, "pid": pid, "cat": cat, "dur": us, "args": args}
                                        for ph, pid, cat, us, args in pieces]})
    assert script.task_times(trace) == {"o_proj": {"num": 2, "us": 3.0, "weights_us": 0.75},
                                        "router": {"num": 1, "us": 1.0, "weights_us": 0.0}}


def test_drafts_change_nothing_and_are_timed(script, capsys, tmp_path, monkeypatch):
    from mimo_rt.checkpoints import write_tiny_checkpoint, write_tiny_draft

    model_dir = write_tiny_checkpoint(tmp_path / "drafted", seed=1)
    write_tiny_draft(model_dir, seed=2)
    arguments = ("--device", "cpu", "--model", str(model_dir))
    code, (record,) = run(script, capsys, *arguments)
    assert code == 0 and record["tokens_per_s"] > 0 and record["prefill_tokens_per_s"] > 0
    assert record["drafts"].keys() == {"dflash", "ngram"}
    for draft in record["drafts"].values():
        assert draft["changes_nothing"] and draft["num_rounds"] > 0 and draft["acceptance_length"] >= 1
        assert draft["tokens_per_s"].keys() == {"fixed", "adaptive"} and min(draft["tokens_per_s"].values()) > 0

    class Session(script.Session):
        def generate(self, ids, **options):
            return super().generate(ids[::-1] if options.get("draft_mode") == "adaptive" else ids, **options)

    monkeypatch.setattr(script, "Session", Session)
    code, (record,) = run(script, capsys, *arguments)
    assert code == 1 and not record["passed"]
    assert not any(draft["changes_nothing"] for draft in record["drafts"].values())


def test_lookups_need_no_draft_model(script, model_dir):
    assert script.draft_kinds(model_dir) == {"ngram": "ngram"}


def test_other_weights_are_seen(script, capsys, model_dir, tmp_path, monkeypatch):
    from mimo_rt.checkpoints import write_tiny_checkpoint

    other = write_tiny_checkpoint(tmp_path / "other", seed=2)

    class Session(script.Session):
        def __init__(self, directory, **options):
            super().__init__(other if options["device"] == "cpu-generic" else directory, **options)

    monkeypatch.setattr(script, "Session", Session)
    code, (record,) = run(script, capsys, "--device", "cpu-generic", "--model", str(model_dir))
    assert code == 1 and not record["passed"] and record["num_equal_tokens"] < 32


def test_only_rounding_excuses_another_token(script):
    expected = np.random.default_rng(1).normal(size=(24, 100)).astype(np.float32)
    near = expected * np.float32(1 + 2**-6)
    assert script.agree(near, expected) and not script.agree(expected * np.float32(1 + 2**-4), expected)
    near[3:5] = expected[5:7]  # two rows took other experts
    assert script.agree(near, expected)
    near[9] = expected[5]
    assert not script.agree(near, expected)
    assert script.first_difference([1, 2, 3], [1, 2, 3]) is None and script.first_difference([1, 2], [1, 3]) == 1


@pytest.mark.parametrize("is_of_its_logits", [True, False])
def test_another_token_must_be_the_best_of_its_devices_logits(script, capsys, model_dir, monkeypatch, is_of_its_logits):
    class Result:
        token_ids = range(32)

    class Session(script.Session):  # of the compared device: a text that its logits do not say, or say by a near tie
        def generate(self, ids, **options):
            result = super().generate(ids, **options)
            if self.backend != "cpu-generic" or options["max_tokens"] != script.NUM_TOKENS:
                return result
            other = Result()
            other.token_ids = [*result.token_ids[:5], (result.token_ids[5] + 1) % 100, *result.token_ids[6:]]
            self.other = other.token_ids[5]
            return other

        def logits(self, ids, **options):
            rows = super().logits(ids, **options)
            if hasattr(self, "other") and len(ids) == script.NUM_IDS + 5 and is_of_its_logits:
                rows[-1, self.other] = rows[-1].max() + 1e-3
            return rows

    monkeypatch.setattr(script, "Session", Session)
    code, (record,) = run(script, capsys, "--device", "cpu-generic", "--model", str(model_dir))
    assert record["num_equal_tokens"] == 5 and record["other_token_explained"] is is_of_its_logits
    assert code == int(not is_of_its_logits)


def test_a_demo_model_that_is_not_there_is_told(script, capsys, model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "models", lambda parent, demo_dir: [model_dir, demo_dir])
    code, (_, line) = run(script, capsys, "--device", "cpu-generic", "--demo", str(tmp_path / "none"))
    assert code == 0 and line == {"model": "demo", "not_run": f"no model in {tmp_path / 'none'}"}
    (tmp_path / "demo").symlink_to(model_dir)
    code, (_, line) = run(script, capsys, "--device", "cpu-generic", "--demo", str(tmp_path / "demo"))
    assert code == 0 and line["model"] == "demo" and line["passed"]


def test_logits_that_are_no_numbers_fail_in_json(script, capsys, model_dir, monkeypatch):
    class Session(script.Session):
        def logits(self, *arguments, **options):
            return super().logits(*arguments, **options) * (np.nan if self.backend == "cpu-generic" else 1)

    monkeypatch.setattr(script, "Session", Session)
    assert script.main(["--device", "cpu-generic", "--model", str(model_dir)]) == 1
    record = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert record["relative_error"] is None and not record["passed"]


def test_without_a_gpu_it_says_why(script, model_dir):
    from mimo_rt import list_backends

    (cuda,) = [b for b in list_backends() if b.name == "cuda"]
    if cuda.available:
        pytest.skip("there is a GPU")
    with pytest.raises(errors.UnavailableError, match="backend 'cuda'"):
        script.main(["--model", str(model_dir)])
