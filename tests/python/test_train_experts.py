"""Quantisation-aware training of experts: rounding as the loader reads it, learning, exact export."""

import json
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import mimo_rt  # noqa: E402
from mimo_rt.checkpoints import formats, write_tiny_checkpoint  # noqa: E402
from mimo_rt.train import expert_run, gptq  # noqa: E402
from mimo_rt.train.data import TrainingData  # noqa: E402
from mimo_rt.train.experts import ExpertTrainer, ExpertTrainingOptions, expert_linears  # noqa: E402
from mimo_rt.train.generations import Generation  # noqa: E402
from mimo_rt.train.mxfp4 import quantize_mxfp4  # noqa: E402
from mimo_rt.train.run import RunOptions  # noqa: E402
from mimo_rt.train.target import TargetModel  # noqa: E402
from mimo_rt.train.tensors import CheckpointTensors  # noqa: E402

OPTIONS = ExpertTrainingOptions(num_steps=30, sequences_per_step=2, lr=1e-3)


def awkward_weights():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 96)).astype(np.float32) * np.exp2(rng.uniform(-20, 20, (64, 1)))
    weight[0, :32] = 0.0
    weight[1, :32] = -0.0
    weight[2, :32] = np.arange(32) / 4 - 4  # every tie of the grid
    weight[3] *= np.float32(2.0**-130)  # below the smallest exponent
    weight[4, :31] = 0.0
    weight[5] = 1e38
    return weight.astype(np.float32)


