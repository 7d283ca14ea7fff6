"""The draft as a torch module against a plain numpy draft; masks, labels and loss against their definitions.

Both drafts run in float64 on the same BF16 weights: 2^13 roundings of 2^-53 are far above what sums of at most 200
terms in two layers give, and far below any mistake (controls).
"""

import dataclasses
import json

import numpy as np
import pytest
from reference_draft import ReferenceDraft

torch = pytest.importorskip("torch")

from mimo_rt import MimoRtError  # noqa: E402
from mimo_rt.checkpoints import draft_layout  # noqa: E402
from mimo_rt.checkpoints.draft_layout import DraftShape, default_target_layer_ids, draft_specs  # noqa: E402
from mimo_rt.train import blocks, loss  # noqa: E402
from mimo_rt.train.draft import DraftModel  # noqa: E402
from mimo_rt.train.draft_files import export_draft, import_draft  # noqa: E402
from safetensors import safe_open  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

BOUND = 2.0**13 * 2.0**-53
MIMO = DraftShape(hidden_size=48, intermediate_size=80, num_layers=2, num_q_heads=4, num_kv_heads=2, qk_head_dim=32,
                  v_head_dim=16, rotary_dim=16, target_layer_ids=(3, 0), mask_token_id=90, num_target_layers=5,
                  vocab_size=101, block_size=4, window_tokens=6, value_scale=0.612, has_sink=True)
QWEN = dataclasses.replace(MIMO, has_sink=False, rotary_dim=32, value_scale=1.0, window_tokens=0, block_size=7)


def random_draft(shape, seed=0):
    """Weights of order one, exactly representable in BF16."""
    model = DraftModel(shape)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            size = parameter.shape[-1] if parameter.ndim == 2 else 1
            noise = torch.randn(parameter.shape, generator=generator) * size**-0.5
            parameter.copy_((noise + (parameter.ndim == 1)).bfloat16())
    return model


def inputs(shape, num_tokens=14, seed=1):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num_tokens, shape.feature_size, generator=generator, dtype=torch.float64)
    return features, torch.randn(20, shape.hidden_size, generator=generator, dtype=torch.float64)


def run(model, features, embed, anchors):
    model = model.double()
    with torch.no_grad():
        context = model.context(features[None])
        return model(context, embed[None, : len(anchors)], torch.tensor(anchors)[None])[0].numpy()


@pytest.mark.parametrize("shape", [MIMO, QWEN], ids=["mimo", "qwen"])
def test_blocks_equal_the_plain_draft(tmp_path, shape):
    """Many blocks in one forward equal each block alone; overlapping blocks know nothing of each other."""
    model = random_draft(shape)
    directory = export_draft(model, tmp_path / "dflash")
    features, embed = inputs(shape)
    anchors = [1, 5, 6, 13, 14]
    got = run(model, features, embed, anchors)
    mask = model.mask_embedding.detach().numpy()
    reference = ReferenceDraft(directory, mask)
    for index, anchor in enumerate(anchors):
        expected = reference.block(features.numpy(), embed[index].numpy(), anchor)
        assert np.abs(got[index] - expected).max() < BOUND * np.abs(expected).max()


@pytest.mark.parametrize("change", [{"swa_window_size": 7}, {"swa_window_size": 5}, {"attention_value_scale": 0.6},
                                    {"partial_rotary_factor": 0.25}, {"rope_theta": 11000.0}, {"block_size": 5}])
def test_the_bound_sees_a_wrong_definition(tmp_path, change):
    model = random_draft(MIMO)
    directory = export_draft(model, tmp_path / "dflash")
    features, embed = inputs(MIMO)
    got = run(model, features, embed, [12])[0]
    wrong = ReferenceDraft(directory, model.mask_embedding.detach().numpy(), **change)
    expected = wrong.block(features.numpy(), embed[0].numpy(), 12)[:3]
    assert np.abs(got - expected).max() > 1000 * BOUND


