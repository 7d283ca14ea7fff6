"""`mimo-rt bench acceptance`: prompt files, sums of draft statistics, and the check against plain decoding."""

import dataclasses
import json
from random import Random
from types import SimpleNamespace

import pytest

from mimo_rt import _C
from mimo_rt.bench import adversarial, draft_share
from mimo_rt.bench.acceptance import Generation, add_up, record, require_equal, run_prompts
from mimo_rt.bench.compare import read_records
from mimo_rt.bench.measurement import median_bounds
from mimo_rt.bench.prompts import DEFAULT_FILE, BenchPrompt, limit_per_category, read_prompts
from mimo_rt.bench.summary import summarize
from mimo_rt.checkpoints import write_tiny_checkpoint
from mimo_rt.checkpoints.draft import write_tiny_draft
from mimo_rt.checkpoints.presets import tiny_config
from mimo_rt.cli import _bench_acceptance
from mimo_rt.cli import main as cli_main
from mimo_rt.errors import MimoRtError
from mimo_rt.results import DraftStats, GenerationResult, GenerationStats, Usage
from mimo_rt.train.prompts import read_prompt_file

# -- prompts


def test_default_prompts():
    prompts = read_prompts([DEFAULT_FILE])
    assert {p.category for p in prompts} == {"Coding", "Math", "Agent", "Chat"}
    assert len({p.id for p in prompts}) == len(prompts) and all(p.is_chat for p in prompts)
    assert [p.category for p in limit_per_category(prompts, 1)] == ["Coding", "Math", "Agent", "Chat"]


def test_a_line_holds_text_messages_or_token_ids(tmp_path):
    path = tmp_path / "set.jsonl"
    lines = [{"category": "A", "prompt": "x", "id": 7}, {"messages": [{"role": "user", "content": "x"}]},
             {"category": "A", "token_ids": [1, 2]}]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    prompts = read_prompts([path])
    assert [(p.category, p.id, p.is_chat) for p in prompts] == [
        ("A", "7", False), ("Set", "set-2", True), ("A", "set-3", False)]
    assert len(read_prompts([path, path], limit=1)) == 2


def test_the_evaluation_prompts_can_be_read(root):
    paths = [root / "bench" / "prompts" / f"{name}.jsonl" for name in ("coding", "math", "agent", "chat")]
    prompts = read_prompts(paths)
    assert list(dict.fromkeys(p.category for p in prompts)) == ["Coding", "Math", "Agent", "Chat"]
    assert len({p.id for p in prompts}) == len(prompts) > 200
    assert prompts[0].id == "HumanEval/0" and not prompts[0].is_chat and prompts[-1].is_chat


@pytest.mark.parametrize(
    "bad",
    ["{", "[]", "7", '{"category": "A"}', '{"prompt": ""}', '{"prompt": 3}', '{"prompt": "x", "token_ids": [1]}',
     '{"messages": ["x"]}', '{"messages": [{"role": "user"}]}', '{"token_ids": ["1"]}', '{"token_ids": [true]}',
     '{"prompt": "x", "category": 3}', "[" * 100_000])
def test_bad_prompt_lines_are_named(tmp_path, bad):
    path = tmp_path / "set.jsonl"
    path.write_text('{"prompt": "good"}\n' + bad + "\n")
    with pytest.raises(_C.BadFormatError, match="set.jsonl:2"):
        read_prompts([path])


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\x85"])
def test_only_line_feeds_end_json_lines(tmp_path, end):
    path = tmp_path / "set.jsonl"
    path.write_text(f'{{"name": "a", "text": "one{end}two"}}\n\n{{"name": "b", "text": "three"}}\n', encoding="utf-8")
    assert [prompt.content for prompt in read_prompts([path])] == [f"one{end}two", "three"]
    assert [raw["text"] for raw in read_prompt_file(path)] == [f"one{end}two", "three"]
    path.write_text(f'{{"machine": "M{end}"}}\n', encoding="utf-8")
    assert read_records(path) == [{"machine": f"M{end}"}]