def test_rounding_equals_the_format():
    """Values, codes and scales are those of the numpy encoder; what is written decodes to what was trained with."""
    weight = awkward_weights()
    got = quantize_mxfp4(torch.from_numpy(weight))
    codes, scale = got.encode()
    decoded = formats.decode_mxfp4(codes, scale)
    assert np.array_equal(decoded.view(np.uint32), got.values.numpy().view(np.uint32))
    expected_codes, expected_scale = formats.encode_mxfp4(weight)
    assert np.array_equal(scale, expected_scale)
    assert np.array_equal(codes, expected_codes)
    nudged = got.exponent.clone()
    nudged[7, 0] += 1  # control: another exponent is seen
    assert not np.array_equal(type(got)(got.values, nudged).encode()[1], expected_scale)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The same random weights in BF16 (teacher) and with MXFP4 experts (student)."""
    base = tmp_path_factory.mktemp("models")
    options = {"preset": "pro_fp4", "num_hidden_layers": 2, "hybrid_layer_pattern": [0, 1], "moe_layer_freq": [1, 1],
               "n_routed_experts": 2, "num_experts_per_tok": 2, "vocab_size": 301, "tokenizer": False,
               "clear_routing": False}
    teacher = write_tiny_checkpoint(base / "t", linear_format="bf16", expert_format="bf16", **options)
    student = write_tiny_checkpoint(base / "s", **options)
    return teacher, student


@pytest.fixture(scope="module")
def data():
    ids = np.random.default_rng(4).integers(0, 300, size=(6, 40)).tolist()
    return TrainingData([Generation(str(i), 0, 0.0, row[:4], row[4:]) for i, row in enumerate(ids)], 64)


def make_trainer(models, data, **options):
    teacher, student = (TargetModel(directory) for directory in models)
    return ExpertTrainer(teacher, student, data, ExpertTrainingOptions(**{**vars(OPTIONS), **options}))


def test_training_lowers_the_divergence(models, data):
    """On the training sequences; with a learning rate of zero nothing changes."""
    trainer, control = make_trainer(models, data), make_trainer(models, data, lr=0.0)
    before = trainer.evaluate(data)
    for _ in range(OPTIONS.num_steps):
        trainer.step()
    after = trainer.evaluate(data)
    print(before, after)
    assert 0 < after["divergence"] < 0.5 * before["divergence"]
    for _ in range(3):
        control.step()
    assert control.evaluate(data) == before


def test_export_holds_exactly_the_trained_values(models, data, tmp_path):
    trainer = make_trainer(models, data)
    for _ in range(3):
        trainer.step()
    directory = trainer.export(tmp_path / "out")
    exported, student = TargetModel(directory), TargetModel(models[1])
    trained = trainer.quantized()
    assert set(trained) == set(expert_linears(student))
    for name, value in exported.weights.items():
        expected = trained.get(name, student.weights[name])
        assert torch.equal(value, expected), name
    name = next(iter(trained))
    assert not torch.equal(trained[name], student.weights[name])  # the training did something
    raw = CheckpointTensors(directory)
    codes, scale = raw.raw(f"{name}.weight").numpy(), raw.raw(f"{name}.weight_scale").numpy()
    assert np.array_equal(formats.decode_mxfp4(codes, scale), trained[name].numpy())
    assert json.loads((directory / "config.json").read_text()) == student.config
    ids = data.token_ids[0]
    with torch.no_grad():
        expected = exported.forward(ids).logits.numpy()
    with mimo_rt.Session(directory, device="ref", exact=True, max_context=64) as session:
        got = session.logits(ids.tolist())
    assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()  # the engine reads the same weights


def test_resume_gives_the_same_bits(models, data, tmp_path):
    whole, first, second = (make_trainer(models, data) for _ in range(3))
    for _ in range(4):
        whole.step()
    for _ in range(2):
        first.step()
    first.save(tmp_path / "state.pt")
    second.load(tmp_path / "state.pt")
    for _ in range(2):
        second.step()
    assert second.history == whole.history
    expected = whole.quantized()
    assert all(torch.equal(value, expected[name]) for name, value in second.quantized().items())
    with pytest.raises(mimo_rt.MimoRtError, match="lr"):
        make_trainer(models, data, lr=1.0).load(tmp_path / "state.pt")


def test_models_that_do_not_fit_are_refused(models, data, tmp_path):
    teacher, student = models
    with pytest.raises(mimo_rt.MimoRtError, match="MXFP4"):
        ExpertTrainer(TargetModel(teacher), TargetModel(teacher), data, OPTIONS)
    other = write_tiny_checkpoint(tmp_path / "other", preset="pro_fp4")
    with pytest.raises(mimo_rt.MimoRtError, match="expected"):
        ExpertTrainer(TargetModel(teacher), TargetModel(other), data, OPTIONS)
    shutil.rmtree(other)


# -- GPTQ


def test_gptq_rounds_better_than_the_nearest_value():
    """Correlated inputs: a smaller error of the output, by weights that are not on the grid yet."""
    generator = torch.Generator().manual_seed(3)
    mix = torch.randn(96, 96, generator=generator)
    inputs = torch.randn(2000, 12, generator=generator) @ mix[:12] + 0.2 * torch.randn(2000, 96, generator=generator)
    weight = torch.randn(64, 96, generator=generator)
    start = gptq.gptq_mxfp4(weight, inputs.T @ inputs)
    values = quantize_mxfp4(start).values
    on_the_grid = float((start == values).float().mean())
    assert on_the_grid < 0.2  # training can move the others by less than half a step

    def error(values):
        return float((inputs @ (values - weight).T).norm())

    assert error(values) < 0.6 * error(quantize_mxfp4(weight).values)
    independent = gptq.gptq_mxfp4(weight, torch.eye(96))  # control: nothing to make up for
    assert torch.equal(independent, weight)


def test_gptq_start_is_nearer_to_the_teacher(models, data):
    """On the calibration texts, also where the router leaves experts out; deterministic."""
    teacher, student = (TargetModel(directory) for directory in models)
    lines = []
    start = gptq.gptq_experts(teacher, student, data.token_ids, lines.append)
    assert len(lines) == 2 and set(start) == set(expert_linears(student))
    rounded, compensated = (
        ExpertTrainer(teacher, student, data, OPTIONS, start=begin).evaluate(data)["divergence"]
        for begin in (None, start)
    )
    print(rounded, compensated)
    assert compensated < 0.7 * rounded
    again = gptq.gptq_experts(teacher, student, data.token_ids, lines.append)
    assert all(torch.equal(again[name], value) for name, value in start.items())


def test_gptq_names_layers_that_are_too_wide(models, data, monkeypatch):
    teacher, student = (TargetModel(directory) for directory in models)
    monkeypatch.setattr(gptq, "MAX_HIDDEN_UNITS", 1)
    with pytest.raises(mimo_rt.MimoRtError, match="at most 1 hidden units per layer.*layer 0.*--gptq-tokens 0"):
        gptq.gptq_experts(teacher, student, data.token_ids, print)


def test_a_run_that_dies_in_its_first_step_keeps_the_start(models, data, tmp_path, monkeypatch):
    def train():
        return expert_run.train_experts(*models, tmp_path / "data", tmp_path / "run", num_validation=1,
                                        options=ExpertTrainingOptions(num_steps=1, gptq_tokens=80),
                                        run=RunOptions(1), report=lambda text: None)

    def dies(*_):
        raise OSError("died")

    ids = [row.tolist() for row in data.token_ids]
    answers = [Generation(f"p/{i}", 0, 0.0, row[:4], row[4:]) for i, row in enumerate(ids)]
    monkeypatch.setattr(expert_run, "read_generations", lambda directory: answers)
    with monkeypatch.context() as patch:
        patch.setattr(ExpertTrainer, "step", dies)
        with pytest.raises(OSError, match="died"):
            train()
    monkeypatch.setattr(expert_run, "gptq_experts", dies)  # not again
    assert train() == tmp_path / "run" / "model"
