"""`Session`: names, defaults, results and errors, on a tiny random model."""

import dataclasses
import json
import shutil
import sys

import numpy as np
import pytest

import mimo_rt
from mimo_rt import SamplingParams, Session, _C, errors
from mimo_rt.cli import main as cli_main

PROMPT = "Once upon a time"
GREEDY = {"temperature": 0.0, "ignore_eos": True}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, write_model):
    return write_model(tmp_path_factory.mktemp("model") / "tiny", seed=3)


@pytest.fixture(scope="module")
def session(model_dir):
    with Session(model_dir, num_threads=1) as session:
        yield session


def with_generation_config(model_dir, tmp_path, fields):
    """The same weights under another generation_config.json."""
    copy = shutil.copytree(model_dir, tmp_path / "model")
    text = fields if isinstance(fields, str) else json.dumps(fields)
    (copy / "generation_config.json").write_text(text)
    return copy


# -- names


@pytest.mark.parametrize(
    ("call", "needle"),
    [
        (lambda s, d: s.generate(PROMPT, temperatur=1), "Did you mean 'temperature'"),
        (lambda s, d: s.stream(PROMPT, max_token=1), "Did you mean 'max_tokens'"),
        (lambda s, d: s.chat([{"role": "user", "content": "x"}], topp=1), "Did you mean 'top_p'"),
        (lambda s, d: SamplingParams(stop_tokens=[1]), "Did you mean 'stop_token_ids'"),
        (lambda s, d: Session(d, devic="cpu"), "Did you mean 'device'"),
        (lambda s, d: Session(d, max_contxt=5), "Did you mean 'max_context'"),
        (lambda s, d: Session(d, thread=5), "Did you mean 'threads'"),
        (lambda s, d: Session(d, generation_confg="none"), "Did you mean 'generation_config'"),
        (lambda s, d: s.generate(PROMPT, max_tokens=1, max_new_tokens=1), "given twice"),
        (lambda s, d: Session(d, threads=1, num_threads=1), "given twice"),
    ],
)
def test_unknown_arguments_are_refused(session, model_dir, call, needle):
    with pytest.raises(TypeError, match=needle):
        call(session, model_dir)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("min_tokens", -1),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "hot"),
        ("top_k", -2),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("logit_bias", {1: 100.5}),
        ("logit_bias", {1: float("nan")}),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {"1": 1.0}),
        ("logit_bias", [1, 2]),
        ("min_p", 1.0),
        ("min_p", 1 - 1e-12),  # 1 as a float32
        ("top_p", 1e-50),  # 0 as a float32
        ("temperature", 1e39),  # infinity as a float32
        ("repetition_penalty", 0),
        ("seed", -1),
        ("seed", 2**64),
        ("logprobs", 21),
        ("stop", ""),
        ("stop", ["a"] * 17),
        ("stop", ["x" * 1025]),
        ("stop", [3]),
        ("stop", 3),
        ("stop", "\ud800"),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", 7),
        ("ignore_eos", 1),
    ],
)
def test_values_out_of_range_name_the_field(session, name, value):
    with pytest.raises(errors.InvalidArgumentError, match=rf"\] {name}: expected"):
        session.generate(PROMPT, **{name: value})


def test_aliases_and_params_objects(session):
    expected = session.generate(PROMPT, max_tokens=5, **GREEDY)
    assert session.generate(PROMPT, max_new_tokens=5, **GREEDY).token_ids == expected.token_ids
    params = SamplingParams(max_tokens=9, **GREEDY)
    assert session.generate(PROMPT, params, max_tokens=5).token_ids == expected.token_ids
    assert len(session.generate(PROMPT, params).token_ids) == 9
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.max_tokens = 1


