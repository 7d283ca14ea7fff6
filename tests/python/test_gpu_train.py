"""The way of a draft over a GPU machine, on a CPU: pieces there, calls that go on where others stopped, pieces back."""

import contextlib
import json
import math
import shutil
import signal
import subprocess
import sys
import time

import pytest

torch = pytest.importorskip("torch")

import mimo_rt  # noqa: E402
from mimo_rt.checkpoints import write_tiny_checkpoint  # noqa: E402
from mimo_rt.checkpoints.demo import MODEL_NAME  # noqa: E402
from mimo_rt.train.answers_meta import check_target, checkpoint_digest  # noqa: E402
from mimo_rt.train.draft import DraftModel  # noqa: E402
from mimo_rt.train.draft_files import export_draft, import_draft  # noqa: E402
from mimo_rt.train.draft_run import DraftJob, DraftSizes, shape_for_target, split_generations  # noqa: E402
from mimo_rt.train.draft_trainer import DraftTrainer  # noqa: E402
from mimo_rt.train.generations import GenerateOptions, Generation, make_generations, read_generations  # noqa: E402
from mimo_rt.train.prompts import built_in_prompts, encode_prompts, read_prompt_file  # noqa: E402

MODEL = {"preset": "pro_fp4", "num_hidden_layers": 2, "hybrid_layer_pattern": [0, 1], "moe_layer_freq": [0, 1],
         "n_routed_experts": 4, "vocab_size": 300}
SIZES = ["--layers", "1", "--sequences", "4", "--anchors", "8", "--draft-vocab-size", "60", "--lr", "1e-2",
         "--steps", "8", "--block-size", "4", "--validation", "2", "--max-tokens", "12", "--batch", "4",
         "--answer-share", "0.001", "--target-layers", "0,1", "--torch-device", "cpu"]


