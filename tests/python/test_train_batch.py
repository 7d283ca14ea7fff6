"""Many sequences at once: target and features against the plain ones, answers against the engine's."""

import contextlib
import dataclasses
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import mimo_rt  # noqa: E402
from mimo_rt.checkpoints import write_tiny_checkpoint  # noqa: E402
from mimo_rt.train import batch_answers, draft_trainer  # noqa: E402
from mimo_rt.train.batch_target import BatchTarget  # noqa: E402
from mimo_rt.train.data import TrainingData  # noqa: E402
from mimo_rt.train.draft import DraftModel  # noqa: E402
from mimo_rt.train.draft_run import DraftSizes, shape_for_target  # noqa: E402
from mimo_rt.train.feature_table import FeatureTable  # noqa: E402
from mimo_rt.train.features import FeatureSource  # noqa: E402
from mimo_rt.train.generations import GenerateOptions, Generation, Prompt, read_generations  # noqa: E402
from mimo_rt.train.target import TargetModel  # noqa: E402
from torch.nn.utils.rnn import pad_sequence  # noqa: E402

# Two float64 evaluations: sums of at most 400 terms in 5 layers, rounded to 2^-53 each.
BOUND = 2.0**13 * 2.0**-53
MODEL = {"preset": "pro_fp4", "num_hidden_layers": 2, "hybrid_layer_pattern": [0, 1], "moe_layer_freq": [0, 1],
         "n_routed_experts": 4, "vocab_size": 300}
LENGTHS = (21, 3, 14)
pytestmark = pytest.mark.usefixtures("one_torch_thread")


def sequences(seed=3):
    rng = np.random.default_rng(seed)
    return [torch.tensor(rng.integers(0, 100, size=length)) for length in LENGTHS]


def logits_in_parts(model, ids, lengths, shift=0):
    """Of the last three tokens of every sequence, which come one by one after the others."""
    first = lengths - 3
    model.forward(ids, torch.zeros(len(ids), dtype=torch.long), ids.shape[1])
    rows, logits = torch.arange(len(ids)), []
    for step in range(3):
        x, _ = model.forward(ids[rows, first + step][:, None], first + step + shift, ids.shape[1])
        logits.append(model.logits(x[:, 0]))
    return torch.stack(logits, dim=1)


@pytest.mark.parametrize("preset", ["all_window", "flash_fp8", "odd_sizes", "plain_attention", "pro_fp4"])
def test_a_batch_equals_its_sequences(tmp_path, preset):
    """Prefill of sequences of several lengths, then token by token: the last overwrite what padding left in the cache.

    Control: a position too far, the bound sees.
    """
    target = TargetModel(write_tiny_checkpoint(tmp_path / "m", preset=preset), dtype=torch.float64)
    ids, lengths = pad_sequence(sequences(), batch_first=True), torch.tensor(LENGTHS)
    with torch.no_grad():
        expected = torch.stack([target.forward(s).logits[-3:] for s in sequences()])
        got = logits_in_parts(BatchTarget(target, len(ids), ids.shape[1] + 1), ids, lengths)
        wrong = logits_in_parts(BatchTarget(target, len(ids), ids.shape[1] + 1), ids, lengths, shift=1)
    assert (got - expected).abs().max() < BOUND * expected.abs().max()
    assert (wrong - expected).abs().max() > 1e6 * BOUND * expected.abs().max()


def test_the_table_of_features_equals_single_ones(tmp_path, monkeypatch):
    """Rounded to BF16 both; over the ends of sequences, a table's batch may hold anything."""
    monkeypatch.setattr("mimo_rt.train.feature_table.TOKENS_PER_BATCH", 40)  # several batches
    target = TargetModel(write_tiny_checkpoint(tmp_path / "m", preset="odd_sizes"), dtype=torch.float64)
    source = FeatureSource(target, (3, 0), sequences())
    table = FeatureTable(target, (3, 0), sequences())
    for seq_idx in range(len(LENGTHS)):
        assert torch.equal(table(seq_idx), source(seq_idx))
        assert not torch.equal(table(seq_idx), FeatureSource(target, (0, 3), sequences())(seq_idx))
    got, expected = table.batch([2, 0], 16), source.batch([2, 0], 16)
    assert got.shape == expected.shape and got.isfinite().all()
    assert torch.equal(got[0, :14], expected[0, :14]) and torch.equal(got[1], expected[1])
    assert not expected[0, 14:].any()


