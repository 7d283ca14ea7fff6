"""A C++ program builds against the installed package with find_package(mimo_rt) and decodes the same tokens."""

import pathlib
import subprocess
import sys

import mimo_rt
from mimo_rt.checkpoints.tiny import write_tiny_checkpoint

SOURCE = pathlib.Path(__file__).resolve().parents[1] / "cpp" / "embed"


def test_embed_example(tmp_path):
    model = tmp_path / "model"
    write_tiny_checkpoint(model, seed=3)
    build = tmp_path / "build"
    subprocess.run(["cmake", "-S", SOURCE, "-B", build, f"-Dmimo_rt_DIR={mimo_rt.get_cmake_dir()}",
                    f"-DPython_EXECUTABLE={sys.executable}"], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", build], check=True, capture_output=True)
    done = subprocess.run([build / "embed", model, "5", "6", "7"], check=True, capture_output=True, text=True)
    tokens = [int(t) for t in done.stdout.splitlines()[0].split()]
    with mimo_rt.Session(model) as session:
        expected = session.generate([5, 6, 7], temperature=0.0, max_tokens=16).token_ids
    assert tokens == expected and tokens
    failed = subprocess.run([build / "embed", tmp_path / "absent"], capture_output=True, text=True, check=False)
    assert failed.returncode == 1 and "absent" in failed.stderr