def test_logit_bias_bans_and_forces(session):
    plain = session.generate(PROMPT, max_tokens=4, **GREEDY).token_ids
    banned = session.generate(PROMPT, max_tokens=4, logit_bias={plain[0]: -100}, **GREEDY)
    assert plain[0] not in banned.token_ids
    forced = session.generate(PROMPT, max_tokens=3, logit_bias={7: 100, 5: -1}, **GREEDY)
    assert forced.token_ids == [7, 7, 7]
    params = SamplingParams(logit_bias={7: 100, 5: -1})
    assert params == SamplingParams(logit_bias=params.logit_bias) and hash(params)
    with pytest.raises(errors.InvalidArgumentError, match="expected a token id in 0.."):
        session.generate(PROMPT, max_tokens=1, logit_bias={2**31 - 1: 1.0})


# -- prompts


def test_kinds_of_prompt_agree(session):
    ids = session.encode(PROMPT)
    assert session.decode(ids) == PROMPT
    expected = session.generate(PROMPT, max_tokens=6, **GREEDY)
    for prompt in (ids, tuple(ids), np.asarray(ids), np.asarray(ids, dtype=np.int16)):
        assert session.generate(prompt, max_tokens=6, **GREEDY).token_ids == expected.token_ids
    assert session.generate(ids[:-1], max_tokens=6, **GREEDY).token_ids != expected.token_ids


def test_chat_is_generate_on_the_rendered_template(session):
    messages = [{"role": "user", "content": "Hi"}]
    text = session.apply_chat_template(messages)
    assert text.endswith("<|im_start|>assistant\n")
    ids = session.encode(text, add_special_tokens=False)
    expected = session.generate(ids, max_tokens=6, **GREEDY).token_ids
    assert session.chat(messages, max_tokens=6, **GREEDY).token_ids == expected
    assert session.generate(messages, max_tokens=6, **GREEDY).token_ids == expected


@pytest.mark.parametrize(
    "prompt",
    ["", [], [1.5], [True], ["a"], b"ab", None, 3, {"role": "user"}, [-1], [2**31], "\ud800"],
)
def test_bad_prompts(session, prompt):
    with pytest.raises(errors.InvalidArgumentError):
        session.generate(prompt, max_tokens=1)


def test_token_id_outside_the_vocabulary(session):
    vocab_size = session.config.vocab_size
    with pytest.raises(errors.InvalidArgumentError, match=str(vocab_size)):
        session.generate([1, vocab_size], max_tokens=1)
    session.generate([1, vocab_size - 1], max_tokens=1)


def test_prompt_that_does_not_fit(model_dir):
    with Session(model_dir, num_threads=1, max_context=16) as session:
        assert session.max_context == 16
        with pytest.raises(errors.CapacityError, match="at most 15"):
            session.generate([1] * 17, max_tokens=1)
        result = session.generate([1] * 10, **GREEDY)
        assert result.finish_reason == "length"
        assert 5 <= len(result.token_ids) <= 7


# -- results


def test_result_fields(session):
    result = session.generate(PROMPT, max_tokens=7, **GREEDY)
    assert result.finish_reason == "length" and result.stop_reason is None
    usage = result.usage
    assert usage.prompt_tokens == len(session.encode(PROMPT))
    assert usage.completion_tokens == len(result.token_ids) == 7
    assert usage.total_tokens == usage.prompt_tokens + 7
    assert 0 <= usage.cached_tokens <= usage.prompt_tokens
    assert result.logprobs is None
    assert json.loads(json.dumps(result.to_dict()))["usage"]["completion_tokens"] == 7


def test_stats_have_the_fields_of_the_core(session):
    in_core = {name for name in dir(_C.GenerationStats) if not name.startswith("_")}
    assert in_core == {field.name for field in dataclasses.fields(mimo_rt.GenerationStats)}
    stats = session.generate(PROMPT, max_tokens=9, **GREEDY).stats
    assert stats.num_output_tokens == 9 and stats.num_steps + stats.draft.num_accepted_tokens >= 8
    assert 0 < stats.ttft_ms <= stats.e2e_ms and stats.tpot_ms > 0
    # The definitions of stats.h; the clock is read a few times, hence the slack.
    assert stats.tpot_ms == pytest.approx((stats.e2e_ms - stats.ttft_ms) / 8, rel=0.2, abs=0.05)
    assert session.stats.last == stats and session.stats.num_cached_tokens > 0