def greedy(model, prompts, count):
    with mimo_rt.Session(model, threads=1, draft=None, generation_config="none") as session:
        return [session.generate(list(p), max_tokens=count, temperature=0.0).token_ids for p in prompts]


def test_greedy_answers_equal_the_engines(tmp_path):
    """Token for token, up to one whose two largest logits are nearly tied.

    The engine rounds activations to BF16: relative 2^-8 in each of about ten places between a token and its logits,
    which are of order 2: 0.06 when they add up like random ones. Control: another model's tokens are no near ties.
    """
    near = 2.0**-8 * np.sqrt(10) * 2 * 2.5
    model = write_tiny_checkpoint(tmp_path / "m", **MODEL)
    other = write_tiny_checkpoint(tmp_path / "other", seed=1, **MODEL)
    prompts = [tuple(range(5 + i, 12 + 3 * i)) for i in range(6)]
    target = TargetModel(model)
    with torch.no_grad():
        made = batch_answers.decode_batch(target, [torch.tensor(p) for p in prompts], torch.zeros(6), 20, 0, [258])

        def leads(expected):
            """By how much our token's logit leads theirs where they differ first."""
            for prompt, ours, theirs in zip(prompts, made, expected, strict=True):
                place = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), None)
                if place is not None:
                    logits = target.forward(torch.tensor([*prompt, *ours[:place]])).logits[-1]
                    yield float(logits[ours[place]] - logits[theirs[place]])

        differences, control = list(leads(greedy(model, prompts, 20))), list(leads(greedy(other, prompts, 20)))
    print(differences, control)
    assert len(differences) < len(prompts) / 2 and all(lead < near for lead in differences)
    assert max(control) > 5 * near


def test_draws_follow_the_distribution():
    """G-test of 20,000 draws; 99.9 % of a chi-square with 5 degrees of freedom lie below 20.5. Control: another T."""
    logits = torch.tensor([1.0, 0.0, 2.0, -1.0, 0.5, 1.5]).expand(20000, -1)
    counts = batch_answers._choose(logits, torch.full((20000, 1), 0.8), torch.Generator().manual_seed(1)).bincount()

    def statistic(temperature):
        expected = 20000 * (logits[0] / temperature).softmax(dim=0)
        return float(2 * (counts * (counts / expected).log()).sum())

    assert statistic(0.8) < 20.5
    assert statistic(0.9) > 40
    zero = batch_answers._choose(logits, torch.zeros(20000, 1), torch.Generator().manual_seed(1))
    assert set(zero.tolist()) == {2}


def test_answers_are_made_batch_by_batch(tmp_path):
    """A second call goes on; what is answered already is left out; another directory of options is refused."""
    target = TargetModel(write_tiny_checkpoint(tmp_path / "m", **MODEL))
    prompts = [Prompt(f"p/{i}", (i, 7, 20 + i)) for i in range(4)]
    options, done = GenerateOptions(max_tokens=5), {("p/1", 0.0)}

    def make(directory, seconds=float("inf"), options=options):
        return batch_answers.make_batch_answers(
            target, prompts, tmp_path / directory, options, stop_ids=[258], batch=3, done=done, seconds=seconds,
            meta={"made_by": "torch"}, report=lambda text: None)

    make("whole")
    make("parts", seconds=1e-9)
    assert [path.name for path in (tmp_path / "parts").glob("part-*")] == ["part-torch-00000.jsonl"]
    make("parts")
    answers = read_generations(tmp_path / "whole")
    assert answers == read_generations(tmp_path / "parts")
    assert {(a.prompt, a.temperature) for a in answers} == {(p.name, t) for p in prompts for t in (0.0, 0.8)} - done
    assert all(len(a.output_ids) <= 5 and len(a.prompt_ids) == 3 for a in answers)
    assert make("parts") == 0
    with pytest.raises(mimo_rt.MimoRtError, match="max_tokens is 5 there, 6 now"):
        make("parts", options=dataclasses.replace(options, max_tokens=6))
    done.clear()  # batches of other jobs than those that are there
    with pytest.raises(mimo_rt.MimoRtError, match="prompts_digest is '"):
        make("parts")
    done.add(("p/1", 0.0))
    assert make("parts") == 0
    target.directory = write_tiny_checkpoint(tmp_path / "other", seed=1, **MODEL)
    with pytest.raises(mimo_rt.MimoRtError, match="checkpoint_digest is '"):
        make("parts")