@pytest.fixture
def bench(root, monkeypatch, load_bench_script):
    monkeypatch.syspath_prepend(str(root / "bench"))
    handler = signal.getsignal(signal.SIGTERM)
    yield load_bench_script
    signal.signal(signal.SIGTERM, handler)  # a call sets its own


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model, with answers of the engine to some prompts of each set."""
    directory = tmp_path_factory.mktemp("m")
    model = write_tiny_checkpoint(directory / "model", **MODEL)
    prompts, _ = encode_prompts(model, built_in_prompts(["math", "chat"], 5, 0))
    with mimo_rt.Session(model, threads=1, draft=None, generation_config="none") as session:
        options = GenerateOptions(temperatures=(0.8,), max_tokens=12)
        meta = {"checkpoint_digest": checkpoint_digest(model)}
        make_generations([session], prompts, directory / "answers", options, meta=meta)
    return model


@pytest.fixture
def collected(model, bench, tmp_path, monkeypatch):
    """Pieces of the model in several folders, as they travel."""
    script = bench("gpu_train")
    monkeypatch.setattr(script.pieces, "RAW_BYTES", 100_000)
    monkeypatch.setattr(script, "FOLDER_BYTES", 150_000)
    arguments = ["--collect", str(tmp_path / "pieces"), "--model", str(model), "--per-set", "12",
                 "--prompts", "math,chat"]
    assert script.main([*arguments, "--answers", str(model.parent / "answers")]) == 0
    assert len(list((tmp_path / "pieces").glob("part-*/piece-*.xz"))) > 2
    assert len(list((tmp_path / "pieces").glob("part-*"))) > 1
    return tmp_path / "pieces"


def test_a_draft_comes_back(root, bench, model, collected, tmp_path):
    """A call whose time is up leaves what it has; the next one goes on; the engine takes the draft that comes back.

    The first is a process without the C++ core, as on the GPU machine.
    """
    script, work = bench("gpu_train"), tmp_path / "work"
    arguments = ["--pieces", str(collected), "--work", str(work), "--out", str(work / "out"), *SIZES]
    first = subprocess.run([sys.executable, str(root / "bench" / "gpu_train.py"), *arguments, "--minutes", "0.001"],
                           capture_output=True, text=True, check=False, timeout=300,
                           env={"OMP_NUM_THREADS": "1", "PATH": "", "PYTHONPATH": ""})
    print(first.stdout, first.stderr)
    assert first.returncode == 4
    assert script.main(arguments) == 0
    results = [json.loads(line) for line in (work / "out" / "result.jsonl").read_text().splitlines()]
    assert [r["step"] for r in results] == [1, 8]
    log = [json.loads(line) for line in (work / "run" / "log.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert len(losses) == 8 and losses[-1] < losses[0]
    assert results[1]["num_answers"] > 2 * len(read_generations(work / "input")) / 3
    assert all(path.stat().st_size <= 16 << 20 for path in (work / "out").iterdir())
    assert len(list((work / "out").iterdir())) <= 8

    with mimo_rt.Session(work / "input", threads=1, draft=None) as joined:
        assert joined.has_tokenizer  # bench/gpu_gate.py --model-pieces
    assert script.main(["--join", str(work / "out"), str(tmp_path / "dflash")]) == 0
    prompt = list(range(20, 32))
    with mimo_rt.Session(model, threads=1, draft=tmp_path / "dflash") as drafted:
        result = drafted.generate(prompt, max_tokens=16, temperature=0.0, draft_mode="fixed")
    with mimo_rt.Session(model, threads=1, draft=None) as plain:
        assert result.token_ids == plain.generate(prompt, max_tokens=16, temperature=0.0).token_ids
    assert result.stats.draft.num_rounds > 0
    config = json.loads((tmp_path / "dflash" / "config.json").read_text())
    assert config["acceptance_length"] == results[1]["best_acceptance_length"]


@pytest.fixture
def start(model, tmp_path):
    """A finished draft of the sizes that SIZES name, with random weights."""
    config = json.loads((model / "config.json").read_text())
    sizes = DraftSizes(num_layers=1, target_layer_ids=(0, 1), block_size=4, draft_vocab_size=60)
    return export_draft(DraftModel(shape_for_target(config, sizes, 8), seed=5, vocab_ids=torch.arange(60)),
                        tmp_path / "start")


@pytest.mark.parametrize("is_better", [False, True])
def test_the_start_comes_back_unless_a_better_draft_was_made(bench, collected, start, tmp_path, monkeypatch, is_better):
    lengths = iter([1.5, 1.4, 1.3, 1.6] if is_better else [1.5, 1.4, 1.3, 1.2])
    monkeypatch.setattr(DraftJob, "evaluate", lambda job, draft: {"mean_acceptance_length": next(lengths)})
    script, out = bench("gpu_train"), tmp_path / "out"
    arguments = ["--pieces", str(collected), "--work", str(tmp_path / "work"), "--out", str(out), *SIZES]
    assert script.main([*arguments, "--steps", "3", "--start", str(start)]) == 0
    assert script.main(["--join", str(out), str(tmp_path / "dflash")]) == 0
    given, back = (import_draft(path).state_dict() for path in (start, tmp_path / "dflash"))
    assert all(torch.equal(back[name], value) for name, value in given.items()) != is_better
    assert json.loads((tmp_path / "dflash" / "config.json").read_text())["acceptance_length"] == 1.5 + 0.1 * is_better


def test_a_call_without_time_for_a_run_plans_none(bench, collected, tmp_path, capsys):
    script, work = bench("gpu_train"), tmp_path / "work"
    place = SIZES.index("--steps")
    arguments = ["--pieces", str(collected), "--work", str(work), "--out", str(tmp_path / "out")]
    arguments += SIZES[:place] + SIZES[place + 2:]
    assert script.main([*arguments, "--minutes", "0.001"]) == 4
    assert not (work / "plan.json").exists() and "no run is planned" in capsys.readouterr().out


@pytest.mark.parametrize("fate", ["not a number", "lost GPU", "SIGTERM"])
def test_a_run_that_fails_leaves_its_best_draft(bench, collected, tmp_path, monkeypatch, fate):
    """And what it knows of itself; a process that is killed at that moment leaves the draft, too."""
    step, history = DraftTrainer.step, DraftTrainer.history.fget

    def fail(trainer):
        loss = step(trainer)
        if trainer.step_idx == 6 and fate == "lost GPU":
            raise RuntimeError("CUDA error")
        if trainer.step_idx == 6 and fate == "SIGTERM":
            signal.raise_signal(signal.SIGTERM)
        return torch.tensor(math.nan) if trainer.step_idx == 6 and fate == "not a number" else loss

    def read(trainer):
        if trainer.step_idx == 6 and trainer._new_losses and fate == "lost GPU":
            trainer._new_losses.clear()
            raise RuntimeError("CUDA error")
        return history(trainer)

    monkeypatch.setattr(DraftTrainer, "step", fail)
    monkeypatch.setattr(DraftTrainer, "history", property(read))
    script, run, out, back = bench("gpu_train"), bench("gpu_train_run"), tmp_path / "out", tmp_path / "dflash"
    lengths = iter([1.0, 1.5, 1.4, 1.6, 1.3, 1.2])
    monkeypatch.setattr(DraftJob, "evaluate", lambda job, draft: {"mean_acceptance_length": next(lengths)})
    before, write_results = [], run.write_results

    def write(*arguments):
        before.append(sorted(path.name for path in out.iterdir()))
        write_results(*arguments)

    monkeypatch.setattr(run, "write_results", write)
    arguments = ["--pieces", str(collected), "--work", str(tmp_path / "work"), "--out", str(out), *SIZES]
    failure = {"not a number": "LossError: [train] step", "lost GPU": "RuntimeError: CUDA", "SIGTERM": "ended"}[fate]
    with pytest.raises(RuntimeError, match="CUDA error") if fate == "lost GPU" else contextlib.nullcontext():
        assert script.main(arguments) == 1
    state = tmp_path / "work" / "run" / "state.pt"
    assert state.exists() == (fate == "SIGTERM")  # otherwise every minute
    assert fate != "SIGTERM" or torch.load(state, weights_only=True)["step_idx"] == 6
    (result,) = map(json.loads, (out / "result.jsonl").read_text().splitlines())
    assert result["failure"].startswith(failure)
    assert result["best_acceptance_length"] == 1.6 and len(result["evaluations"]) == 5
    assert "pieces.json" in before[0] and "result.jsonl" not in before[0]
    assert script.main(["--join", str(out), str(back)]) == 0
    assert json.loads((back / "config.json").read_text())["acceptance_length"] == 1.6


def test_the_best_draft_of_earlier_calls_comes_back_again(bench, collected, tmp_path, monkeypatch):
    """A call may have an empty folder for what comes back."""
    script, out = bench("gpu_train"), tmp_path / "out"
    lengths = iter([1.0, 1.5, 1.2, 1.1, 1.0])
    monkeypatch.setattr(DraftJob, "evaluate", lambda job, draft: {"mean_acceptance_length": next(lengths)})
    arguments = ["--pieces", str(collected), "--work", str(tmp_path / "work"), "--out", str(out), *SIZES, "--steps", "3"]
    assert script.main([*arguments, "--minutes", "0.001"]) == 4
    shutil.rmtree(out)
    assert script.main(arguments) == 0
    assert script.main(["--join", str(out), str(tmp_path / "dflash")]) == 0
    assert json.loads((tmp_path / "dflash" / "config.json").read_text())["acceptance_length"] == 1.5


def test_what_does_not_fit_to_earlier_calls_is_named(bench, collected, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(DraftJob, "evaluate", lambda job, draft: {"mean_acceptance_length": 1.0})
    script, out = bench("gpu_train"), tmp_path / "out"
    arguments = ["--pieces", str(collected), "--work", str(tmp_path / "work"), "--out", str(out), *SIZES]
    arguments += ["--steps", "1"]
    assert script.main(arguments) == 0
    for wrong, expected in ((["--lr", "1e-3"], "was made with lr = 0.01, got 0.001"),
                            (["--start", "x"], "x: expected config.json")):
        assert script.main([*arguments, *wrong]) == 2
        error = capsys.readouterr().err
        assert error.startswith("gpu_train: [") and expected in error
    assert script.main(arguments) == 0


class SlowJob:
    """A job whose steps and evaluations only take time, and a clock."""

    def __init__(self, step_s, evaluation_s, left_s):
        self.step_s, self.evaluation_s, self.left_s = step_s, evaluation_s, left_s
        self.draft, self.shown = None, []

    def make_trainer(self, options):
        return self

    def step(self):
        time.sleep(self.step_s)
        return torch.tensor(0.0)

    def evaluate(self, draft):
        time.sleep(self.evaluation_s)
        return {"mean_acceptance_length": 1.0}

    def left(self):
        return self.left_s

    def end_stage(self, name):
        self.shown.append(name)


def test_the_number_of_steps_fits_the_time(bench, tmp_path, monkeypatch):
    """By measured steps and evaluations, the best draft's export and pieces included."""
    script, run = bench("gpu_train"), bench("gpu_train_run")
    job = SlowJob(0.01, 0.05, 60.0)
    args = script.parse(["--pieces", "x", "--work", str(tmp_path), "--out", "out"])
    monkeypatch.setattr(run, "export_draft", lambda draft, path, **_: time.sleep(0.4) or path)
    monkeypatch.setattr(run, "send", lambda draft, out: time.sleep(0.1))
    plan = run.plan_steps(args, job, job)
    assert plan["seconds_per_step"] >= job.step_s
    assert 1500 <= plan["num_steps"] <= (job.left_s - run.END_S - 9 * (job.evaluation_s + 0.5)) / job.step_s
    assert not list(tmp_path.iterdir())
    assert plan["num_steps"] / 9 <= plan["eval_every"] <= plan["num_steps"]
    job.left_s = run.END_S + 5.2
    assert run.plan_steps(args, job, job) is None  # too few to bind later calls to them
    args.steps = 7
    assert run.plan_steps(args, job, job)["num_steps"] == 7


