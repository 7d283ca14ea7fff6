"""What the README says is true: its commands are CI's, its Python runs, its C++ is the embedding example's API."""

import re

from mimo_rt.checkpoints.tiny import write_tiny_checkpoint


def blocks(root, language):
    """Fenced code blocks of README.md."""
    return re.findall(rf"```{language}\n(.*?)```", (root / "README.md").read_text(), re.DOTALL)


def test_ci_runs_the_readme_test_command(root):
    commands = [block.strip() for block in blocks(root, "")]
    assert "pip install '.[test]' && pytest" in commands
    assert "\npip install '.[test]' && pytest\n" in (root / ".ci" / "run").read_text()
    assert any("mimo-rt demo" in command for command in commands)


def test_python_example_runs(root, tmp_path, capsys):
    write_tiny_checkpoint(tmp_path / "model", seed=2)
    examples = blocks(root, "python")
    assert examples
    for code in examples:
        exec(compile(code, "README.md", "exec"), {"model_dir": tmp_path / "model"})
    assert "length" in capsys.readouterr().out


def test_cpp_example_compiles(root, tmp_path):
    """The block is put into a function of a program that is compiled (not linked) against the public headers."""
    import subprocess

    code = blocks(root, "cpp")[0]
    include, body = code.split("\n", 1)
    source = tmp_path / "example.cpp"
    source.write_text(f"{include}\n#include <vector>\nvoid example() {{\n{body}\n(void)result;\n}}\n")
    command = ["c++", "-std=c++20", "-fsyntax-only", "-I", str(root / "include"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_placeholder_is_left(root):
    assert "<!--" not in (root / "README.md").read_text()


def test_files_that_the_readme_names_exist(root):
    for name in re.findall(r"`((?:csrc|include|python|tests|bench|third_party)/[\w./-]*)`", (root / "README.md").read_text()):
        assert (root / name.rstrip("/")).exists(), name
