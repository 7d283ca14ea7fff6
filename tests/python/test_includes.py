"""Every file includes the standard headers that it uses, or includes one of ours that does.

The library is compiled with precompiled standard headers (MIMO_RT_PRECOMPILE), which would hide a missing one from us,
but not from who builds without them.
"""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SEARCHED = [ROOT / "csrc", ROOT / "include", ROOT / "csrc" / "python"]
KERNELS = re.compile(r"csrc/cpu/(generic|avx2|avx512|shared)/")  # compiled without precompiled headers

# Header -> names of namespace std that need it.
NAMES = {
    "algorithm": r"(ranges::)?(adjacent_find|all_of|any_of|binary_search|clamp|copy|copy_n|count|count_if|equal|fill|"
                 r"fill_n|find|find_if|is_sorted|lower_bound|max|max_element|min|min_element|none_of|nth_element|"
                 r"partial_sort|remove_if|replace_if|reverse|shuffle|sort|stable_sort|transform|unique|upper_bound)",
    "array": "array",
    "atomic": r"atomic\w*|memory_order\w*",
    "bit": "bit_cast|countr_zero|countl_zero|popcount|bit_ceil|bit_width|has_single_bit|rotl|rotr",
    "chrono": "chrono",
    "cmath": "sqrt|exp|exp2|log|log2|fabs|ldexp|frexp|isfinite|isnan|isinf|floor|ceil|lround|pow|nextafter|fma|"
             "copysign",
    "cstring": "memcpy|memset|memcmp|memmove|strlen|strcmp|strerror|strstr",
    "filesystem": "filesystem",
    "functional": r"function|hash|(ranges::)?(greater|less|not_equal_to)|ref|bind",
    "limits": "numeric_limits",
    "map": "map|multimap",
    "memory": "unique_ptr|shared_ptr|weak_ptr|make_unique|make_unique_for_overwrite|make_shared|"
              "enable_shared_from_this",
    "mutex": "mutex|lock_guard|unique_lock|scoped_lock|once_flag|call_once",
    "optional": "optional|nullopt",
    "span": "span",
    "sstream": "stringstream|istringstream|ostringstream",
    "string": "string|to_string|stoi|getline",
    "string_view": "string_view",
    "utility": "pair|make_pair|move|exchange|swap|forward|as_const",
    "vector": "vector",
}
PATTERNS = {header: re.compile(rf"\bstd::({names})\b") for header, names in NAMES.items()}
PATTERNS["cstdint"] = re.compile(r"\bu?int(8|16|32|64)_t\b")


def included(path: pathlib.Path, seen: set[pathlib.Path]) -> set[str]:
    """Headers that are not ours, of a file and of all files of ours that it includes."""
    if path in seen:
        return set()
    seen.add(path)
    headers = set()
    for name in re.findall(r'^#include [<"]([^">]+)[">]', path.read_text(), re.MULTILINE):
        ours = next((folder / name for folder in SEARCHED if (folder / name).is_file()), None)
        headers |= included(ours, seen) if ours else {name}
    return headers


def missing_headers(path: pathlib.Path) -> list[str]:
    headers = included(path, set())
    if "stdint.h" in headers:
        headers.add("cstdint")
    text = re.sub(r"//.*", "", path.read_text())
    return [header for header, used in PATTERNS.items() if used.search(text) and header not in headers]


def sources() -> list[pathlib.Path]:
    paths = [path for folder in ("csrc", "include") for path in (ROOT / folder).rglob("*")]
    return [path for path in sorted(paths) if path.suffix in (".cpp", ".h", ".cu", ".cuh")
            and not KERNELS.match(str(path.relative_to(ROOT)))]


def test_no_standard_header_is_missing():
    found = {str(path.relative_to(ROOT)): missing for path in sources() if (missing := missing_headers(path))}
    assert not found
    assert len(sources()) > 300


@pytest.mark.parametrize(("text", "missing"), [
    ("#include <string>\nstd::vector<std::string> x; std::moves(y);", ["vector"]),
    ("// std::vector\nuint8_t f(std::span<int> x);", ["span", "cstdint"]),
    ("std::ranges::sort(x, std::ranges::less()); std::ranges::move(x);", ["algorithm", "functional"]),
    ("std::binary_search(x);", ["algorithm"]), ("std::shuffle(x);", ["algorithm"]), ("std::rotl(x, 1);", ["bit"]),
    ("std::make_unique_for_overwrite<int[]>(3);", ["memory"]),
    ('#include <mimo_rt/config.h>\nstd::string x; std::map<int, int> y;', ["map"]),
])
def test_a_missing_header_is_seen(tmp_path, text, missing):
    (tmp_path / "x.cpp").write_text(text)
    assert missing_headers(tmp_path / "x.cpp") == missing