@pytest.fixture
def some_pieces(bench, tmp_path):
    """Files in four pieces, two per folder."""
    pieces = bench("pieces")
    pieces.RAW_BYTES = 1000
    files = {"a.bin": bytes(range(256)) * 10, "b.txt": b"text" * 300}
    pieces.cut(files, tmp_path / "pieces", folder_bytes=1)
    return pieces, files, tmp_path / "pieces", tmp_path / "joined"


def test_pieces_come_together(some_pieces):
    pieces, files, directory, target = some_pieces
    paths = pieces.join(directory, target)
    assert {path.name: path.read_bytes() for path in paths} == files
    for path in directory.rglob("piece-*"):
        path.unlink()
    assert pieces.join(directory, target) == paths  # all is there
    paths[0].write_bytes(b"x")
    with pytest.raises(pieces.PiecesError, match="4 of 4 pieces are missing: part-1/piece-01.xz"):
        pieces.join(directory, target)


def test_other_pieces_below_stay(some_pieces, tmp_path):
    """Of results that are written above the pieces that came; those of an earlier cut go."""
    pieces, files, directory, target = some_pieces
    for content in (b"old" * 1000, b"new"):
        pieces.cut({"out.bin": content}, tmp_path)
    assert [path.name for path in tmp_path.glob("piece-*")] == ["piece-01.xz"]
    pieces.join(directory, target)
    assert (target / "a.bin").read_bytes() == files["a.bin"]
    (path,) = pieces.join(tmp_path, tmp_path / "out")  # and are no pieces of the set above
    assert path.read_bytes() == b"new"


