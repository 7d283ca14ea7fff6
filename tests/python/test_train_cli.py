"""`mimo-rt train` from prompts to a draft and to trained experts, on tiny models."""

import json
import shutil
import sys
import threading
import time
import types

import pytest

torch = pytest.importorskip("torch")

import mimo_rt  # noqa: E402
from mimo_rt import errors  # noqa: E402
from mimo_rt.checkpoints import write_tiny_checkpoint  # noqa: E402
from mimo_rt.checkpoints.demo import MODEL_NAME  # noqa: E402
from mimo_rt.checkpoints.writer import TensorSpec, encode_header  # noqa: E402
from mimo_rt.cli import _draft_check, main  # noqa: E402
from mimo_rt.train import answers_meta, draft_trainer, generations, prompts, prompts_code  # noqa: E402
from mimo_rt.train import run as train_run  # noqa: E402
from mimo_rt.train.draft_files import export_draft, import_draft  # noqa: E402
from mimo_rt.train.target import TargetModel  # noqa: E402

TINY = {"preset": "pro_fp4", "num_hidden_layers": 2, "hybrid_layer_pattern": [0, 1], "moe_layer_freq": [0, 1],
        "n_routed_experts": 4}
DRAFT = ["--steps", "3", "--sequences", "2", "--layers", "1", "--anchors", "4", "--target-layers", "0,1",
         "--intermediate-size", "64", "--validation", "2", "--eval-every", "2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny", **TINY)


@pytest.fixture(scope="module")
def prompt_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "p.jsonl"
    lines = [{"name": f"p/{i}", "text": f"Once upon a time {i}"} for i in range(6)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def generate(model, data, prompt_file, *extra):
    return main(["train", "generate", str(model), str(data), "--prompt-file", str(prompt_file), "--max-tokens", "12",
                 "--max-prompt-tokens", "40", "--threads", "1", *extra])


@pytest.fixture(scope="module")
def data(model, prompt_file, tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    assert generate(model, directory, prompt_file) == 0
    return directory


@pytest.mark.parametrize(
    ("extra", "needle"),
    [(["--temperatures", "0,-1"], "temperature: expected"), (["--temperatures", "nan"], "temperature: expected"),
     (["--part", "2/2"], "part: expected an index below 2, got 2")],
)
def test_options_are_checked_before_anything_is_written(model, prompt_file, tmp_path, capsys, extra, needle):
    assert generate(model, tmp_path / "data", prompt_file, *extra) == 1
    assert needle in capsys.readouterr().err and not (tmp_path / "data").exists()


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "0", "1.5"])
def test_numbers_are_checked_first(capsys, text):
    """Wrong usage of all options that do not take the number; the others go on to a model that is not there."""
    of_zero, of_fractions = {"--ema", "--max-minutes", "--checkpoint-minutes", "--gptq-tokens"}, {"--gamma", "--lr"}
    minutes = {"--max-minutes", "--checkpoint-minutes"}
    takes = {"0": of_zero, "1.5": of_fractions | minutes}.get(text, set())
    for option in of_zero | of_fractions:
        command = ["experts", "none", "m"] if option == "--gptq-tokens" else ["draft", "none"]
        try:
            code = main(["train", *command, "data", "run", option, text])
        except SystemExit as exit_:
            code = exit_.code
        assert code == (1 if option in takes else 2), (option, text)
        assert option in takes or f"argument {option}: " in capsys.readouterr().err


def test_a_loss_that_is_not_finite_ends_the_run(model, data, tmp_path, monkeypatch, capsys):
    """Two sequences are a step: the second step's loss is not finite; the log and the checkpoint are those before it."""
    factors = iter([1.0, 1.0, torch.nan, 1.0])
    real = draft_trainer.block_loss
    monkeypatch.setattr(draft_trainer, "block_loss", lambda *arguments: real(*arguments) * next(factors))
    monkeypatch.setattr(train_run, "_REPORT_EVERY_S", 0)
    run = tmp_path / "run"
    command = ["train", "draft", str(model), str(data), str(run), *DRAFT, "--checkpoint-minutes", "0"]
    assert main(command) == 1
    assert "step 2: expected a finite loss, got nan" in capsys.readouterr().err
    assert [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()] == [0]
    assert torch.load(run / "state.pt", weights_only=True)["step_idx"] == 1


