"""``activations="int8"``: an option that says what it is, changes what it should, and never the rules of decoding."""

import argparse
import json

import mimo_rt
import numpy as np
import pytest
from mimo_rt import _C, errors
from mimo_rt.bench.rounding import compare_logits
from mimo_rt.checkpoints import write_tiny_checkpoint, write_tiny_draft
from mimo_rt.cli import main
from mimo_rt.cli._options import add_engine_options, engine_arguments
from mimo_rt.loading import engine_options

CPU_BACKENDS = [b.name for b in mimo_rt.list_backends() if b.available and b.name.startswith("cpu-")]
IDS = list(range(1, 41))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("activations") / "model"
    write_tiny_checkpoint(directory, seed=3)
    write_tiny_draft(directory, seed=4)
    return directory


def session(model, activations="int8", **options):
    return mimo_rt.Session(model, activations=activations, **{"num_threads": 1, **options})


def relative_error(got, expected):
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


def test_bf16_is_the_default_and_int8_is_told(model):
    with mimo_rt.Session(model, num_threads=1) as plain, session(model, "bf16") as exact, session(model) as rounded:
        assert plain.stats.activations == exact.stats.activations == "bf16"
        assert rounded.stats.to_dict()["activations"] == "int8"
        assert "int8" in repr(rounded) and "int8" not in repr(exact)
        assert plain.logits(IDS).tobytes() == exact.logits(IDS).tobytes() != rounded.logits(IDS).tobytes()


@pytest.mark.parametrize("device", ["ref", *CPU_BACKENDS])
def test_int8_is_close_to_bf16_and_every_backend_to_the_reference(model, device):
    with session(model, device="ref") as reference, session(model, "bf16", device="ref") as exact:
        expected, exact_logits = reference.logits(IDS), exact.logits(IDS)
    with session(model, device=device) as rounded:
        logits = rounded.logits(IDS)
        assert rounded.backend == device
    cost = relative_error(expected, exact_logits)
    assert 0 < cost < 0.05
    assert relative_error(logits, expected) < cost
    if device == "ref":
        assert logits.tobytes() == expected.tobytes()


@pytest.mark.parametrize("device", CPU_BACKENDS)
def test_logits_do_not_depend_on_step_or_workers(model, device):
    expected = None
    for num_threads in (1, 2):
        with session(model, device=device, num_threads=num_threads) as rounded:
            for step_tokens in (1, 3, 8, 40):
                logits = rounded.logits(IDS, step_tokens=step_tokens).tobytes()
                expected = expected or logits
                assert logits == expected


@pytest.mark.parametrize("device", ["ref", *CPU_BACKENDS])
def test_a_draft_changes_no_token(model, device):
    with session(model, device=device, num_threads=2) as rounded:
        options = {"max_tokens": 48, "temperature": 0.0, "ignore_eos": True}
        plain = rounded.generate(IDS, draft_mode="off", **options)
        drafted = rounded.generate(IDS, draft_mode="fixed", **options)
    assert drafted.token_ids == plain.token_ids
    assert drafted.stats.draft.num_draft_tokens > 0


@pytest.mark.parametrize(
    ("options", "needle"),
    [
        ({"activations": "int4"}, "expected bf16 or int8, got 'int4'"),
        ({"activations": ""}, "got ''"),
        ({"activations": 8}, "expected 'bf16' or 'int8', got 8"),
        ({"activations": "int8", "device": "ref", "exact": True}, "expected bf16 with exact"),
    ],
)
def test_wrong_values_are_named(model, options, needle):
    with pytest.raises(errors.InvalidArgumentError, match="activations") as caught:
        mimo_rt.Session(model, **options)
    assert needle in str(caught.value)


def test_the_command_line_hands_it_on(model, capsys):
    parser = argparse.ArgumentParser()
    add_engine_options(parser)
    for flags, expected in (((), "bf16"), (("--activations", "int8"), "int8")):
        assert engine_options(**engine_arguments(parser.parse_args(flags))).activations == expected
    assert main(["doctor", "--activations", "int8", "--threads", "1"]) == 0
    assert "with int8 activations against ref" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["plan", str(model), "--activations", "int8"])
    assert "--activations" in capsys.readouterr().err


def test_bench_prints_what_it_costs(model, capsys):
    arguments = ["bench", "decode", "--model", str(model), "--seconds", "0.05", "--threads", "1"]
    assert main([*arguments, "--activations", "int8", "--json"]) == 0
    for record in map(json.loads, capsys.readouterr().out.splitlines()):
        assert record["activations"] == "int8"
        assert 0 < record["logits_relative_error"] < 0.05
        assert 0 < record["logits_kl"] < 0.01 and record["top1_agreement"] > 0.8
    assert main([*arguments, "--activations", "int8"]) == 0
    out = capsys.readouterr().out
    assert "with int8 activations" in out and "logits against bf16 activations: relative error" in out
    assert main([*arguments, "--json"]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[0])
    assert record["activations"] == "bf16" and "logits_kl" not in record


def test_the_change_of_logits_by_hand():
    exact = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]], np.float32))
    same = compare_logits(exact, exact + 3)  # a constant changes no distribution
    assert same.kl == pytest.approx(0, abs=1e-7) and same.top1_agreement == 1
    other = np.log(np.array([[0.25, 0.5, 0.25], [0.1, 0.8, 0.1]], np.float32))
    change = compare_logits(exact, other)
    assert change.kl == pytest.approx((0.5 * np.log(2) - 0.25 * np.log(2)) / 2)
    assert change.top1_agreement == 0.5 and change.num_tokens == 2
    assert change.relative_error == pytest.approx(relative_error(other, exact))


def test_the_engine_itself_refuses_it(model):
    with pytest.raises(errors.InvalidArgumentError, match="Engine.open.*activations"):
        _C.Engine.open(str(model), _C.EngineOptions(activations="fp8"))