def test_two_sets_are_not_mixed(some_pieces):
    """Parts of an earlier set beside those of a later one, which has fewer."""
    pieces, files, directory, target = some_pieces
    (directory / "part-4").rename(directory / "part-5")
    pieces.join(directory, target)  # control: a part may have any number
    (directory / "part-5").rename(directory.parent / "kept")
    pieces.cut({"a.bin": files["a.bin"]}, directory, folder_bytes=1)
    (directory.parent / "kept").rename(directory / "part-5")
    with pytest.raises(pieces.PiecesError, match="pieces.json and .*part-5/pieces.json of two. Remove"):
        pieces.join(directory, target)


@pytest.mark.parametrize("other", ["part-9.jsonl", "b.txt"])
def test_a_target_holds_nothing_else(some_pieces, other):
    """Files of another set would be read with these: they are named, not removed, also when all else is there."""
    pieces, files, directory, target = some_pieces
    pieces.join(directory, target)
    (target / "a.bin.tmp").write_bytes(b"of a killed call")
    pieces.join(directory, target)  # control
    if other in files:  # a folder of that name
        (target / other).unlink()
        (target / other).mkdir()
    else:
        (target / other).write_bytes(b"old")
    with pytest.raises(pieces.PiecesError, match=f"joined: expected a new folder or .*, got {other} there. Remove"):
        pieces.join(directory, target)
    assert (target / other).exists()