def test_answers_are_those_of_the_model_and_can_be_repeated(model, data):
    found = generations.read_generations(data)
    assert len(found) == 12
    assert len({g.seed for g in found}) == 12
    meta = json.loads((data / "meta.json").read_text())
    assert meta["model"] == "tiny"
    assert meta["temperatures"] == [0.0, 0.8]
    with mimo_rt.Session(model, threads=1) as session:
        for g in found[:4]:
            again = session.generate(g.prompt_ids, max_tokens=12, temperature=g.temperature, seed=g.seed, top_k=0,
                                     top_p=1.0)
            assert again.token_ids == g.output_ids
        other = session.generate(found[1].prompt_ids, max_tokens=12, temperature=0.8, seed=1, top_k=0, top_p=1.0)
        assert other.token_ids != found[1].output_ids  # control: the seed matters


def test_an_interrupted_generation_goes_on(model, data, prompt_file, tmp_path):
    """A file that ends inside a line loses that line only; the result is that of one run."""
    whole = (data / "part-0-of-1.jsonl").read_bytes()
    (tmp_path / "meta.json").write_bytes((data / "meta.json").read_bytes())
    part = tmp_path / "part-0-of-1.jsonl"
    part.write_bytes(whole[: len(whole) // 2])
    assert generate(model, tmp_path, prompt_file) == 0
    assert part.read_bytes() == whole


def test_parts_make_the_same_answers(model, data, prompt_file, tmp_path):
    for index in range(2):
        assert generate(model, tmp_path, prompt_file, "--part", f"{index}/2") == 0
    assert generations.read_generations(tmp_path) == generations.read_generations(data)


@pytest.mark.parametrize("streams", [1, 5])
def test_answers_at_the_same_time_are_the_same_answers(model, data, prompt_file, tmp_path, streams):
    assert generate(model, tmp_path, prompt_file, "--streams", str(streams)) == 0
    assert (tmp_path / "part-0-of-1.jsonl").read_bytes() == (data / "part-0-of-1.jsonl").read_bytes()


def test_a_failing_answer_ends_the_others(tmp_path):
    """Answers before it are kept, in order; sessions that run are cancelled."""

    class Broken:
        max_context = 64

        def __init__(self):
            self.cancelled = threading.Event()

        def generate(self, ids, **_options):
            if ids == [3]:
                raise ValueError("broken")
            if ids in ([4], [5]):  # both sessions: the jobs after it never begin
                time.sleep(0.2)  # deaf to a cancel that comes now
                self.cancelled.clear()
                assert self.cancelled.wait(timeout=60)
            return types.SimpleNamespace(token_ids=ids * 2)

        def cancel(self):
            self.cancelled.set()

    sessions = [Broken(), Broken()]
    asked = [generations.Prompt(f"p/{i}", (i,)) for i in range(8)]
    options = generations.GenerateOptions(temperatures=(0.0,), max_tokens=4)
    with pytest.raises(ValueError, match="broken"):
        generations.make_generations(sessions, asked, tmp_path, options, meta={})
    assert [g.output_ids for g in generations.read_generations(tmp_path)] == [[0, 0], [1, 1], [2, 2]]


def test_other_options_need_another_directory(model, data, prompt_file, capsys):
    assert generate(model, data, prompt_file, "--seed", "5") == 1
    assert "seed is 0 there, 5 now" in capsys.readouterr().err
    assert generate(model, data, prompt_file, "--window-tokens", "8") == 1
    assert "window_tokens is None there, 8 now" in capsys.readouterr().err
    assert generate(model, data, prompt_file, "--activations", "int8") == 1
    assert "activations is" in capsys.readouterr().err
    assert generate(model, data, prompt_file) == 0  # control


def test_another_model_or_prompts_of_the_same_name_need_another_directory(model, data, prompt_file, tmp_path, capsys):
    other = write_tiny_checkpoint(tmp_path / model.name, **TINY | {"n_routed_experts": 8})
    assert generate(other, data, prompt_file) == 1
    assert "checkpoint_digest is '" in capsys.readouterr().err
    other = shutil.copytree(model, tmp_path / "other" / model.name)
    config = other / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"eos_token": "!"}))  # answers end elsewhere
    assert generate(other, data, prompt_file) == 1
    assert "end_tokens_digest is '" in capsys.readouterr().err
    prompts_ = tmp_path / prompt_file.name
    prompts_.write_text(prompt_file.read_text().replace("time 5", "time 6"))
    assert generate(model, data, prompts_) == 1
    assert "prompts_digest is '" in capsys.readouterr().err