def test_prompt_files_that_cannot_be_read(tmp_path):
    with pytest.raises(_C.IoError):
        read_prompts([tmp_path / "absent"])
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(_C.BadFormatError, match="at least one"):
        read_prompts([tmp_path / "empty"])
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for read in (lambda path: read_prompts([path]), read_prompt_file):
        with pytest.raises(_C.BadFormatError, match="binary.* expected UTF-8"):
            read(tmp_path / "binary")


# -- statistics


def draft_stats(accepted, verified):
    """Statistics of rounds that accepted and verified so many drafts."""
    wide = max(verified, default=0)
    return DraftStats(
        num_spec_tokens=7 if verified else 0,
        completion_tokens=1 + len(verified) + sum(accepted) if verified else 0,
        num_rounds=len(verified),
        num_drafted_rounds=sum(v > 0 for v in verified),
        num_draft_tokens=sum(verified),
        num_accepted_tokens=sum(accepted),
        acceptance_length=1 + sum(accepted) / len(verified) if verified else 0.0,
        acceptance_rate=sum(accepted) / sum(verified) if sum(verified) else 0.0,
        accepted_at_pos=tuple(sum(a > i for a in accepted) for i in range(wide)),
        drafted_at_pos=tuple(sum(v > i for v in verified) for i in range(wide)),
        accepted_histogram=tuple(accepted.count(n) for n in range(wide + 1)) if verified else (),
        width_histogram=tuple(verified.count(n) for n in range(wide + 1)) if verified else (),
    )


ROUNDS = [([0, 3, 1], [3, 3, 2]), ([1], [1]), ([], []), ([0, 0, 7], [0, 0, 7])]


def test_sums_equal_the_statistics_of_all_rounds_together():
    parts = [draft_stats(*rounds) for rounds in ROUNDS]
    together = draft_stats(sum((a for a, _ in ROUNDS), []), sum((v for _, v in ROUNDS), []))
    together = dataclasses.replace(together, completion_tokens=together.completion_tokens + 2)  # three first tokens
    assert add_up(parts) == together
    assert add_up(parts[1:]) != together  # control
    assert add_up([]) == DraftStats()


def test_record_has_the_common_names_and_agrees_with_itself():
    line = draft_stats([0, 3, 1, 0], [3, 3, 2, 0]).to_dict()
    histogram = {int(n): count for n, count in line["acceptance_histogram"].items()}
    assert sum(histogram.values()) == line["num_spec_steps"] == 4
    assert sum(n * count for n, count in histogram.items()) == line["num_accepted_draft_tokens"] == 4
    assert line["mean_acceptance_length"] == 2.0 and line["draft_acceptance_rate"] == 0.5
    assert line["num_spec_tokens"] == 7 and line["completion_tokens"] == 9
    assert line["acceptance_per_position"] == [0.6667, 0.3333, 0.3333]  # of the three drafted steps
    assert line["acceptance_when_verified"] == [0.6667, 0.3333, 0.5]


def test_the_draft_ends_with_its_last_proposal():
    def slice_(pid, kind, begin, duration):
        return {"ph": "X", "pid": pid, "cat": kind, "ts": begin, "dur": duration, "args": {"task": 0}}

    names = [{"ph": "M", "name": "process_name", "pid": i, "args": {"name": n}}
             for i, n in enumerate(("predicted", "measured"))]
    measured = [slice_(1, "wait", 2.0, 1.0), slice_(1, "draft_sample", 5.0, 1.5), slice_(1, "draft_sample", 4.0, 1.0),
                slice_(1, "embed", 7.0, 1.0), slice_(1, "accept", 20.0, 2.0)]
    predicted = [slice_(0, "context_fc", 0.0, 1.0), slice_(0, "draft_sample", 50.0, 1.0), slice_(0, "accept", 90.0, 9.0)]
    assert draft_share._times_us([*names, *predicted, *measured]) == (4.5, 20.0)
    share = draft_share.DraftShare(4.5, 20.0)
    assert share.record()["draft_share_of_round"] == 0.225 and "22.5 %" in share.to_text()


# -- runs