def test_bandwidth_fraction_after_measuring(model_dir):
    with Session(model_dir, num_threads=1) as session:
        assert session.generate(PROMPT, max_tokens=4, **GREEDY).stats.bandwidth_fraction == 0
        gbs = session.measure_bandwidth(0.05)
        stats = session.generate(PROMPT, max_tokens=4, **GREEDY).stats
        assert gbs > 0.1 and session.stats.bandwidth_gbs == gbs
        assert stats.bandwidth_fraction == pytest.approx(stats.decode_gbs / gbs)


def test_conversation_reuses_the_cache(session):
    ids = session.encode(PROMPT)
    session.reset()
    first = session.generate(ids, max_tokens=8, **GREEDY)
    longer = [*ids, *first.token_ids, 65, 66]
    warm = session.generate(longer, max_tokens=8, **GREEDY)
    assert warm.usage.cached_tokens >= len(ids)
    session.reset()
    cold = session.generate(longer, max_tokens=8, **GREEDY)
    assert cold.usage.cached_tokens == 0
    assert cold.token_ids == warm.token_ids


# -- seeds


def test_a_fixed_seed_repeats_and_another_differs(session):
    options = {"max_tokens": 24, "temperature": 1.0, "ignore_eos": True}
    first = session.generate(PROMPT, seed=5, **options)
    assert first.seed == 5
    assert session.generate(PROMPT, seed=5, **options).token_ids == first.token_ids
    assert session.generate(PROMPT, seed=6, **options).token_ids != first.token_ids


def test_a_fresh_seed_is_recorded(session):
    options = {"max_tokens": 24, "temperature": 1.0, "ignore_eos": True}
    first, second = (session.generate(PROMPT, **options) for _ in range(2))
    assert first.seed != second.seed and first.token_ids != second.token_ids
    assert session.generate(PROMPT, seed=first.seed, **options).token_ids == first.token_ids


def test_session_seed_is_the_default(model_dir):
    options = {"max_tokens": 16, "temperature": 1.0, "ignore_eos": True}
    with Session(model_dir, num_threads=1, seed=9) as session:
        first = session.generate(PROMPT, **options)
        assert first.seed == 9
        assert session.generate(PROMPT, **options).token_ids == first.token_ids
        assert session.generate(PROMPT, seed=10, **options).seed == 10
        with session.new_session() as other:
            assert other.generate(PROMPT, **options).token_ids == first.token_ids
            assert other.max_context == session.max_context
        with pytest.raises(errors.InvalidArgumentError, match="max_context: expected an integer in 1.."):
            session.new_session(max_context=0)


# -- stops


def test_stop_token_ids(session):
    free = session.generate(PROMPT, max_tokens=32, **GREEDY)
    stop_id = free.token_ids[5]
    first = free.token_ids.index(stop_id)
    result = session.generate(PROMPT, max_tokens=32, stop_token_ids=[stop_id], **GREEDY)
    assert result.token_ids == free.token_ids[: first + 1]
    assert (result.finish_reason, result.stop_reason) == ("stop", stop_id)