@pytest.fixture
def train_demo(root, monkeypatch, load_bench_script):
    monkeypatch.syspath_prepend(str(root / "bench"))
    return load_bench_script("train_demo")


def test_answers_of_the_demo_are_gone_on_from(model, prompt_file, tmp_path, train_demo, capsys):
    """What bench/train_demo.py --skip-experts does; by the name of the model, as they do not say with which weights."""
    demo = shutil.copytree(model, tmp_path / MODEL_NAME)
    (tmp_path / "mine").mkdir()
    train_demo.unpack_answers(demo, tmp_path / "mine")  # exists: somebody's answers stay as they are
    assert not list((tmp_path / "mine").iterdir())
    answers = tmp_path / "answers"
    with pytest.raises(mimo_rt.MimoRtError, match=f"answers of {MODEL_NAME}, expected those of .*/tiny. Make its own"):
        train_demo.unpack_answers(model, answers)
    assert not answers.exists()
    train_demo.unpack_answers(demo, answers)
    num_unpacked = len(generations.read_generations(answers))
    capsys.readouterr()
    assert generate(demo, answers, prompt_file, "--temperatures", "0") == 0
    assert "answers has answers, but no meta.json: they are taken as this model's own" in capsys.readouterr().err
    assert num_unpacked > 700 and len(generations.read_generations(answers)) == num_unpacked + 6
    answers_meta.check_target(answers, answers_meta.checkpoint_digest(demo))
    assert generate(demo, answers, prompt_file, "--temperatures", "0") == 0
    assert "they are taken" not in capsys.readouterr().err


def change_meta(data, target, **changes):
    """The answers of ``data`` under another meta.json; a field that is None is left out."""
    shutil.copytree(data, target)
    meta = json.loads((data / "meta.json").read_text()) | changes
    (target / "meta.json").write_text(json.dumps({k: v for k, v in meta.items() if v is not None}))
    return target


def test_a_draft_learns_its_own_targets_answers(model, data, prompt_file, tmp_path, capsys):
    """Of another model with the same config, or of nobody knows whom, there is nothing to learn for it."""
    other = write_tiny_checkpoint(tmp_path / model.name, seed=1, **TINY)
    assert generate(other, data, prompt_file) == 1
    assert "checkpoint_digest is '" in capsys.readouterr().err
    run = tmp_path / "run"
    older = change_meta(data, tmp_path / "older", checkpoint_digest=None, model_digest="0123456789abcdef")
    none = shutil.copytree(data, tmp_path / "none", ignore=shutil.ignore_patterns("meta.json"))
    for whose, answers, needle in ((other, data, "holds answers of another model: its checkpoint_digest is '"),
                                   (model, older, "expected the checkpoint_digest of the model whose answers they are"),
                                   (model, older, "own, remove meta.json and call 'mimo-rt train generate' with the"),
                                   (model, none, "this model's own, call 'mimo-rt train generate' with the options")):
        assert main(["train", "draft", str(whose), str(answers), str(run), *DRAFT]) == 1
        assert needle in capsys.readouterr().err and not run.exists()
    assert generate(model, older, prompt_file) == 1
    told = capsys.readouterr().err
    assert "does not say with which checkpoint_digest it was made: it is of an older" in told
    assert "own, remove meta.json and call 'mimo-rt train generate' with the options that made them" in told
    (older / "meta.json").unlink()  # as it says
    assert generate(model, older, prompt_file) == 0
    assert main(["train", "draft", str(model), str(older), str(run), *DRAFT, "--steps", "1"]) == 0