@pytest.mark.parametrize("window", [0, 1, 4, 6, 100])
def test_what_a_row_depends_on(window):
    """Gradients of one layer: row t depends on feature j exactly when it may see it, and never on another anchor."""
    shape = dataclasses.replace(MIMO, num_layers=1, window_tokens=window)
    model = random_draft(shape).double()
    features, embed = inputs(shape)
    anchors = torch.tensor([2, 3, 9, 14])
    hidden = blocks.context_hidden(blocks.block_positions(anchors, shape.block_size), len(features), window)
    for index, anchor in enumerate(anchors.tolist()):
        for t in range(1, shape.block_size):
            x, e = features.clone().requires_grad_(), embed[:4].clone().requires_grad_()
            model(model.context(x[None]), e[None], anchors[None])[0, index, t - 1].pow(3).sum().backward()
            depends = x.grad.abs().sum(dim=1) > 0
            may = [j < anchor and (window == 0 or anchor + t - j < window) for j in range(len(features))]
            assert depends.tolist() == may
            assert hidden[index, t].tolist() == [not seen for seen in may]
            assert (e.grad.abs().sum(dim=1) > 0).tolist() == [other == index for other in range(4)]


def test_export_import_round_trip(tmp_path):
    """Weights come back as their BF16 rounding, config and file names are those of a published draft."""
    model = DraftModel(MIMO, seed=3)
    directory = export_draft(model, tmp_path / "dflash")
    back = import_draft(directory)
    assert back.shape == MIMO
    rounded = {name: value.bfloat16().float() for name, value in model.state_dict().items()}
    assert all(torch.equal(back.state_dict()[name], value) for name, value in rounded.items())
    assert not torch.equal(back.fc.weight, model.fc.weight)  # the rounding is real
    names = {path.name for path in directory.iterdir()}
    assert names == {"config.json", "mask_embedding.pt", "model.safetensors.index.json",
                     "dflash_draft_model-00001-of-00001.safetensors"}
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(draft_specs(MIMO))
    saved = torch.load(directory / "mask_embedding.pt", weights_only=True)
    assert saved["mask_token_id"] == 90
    assert saved["embedding"].dtype == torch.bfloat16
    assert saved["embedding"].shape == (48,)
    (directory / "mask_embedding.pt").unlink()
    with pytest.raises(MimoRtError, match="mask_embedding"):
        import_draft(directory)


def test_a_part_of_the_vocabulary_round_trip(tmp_path):
    """Two names more than in other drafts; ids come back as they were and as the numpy draft reads them."""
    ids = torch.tensor([0, 1, 7, 50, 100])
    model = DraftModel(dataclasses.replace(MIMO, draft_vocab_size=5), seed=3, vocab_ids=ids)
    directory = export_draft(model, tmp_path / "dflash")
    back = import_draft(directory)
    assert back.shape == model.shape
    assert torch.equal(back.vocab_ids, ids)
    reference = ReferenceDraft(directory, model.mask_embedding.detach().numpy())
    assert reference.vocab_ids == ids.tolist()
    assert json.loads((directory / "config.json").read_text())["draft_vocab_size"] == 5
    with safe_open(directory / "dflash_draft_model-00001-of-00001.safetensors", framework="pt") as file:
        assert file.get_tensor("d2t").tolist() == [0, 0, 5, 47, 96]
    plain = export_draft(DraftModel(MIMO, seed=3), tmp_path / "plain")
    assert "draft_vocab_size" not in json.loads((plain / "config.json").read_text())
    assert all(torch.equal(back.state_dict()[k], v) for k, v in import_draft(plain).state_dict().items())


def test_ids_of_a_part_of_the_vocabulary():
    model = DraftModel(dataclasses.replace(MIMO, draft_vocab_size=3), vocab_ids=torch.tensor([2, 7, 90]))
    ids, is_known = model.draft_ids(torch.tensor([[0, 2, 7], [8, 90, 100]]))
    assert is_known.tolist() == [[False, True, True], [False, True, False]]
    assert model.target_ids(ids)[is_known].tolist() == [2, 7, 90]
    lm_head = torch.arange(202.0).reshape(101, 2)
    assert torch.equal(model.head(lm_head), lm_head[[2, 7, 90]])
    whole = DraftModel(MIMO)
    assert whole.head(lm_head) is lm_head
    assert whole.draft_ids(torch.tensor([0, 100]))[1].all()