class FakeSession:
    """Says what it was asked for; ``bad_mode`` outputs other tokens."""

    engine = SimpleNamespace(draft_config=object())

    def __init__(self, bad_mode=None, speed_off=10.0):
        self.calls, self.bad_mode, self.speed_off = [], bad_mode, speed_off

    def reset(self):
        self.calls.append("reset")

    def generate(self, content, **params):
        mode = params["draft_mode"]
        self.calls.append((content, mode))
        speed = {"off": self.speed_off, "fixed": 15.0, "adaptive": 20.0}[mode]
        draft = DraftStats() if mode == "off" else draft_stats([1, 1], [2, 2])
        tokens = [9 if mode == self.bad_mode else 1, 2, 3, 4, 5]
        stats = GenerationStats(num_output_tokens=5, decode_tokens_per_s=speed, ttft_ms=1.0, draft=draft)
        return GenerationResult("", tokens, "length", None, Usage(3, 5, 8, 0), stats, params.get("seed", 0))

    chat = generate


PROMPTS = [BenchPrompt(category, f"{category}-{i}", f"{category}{i}") for category in "AB" for i in range(2)]
GREEDY = {"temperature": 0.0, "max_tokens": 5}


def test_modes_take_turns_from_an_empty_cache():
    session = FakeSession()
    done = run_prompts(session, PROMPTS, ("fixed", "adaptive"), GREEDY)
    assert session.calls[::2] == ["reset"] * (len(session.calls) // 2)
    calls = session.calls[3::2]  # after the warm-up
    orders = [tuple(mode for _, mode in calls[i : i + 3]) for i in range(0, 12, 3)]
    assert {order[0] for order in orders} == {"off", "fixed", "adaptive"}
    assert all(sorted(order) == ["adaptive", "fixed", "off"] for order in orders)
    assert [g.mode for g in done] == ["plain", "fixed", "adaptive"] * 4
    require_equal(done)


def test_plain_decoding_may_have_an_engine_of_its_own():
    session, plain = FakeSession(), FakeSession(speed_off=12.5)
    done = run_prompts(session, PROMPTS, ("fixed", "adaptive"), GREEDY, plain=plain)
    assert {mode for _, mode in session.calls[1::2]} == {"fixed", "adaptive"}
    assert {mode for _, mode in plain.calls[1::2]} == {"off"} and len(plain.calls) == 2 * (1 + len(PROMPTS))
    assert summarize(done)[-1].ratio == pytest.approx(20 / 12.5)


def test_a_changed_text_is_an_error():
    done = run_prompts(FakeSession(bad_mode="adaptive"), PROMPTS, ("fixed", "adaptive"), GREEDY)
    counts = {s.mode: (s.num_compared, s.num_equal) for s in summarize(done) if s.category == "all"}
    assert counts == {"plain": (4, 4), "fixed": (4, 4), "adaptive": (4, 0)}
    with pytest.raises(MimoRtError, match="4 outputs differ .* 'A-0' in mode 'adaptive'"):
        require_equal(done)
    # Drawn proposals promise the distribution, not the draw; drawn targets with argmax proposals the draw too.
    for proposal, expected in (("sampled", None), ("argmax", False)):
        params = {"temperature": 0.8, "seed": 1, "max_tokens": 5, "draft_proposal": proposal}
        done = run_prompts(FakeSession(bad_mode="fixed"), PROMPTS[:1], ("fixed",), params)
        assert done[1].equals_plain is expected
        assert summarize(done)[1].num_compared == (expected is not None)


def test_summaries_of_categories_and_of_all():
    done = run_prompts(FakeSession(), PROMPTS, ("fixed", "adaptive"), GREEDY)
    summaries = {(s.category, s.mode): s for s in summarize(done)}
    assert list(summaries) == [(c, m) for c in ("A", "B", "all") for m in ("plain", "fixed", "adaptive")]
    fixed = summaries["all", "fixed"]
    assert fixed.num_prompts == 4 and fixed.ratio == pytest.approx(1.5)
    assert fixed.tokens_per_s == pytest.approx(15.0)  # 4 x 4 tokens, 4 x 4/15 s
    line = fixed.record()
    assert line["case"] == "acceptance/all/fixed" and line["num_spec_steps"] == 8
    assert line["n"] == line["num_compared"] == line["num_equal"] == 4
    assert line["mean_acceptance_length"] == line["token_weighted_acceptance_length"] == 2.0
    assert line["median_us"] == pytest.approx(1e6 / 15, rel=1e-5)
    assert summaries["A", "plain"].record()["mean_acceptance_length"] == 0.0
    assert record(done[1])["num_spec_tokens"] == 7 and record(done[1])["equals_plain"] is True
    assert record(done[0])["num_spec_tokens"] == 0


def test_a_prompt_that_ends_at_once_has_no_speed():
    result = FakeSession().generate("", draft_mode="off")
    stats = GenerationStats(num_output_tokens=1)
    short = GenerationResult("", [1], "stop", None, Usage(3, 1, 4, 0), stats, 0)
    done = [Generation(PROMPTS[0], mode, r, True) for r in (short, result) for mode in ("plain", "fixed")]
    summary = summarize(done)[1]
    assert len(summary.ratios) == 1 and summary.num_prompts == 2


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [((0.98,) * 5, "WITHIN"), ((0.98,) * 4, "UNDECIDED"), ((), "UNDECIDED"), ((0.9,) * 5, "SLOWER"),
     ((0.96, *(0.98,) * 6), "UNDECIDED"), ((0.96, *(0.98,) * 7), "WITHIN"),  # one of seven may be chance
     ((0.5, 0.5, *(0.98,) * 10), "WITHIN"), ((0.5, 0.5, 0.5, *(0.98,) * 9), "UNDECIDED"),
     ((*(0.9,) * 10, 1.1, 1.1), "SLOWER"), ((*(0.9,) * 9, 1.1, 1.1, 1.1), "UNDECIDED")])