def test_end_tokens_of_generation_config(session, model_dir, tmp_path):
    free = session.generate(PROMPT, max_tokens=32, **GREEDY)
    eos = free.token_ids[5]
    first = free.token_ids.index(eos)
    copy = with_generation_config(model_dir, tmp_path, {"eos_token_id": [eos, 258]})
    with Session(copy, num_threads=1) as ends:
        result = ends.generate(PROMPT, max_tokens=32, temperature=0.0)
        assert result.token_ids == free.token_ids[: first + 1]
        assert (result.finish_reason, result.stop_reason) == ("stop", None)
        assert ends.generate(PROMPT, max_tokens=32, **GREEDY).token_ids == free.token_ids
        later = ends.generate(PROMPT, max_tokens=32, temperature=0.0, min_tokens=first + 3)
        assert len(later.token_ids) >= first + 3 and later.token_ids[first] != eos
    config = json.loads((copy / "config.json").read_text())
    del config["eos_token_id"]  # as in the published MiMo-V2.5-Pro
    (copy / "config.json").write_text(json.dumps(config))
    with Session(copy, num_threads=1, generation_config="none") as neutral:
        assert neutral.config.eos_token_ids == sorted({eos, 258})
        assert neutral.generate(PROMPT, max_tokens=32, temperature=0.0).token_ids == result.token_ids
    engine = _C.Engine.open(str(copy), _C.EngineOptions(num_threads=1))
    with Session.from_engine(engine) as alone:
        ids = session.encode(PROMPT)
        assert alone.generate(ids, max_tokens=32, temperature=0.0).token_ids == result.token_ids


@pytest.mark.parametrize("lacking", ["library", "sense"])
def test_token_ids_need_no_tokenizer(session, model_dir, tmp_path, monkeypatch, capsys, lacking):
    copy = shutil.copytree(model_dir, tmp_path / "model")
    if lacking == "library":
        monkeypatch.setitem(sys.modules, "tokenizers", None)
    else:  # to that library: the engine looks at the vocabulary only
        path = copy / "tokenizer.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"normalizer": {"type": "of tomorrow"}}))
    with Session(copy, num_threads=1) as other:
        expected = session.generate([1, 2, 3], max_tokens=8, temperature=0.0).token_ids
        assert other.generate([1, 2, 3], max_tokens=8, temperature=0.0).token_ids == expected
        with pytest.raises((ImportError, errors.BadFormatError), match="tokenizer"):
            other.generate("text", max_tokens=8)
    assert cli_main(["inspect", str(copy)]) == 0
    assert "end tokens" in capsys.readouterr().out


def test_stop_strings(session):
    sampled = {"temperature": 1.0, "seed": 2, "ignore_eos": True, "max_tokens": 128}
    free = session.generate(PROMPT, **sampled)
    stop = next(c for i, c in enumerate(free.text) if c.isalnum() and free.text.index(c) == i > 8)
    before = free.text[: free.text.index(stop)]
    result = session.generate(PROMPT, stop=stop, **sampled)
    assert (result.text, result.finish_reason, result.stop_reason) == (before, "stop", stop)
    both = {"stop": ["never there", stop], "include_stop_str_in_output": True}
    kept = session.generate(PROMPT, **both, **sampled)
    assert kept.text == before + stop
    assert session.generate(PROMPT, stop="never there", **sampled).text == free.text


# -- defaults


def test_sampling_defaults_of_the_model(session, model_dir, tmp_path):
    greedy = session.generate(PROMPT, max_tokens=16, **GREEDY)
    copy = with_generation_config(model_dir, tmp_path, {"do_sample": False, "temperature": 0.7})
    with Session(copy, num_threads=1) as careful:
        options = {"max_tokens": 16, "ignore_eos": True, "seed": 1}
        assert careful.generate(PROMPT, **options).token_ids == greedy.token_ids
        hot = careful.generate(PROMPT, temperature=1.5, **options)
        assert hot.token_ids != greedy.token_ids
    with Session(copy, num_threads=1, generation_config="none") as neutral:
        assert neutral.generate(PROMPT, **options).token_ids != greedy.token_ids


@pytest.mark.parametrize(
    ("content", "needle"),
    [
        ("{", "not JSON"),
        ("[]", "expected a JSON object"),
        ({"temperature": -1}, "temperature: expected a number >= 0, got -1"),
        ({"top_p": "much"}, "top_p"),
        ({"eos_token_id": "</s>"}, "eos_token_id"),
        ({"eos_token_id": [1, -2]}, "eos_token_id"),
    ],
)
def test_bad_generation_config(model_dir, tmp_path, content, needle):
    copy = with_generation_config(model_dir, tmp_path, content)
    with pytest.raises(errors.BadFormatError, match=needle) as caught:
        Session(copy, num_threads=1)
    assert "generation_config.json" in str(caught.value)
    if isinstance(content, dict) and "eos_token_id" not in content:
        Session(copy, num_threads=1, generation_config="none").close()
        return
    with pytest.raises(errors.BadFormatError, match="generation_config.json"):  # has the end tokens, too
        Session(copy, num_threads=1, generation_config="none")