@pytest.mark.parametrize("d2t", [[0, 0, -1], [0, -1, 0], [-1, 0, 0], [0, 0, 99], [0, 2**63 - 1, 0]],
                         ids=["twice", "falling", "negative", "too large", "overflow"])
def test_ids_that_do_not_ascend_are_refused(d2t):
    assert draft_layout.decode_vocab_ids(np.array([0, 0, 98]), 101).tolist() == [0, 1, 100]
    with pytest.raises(MimoRtError, match=r"d2t: expected ascending ids of 0\.\.100"):
        draft_layout.decode_vocab_ids(np.array(d2t), 101)


def test_shapes_are_checked():
    for field, value in [("block_size", 17), ("target_layer_ids", (0, 0)), ("target_layer_ids", (5,)),
                         ("num_q_heads", 3), ("rotary_dim", 34), ("v_head_dim", 24), ("draft_vocab_size", 102),
                         ("draft_vocab_size", -1)]:
        with pytest.raises(MimoRtError, match=field):
            dataclasses.replace(MIMO, **{field: value})
    with pytest.raises(MimoRtError, match="expected 3 ids, got 0"):
        DraftModel(dataclasses.replace(MIMO, draft_vocab_size=3))


def test_default_layers():
    assert default_target_layer_ids(36, 5) == (1, 9, 17, 25, 33)
    assert default_target_layer_ids(30, 5) == (1, 8, 14, 20, 27)
    assert default_target_layer_ids(8, 5) == (1, 2, 3, 4, 5)
    assert default_target_layer_ids(6, 5) == (1, 2, 3)  # fewer, but distinct
    assert default_target_layer_ids(2, 5) == (1,)


def test_loss_of_one_block_by_hand():
    """Slots 1 and 2 of three have labels; weights are 1 and exp(-1/7); logits are written out."""
    z = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [9.0, 9.0]]])
    lm_head = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    ids = torch.tensor([7, 0, 2, 1])  # anchor at position 1, so slots 1 and 2 are tokens 2 and 1
    labels, is_inside = blocks.block_labels(ids, torch.tensor([1]), 4)
    assert labels[0, :2].tolist() == [2, 1]
    assert is_inside.tolist() == [[True, True, False]]
    weight = loss.slot_weights(3, 7.0) * is_inside
    first = np.log(np.exp(1) + np.exp(0) + np.exp(1)) - 1  # logits 1, 0, 1; label 2
    second = np.log(np.exp(0) + np.exp(2) + np.exp(2)) - 2  # logits 0, 2, 2; label 1
    expected = first + np.exp(-1 / 7) * second
    assert float(loss.block_loss(z, labels, weight, lm_head)) == pytest.approx(expected, rel=1e-6)
    assert float(loss.block_loss(z, labels, weight * 0 + 1, lm_head)) != pytest.approx(expected, rel=1e-2)


def test_rows_that_weigh_nothing_cost_nothing_on_a_cpu():
    """Products with lm_head, forward and backward; on another device all rows, and none asks for their number.

    A meta tensor has no values: whoever asks for one fails.
    """
    generator = torch.Generator().manual_seed(6)
    lm_head, labels = torch.randn(50, 8, generator=generator), torch.randint(50, (4, 5, 3), generator=generator)
    weight = torch.rand(4, 5, 3, generator=generator) * (torch.arange(5) < 2)[:, None]
    num_flops = {}
    for device in ("cpu", "meta"):
        z = torch.randn(4, 5, 3, 8, generator=generator).to(device).requires_grad_()
        with FlopCounterMode(display=False) as counter:
            loss.block_loss(z, labels.to(device), weight.to(device), lm_head.to(device)).backward()
        num_flops[device] = counter.get_total_flops()
        assert z.grad.shape == z.shape
    row = 2 * 2 * 50 * 8
    assert num_flops == {"cpu": 4 * 2 * 3 * row, "meta": 4 * 5 * 3 * row}