def test_verdict_on_a_useless_draft(ratios, expected):
    assert adversarial.verdict(ratios) == expected


def test_bounds_of_a_median_hold_as_often_as_they_say():
    random, num_wrong = Random(5), 0
    for _ in range(4000):
        low, high = median_bounds([random.random() ** 3 for _ in range(12)])
        num_wrong += low > 0.125
    assert 0.012 < num_wrong / 4000 < 0.027  # 0.0193: of twelve, at most two are below the median


# -- the command, on a real engine with a random draft


@pytest.fixture
def tiny_random_model(monkeypatch):
    config, _ = tiny_config("pro_fp4", {})
    monkeypatch.setattr(adversarial, "synthetic_config", lambda num_layers: config)


HEAD = ("bench", "acceptance", "--adversarial", "--threads", "1", "--limit", "2", "--max-tokens", "24", "--quiet")


def run_here(capsys, *arguments):
    code = cli_main([*HEAD, *arguments])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_drafted_output_equals_plain_output(capsys, tiny_random_model):
    code, out, err = run_here(capsys, "--json")
    lines = [json.loads(text) for text in out.splitlines()]
    prompts = [line for line in lines if line["case"].endswith("/prompt")]
    assert len(prompts) == 6 and len(lines) == 6 + 3  # one category: no sum of all
    assert all(line["equals_plain"] is True for line in prompts), err
    assert {line["completion_tokens"] for line in prompts} == {24}
    fixed = next(line for line in prompts if line["mode"] == "fixed")
    assert 0 < fixed["draft_step_us"] < fixed["round_us"]
    assert fixed["draft_share_of_round"] == pytest.approx(fixed["draft_step_us"] / fixed["round_us"], abs=1e-4)
    assert fixed["num_spec_steps"] > 0 and fixed["num_draft_tokens"] > 0 and fixed["num_spec_tokens"] == 7
    # Every step emits one token and what it accepted; the first token comes from the prompt's step.
    emitted = fixed["num_spec_steps"] + fixed["num_accepted_draft_tokens"]
    assert emitted == fixed["completion_tokens"] - 1
    assert next(line for line in prompts if line["mode"] == "plain")["num_draft_tokens"] == 0
    assert code == 1 and "UNDECIDED" in err  # two prompts are no verdict
    assert "per_step_drafted" not in fixed
    code, out, _ = run_here(capsys, "--json", "--per-step", "--modes", "fixed")
    steps = [line for line in map(json.loads, out.splitlines()) if line["mode"] == "fixed" and "id" in line]
    for line in steps:
        assert len(line["per_step_accepted"]) == len(line["per_step_drafted"]) == line["num_spec_steps"]
        assert sum(line["per_step_accepted"]) == line["num_accepted_draft_tokens"]
        assert sum(line["per_step_drafted"]) == line["num_draft_tokens"] > 0
    assert len(steps) == 2
    code, out, _ = run_here(capsys, "--temperature", "0.8", "--seed", "3", "--modes", "fixed")
    assert code == 0 and "2 of 2 outputs" in out and "seed 3" in out
    code, out, _ = run_here(capsys, "--draft", "ngram", "--json", "--modes", "fixed")
    lookups = [json.loads(text) for text in out.splitlines()]
    assert code == 0 and all(line["equals_plain"] in (True, None) for line in lookups if "id" in line)
    assert all(line["draft_bytes_per_round"] == 0 for line in lookups)
    code, out, _ = run_here(capsys, "--draft", "ngram", "--temperature", "0.8", "--draft-proposal", "sampled",
                            "--modes", "fixed")
    assert code == 0 and "2 of 2 outputs" in out  # a lookup proposes tokens, whatever the proposal
    code, out, _ = run_here(capsys, "--temperature", "0.8", "--draft-proposal", "sampled", "--modes", "fixed")
    assert code == 0 and "not compared" in out