# -- refused before the weights are read


@pytest.fixture
def never_loads(monkeypatch):
    def fail(*_arguments):
        raise AssertionError("the engine was opened")

    monkeypatch.setattr(_C, "Engine", type("Engine", (), {"open": fail}))


@pytest.mark.parametrize(
    ("arguments", "needle"),
    [
        ({"max_context": 10**6}, r"max_context: expected 2\.\.\d+ \(the model's"),
        ({"max_context": 1}, "max_context: expected"),
        ({"pin_threads": 1}, "pin_threads: expected True or False"),
        ({"yield_cores": "no"}, "yield_cores: expected True or False"),
        ({"exact": "no"}, "exact: expected True or False"),
        ({"device": 3}, "device: expected the name"),
        ({"progress": 5}, "progress: expected a function"),
        ({"threads": 2.0}, "num_threads: expected an integer"),
        ({"window_tokens": "8"}, "window_tokens: expected an integer"),
    ],
)
def test_bad_options_are_refused_before_loading(model_dir, never_loads, arguments, needle):
    with pytest.raises(errors.InvalidArgumentError, match=needle):
        Session(model_dir, **arguments)


def test_good_options_reach_the_load(model_dir, never_loads):
    with pytest.raises(AssertionError, match="opened"):
        Session(model_dir, max_context=16, pin_threads=False, exact=False, progress=True)


def test_generation_config_out_of_range_names_the_file(model_dir, tmp_path, never_loads):
    copy = with_generation_config(model_dir, tmp_path, {"min_p": 1 - 1e-12})
    with pytest.raises(errors.BadFormatError, match=r"generation_config.json\].*min_p"):
        Session(copy)
    with pytest.raises(AssertionError, match="opened"):
        Session(copy, generation_config="none")


def test_an_end_token_beyond_the_vocabulary_never_comes(session, model_dir, tmp_path):
    copy = with_generation_config(model_dir, tmp_path, {"eos_token_id": [515, 10**6]})
    with Session(copy, num_threads=1) as other:
        expected = session.generate(PROMPT, max_tokens=8, temperature=0.0).token_ids
        assert other.generate(PROMPT, max_tokens=8, temperature=0.0).token_ids == expected


def test_the_message_of_a_full_context_names_the_option(model_dir):
    with Session(model_dir, num_threads=1, max_context=16) as session:
        for call in (session.generate, session.stream, session.logits):
            with pytest.raises(errors.CapacityError, match=r"Raise max_context \(--max-context"):
                call([1] * 17)
        assert session.logits([1] * 16).shape[0] == 16
        assert session.generate([1] * 15, max_tokens=1).finish_reason == "length"


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt"])
def test_reserved_template_variables_are_refused(session, name):
    messages = [{"role": "user", "content": "x"}]
    with pytest.raises(errors.InvalidArgumentError, match=f"reserved name, got {name}"):
        session.chat(messages, chat_template_kwargs={name: True})
    session.chat(messages, chat_template_kwargs={"enable_thinking": True}, max_tokens=1)
    with pytest.raises(errors.InvalidArgumentError, match="expected a dict"):
        session.chat(messages, chat_template_kwargs=[name])


def test_no_messages(session):
    with pytest.raises(errors.InvalidArgumentError, match="got an empty list"):
        session.chat([])


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), "1", True, None])
def test_measure_bandwidth_checks_its_time(session, seconds):
    with pytest.raises(errors.InvalidArgumentError, match="seconds: expected a number"):
        session.measure_bandwidth(seconds)