def test_sampled_softmax_estimates_the_whole_one():
    """The sum of exponentials is right in expectation (5 standard errors); without the correction it is not."""
    generator = torch.Generator().manual_seed(5)
    lm_head, z = torch.randn(200, 8, generator=generator), torch.randn(1, 1, 8, generator=generator)
    labels, weight = torch.tensor([[17]]), torch.ones(1, 1)
    sample = loss.VocabSample(torch.arange(30), 40)
    logits = z[0, 0] @ lm_head.T
    exact = float(logits.logsumexp(0).exp())
    sums, plain = [], []
    for _ in range(400):
        ids, correction = sample.choose(labels, 200, generator)
        assert len(ids) == 70
        assert set(range(30)) <= set(ids.tolist())
        value = float(loss.block_loss(z, labels, weight, lm_head, (ids, correction)))
        sums.append(np.exp(value + float(logits[17])))
        plain.append(float(logits[ids].exp().sum()))
    error = np.std(sums) / np.sqrt(len(sums))
    assert abs(np.mean(sums) - exact) < 5 * error
    assert abs(np.mean(plain) - exact) > 20 * error
    whole = loss.VocabSample(torch.arange(200), 0).choose(labels, 200, generator)
    assert float(loss.block_loss(z, labels, weight, lm_head, whole)) == pytest.approx(
        float(loss.block_loss(z, labels, weight, lm_head)), rel=1e-6)


@pytest.mark.parametrize("is_cpu", [True, False])
def test_labels_that_weigh_nothing_may_lack_in_a_sample(monkeypatch, is_cpu):
    """Also where their rows are computed, as on a GPU: ids below, between and above those that take part."""
    if not is_cpu:
        monkeypatch.setattr(loss, "_used_rows", lambda *rows: rows)
    generator = torch.Generator().manual_seed(7)
    lm_head, z = torch.randn(200, 8, generator=generator), torch.randn(1, 4, 8, generator=generator)
    labels, weight = torch.tensor([[17, 5, 199, 30]]), torch.tensor([[0.5, 0.0, 0.0, 0.0]])
    sample = loss.VocabSample(torch.arange(10, 20), 10).choose(labels[weight > 0], 150, generator)
    assert not set(sample[0].tolist()) & {5, 199, 30}
    expected = loss.block_loss(z[:, :1], labels[:, :1], weight[:, :1], lm_head, sample)
    torch.testing.assert_close(loss.block_loss(z, labels, weight, lm_head, sample), expected)
    weight[0, 1] = 0.5  # control
    assert abs(loss.block_loss(z, labels, weight, lm_head, sample) - expected) > 0.01


def test_accepted_lengths_and_rounds():
    labels = torch.tensor([[5, 6, 7], [5, 6, 7], [5, 6, 7], [5, 6, 7]])
    draft = torch.tensor([[5, 6, 7], [5, 9, 7], [1, 6, 7], [5, 6, 7]])
    is_inside = torch.ones(4, 3, dtype=torch.bool)
    is_inside[3, 2] = False
    assert loss.accepted_lengths(draft, labels, is_inside).tolist() == [3, 1, 0, 2]
    # Anchors 0, 1, 4 start rounds that emit 1, 3 and 2 tokens.
    assert loss.count_rounds([0, 2, 9, 9, 1, 9]) == (3, 6)


def test_anchors_stay_in_the_answer():
    generator = torch.Generator().manual_seed(0)
    seen = torch.cat([blocks.sample_anchors(12, 5, 3, generator) for _ in range(200)])
    assert seen.unique().tolist() == list(range(5, 11))
    assert len(blocks.sample_anchors(12, 5, 99, generator).unique()) == 6
    assert len(blocks.sample_anchors(6, 5, 4, generator)) == 0