def test_an_answer_ends_with_its_stop_id(tmp_path):
    """The id that comes after three tokens is made the stop id: it is the last of the answer, as in the engine's."""
    model = write_tiny_checkpoint(tmp_path / "m", **MODEL)
    prompt = tuple(range(5, 12))
    target = TargetModel(model)
    with torch.no_grad():
        made = batch_answers.decode_batch(target, [torch.tensor(prompt)] * 2, torch.zeros(2), 12, 0, [])[0]
        stop = made[3]
        ended = batch_answers.decode_batch(target, [torch.tensor(prompt)] * 2, torch.zeros(2), 12, 0, [299, stop])
    assert len(made) == 12
    assert ended == [made[: made.index(stop) + 1]] * 2
    config = json.loads((model / "config.json").read_text()) | {"eos_token_id": stop}
    (model / "config.json").write_text(json.dumps(config))
    assert greedy(model, [prompt], 12)[0] == ended[0]


@pytest.fixture
def on_meta(tmp_path, monkeypatch):
    """A target on torch's device without data: reading a value there is an error, and so is mixing it with the CPU."""
    target = TargetModel(write_tiny_checkpoint(tmp_path / "m", **MODEL))
    target.weights = {name: value.to("meta") for name, value in target.weights.items()}
    target.device = torch.device("meta")
    monkeypatch.setattr(draft_trainer, "autocast", lambda *_: contextlib.nullcontext())  # knows no such device
    with pytest.raises(RuntimeError, match="meta tensor"):
        float(torch.zeros(1, device="meta"))
    with pytest.raises(RuntimeError, match="expected device meta"):
        torch.zeros(1, device="meta") + torch.zeros(1)
    return target


def test_a_step_on_a_device_never_waits(on_meta):
    """As on a GPU: several sequences in a pass, features from the table, Muon. Control: its loss, read."""
    answers = [Generation(str(i), 0, 0.0, ids[:2].tolist(), ids[2:].tolist()) for i, ids in enumerate(sequences())]
    data = TrainingData([a for a in answers if len(a.output_ids) > 1], 64)
    sizes = DraftSizes(num_layers=2, target_layer_ids=(0, 1), block_size=4, draft_vocab_size=30)
    draft = DraftModel(shape_for_target(on_meta.config, sizes, 8), vocab_ids=data.vocabulary(30, 300))
    options = draft_trainer.DraftTrainingOptions(sequences_per_step=2, anchors_per_sequence=8)
    features = FeatureTable(on_meta, (0, 1), data.token_ids)
    trainer = draft_trainer.DraftTrainer(on_meta, draft, data, features, options)
    for _ in range(2):
        loss = trainer.step()
    assert loss.device == on_meta.device and trainer.step_idx == 2
    with pytest.raises(RuntimeError, match="meta tensor"):
        trainer.history


def test_a_token_of_a_batch_never_waits(on_meta):
    model, ids = BatchTarget(on_meta, 4, 40), torch.zeros(4, 8, dtype=torch.long, device="meta")
    with torch.no_grad():
        model.forward(ids, ids[:, 0], 8)
        x, _ = model.forward(ids[:, :1], ids[:, 0] + 8, 16)
        token = batch_answers._choose(model.logits(x[:, 0]), torch.zeros(4, 1, device="meta"), None)
    assert token.device == on_meta.device and token.shape == (4,)