def test_a_run_goes_on_with_the_weights_that_it_was_begun_with(model, data, tmp_path, capsys):
    """Models of the same config and answers."""
    other = write_tiny_checkpoint(tmp_path / "other" / model.name, seed=1, **TINY)
    renamed = change_meta(data, tmp_path / "renamed", checkpoint_digest=answers_meta.checkpoint_digest(other))
    teachers = [write_tiny_checkpoint(tmp_path / f"teacher-{seed}", seed=seed, linear_format="bf16",
                                      expert_format="bf16", **TINY) for seed in (0, 1)]
    draft = [str(tmp_path / "draft"), *DRAFT, "--steps", "1"]
    experts = [str(tmp_path / "experts"), "--steps", "1", "--validation", "2", "--gptq-tokens", "0"]
    assert main(["train", "draft", str(model), str(data), *draft]) == 0
    assert main(["train", "experts", str(teachers[0]), str(model), str(data), *experts]) == 0
    for needle, command in (("target_digest", ["draft", str(other), str(renamed), *draft]),
                            ("teacher_digest", ["experts", str(teachers[1]), str(model), str(data), *experts]),
                            ("student_digest", ["experts", str(teachers[0]), str(other), str(data), *experts])):
        capsys.readouterr()
        assert main(["train", *command]) == 1
        assert f"was made with {needle} = " in capsys.readouterr().err


def test_a_digest_sees_every_part_of_the_weights(tmp_path):
    """A change of any tensor, or of a hundredth of the file wherever it lies; whatever else the folder holds."""
    sizes = {"large": 900_000, "scale": 4, "norm": 500, "gate": 7000, "rest": 90_000}
    header, begins = encode_header({name: TensorSpec("U8", (size,)) for name, size in sizes.items()})
    content = header + bytes(sum(sizes.values()))
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"

    def digest(begin=0, changed=b""):
        weights.write_bytes(content[:begin] + changed + content[begin + len(changed) :])
        return answers_meta.checkpoint_digest(tmp_path)

    plain = digest()
    (tmp_path / "README.md").write_text("x")
    assert digest() == plain
    for name, size in sizes.items():
        assert digest(begins[name], b"\1" * size) != plain, name
    hundredth = len(content) // 100
    for begin in range(begins["large"], len(content) - hundredth, hundredth - 100):
        assert digest(begin, b"\1" * hundredth) != plain, begin
    assert digest(header.index(b"norm"), b"mron") != plain


@pytest.mark.parametrize("content", [
    b"", b"\xff" * 8 + b"{}", b"\2" + bytes(7) + b"[]", b"\2" + bytes(7) + b"{", b"\7" + bytes(7) + b'{"a":1}',
    b"\x25" + bytes(7) + b'{"a": {"data_offsets": [1e999, 9e9]}}',
])
def test_a_digest_of_no_safetensors(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(errors.BadFormatError, match="expected a safetensors file"):
        answers_meta.checkpoint_digest(tmp_path)


def promised_length(run):
    """What doctor holds the draft of a run to."""
    return _draft_check._promised_length(run / "dflash")


def test_draft_in_two_calls(model, data, tmp_path, capsys):
    """A call that runs out of time leaves a checkpoint; the next one finishes; the draft can be read."""
    run = tmp_path / "run"
    options = [*DRAFT, "--precision", "fp32"]  # the same bits: on a busy machine "auto" may choose now this, now that
    assert main(["train", "draft", str(model), str(data), str(run), *options, "--max-minutes", "1e-6"]) == 0
    assert "Out of time" in capsys.readouterr().err
    assert not (run / "dflash").exists()
    assert main(["train", "draft", str(model), str(data), str(run), *options]) == 0
    draft = import_draft(run / "dflash")
    assert draft.shape.target_layer_ids == (0, 1)
    assert draft.shape.hidden_size == 160
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log if "loss" in entry] == [0, 1, 2]
    assert all(1 <= entry["mean_acceptance_length"] <= 8 for entry in log if "mean_acceptance_length" in entry)
    measured = [entry["mean_acceptance_length"] for entry in log if "mean_acceptance_length" in entry]
    assert len(measured) == 2 and promised_length(run) == pytest.approx(measured[-1], abs=1e-4)
    whole = tmp_path / "whole"
    assert main(["train", "draft", str(model), str(data), str(whole), *options]) == 0
    assert all(torch.equal(value, import_draft(whole / "dflash").state_dict()[name])
               for name, value in draft.state_dict().items())


