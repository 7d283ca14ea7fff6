"""A trained draft in the engine: it accepts what the offline estimate promised, and the text stays the same."""

import shutil

import pytest

torch = pytest.importorskip("torch")

import mimo_rt  # noqa: E402
from mimo_rt.checkpoints import write_tiny_checkpoint  # noqa: E402
from mimo_rt.train.acceptance import evaluate_draft  # noqa: E402
from mimo_rt.train.data import TrainingData  # noqa: E402
from mimo_rt.train.draft import DraftModel  # noqa: E402
from mimo_rt.train.draft_files import export_draft, import_draft  # noqa: E402
from mimo_rt.train.draft_run import DraftSizes, shape_for_target  # noqa: E402
from mimo_rt.train.draft_trainer import DraftTrainer, DraftTrainingOptions  # noqa: E402
from mimo_rt.train.features import FeatureSource  # noqa: E402
from mimo_rt.train.generations import GenerateOptions, Prompt, make_generations, read_generations  # noqa: E402
from mimo_rt.train.target import TargetModel  # noqa: E402

MODEL = {"preset": "pro_fp4", "num_hidden_layers": 2, "hybrid_layer_pattern": [0, 1], "moe_layer_freq": [0, 1],
         "n_routed_experts": 4, "vocab_size": 300}
SAMPLED = GenerateOptions(temperatures=(1.0,), max_tokens=33)


def decode(model, answers, draft):
    """Token ids of every answer made again, and tokens per round over all of them."""
    with mimo_rt.Session(model, threads=1, draft=draft) as session:
        results = [
            session.generate(a.prompt_ids, max_tokens=33, temperature=1.0, top_k=0, top_p=1.0, seed=a.seed,
                             draft_mode="off" if draft is None else "fixed")
            for a in answers
        ]
    num_rounds = sum(result.stats.draft.num_rounds for result in results)
    num_tokens = sum(len(result.token_ids) - 1 for result in results)  # the first comes from the prompt's step
    return [result.token_ids for result in results], num_tokens / max(num_rounds, 1)


@pytest.mark.parametrize("draft_vocab_size", [0, 60])
def test_the_engine_accepts_what_training_measured(tmp_path, one_torch_thread, draft_vocab_size):
    """Answers drawn at temperature 1 and learnt by heart.

    The engine rounds activations to BF16 and may lose a token here and there: 5 % of the acceptance length. A draft
    that was not trained accepts next to nothing. Neither changes a token.
    """
    model = write_tiny_checkpoint(tmp_path / "model", **MODEL)
    prompts = [Prompt(f"p/{i}", (i, 7, 20 + i, 3)) for i in range(4)]
    with mimo_rt.Session(model, threads=1, generation_config="none") as session:
        make_generations([session], prompts, tmp_path / "data", SAMPLED, meta={})
    answers = read_generations(tmp_path / "data")
    data = TrainingData(answers, 64)
    target = TargetModel(model)
    sizes = DraftSizes(num_layers=1, target_layer_ids=(0, 1), block_size=5, intermediate_size=96, window_tokens=16,
                        draft_vocab_size=draft_vocab_size)
    shape = shape_for_target(target.config, sizes, num_anchors=24)
    features = FeatureSource(target, shape.target_layer_ids, data.token_ids, tmp_path / "features")
    options = DraftTrainingOptions(num_steps=60, sequences_per_step=4, anchors_per_sequence=24, lr=1e-2)
    vocab_ids = data.vocabulary(draft_vocab_size, shape.vocab_size) if draft_vocab_size else None
    trainer = DraftTrainer(target, DraftModel(shape, vocab_ids=vocab_ids), data, features, options)
    untrained = export_draft(trainer.draft, tmp_path / "untrained")
    for _ in range(12):  # not to the end: right and wrong drafts in every slot
        trainer.step()
    trained = export_draft(trainer.draft, tmp_path / "trained")
    promised = evaluate_draft(target, import_draft(trained), data, features)["mean_acceptance_length"]
    plain, _ = decode(model, answers, None)
    assert plain == [a.output_ids for a in answers]
    drafted, length = decode(model, answers, trained)
    print(promised, length)
    assert drafted == plain
    assert 2 < promised < 4.4  # 4.57 is all there is
    assert length == pytest.approx(promised, rel=0.05)
    drafted, length = decode(model, answers, untrained)
    print(length)
    assert drafted == plain
    assert length < 1.3
    shutil.copytree(trained, model / "dflash")  # as a user would install it
    assert decode(model, answers[:1], "auto")[0] == plain[:1]
