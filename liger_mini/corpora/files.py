"""Reading what readers bring: texts in any Unicode, records in JSON, Parquet or from the hub."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

TEXTS = (".txt", ".md", ".rst")
RECORDS = (".json", ".jsonl", ".parquet")
_MARKS = (  # the longer first: UTF-32's begins as UTF-16's does
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF8, "utf-8"),
)


def read_text(path: str | Path) -> str:
    """A text in UTF-8, or in whatever Unicode its byte-order mark says; line ends become ``\\n``.

    Raises:
        FileNotFoundError: no such file. ValueError: another encoding, or no text; file, line and column are named.
    """
    data = Path(path).read_bytes()
    mark, encoding = next(((mark, name) for mark, name in _MARKS if data.startswith(mark)), (b"", "utf-8"))
    data = data[len(mark) :]
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        before, byte = data[: error.start].decode(encoding, "replace"), data[error.start]
        raise ValueError(
            f"{_place(path, before)}: not {encoding.upper()} (byte 0x{byte:02x} at column "
            f"{len(before) - before.rfind(chr(10))}); convert it, for example with `iconv -f latin1 -t utf-8 {path} > "
            f"utf-8{Path(path).suffix}` if it is in Latin-1"
        ) from error
    if "\0" in text:
        raise ValueError(
            f"{_place(path, text[: text.index(chr(0))])}: a NUL character, so this is no text, or one in UTF-16 without a "
            f"byte-order mark; convert that with `iconv -f utf-16le -t utf-8 {path} > utf-8{Path(path).suffix}`"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _place(path: str | Path, before: str) -> str:
    return f"{path}, line {before.count(chr(10)) + 1}"


def read_records(source: str | Path) -> Iterable[tuple[str, dict[str, Any]]]:
    """(where it stands, record) of a local file or of the hub's training split."""
    path = Path(source)
    if path.suffix in RECORDS or path.is_absolute() or path.exists():
        if not path.is_file():
            raise FileNotFoundError(
                f"no instruction file at {path}; give a {', '.join(RECORDS)} file of records, a {', '.join(TEXTS)} file of "
                "text, a folder of text files, or a hub id"
            )
        if path.suffix not in RECORDS:
            raise ValueError(
                f"{path}: allowed are {', '.join(RECORDS)} files of records and {', '.join(TEXTS)} files of text"
            )
        if path.suffix != ".parquet":
            return _json_records(path)
    return _dataset_records(source)


def _json_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """A list of records, or one record a line, whatever the file's suffix is."""
    text = read_text(path)
    if text.lstrip().startswith("["):
        found = ((f"{path}, record {i}", record) for i, record in enumerate(_json(path, text), 1))
    else:
        lines = ((i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip())
        found = ((f"{path}, line {i}", _json(path, line, i)) for i, line in lines)
    for where, record in found:
        if not isinstance(record, dict):
            raise ValueError(f"{where}: a record must be an object with named columns; found {str(record)[:200]}")
        yield where, record


def _json(path: Path, text: str, line: int = 1) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {line + error.lineno - 1}: not JSON ({error.msg} at column {error.colno}); needed is one record "
            "a line, or a list of records"
        ) from error


def _dataset_records(source: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """A .parquet file or the hub's, through the package `datasets`."""
    try:
        import datasets
        from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
        from pyarrow import ArrowInvalid
    except ImportError as error:
        raise ImportError(
            f'{source}: .parquet files and the hub are read by the package datasets; pip install "liger_mini[course]"'
        ) from error
    local = Path(source).suffix == ".parquet"
    what = {"path": "parquet", "data_files": str(source)} if local else {"path": str(source)}
    try:
        records = datasets.load_dataset(**what, split="train")
    except (DatasetGenerationError, StopIteration, ArrowInvalid) as error:
        raise ValueError(f"{source} cannot be read: {error.__cause__ or error or 'it is empty'}") from error
    except (ConnectionError, DatasetNotFoundError) as error:
        kind = ConnectionError if isinstance(error, ConnectionError) else FileNotFoundError
        raise kind(
            f"{source} is no file here, and the hub did not give it ({error}); give a .json, .jsonl or .parquet file "
            "with the columns instruction and output, or messages, instead"
        ) from error
    for i, record in enumerate(records, 1):
        yield f"{source}, record {i}", record
