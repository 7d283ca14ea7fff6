"""Training of a draft on a tiny target: it learns, it resumes bit for bit, and its data survives being killed."""

import dataclasses
import os
import re
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from mimo_rt import MimoRtError  # noqa: E402
from mimo_rt.checkpoints import write_tiny_checkpoint  # noqa: E402
from mimo_rt.checkpoints.draft_layout import DraftShape  # noqa: E402
from mimo_rt.train import draft_trainer, optimizers, precision, schedule  # noqa: E402
from mimo_rt.train.acceptance import evaluate_draft  # noqa: E402
from mimo_rt.train.data import TrainingData  # noqa: E402
from mimo_rt.train.draft import DraftModel  # noqa: E402
from mimo_rt.train.draft_trainer import DraftTrainer, DraftTrainingOptions  # noqa: E402
from mimo_rt.train.features import FeatureSource  # noqa: E402
from mimo_rt.train.generations import Generation  # noqa: E402
from mimo_rt.train.state_files import save_state  # noqa: E402
from mimo_rt.train.target import TargetModel  # noqa: E402

LAYERS = (0, 3)
OPTIONS = DraftTrainingOptions(num_steps=60, sequences_per_step=4, anchors_per_sequence=24, lr=1e-2)
pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return TargetModel(write_tiny_checkpoint(tmp_path_factory.mktemp("m") / "m", preset="odd_sizes"))


@pytest.fixture(scope="module")
def data():
    """Four answers of random tokens: nothing but the features tells what comes next."""
    rng = np.random.default_rng(2)
    ids = rng.integers(0, 100, size=(4, 32)).tolist()
    return TrainingData([Generation(str(i), 0, 0.0, row[:6], row[6:]) for i, row in enumerate(ids)], 64)


def make_trainer(target, data, cache=None, seed=0, vocab_ids=None, dtype=torch.float32, sequences_per_pass=0,
                 **options):
    shape = DraftShape(hidden_size=96, intermediate_size=128, num_layers=1, num_q_heads=4, num_kv_heads=2,
                       qk_head_dim=32, v_head_dim=32, rotary_dim=16, target_layer_ids=LAYERS, mask_token_id=99,
                       num_target_layers=5, vocab_size=101, block_size=4, window_tokens=16, value_scale=0.7,
                       draft_vocab_size=0 if vocab_ids is None else len(vocab_ids))
    features = FeatureSource(target, LAYERS, data.token_ids, cache)
    chosen = dataclasses.replace(OPTIONS, seed=seed, **options)
    draft = DraftModel(shape, seed=1, vocab_ids=vocab_ids)
    trainer = DraftTrainer(target, draft, data, features, chosen, dtype=dtype, sequences_per_pass=sequences_per_pass)
    return trainer, features


@pytest.mark.parametrize("options", [{}, {"num_frequent_ids": 20, "num_random_ids": 30, "ema_decay": 0.9}],
                         ids=["whole softmax", "sampled softmax and average"])
def test_it_learns_the_answers_by_their_features(target, data, options, tmp_path):
    """Answers of random tokens are learnt by heart; with the features of other positions nothing is accepted.

    A draft that ignores the features knows at best what follows the anchor token, and may be right by chance.
    """
    trainer, features = make_trainer(target, data, cache=tmp_path, **options)
    before = evaluate_draft(target, trainer.draft, data, features)["mean_acceptance_length"]
    losses = [trainer.step() for _ in range(OPTIONS.num_steps)]
    result = evaluate_draft(target, trainer.averaged_draft(), data, features)
    print(before, losses[0], losses[-1], result)
    assert before < 1.2
    assert losses[-1] < 0.1 * losses[0]
    assert result["mean_acceptance_length"] > 3.0
    assert result["acceptance_rate_at"][0] > 0.9

    def shuffled(seq_idx):
        values = features(seq_idx)
        return values[torch.randperm(len(values), generator=torch.Generator().manual_seed(seq_idx))]

    control = evaluate_draft(target, trainer.averaged_draft(), data, shuffled)["mean_acceptance_length"]
    print(control)
    assert control < 1.6