def test_a_model_with_a_draft_and_prompt_files(capsys, tmp_path):
    model = write_tiny_checkpoint(tmp_path / "tiny")
    write_tiny_draft(model, block_size=5)
    prompts = tmp_path / "words.jsonl"
    prompts.write_text("\n".join(json.dumps({"name": text, "text": text}) for text in ("Hello", "There", "You")))
    arguments = ["bench", "acceptance", "--model", str(model), "--prompts", str(prompts), "--limit", "2", "-n", "16",
                 "--ignore-eos", "--threads", "1", "--quiet"]
    assert cli_main(arguments) == 0
    shown = capsys.readouterr().out
    assert "4 of 4 outputs" in shown and "Words" in shown and "per position" in shown
    assert "a round that drafts a whole block takes" in shown
    write_tiny_draft(model, block_size=5, draft_vocab_size=30, overwrite=True)
    assert cli_main(arguments) == 0
    assert "4 of 4 outputs" in capsys.readouterr().out
    assert cli_main([*arguments, "--modes", "fixed", "--num-draft-tokens", "2", "--json"]) == 0
    lines = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    fixed = [line for line in lines if line["mode"] == "fixed" and "id" in line]
    assert [line["id"] for line in fixed] == ["Hello", "There"]
    assert all(line["num_spec_tokens"] == 2 and len(line["width_histogram"]) <= 3 for line in fixed)
    assert cli_main([*arguments, "--draft", "none"]) == 1
    assert "the model has no draft" in capsys.readouterr().err
    assert cli_main([*arguments, "--draft", "ngram"]) == 0
    shown = capsys.readouterr().out
    assert "4 of 4 outputs" in shown and "a round that drafts" not in shown  # there is no draft to time


def test_an_inequality_ends_with_exit_code_1(capsys, monkeypatch, tiny_random_model):
    real = _bench_acceptance.run_prompts

    def spoiled(*arguments):
        plain, fixed, *others = real(*arguments)
        return [plain, Generation(fixed.prompt, fixed.mode, fixed.result, False), *others]

    monkeypatch.setattr(_bench_acceptance, "run_prompts", spoiled)
    code, _, err = run_here(capsys)
    assert code == 1 and "must never change the text" in err


def test_a_model_without_a_draft():
    with pytest.raises(MimoRtError, match="--draft DIR"):
        _bench_acceptance._require_drafts(SimpleNamespace(engine=SimpleNamespace(max_draft_tokens=0)))