def test_a_run_goes_on_with_the_options_that_it_was_begun_with(model, data, tmp_path, capsys):
    run = tmp_path / "run"
    command = ["train", "draft", str(model), str(data), str(run), *DRAFT]
    assert main([*command, "--max-minutes", "1e-6"]) == 0
    for extra, needle in (
        (["--target-layers", "1,0"], "target_layer_ids = (0, 1), got (1, 0)"),
        (["--block-size", "4"], "block_size = 8, got 4"), (["--window", "12"], "window_tokens = 1024, got 12"),
        (["--layers", "2"], "num_layers = 1, got 2"), (["--gamma", "3"], "loss_decay_gamma = 4.0, got 3.0"),
        (["--lr", "1"], "lr = 0.002, got 1.0"),
    ):
        capsys.readouterr()
        assert main([*command, *extra]) == 1
        assert f"was made with {needle}" in capsys.readouterr().err
        assert not (run / "dflash").exists()
    assert main(command) == 0  # control


def test_a_run_goes_on_with_the_answers_that_it_holds_out(model, data, tmp_path, capsys):
    """What was trained on may not be measured on: neither other answers nor another split of the same."""
    text = (data / "part-0-of-1.jsonl").read_text()
    others = {"fewer": text[: text[:-1].rindex("\n") + 1], "renamed": text.replace('"p/', '"r/')}
    for name, other in others.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "part-0-of-1.jsonl").write_text(other)
        shutil.copy(data / "meta.json", tmp_path / name)
    teacher = write_tiny_checkpoint(tmp_path / "teacher", linear_format="bf16", expert_format="bf16", **TINY)
    draft = ["draft", str(model)], [str(tmp_path / "draft"), *DRAFT, "--steps", "1"]
    experts = (["experts", str(teacher), str(model)],
               [str(tmp_path / "experts"), "--steps", "1", "--validation", "2", "--gptq-tokens", "0"])
    for head, tail in (draft, experts):
        assert main(["train", *head, str(data), *tail]) == 0
        for name in others:
            capsys.readouterr()
            cached = {path: path.read_bytes() for path in (tmp_path / "draft" / "features").iterdir()}
            assert main(["train", *head, str(tmp_path / name), *tail]) == 1
            assert "was made with answers = " in capsys.readouterr().err
            assert len(cached) == 3 and all(path.read_bytes() == content for path, content in cached.items())
        assert main(["train", *head, str(data), *tail]) == 0  # control


def test_a_draft_promises_what_was_measured_on_held_out_answers_only(model, tmp_path, prompt_file):
    few = tmp_path / "few.jsonl"  # too few prompts to hold one out: the training answers promise nothing
    few.write_text("".join(line + "\n" for line in prompt_file.read_text().splitlines()[:3]))
    assert generate(model, tmp_path / "data", few) == 0
    run = tmp_path / "run"
    assert main(["train", "draft", str(model), str(tmp_path / "data"), str(run), *DRAFT, "--steps", "1"]) == 0
    assert "mean_acceptance_length" in (run / "log.jsonl").read_text() and promised_length(run) is None
    export_draft(import_draft(run / "dflash"), run / "dflash", acceptance_length=3.25, overwrite=True)
    assert promised_length(run) == 3.25  # control
    mimo_rt.Session(model, draft=run / "dflash", threads=1).close()  # a field that the engine need not know