def test_it_learns_in_bf16(target, data):
    """Products with BF16 operands: the loss of the first step is that of float32 but for their rounding."""
    trainer, features = make_trainer(target, data, dtype=torch.bfloat16)
    exact, _ = make_trainer(target, data)
    losses = [float(trainer.step()) for _ in range(OPTIONS.num_steps)]
    first = float(exact.step())
    assert losses[0] != first
    assert losses[0] == pytest.approx(first, rel=2**-7)
    assert losses[-1] < 0.1 * losses[0]
    assert all(value.dtype == torch.float32 for value in weights(trainer).values())
    result = evaluate_draft(target, trainer.draft, data, features, dtype=torch.bfloat16)
    assert result["mean_acceptance_length"] > 3.0


@pytest.mark.parametrize(("name", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_precisions(name, expected):
    assert precision.matmul_dtype(name, torch.device("cpu")) == expected
    x = torch.full((4, 4), 1 + 2**-10)
    with precision.autocast(torch.device("cpu"), expected):
        assert (x @ x).dtype == expected


def test_the_faster_precision_is_chosen(monkeypatch):
    cpu = torch.device("cpu")
    with_bf16, without = {"avx512_bf16": True}, {"avx2": True, "avx512_bf16": False}
    for names, bf16_seconds, expected in (
        (without, 0.1, torch.float32), (with_bf16, 0.5, torch.bfloat16), (with_bf16, 0.9, torch.float32),
        (with_bf16, 1.5, torch.float32),
    ):
        seconds = {torch.float32: 1.0, torch.bfloat16: bf16_seconds}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda names=names: names, raising=False)
        monkeypatch.setattr(precision, "_product_seconds", seconds.get)
        assert precision.matmul_dtype("auto", cpu) == expected
    monkeypatch.undo()
    assert 0 < precision._product_seconds(torch.float32) < 60 and 0 < precision._product_seconds(torch.bfloat16) < 60
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert precision.matmul_dtype("auto", cpu) == torch.float32
    assert precision.matmul_dtype("auto", torch.device("cuda")) == torch.bfloat16


def test_it_learns_a_part_of_the_vocabulary(target, data):
    """Known tokens are learnt by heart; unknown ones are no labels, and end what a round accepts."""
    ids = data.vocabulary(50, 101)
    trainer, features = make_trainer(target, data, vocab_ids=ids, ema_decay=0.9)
    losses = [trainer.step() for _ in range(OPTIONS.num_steps)]
    result = evaluate_draft(target, trainer.averaged_draft(), data, features)
    answers = torch.cat([tokens[begin:] for tokens, begin in zip(data.token_ids, data.num_prompt_tokens)])
    coverage = float(torch.isin(answers, ids).float().mean())
    print(losses[0], losses[-1], coverage, result)
    assert 0.4 < coverage < 0.9
    assert losses[-1] < 0.1 * losses[0]
    assert 0.8 * coverage < result["acceptance_rate_at"][0] <= 1.2 * coverage  # the first tokens are no anchors' slots
    # A label outside changes neither loss nor gradient: with it as the only label there is nothing to learn.
    none, _ = make_trainer(target, data, vocab_ids=torch.tensor([100]))
    before = weights(none)
    assert none.step() == 0.0
    assert all(torch.isfinite(value).all() for value in weights(none).values())
    assert all(torch.equal(weights(none)[name], value) for name, value in before.items())


def test_the_loss_of_a_part_is_its_softmax(target, data):
    """One step's loss by hand: the softmax over the known ids only, weighted over known labels."""
    ids = data.vocabulary(30, 101)
    trainer, features = make_trainer(target, data, vocab_ids=ids, sequences_per_step=1, anchors_per_sequence=64)
    (seq_idx,) = schedule.sequences_of_step(0, 0, 1, len(data))
    tokens, begin = data.token_ids[seq_idx], data.num_prompt_tokens[seq_idx]
    total = weight = 0.0
    with torch.no_grad():
        context = trainer.draft.context(features(seq_idx)[None])
        for anchor in range(begin, len(tokens) - 1):
            z = trainer.draft(context, target.embed[tokens[None, anchor : anchor + 1]], torch.tensor([[anchor]]))[0, 0]
            for slot, label in enumerate(tokens[anchor + 1 : anchor + 4].tolist()):
                if label in ids:
                    logits = (z[slot] @ target.lm_head.T)[ids]
                    factor = np.exp(-slot / trainer.draft.shape.loss_decay_gamma)
                    total += factor * float(logits.logsumexp(0) - z[slot] @ target.lm_head[label])
                    weight += factor
    assert float(trainer.step()) == pytest.approx(total / weight, rel=1e-5)


def test_the_vocabulary_is_the_most_frequent_ids(target):
    answers = [[5, 5, 5, 9, 9, 2], [9, 7, 0]]
    data = TrainingData([Generation(str(i), 0, 0.0, [1, 1, 1], row) for i, row in enumerate(answers)], 64)
    assert data.vocabulary(2, 20).tolist() == [5, 9]  # three of each; the prompts do not count
    assert data.vocabulary(3, 20).tolist() == [0, 5, 9]  # ties by id
    assert data.vocabulary(7, 20).tolist() == [0, 1, 2, 3, 5, 7, 9]  # filled up
    assert data.vocabulary(20, 20).tolist() == list(range(20))


def test_a_part_of_the_vocabulary_has_an_exact_softmax(target, data):
    with pytest.raises(MimoRtError, match="num_random_ids: expected 0"):
        make_trainer(target, data, vocab_ids=torch.arange(50), num_random_ids=30)


@pytest.mark.parametrize("sequences_per_pass", [1, 4])
def test_only_labels_that_count_are_sampled(target, data, monkeypatch, sequences_per_pass):
    """Neither what follows a sequence's end nor what fills up its anchors."""
    chosen, weighed = [], []
    choose, block_loss = draft_trainer.VocabSample.choose, draft_trainer.block_loss
    monkeypatch.setattr(draft_trainer.VocabSample, "choose",
                        lambda self, labels, *rest: chosen.append(labels) or choose(self, labels, *rest))
    monkeypatch.setattr(draft_trainer, "block_loss",
                        lambda *given: weighed.append(given[1:3]) or block_loss(*given))
    trainer, _ = make_trainer(target, data, sequences_per_pass=sequences_per_pass, num_random_ids=30)
    assert trainer.step() > 0
    assert len(chosen) == len(weighed) == 4 / sequences_per_pass
    for ids, (labels, weight) in zip(chosen, weighed):
        assert torch.equal(ids, labels[weight > 0])
        assert 0 < len(ids) < labels.numel()


def test_a_pass_of_several_sequences_is_the_same_step(target):
    """Sequences of several lengths, with fewer anchors than others have, in one pass or one by one.

    float32 sums in another order: u = 2^-24, a few thousand terms. Controls: rows after a sequence's end change
    nothing, one before an anchor does.
    """
    rng = np.random.default_rng(4)
    rows = [rng.integers(0, 100, size=length).tolist() for length in (32, 9, 21, 30)]
    data = TrainingData([Generation(str(i), 0, 0.0, row[:6], row[6:]) for i, row in enumerate(rows)], 64)

    def losses(sequences_per_pass, changed=None):
        trainer, features = make_trainer(target, data, sequences_per_pass=sequences_per_pass)
        plain = features.batch

        def batch(seq_ids, num_tokens):
            values = plain(seq_ids, num_tokens)
            for row, seq_idx in enumerate(seq_ids):
                if changed is not None and changed + len(data.token_ids[seq_idx]) < num_tokens:
                    values[row, len(data.token_ids[seq_idx]) + changed :] = 3.0
            return values

        features.batch = batch
        for _ in range(3):
            trainer.step()
        return [entry["loss"] for entry in trainer.history]

    one = losses(1)
    for per_pass in (3, 4):
        assert losses(per_pass) == pytest.approx(one, rel=1e-4)
    assert losses(4, changed=0) == losses(4)
    assert losses(4, changed=-4) != pytest.approx(one, rel=1e-3)


def weights(trainer):
    return {name: value.clone() for name, value in trainer.draft.state_dict().items()}


def test_a_resumed_run_equals_an_uninterrupted_one(target, data, tmp_path):
    options = {"num_frequent_ids": 20, "num_random_ids": 30, "ema_decay": 0.9, "sequences_per_step": 3}
    whole, _ = make_trainer(target, data, **options)
    for _ in range(6):
        whole.step()
    first, _ = make_trainer(target, data, cache=tmp_path / "features", **options)
    for _ in range(3):
        first.step()
    first.save(tmp_path / "state.pt")
    first.step()  # lost
    second, _ = make_trainer(target, data, cache=tmp_path / "features", **options)
    second.load(tmp_path / "state.pt")
    assert second.step_idx == 3
    for _ in range(3):
        second.step()
    assert second.history == whole.history
    assert all(torch.equal(weights(second)[name], value) for name, value in weights(whole).items())
    average = whole.averaged_draft().state_dict()
    assert all(torch.equal(second.averaged_draft().state_dict()[name], value) for name, value in average.items())
    other, _ = make_trainer(target, data, seed=1, **options)  # control: another seed, other weights
    for _ in range(6):
        other.step()
    assert not torch.equal(weights(other)["fc.weight"], weights(whole)["fc.weight"])
    with pytest.raises(MimoRtError, match="seed"):
        other.load(tmp_path / "state.pt")


def test_a_run_keeps_its_vocabulary(target, data, tmp_path):
    trainer, _ = make_trainer(target, data, vocab_ids=torch.arange(50))
    trainer.step()
    trainer.save(tmp_path / "state.pt")
    same, _ = make_trainer(target, data, vocab_ids=torch.arange(50))
    same.load(tmp_path / "state.pt")
    for vocab_ids, needle in ((torch.arange(50) + 1, "another vocabulary"),
                              (torch.arange(49), "draft_vocab_size = 50, got 49"),
                              (None, "draft_vocab_size = 50, got 0")):
        other, _ = make_trainer(target, data, vocab_ids=vocab_ids)
        with pytest.raises(MimoRtError, match=needle):
            other.load(tmp_path / "state.pt")


def test_cached_features_equal_computed_ones(target, data, tmp_path):
    plain = FeatureSource(target, LAYERS, data.token_ids)
    cached = FeatureSource(target, LAYERS, data.token_ids, tmp_path)
    expected = [plain(i) for i in range(len(data))]
    assert all(torch.equal(cached(i), value) for i, value in enumerate(expected))
    again = FeatureSource(target, LAYERS, data.token_ids, tmp_path)
    again._compute = None  # must come from the file
    assert all(torch.equal(again(i), value) for i, value in enumerate(expected))
    with precision.autocast(torch.device("cpu"), torch.bfloat16):  # as in training: nobody's routes are rounded
        assert all(torch.equal(plain(i), value) for i, value in enumerate(expected))
    other = FeatureSource(target, LAYERS[::-1], data.token_ids, tmp_path)  # other layers: started anew
    assert torch.equal(other(0), expected[0].roll(96, dims=1))


def with_small_files(num_bytes, body, *arguments):
    """Runs `body` in a process of its own, where no file may grow beyond so many bytes, as on a full disk.

    A limit of this process would be that of all that other threads start meanwhile.
    """
    begin = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({num_bytes},) * 2)\n"
    ended = subprocess.run([sys.executable, "-c", begin + body, *map(str, arguments)], capture_output=True, text=True,
                           check=False, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


SMALL_CACHE = """
import pathlib, sys
import torch
from mimo_rt.train.features import FeatureSource
from mimo_rt.train.target import TargetModel
target, cache = TargetModel(pathlib.Path(sys.argv[1])), pathlib.Path(sys.argv[2])
sequences = [torch.arange(32) + i for i in range(4)]
def open_cache(num_sequences): return FeatureSource(target, (0, 1), sequences[:num_sequences], cache)(0)
first = open_cache(3)
try:
    open_cache(4)
except OSError as error:
    print(error, (cache / "features.bf16").exists())
assert torch.equal(open_cache(3), first)
"""


def test_a_cache_of_features_has_its_room_on_the_disk(target, data, tmp_path):
    """A map of a file without room would end the process when it is written to; the data before it go on working."""
    FeatureSource(target, LAYERS, data.token_ids, tmp_path)(0)
    found = (tmp_path / "features.bf16").stat()
    assert found.st_blocks * 512 >= found.st_size == 2 * 128 * 192
    out = with_small_files(4 * 32 * 2 * 192 - 1, SMALL_CACHE, target.directory, tmp_path / "small")
    assert re.search("no room for 49152 bytes.*features.bf16.* False", out)


SMALL_STATE = """
import pathlib, sys
import torch
from mimo_rt.train.state_files import load_state, save_state
path = pathlib.Path(sys.argv[1])
state = {"options": {}, "x": torch.ones(8)}
save_state(path, state)
try:
    save_state(path, state | {"x": torch.ones(100_000)})
except OSError as error:
    print(error)
assert torch.equal(load_state(path, {})["x"], state["x"])
"""


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(tmp_path):
    path = tmp_path / "state.pt"
    assert re.search("cannot write .*state.pt: .*File too large", with_small_files(100_000, SMALL_STATE, path))
    assert list(tmp_path.iterdir()) == [path]


class OnLostGpu:
    def __reduce__(self):
        raise RuntimeError("CUDA error: unspecified launch failure")


def test_what_is_no_trouble_of_the_disk_is_not_called_so(tmp_path):
    with pytest.raises(RuntimeError, match="CUDA error"):
        save_state(tmp_path / "state.pt", {"options": {}, "x": OnLostGpu()})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32)])
