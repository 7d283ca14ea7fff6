"""What the README says is true: its commands are CI's, its Python runs, its C++ is the embedding example's API."""

import json
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


ACCEPTANCE_ROW = re.compile(r"^\| (\w+) \([^|]*\) \| ([^|]*) \| ([\d.]+) x \| ([^|]*) \| ([\d.]+) x \|", re.MULTILINE)


def wrong_acceptance_rows(readme, records):
    """Rows of the acceptance table that say something else than the raw lines."""
    found = {(r["category"], r["temperature"], r["mode"]): r for r in records if "id" not in r}
    wrong = []
    for category, *cells in ACCEPTANCE_ROW.findall(readme):
        expected = []
        for temperature in (0.0, 0.8):
            plain, drafted = (found[category, temperature, mode] for mode in ("plain", "adaptive"))
            speeds = [f"{r['tokens_per_s']:.0f}" for r in (plain, drafted)]
            expected += [f"{drafted['mean_acceptance_length']:.2f}, {' → '.join(speeds)}", f"{drafted['over_plain']:.2f}"]
        if cells != expected:
            wrong.append((category, cells, expected))
    return wrong


def test_the_acceptance_table_says_what_was_measured(root):
    readme = (root / "README.md").read_text()
    assert ACCEPTANCE_ROW.findall(readme), "no row was found"
    above = readme[: ACCEPTANCE_ROW.search(readme).start()]
    name = re.findall(r"`(bench/results/[\w-]+\.jsonl)`", above)[-1]
    records = [json.loads(line) for line in (root / name).read_text().splitlines()]
    assert not wrong_acceptance_rows(readme, records)
    spoiled = [{**r, "over_plain": 1.01 * r["over_plain"]} if "over_plain" in r else r for r in records]
    assert len(wrong_acceptance_rows(readme, spoiled)) == len(ACCEPTANCE_ROW.findall(readme))  # control