def test_a_draft_starts_at_another(model, data, tmp_path, capsys):
    """With a learning rate of nothing the result is the draft that it started at."""
    first, second = tmp_path / "first", tmp_path / "second"
    command = ["train", "draft", str(model), str(data)]
    assert main([*command, str(first), *DRAFT, "--draft-vocab-size", "9", "--seed", "3"]) == 0
    start = ["--start", str(first / "dflash"), "--lr", "1e-30"]
    assert main([*command, str(second), *DRAFT, "--draft-vocab-size", "9", *start]) == 0
    begin, end = (import_draft(run / "dflash") for run in (first, second))
    assert torch.equal(begin.vocab_ids, end.vocab_ids)
    assert all(torch.equal(value, end.state_dict()[name]) for name, value in begin.state_dict().items())
    third = tmp_path / "third"
    assert main([*command, str(third), *DRAFT, "--draft-vocab-size", "9", "--lr", "1e-30"]) == 0
    control = import_draft(third / "dflash").state_dict()  # without a start: random weights
    assert not torch.equal(begin.state_dict()["fc.weight"], control["fc.weight"])
    capsys.readouterr()
    assert main([*command, str(second), *DRAFT, "--draft-vocab-size", "9", "--lr", "1e-30"]) == 1
    assert "start" in capsys.readouterr().err  # a run goes on with what it was begun with
    assert main([*command, str(tmp_path / "other"), *DRAFT, "--draft-vocab-size", "8", *start]) == 1
    assert "expected a draft with draft_vocab_size = 8 as in this run, got 9" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "none"), *DRAFT, "--start", str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_draft_of_a_part_of_the_vocabulary(model, data, tmp_path, capsys):
    run = tmp_path / "run"
    command = ["train", "draft", str(model), str(data), str(run), *DRAFT, "--draft-vocab-size"]
    assert main([*command, "9"]) == 0
    draft = import_draft(run / "dflash")
    assert draft.shape.draft_vocab_size == len(draft.vocab_ids) == 9
    assert main([*command, "516"]) == 1
    assert "draft_vocab_size: expected 0..515, got 516" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "9", "--softmax-ids", "10,10"])
    assert "not allowed with argument" in capsys.readouterr().err


def test_curve(model, data, tmp_path):
    pytest.importorskip("matplotlib")
    run = tmp_path / "run"
    assert main(["train", "draft", str(model), str(data), str(run), *DRAFT]) == 0
    assert (run / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_experts(model, data, tmp_path):
    teacher = write_tiny_checkpoint(tmp_path / "teacher", linear_format="bf16", expert_format="bf16", **TINY)
    run = tmp_path / "run"
    options = ["--steps", "2", "--sequences", "2", "--validation", "2", "--lr", "1e-3"]
    assert main(["train", "experts", str(teacher), str(model), str(data), str(run), *options]) == 0
    changed = TargetModel(run / "model").weights
    kept = TargetModel(model).weights
    is_expert = {name: ".experts." in name for name in kept}
    assert all(torch.equal(changed[name], kept[name]) for name in kept if not is_expert[name])
    assert any(not torch.equal(changed[name], kept[name]) for name in kept if is_expert[name])


@pytest.mark.parametrize(("name", "needle"), [("foo", "expected cpu or cuda, got 'foo'"), ("cuda:x", "got 'cuda:x'"),
                                              ("cuda:99", "GPUs. Use cpu"), ("meta", "got 'meta'")])
def test_devices_are_checked_first(tmp_path, capsys, name, needle):
    for command in (["draft", "none"], ["experts", "none", "none"]):
        assert main(["train", *command, "data", str(tmp_path / "run"), "--torch-device", name]) == 1
        said = capsys.readouterr().err
        assert needle in said and "--debug" not in said


def test_missing_torch_is_explained(model, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["train", "draft", str(model), str(data), str(tmp_path / "run")]) == 1
    assert "pip install 'mimo_rt[train]'" in capsys.readouterr().err


@pytest.mark.parametrize("line", ['{"name": "a"}', '{"text": "a"}', "[]", "{", '{"name": "a", "text": "x", "messages": []}'])
def test_bad_prompt_files(tmp_path, line):
    path = tmp_path / "p.jsonl"
    path.write_text('{"name": "good", "text": "x"}\n' + line + "\n")
    with pytest.raises(mimo_rt.MimoRtError, match="line 2"):
        prompts.read_prompt_file(path)


def test_built_in_prompts_repeat_and_differ(monkeypatch):
    monkeypatch.setattr(prompts_code, "_MAX_FILES", 60)  # all of the library takes seconds
    prompts_code.library_functions.cache_clear()
    first = prompts.built_in_prompts(list(prompts.SETS), 20, 0)
    assert first == prompts.built_in_prompts(list(prompts.SETS), 20, 0)
    assert len({json.dumps(raw.get("text") or raw["messages"]) for raw in first}) > 75
    assert first != prompts.built_in_prompts(list(prompts.SETS), 20, 1)
    with pytest.raises(mimo_rt.MimoRtError, match="poems"):
        prompts.built_in_prompts(["poems"], 1, 0)
    prompts_code.library_functions.cache_clear()