def test_muon_equals_torch_up_to_its_bf16(shape, dtype):
    """torch iterates in BF16 (u = 2^-8): five steps with slopes up to 3.44 leave a few per cent per element."""
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(shape, generator=generator)
    grads = [torch.randn(shape, generator=generator) for _ in range(3)]
    ends = []
    for make in (lambda p: optimizers.Muon([p], lr=0.1, weight_decay=0.3, dtype=dtype),
                 lambda p: torch.optim.Muon([p], lr=0.1, weight_decay=0.3, adjust_lr_fn="match_rms_adamw"),
                 lambda p: torch.optim.Muon([p], lr=0.1, weight_decay=0.3, momentum=0.8,
                                            adjust_lr_fn="match_rms_adamw")):
        parameter = torch.nn.Parameter(start.clone())
        optimizer = make(parameter)
        for grad in grads:
            parameter.grad = grad.clone()
            optimizer.step()
        ends.append(parameter.detach() - start)
    ours, theirs, control = ends
    assert (ours - theirs).norm() < 0.03 * theirs.norm()
    assert (ours - control).norm() > 0.03 * theirs.norm()


def test_a_run_goes_on_on_another_device(monkeypatch):
    """From a CPU to a GPU; "meta" stands for it, which computes no values. torch has no Muon of its own before 2.9."""
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    states = []
    for device in ("cpu", "meta"):
        params = [torch.nn.Parameter(torch.ones(shape, device=device)) for shape in ((8, 6), (6,))]
        used = optimizers.make_optimizers(params, lr=0.1, weight_decay=0.1)
        for optimizer, state in zip(used, states):
            optimizer.load_state_dict(state)
        for param in params:
            param.grad = torch.ones_like(param)
        for optimizer in used:
            optimizer.step()
        states = [optimizer.state_dict() for optimizer in used]
    assert [len(state["state"]) for state in states] == [1, 1]
    assert states[0]["state"][0]["momentum_buffer"].device.type == "meta"


def test_orthogonalized_singular_values_are_near_one():
    matrix = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(optimizers.orthogonalize(matrix))
    assert values.min() > 0.3
    assert values.max() < 1.3
    before = torch.linalg.svdvals(matrix / matrix.norm())
    assert before.min() < 0.3


def test_learning_rate():
    factors = [optimizers.learning_rate_factor(step, 100, 0.1) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert max(factors) == factors[10] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[-1] < 0.01


def test_every_epoch_visits_every_sequence():
    visits = [seq_idx for step in range(8) for seq_idx in schedule.sequences_of_step(0, step, 3, 4)]
    epochs = [visits[i : i + 4] for i in range(0, 24, 4)]
    assert all(sorted(epoch) == [0, 1, 2, 3] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
