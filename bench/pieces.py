"""Files as compressed pieces of at most 16 MiB with a manifest, for ways on which nothing larger travels."""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import lzma
import os
import pathlib
from typing import Any

MANIFEST = "pieces.json"
TEMPORARY = ".tmp"  # after the name of a file that is being written
RAW_BYTES = 16_000_000  # of a piece: incompressible ones stay below 16 MiB
_THREADS = max(1, min(16, os.cpu_count() or 1))


class PiecesError(Exception):
    """A piece or manifest is missing or is not what it should be; says which and what to do."""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def folders(directory: pathlib.Path) -> list[pathlib.Path]:
    """Where pieces of ``directory`` may lie: there and in its part-N, no deeper: what lies there is someone else's."""
    return [directory, *sorted(path for path in directory.glob("part-*") if path.is_dir())]


def cut(files: dict[str, bytes], directory: pathlib.Path, folder_bytes: int = 0, preset: int = 6) -> dict[str, Any]:
    """Write ``files`` (name: content) as pieces and a manifest; those of an earlier call go.

    Args:
        folder_bytes: put pieces into folders part-1, part-2, … of at most so many bytes; 0: into ``directory`` itself.
        preset: of LZMA. Weights take 6 % more with 0 than with 6, and a third of the time.

    Returns:
        The manifest, which lies beside the pieces of every folder: files and pieces in order, each with its name,
        number of bytes and SHA-256.
    """
    content = b"".join(files.values())
    raw = [content[begin : begin + RAW_BYTES] for begin in range(0, len(content), RAW_BYTES)]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        packed = list(pool.map(lambda data: lzma.compress(data, preset=preset), raw))
    for old in folders(directory):
        for path in (*old.glob("piece-*.xz"), *old.glob(MANIFEST)):
            path.unlink()
    manifest: dict[str, Any] = {"files": [describe(name, data) for name, data in files.items()], "pieces": []}
    folder, filled = 1, 0
    for number, data in enumerate(packed, 1):
        if folder_bytes and filled and filled + len(data) > folder_bytes:
            folder, filled = folder + 1, 0
        filled += len(data)
        piece = describe(f"piece-{number:02d}.xz", data) | ({"folder": f"part-{folder}"} if folder_bytes else {})
        manifest["pieces"].append(piece)
        path = directory / piece.get("folder", "") / piece["name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for parent in {directory / piece.get("folder", "") for piece in manifest["pieces"]}:
        (parent / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def describe(name: str, data: bytes) -> dict[str, Any]:
    return {"name": name, "num_bytes": len(data), "sha256": sha256(data)}


def join(directory: pathlib.Path, target: pathlib.Path) -> list[pathlib.Path]:
    """Check the pieces of ``directory`` and write their files into ``target``; those that are there stay.

    Raises:
        PiecesError: nothing was written then.
    """
    manifest = read_manifest(directory)
    found = {path.name: path for folder in folders(directory) for path in sorted(folder.glob("piece-*.xz"))}
    paths = [target / file["name"] for file in manifest["files"]]
    check_target(target, {path.name for path in paths})
    if all(path.is_file() and sha256(path.read_bytes()) == file["sha256"]
           for path, file in zip(paths, manifest["files"], strict=True)):
        return paths
    lacking = [piece for piece in manifest["pieces"] if piece["name"] not in found]
    if lacking:
        names = ", ".join(str(pathlib.PurePath(piece.get("folder", ""), piece["name"])) for piece in lacking)
        raise PiecesError(f"{directory}: {len(lacking)} of {len(manifest['pieces'])} pieces are missing: {names}. "
                          "Bring them along.")
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        parts = list(pool.map(lambda piece: read_piece(found[piece["name"]], piece), manifest["pieces"]))
    contents = split(b"".join(parts), manifest["files"])
    target.mkdir(parents=True, exist_ok=True)
    for path, data in zip(paths, contents, strict=True):
        temporary = path.with_name(path.name + TEMPORARY)
        temporary.write_bytes(data)
        os.replace(temporary, path)
    return paths


def check_target(target: pathlib.Path, names: set[str]) -> None:
    """PiecesError where it holds more than files of these names, or what a killed call left of them."""
    known = names | {name + TEMPORARY for name in names}
    others = [path.name for path in sorted(target.glob("*")) if path.name not in known or not path.is_file()]
    if others:
        raise PiecesError(f"{target}: expected a new folder or one with files of these pieces, got {', '.join(others)} "
                          "there. Remove what is not needed, or use another folder.")


def read_manifest(directory: pathlib.Path) -> dict[str, Any]:
    """That of ``directory`` or its parts, which are copies."""
    paths = [path for folder in folders(directory) for path in folder.glob(MANIFEST)]
    if not paths:
        raise PiecesError(f"{directory}: expected {MANIFEST} there or in a folder part-N, found none. Copy the whole "
                          "folder of the pieces, or one of its parts, here.")
    contents = {path.read_bytes(): path for path in paths}
    if len(contents) > 1:
        first, second, *_ = contents.values()
        raise PiecesError(f"{directory}: expected pieces of one set, got {first} and {second} of two. Remove the older "
                          "pieces.")
    try:
        manifest = json.loads(paths[0].read_text(encoding="utf-8"))
        for entry in (*manifest["files"], *manifest["pieces"]):
            check_entry(entry)
    except (ValueError, TypeError, KeyError) as error:
        raise PiecesError(f"{paths[0]}: expected a manifest of pieces, got something else ({error!r}). Copy it "
                          "again.") from None
    return manifest


def check_entry(entry: dict[str, Any]) -> None:
    """ValueError, TypeError or KeyError unless it is what `describe` says, and its name leads into no other folder."""
    name = entry["name"]
    if pathlib.PurePath(name).name != name or name in ("", "..") or "\0" in name:
        raise ValueError(f"not the name of a file: {name!r}")
    if not isinstance(entry["num_bytes"], int) or entry["num_bytes"] < 0:
        raise ValueError(f"{name}: not a number of bytes: {entry['num_bytes']!r}")
    if not isinstance(entry["sha256"], str) or not isinstance(entry.get("folder", ""), str):
        raise ValueError(f"{name}: sha256 and folder are not texts")


def read_piece(path: pathlib.Path, piece: dict[str, Any]) -> bytes:
    data = path.read_bytes()
    if sha256(data) != piece["sha256"]:
        raise PiecesError(f"{path}: expected {piece['num_bytes']} bytes with SHA-256 {piece['sha256'][:12]}…, got "
                          f"{len(data)} with {sha256(data)[:12]}…. Copy this piece again.")
    try:
        return lzma.decompress(data)
    except lzma.LZMAError as error:
        raise PiecesError(f"{path}: expected LZMA, got something else ({error}). Make all pieces anew.") from None


def split(content: bytes, files: list[dict[str, Any]]) -> list[bytes]:
    contents: list[bytes] = []
    begin = 0
    for file in files:
        data = content[begin : begin + file["num_bytes"]]
        if sha256(data) != file["sha256"]:
            raise PiecesError(f"{file['name']}: not what was cut into these pieces. Make all pieces anew.")
        contents.append(data)
        begin += len(data)
    return contents