@pytest.mark.parametrize("out", ["data", "data/part-1", "data/../data"])
def test_results_do_not_replace_the_pieces(bench, tmp_path, capsys, out):
    script = bench("gpu_train")
    (tmp_path / "data" / "part-1").mkdir(parents=True)
    arguments = ["--pieces", str(tmp_path / "data"), "--work", str(tmp_path / "w"), "--out"]
    with pytest.raises(SystemExit, match="2"):
        script.main([*arguments, str(tmp_path / out)])
    assert "would replace the pieces" in capsys.readouterr().err
    for other in (tmp_path, tmp_path / "data" / "out"):
        assert script.main([*arguments, str(other)]) == 2
        assert "expected pieces.json" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["missing", "corrupt", "short", "no manifest"])
def test_a_bad_piece_is_named(some_pieces, damage):
    """Nothing is written then."""
    pieces, _, directory, target = some_pieces
    (piece,) = directory.rglob("piece-02.xz")
    data = bytearray(piece.read_bytes())
    if damage == "missing":
        piece.unlink()
        expected = r"1 of 4 pieces are missing: part-2/piece-02.xz. Bring them along"
    elif damage == "no manifest":
        for path in directory.rglob("pieces.json"):
            path.unlink()
        expected = r"expected pieces.json there or in a folder part-N, found none"
    else:
        data[len(data) // 2] ^= 1
        piece.write_bytes(data if damage == "corrupt" else data[:-1])
        expected = r"piece-02.xz: expected \d+ bytes with SHA-256 .* Copy this piece again"
    with pytest.raises(pieces.PiecesError, match=expected):
        pieces.join(directory, target)
    assert not target.exists()


def change_manifest(directory, change):
    for path in directory.rglob("pieces.json"):
        manifest = json.loads(path.read_text())
        change(manifest)
        path.write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["../x", "/proc/x", "a/b", "a/../b.txt", "..", ".", "", "x/", "a\0", None, 3])
@pytest.mark.parametrize("kind", ["files", "pieces"])
def test_a_name_leads_nowhere_else(some_pieces, tmp_path, name, kind):
    pieces, _, directory, target = some_pieces
    change_manifest(directory, lambda manifest: manifest[kind][1].update(name=name))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(pieces.PiecesError, match="pieces.json: expected a manifest of pieces"):
        pieces.join(directory, target)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not target.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"3", b"{}", b'{"files": 1, "pieces": []}',
                                     b'{"files": [], "pieces": [{"name": "piece-01.xz"}]}',
                                     b'{"files": [{"name": "a", "num_bytes": "1", "sha256": ""}], "pieces": []}',
                                     b'{"files": [{"name": "a", "num_bytes": 1, "sha256": null}], "pieces": []}'])
def test_a_broken_manifest_is_named(bench, some_pieces, tmp_path, capsys, content):
    _, _, directory, target = some_pieces
    for path in directory.rglob("pieces.json"):
        path.write_bytes(content)
    assert bench("gpu_train").main(["--join", str(directory), str(target)]) == 2
    assert "pieces.json: expected a manifest of pieces, got something else" in capsys.readouterr().err
    assert not target.exists()


def test_nothing_is_written_when_a_later_file_is_wrong(some_pieces):
    """All pieces are right, but the second file is not what they hold; or a piece is not LZMA."""
    pieces, files, directory, target = some_pieces
    change_manifest(directory, lambda manifest: manifest["files"][1].update(sha256="0" * 64))
    with pytest.raises(pieces.PiecesError, match="b.txt: not what was cut into these pieces"):
        pieces.join(directory, target)
    assert not target.exists()
    (path,) = directory.rglob("piece-02.xz")
    path.write_bytes(b"no LZMA")
    change_manifest(directory, lambda manifest: manifest["pieces"][1].update(sha256=pieces.sha256(b"no LZMA")))
    with pytest.raises(pieces.PiecesError, match="piece-02.xz: expected LZMA"):
        pieces.join(directory, target)
    assert not target.exists()


def test_a_bad_piece_ends_a_call(bench, collected, tmp_path, capsys):
    script = bench("gpu_train")
    next(collected.rglob("piece-02.xz")).unlink()
    arguments = ["--pieces", str(collected), "--work", str(tmp_path / "w"), "--out", str(tmp_path / "o")]
    assert script.main(arguments) == 2
    assert "pieces are missing: part-" in capsys.readouterr().err


