"""Documents from files: text, JSON lines, Parquet, compressed or not.

Everything that is not clearly a document is an error that names the file and the line.
"""

from __future__ import annotations

import glob
import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sddlm.data.tokenizers import END_OF_TEXT
from sddlm.errors import ConfigError

#: What a folder is searched for.
SUFFIXES = (".txt", ".md", ".jsonl", ".parquet", ".txt.zst", ".jsonl.zst", ".json.zst")

_CHUNK = 1 << 20  # bytes read at once


def documents(path: str, field: str = "text", separator: str | None = None) -> Iterator[str]:
    r"""The documents of a file, a folder or a glob, in sorted order of the files.

    Text files (``.txt``, ``.md``, ``.txt.zst``) are cut at ``separator``; without one, at
    ``<|endoftext|>`` if it occurs in the file, else the file is one document. Line ends become
    ``\n`` and a byte order mark goes. JSON lines (``.jsonl``, ``.jsonl.zst``, ``.json.zst``) and
    Parquet rows are one document each. Blank documents (nothing but white space) are left out. In
    folders, files of other suffixes and hidden ones are not looked at.

    Args:
        path: a file, a folder (searched to any depth) or a glob pattern.
        field: key or column that holds the text.
        separator: what stands between two documents of a text file.

    Raises:
        ConfigError: a missing, empty, binary or broken file, an unknown suffix, a missing field, a
            missing optional package, or no document at all.
    """
    if separator == "":
        raise ConfigError("--data.separator is empty; leave it out, or give what to cut at")
    found = False
    for file in _files(path):
        if file.stat().st_size == 0:
            raise ConfigError(f"{file} is empty; remove it or give --data.path another file")
        for document in _reader(file)(file, field, separator):
            if document.strip():
                found = True
                yield document
    if not found:
        raise ConfigError(f"no documents in {path}: nothing but white space; give --data.path text")


def _files(path: str) -> list[Path]:
    given = Path(path).expanduser()
    if given.is_file():
        return [given]
    if given.is_dir():
        return _in_folder(given)
    files = sorted(f for f in map(Path, glob.glob(str(given), recursive=True)) if f.is_file())
    if not files:
        raise ConfigError(
            f"--data.path {path}: no such file or folder, and no file matches it as a pattern; "
            "give a file, a folder or a quoted pattern such as 'texts/*.txt'"
        )
    return files


def _in_folder(folder: Path) -> list[Path]:
    def wanted(file: Path) -> bool:
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        return file.name.endswith(SUFFIXES) and not hidden and file.is_file()

    files = sorted(file for file in folder.rglob("*") if wanted(file))
    if not files:
        raise ConfigError(f"no documents in the folder {folder}: none of {_suffixes()} in it")
    return files


def _suffixes() -> str:
    return ", ".join(SUFFIXES)


def _reader(file: Path) -> Callable[[Path, str, str | None], Iterator[str]]:
    name = file.name.removesuffix(".zst")
    if file.name.endswith(SUFFIXES):
        if name.endswith((".txt", ".md")):
            return _text
        return _parquet if name.endswith(".parquet") else _json_lines
    raise ConfigError(
        f"{file}: unknown kind of file; the name must end in one of {_suffixes()}: rename it "
        "(plain text: .txt) or convert it"
    )


# ------------------------------------------------------------------ kinds of files


def _text(file: Path, field: str, separator: str | None) -> Iterator[str]:
    text = _decode(b"".join(_bytes(file)), file).replace("\r\n", "\n").replace("\r", "\n")
    mark = separator or (END_OF_TEXT if END_OF_TEXT in text else None)
    yield from text.split(mark) if mark else (text,)


def _json_lines(file: Path, field: str, separator: str | None) -> Iterator[str]:
    for number, line in enumerate(_lines(file), start=1):
        place = f"{file}, line {number}"
        text = _decode(line, place)
        if text.strip():  # an empty last line is common
            yield _member(_record(text, place), field, place)


def _record(line: str, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{place}: not JSON ({error.msg} at column {error.colno}); each line must be an object "
            'such as {"text": "..."}'
        ) from error
    if not isinstance(record, dict):
        raise ConfigError(
            f"{place}: a JSON {type(record).__name__}, not an object; each line must be an object "
            'such as {"text": "..."}'
        )
    return record


def _member(record: dict[str, Any], field: str, place: str) -> str:
    if field not in record:
        raise ConfigError(_no_field(place, field, list(record)))
    text = record[field]
    if not isinstance(text, str):
        raise ConfigError(
            f"{place}: the field {field!r} is {_kind(text)}, not text; choose another with "
            "--data.field or repair the line"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{place}: the field {field!r} holds half a surrogate pair (\\ud800 to \\udfff), which "
            "is no character; repair the line"
        ) from error
    return text


def _parquet(file: Path, field: str, separator: str | None) -> Iterator[str]:
    _optional("pyarrow", file)
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            names = table.schema_arrow.names
            if field not in names:
                raise ConfigError(_no_field(str(file), field, names))
            row = 0
            for batch in table.iter_batches(batch_size=1024, columns=[field]):
                for text in batch.column(0).to_pylist():
                    row += 1
                    yield _member({field: text}, field, f"{file}, row {row}")
    except pa.ArrowException as error:
        raise ConfigError(f"{file} cannot be read as Parquet: {error}; get it again") from error


# ------------------------------------------------------------------ bytes and lines


def _bytes(file: Path) -> Iterator[bytes]:
    """The content, decompressed, in chunks."""
    if file.suffix == ".zst":
        yield from _decompressed(file)
        return
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            yield chunk


def _decompressed(file: Path) -> Iterator[bytes]:
    """Frame by frame: the library's own stream reader takes a file cut short for complete."""
    _optional("zstandard", file)
    import zstandard

    # files made with zstd --long need a window of up to 2 GiB
    make = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj
    frame = make()
    try:
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK // 8):
                while chunk:
                    frame = make() if frame.eof else frame
                    yield frame.decompress(chunk)
                    chunk = frame.unused_data
    except zstandard.ZstdError as error:
        raise ConfigError(f"{file} cannot be decompressed: {error}; get it again") from error
    if not frame.eof:
        raise ConfigError(f"{file} is cut short: its last zstd frame has no end; get it again")


def _lines(file: Path) -> Iterator[bytes]:
    """Lines without their ends, of any length."""
    rest: list[bytes] = []
    for chunk in _bytes(file):
        head, *more = chunk.split(b"\n")
        rest.append(head)
        for part in more:
            yield b"".join(rest)
            rest = [part]
    yield b"".join(rest)


def _decode(data: bytes, place: Path | str) -> str:
    line = data.count(b"\n", 0, data.find(b"\0")) + 1 if b"\0" in data else 0
    if line:
        raise ConfigError(
            f"{place}{_line(place, line)}: a binary file (it holds a NUL byte); text must be UTF-8"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{place}{_line(place, line)}: not UTF-8 (byte 0x{data[error.start]:02x}); convert it, "
            "for example: iconv -f LATIN1 -t UTF-8"
        ) from error


def _line(place: Path | str, line: int) -> str:
    """The line, unless the place already names it."""
    return f", line {line}" if isinstance(place, Path) else ""


def _optional(package: str, file: Path) -> None:
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"{file} needs the package {package}: pip install 'sddlm[data]'"
        ) from error


def _no_field(place: str, field: str, there: list[str]) -> str:
    return (
        f"{place}: no field {field!r}; there are: {', '.join(there) or 'none'}; "
        "choose one with --data.field"
    )


def _kind(value: object) -> str:
    return "null" if value is None else f"a {type(value).__name__}"
