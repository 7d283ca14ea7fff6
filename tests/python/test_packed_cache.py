"""The packed cache of a session: the same bits with and without it, a full disk, the commands that look after it."""

import json
import subprocess
import sys

import mimo_rt
import numpy as np
import pytest
from mimo_rt import errors
from mimo_rt.checkpoints import write_tiny_checkpoint, write_tiny_draft
from mimo_rt.cli import main

IDS = list(range(1, 30))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("packed") / "model"
    write_tiny_checkpoint(directory, seed=5)
    write_tiny_draft(directory, seed=6)
    return directory


def answer(model, **options):
    """What the cache did, and everything that the weights decide."""
    with mimo_rt.Session(model, **options) as session:
        tokens = session.generate(IDS, max_tokens=24, temperature=0.0, ignore_eos=True, draft_mode="fixed").token_ids
        return session.stats.packed_cache, (session.logits(IDS), session.draft_logits(IDS), np.array(tokens))


def same_bits(a, b):
    return all((x == y).all() for x, y in zip(a, b, strict=True))


def states(name):
    return {"target": name, "draft": name}


def test_logits_and_drafted_tokens_have_the_same_bits(model, tmp_path):
    state, expected = answer(model)
    assert state == states("off")
    for options, name in (({}, "written"), ({}, "hit"), ({"use_mmap": False}, "hit"), ({"num_threads": 1}, "hit"),
                          ({"device": "cpu-generic"}, "hit")):
        state, got = answer(model, packed_cache=tmp_path, **options)
        assert state == states(name)
        assert options.get("device") or same_bits(got, expected)
    # Every backend reads the same file: it does not depend on the instruction set.
    assert same_bits(got, answer(model, device="cpu-generic")[1])
    assert len(list(tmp_path.glob("*.packed"))) == 2
    other = write_tiny_checkpoint(tmp_path / "other", seed=7)  # control: the comparison sees other weights
    write_tiny_draft(other, seed=8)
    assert not same_bits(answer(other, packed_cache=tmp_path)[1], expected)


def test_a_damaged_file_changes_no_answer(model, tmp_path):
    _, expected = answer(model, packed_cache=tmp_path)
    for path in tmp_path.glob("*.packed"):
        content = bytearray(path.read_bytes())
        content[-100] ^= 1
        path.unlink()
        path.write_bytes(content)
    state, got = answer(model, packed_cache=tmp_path)
    assert state == states("written") and same_bits(got, expected)
    with mimo_rt.Session(model, packed_cache=tmp_path) as session:
        reports = session.engine.packed_cache
        assert [report.state for report in reports] == ["hit", "hit"]
        assert {report.file for report in reports} == set(tmp_path.glob("*.packed"))


def test_processes_at_once_agree(model, tmp_path):
    script = ("import mimo_rt, sys\nwith mimo_rt.Session(sys.argv[1], packed_cache=sys.argv[2]) as s:\n"
              "    print(s.stats.packed_cache['target'], s.generate([1, 2, 3], max_tokens=8, temperature=0.0,"
              " ignore_eos=True).token_ids)")
    command = [sys.executable, "-c", script, str(model), str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    told = [process.communicate(timeout=120)[0].split(" ", 1) for process in running]
    assert {state for state, _ in told} <= {"written", "hit"}
    assert len({tokens for _, tokens in told}) == 1
    left = {path.suffix for path in tmp_path.iterdir()}
    assert len(list(tmp_path.glob("*.packed"))) == 2 and not left & {".tmp", ".lock"}


def test_a_full_disk_costs_the_cache_only(model, tmp_path):
    """A file system of 1 MB, in a mount namespace of its own: smaller than any file of the cache."""
    script = ("import mimo_rt, sys, os\nwith mimo_rt.Session(sys.argv[1], packed_cache=sys.argv[2]) as s:\n"
              "    print([r.message for r in s.engine.packed_cache], s.generate([1], max_tokens=4, temperature=0.0,"
              " ignore_eos=True).token_ids, s.stats.packed_cache, os.listdir(sys.argv[2]))")
    mount = f'mount -t tmpfs -o size=1m none "{tmp_path}" && exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        command = command[:1] + command[3:]  # as root no user namespace is needed
        if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
            pytest.skip("no right to mount a file system (unshare --mount)")
    run = subprocess.run([*command, sys.executable, "-c", script, str(model), str(tmp_path)],
                         capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stderr == "" and run.stdout.count("No space left on device") == 2
    assert str(states("failed")) in run.stdout and ".packed'" not in run.stdout.split("[")[-1]
    with mimo_rt.Session(model) as session:
        tokens = session.generate([1], max_tokens=4, temperature=0.0, ignore_eos=True).token_ids
    assert str(tokens) in run.stdout


def test_commands_look_after_the_cache(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MIMO_RT_CACHE", str(tmp_path))
    assert main(["cache", "list"]) == 0
    assert "empty" in capsys.readouterr().out
    prompt = ["--prompt-ids", "1,2,3", "--max-tokens", "2", "--threads", "1"]
    assert main(["generate", str(model), *prompt, "--packed-cache", "auto"]) == 0
    capsys.readouterr()
    assert main(["cache", "list", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["directory"] == str(tmp_path / "packed")
    assert sorted(entry["part"] for entry in record["files"]) == ["draft", "target"]
    assert all(entry["state"] == "usable" for entry in record["files"])
    (tmp_path / "packed" / ("e" * 32 + ".packed")).write_bytes(b"?")
    assert main(["cache", "list"]) == 0
    out = capsys.readouterr().out
    assert "3 files" in out and "1 of no use" in out and "broken" in out and str(model) in out
    assert main(["doctor"]) == 0
    assert "3 files" in capsys.readouterr().out
    assert main(["cache", "clear"]) == 0
    assert "freed" in capsys.readouterr().out and not list((tmp_path / "packed").iterdir())
    assert main(["cache", "clear", "--packed-cache", "none"]) == 1


def test_a_failed_cache_is_told_once(model, tmp_path, capsys):
    (tmp_path / "file").touch()
    arguments = ["generate", str(model), "--prompt-ids", "1,2,3", "--max-tokens", "2",
                 "--packed-cache", str(tmp_path / "file" / "x")]
    assert main(arguments) == 0
    assert capsys.readouterr().err.count("packed cache:") == 2
    assert main([*arguments, "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_arguments(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with mimo_rt.Session(model, packed_cache="relative") as session:
        assert all(report.file.parent == tmp_path / "relative" for report in session.engine.packed_cache)
    with pytest.raises(errors.InvalidArgumentError, match="packed_cache"):
        mimo_rt.Session(model, packed_cache="")
    with pytest.raises(TypeError):
        mimo_rt.Session(model, packed_cache=3)
    with pytest.raises(TypeError, match="packed_cache"):
        mimo_rt.Session(model, packed_cach="none")