def test_a_prompt_travels_once(bench, model):
    """A text that comes under several names, as some do, under its first."""
    script = bench("gpu_train")
    args = script.parse(["--collect", "x", "--prompts", "chat", "--per-set", "300"])
    found = script.encoded_prompts(model, args)
    every, _ = encode_prompts(model, built_in_prompts(["chat"], 300, 0))
    assert len({p.token_ids for p in every}) == len({tuple(ids) for _, ids in found}) == len(found) < len(every)
    first = {p.token_ids: p.name for p in reversed(every)}
    assert all(first[tuple(ids)] == name for name, ids in found)


def test_end_tokens_of_all_files_travel(bench, model, tmp_path, monkeypatch):
    copy = shutil.copytree(model, tmp_path / "model")  # its tokenizer's is 258
    for name, ids in (("config", [7]), ("generation_config", 9)):
        file = copy / f"{name}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": ids}))
    script = bench("gpu_train")
    answers = shutil.copytree(model.parent / "answers", tmp_path / "answers")
    (answers / "meta.json").write_text(json.dumps({"checkpoint_digest": checkpoint_digest(copy)}))
    arguments = ["--model", str(copy), "--per-set", "1", "--answers", str(answers)]
    assert script.main(["--collect", str(tmp_path / "pieces"), *arguments]) == 0
    script.pieces.join(tmp_path / "pieces", tmp_path / "work" / "input")
    run, used = bench("gpu_train_run"), []
    monkeypatch.setattr(run, "make_batch_answers", lambda *_, stop_ids, **more: used.append(stop_ids))
    run.make_answers(script.parse(["--pieces", "x", "--work", str(tmp_path / "work"), "--out", "out",
                                   "--torch-device", "cpu"]), None)
    assert used == [[7, 9, 258]]


def test_answers_that_travel_are_the_models(bench, model, tmp_path, capsys):
    """Those in the repo are the demo's, and known by its name."""
    other = write_tiny_checkpoint(tmp_path / "model", seed=1, **MODEL)
    script, out = bench("gpu_train"), tmp_path / "pieces"
    collect = ["--collect", str(out), "--per-set", "1", "--prompts", "chat"]
    theirs = ["--answers", str(model.parent / "answers")]
    for whose, answers, needle in ((other, theirs, "holds answers of another model"),
                                   (model, [], f"answers of {MODEL_NAME}, expected those of")):
        assert script.main([*collect, "--model", str(whose), *answers]) == 2
        assert needle in capsys.readouterr().err and not out.exists()
    demo = shutil.copytree(model, tmp_path / MODEL_NAME)
    for name, data in script.collected_answers(demo, None).items():
        (demo / name).write_bytes(data)
    assert len(read_generations(demo)) > 700
    check_target(demo, checkpoint_digest(demo))


def test_pieces_that_do_not_say_whose_answers_they_hold(bench, tmp_path, capsys):
    """Of an older version; there is no meta.json to remove."""
    script = bench("gpu_train")
    script.pieces.cut({"config.json": b"{}", "part-0-of-1.jsonl": b""}, tmp_path / "pieces", 10_000)
    arguments = ["--pieces", str(tmp_path / "pieces"), "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    assert script.main(arguments) == 2
    told = capsys.readouterr().err
    assert "pieces without meta.json" in told and "Collect again" in told and "remove" not in told


def test_no_evaluation_prompt_travels(root, bench):
    """Planted ones are left out, also inside of another text; the rest stays."""
    script = bench("gpu_train")
    planted = [raw for path in sorted((root / "bench" / "prompts").glob("*.jsonl")) for raw in read_prompt_file(path)]
    assert len(planted) > 290
    planted.append({"name": "x", "text": f"Solve this. {planted[0]['messages'][-1]['content'].upper()}!"})
    own = built_in_prompts(["math", "chat"], 20, 0)
    assert script.without_evaluation([*planted, *own]) == own


def test_a_held_out_prompt_is_held_out_under_any_name():
    answers = [Generation(f"p/{i}", 0, 0.0, [i, i + 1], [5, 6]) for i in range(8)]
    _, validation = split_generations(answers, 2)
    ids = validation[0].prompt_ids
    more = [Generation("q/0", 1, 0.8, ids, [7, 8]), Generation("q/1", 1, 0.8, [50, 51], [7, 8])]
    training, again = split_generations(answers, 2, more)
    assert again == validation and len(training) == 7
    assert more[1] in training and more[0] not in training
