"""What a batch leaves: part files that appear whole or not at all, and a manifest that can be made again from them.

The parts are the truth. Each carries in its Parquet metadata which job, unit and rows it holds, and its name follows
from unit and first row, so that work done twice replaces a part by the same part. `_manifest.json` records them; a part
that a kill kept out of it is taken up when the job goes on. Parquet readers pass over names with `_` or `.` in front.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dermlens.batch import storage
from dermlens.errors import DermlensError, StorageError, UsageError
from dermlens.inference.prediction import Prediction

SCHEMA = "dermlens/batch/1"
ROW_GROUP = 2_000
METADATA_KEY = "dermlens.part"
_PART = re.compile(r"part-(?:(\d+)of(\d+)-)?(\d{6,})-(\d{9,})\.parquet")
_MANIFEST = re.compile(r"_manifest(?:-(\d+)of(\d+))?\.json")


@dataclass(frozen=True)
class Part:
    """One finished part file: `rows` rows of a unit from `start` on; `last` when the unit ends with it."""

    file: str
    unit: int
    start: int
    rows: int
    errors: int
    last: bool
    bytes: int


@dataclass(frozen=True)
class Folder:
    """The output: a local folder or an fsspec URL; `tag` tells the shards of one job apart ("" or "3of8")."""

    path: str
    tag: str = ""

    @classmethod
    def of(cls, path: str, shard: tuple[int, int] = (1, 1)) -> Folder:
        """Return the folder for shard i of n."""
        index, count = shard
        width = len(str(count))
        return cls(storage.plain(path).rstrip("/") or "/", "" if count == 1 else f"{index:0{width}d}of{count}")

    @property
    def manifest(self) -> str:
        return f"_manifest{'-' if self.tag else ''}{self.tag}.json"

    def part_name(self, unit: int, start: int) -> str:
        """Return the name of the part that begins with row `start` of a unit."""
        return f"part-{self.tag}{'-' if self.tag else ''}{unit:06d}-{start:09d}.parquet"

    @property
    def scratch_prefix(self) -> str:
        return f".part-{self.tag}{'-' if self.tag else ''}"

    @property
    def scratch_manifest_prefix(self) -> str:
        return f".{self.manifest}."

    def names(self) -> list[str]:
        """Return all file names in it, sorted; none where there is no folder."""
        with storing(self.path):
            try:
                if not storage.is_url(self.path):
                    return sorted(os.listdir(self.path))
                fs, inside = storage.filesystem(self.path)
                return sorted(str(name).rpartition("/")[2] for name in fs.ls(inside, detail=False))
            except FileNotFoundError:
                return []

    def read(self, name: str) -> bytes:
        """Return a file's bytes."""
        with storing(self.path), storage.open_stream(f"{self.path}/{name}") as file:
            return file.read()

    def size(self, name: str) -> int | None:
        """Return a file's size in bytes, None where it is not there."""
        return storage.size_bytes(f"{self.path}/{name}")

    def remove(self, name: str) -> None:
        """Delete a file; one that is not there is no matter."""
        with storing(self.path), suppress(FileNotFoundError):
            if not storage.is_url(self.path):
                os.unlink(f"{self.path}/{name}")
            else:
                fs, inside = storage.filesystem(self.path)
                fs.rm_file(f"{inside}/{name}")

    def scratch(self, name: str) -> str:
        """Return the path of a new local file to write `name` to; `publish` moves it into place."""
        with storing(self.path):
            if storage.is_url(self.path):
                handle, path = tempfile.mkstemp(prefix="dermlens-part-")
                os.close(handle)
                return path
            os.makedirs(self.path, exist_ok=True)
            return f"{self.path}/.{name}.{secrets.token_hex(4)}.tmp"

    def publish(self, scratch: str, name: str) -> int:
        """Make a finished scratch file appear under its name, at once and lasting; return its size in bytes."""
        with storing(self.path):
            size = os.path.getsize(scratch)
            if not storage.is_url(self.path):
                _sync(scratch)
                os.replace(scratch, f"{self.path}/{name}")
                _sync(self.path)
                return size
            fs, inside = storage.filesystem(self.path)
            fs.makedirs(inside, exist_ok=True)
            fs.put_file(scratch, f"{inside}/.{name}.tmp")
            fs.mv(f"{inside}/.{name}.tmp", f"{inside}/{name}")
            os.unlink(scratch)
            return size

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a JSON file that appears whole or not at all."""
        scratch = self.scratch(name)
        with storing(self.path), open(scratch, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=1)
            file.write("\n")
        self.publish(scratch, name)


def _sync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some file systems cannot sync a folder
        if not os.path.isdir(path):
            raise
    finally:
        os.close(handle)


@contextmanager
def storing(place: str) -> Iterator[None]:
    """Turn what a file system raises into a StorageError that says how to go on."""
    try:
        yield
    except Exception as error:  # plug-ins raise errors of their own
        if isinstance(error, DermlensError) or not (isinstance(error, OSError) or storage.is_url(place)):
            raise
        raise StorageError(
            f"The results cannot be kept in {place}: {getattr(error, 'strerror', None) or error}.",
            remedy="Make room or put it right; the finished parts are safe, go on with --resume.",
        ) from error


class PartWriter:
    """Writes the rows of one part as they come; nothing is seen of it before `close`."""

    def __init__(self, folder: Folder, schema: pa.Schema, job: str, unit: int, start: int) -> None:
        self.unit, self.start, self.rows, self.errors = unit, start, 0, 0
        self._folder, self._schema, self._job = folder, schema, job
        self._name = folder.part_name(unit, start)
        self._waiting: list[dict[str, Any]] = []
        self._scratch = folder.scratch(self._name)
        with storing(folder.path):
            self._writer = pq.ParquetWriter(self._scratch, schema, compression="zstd")

    def add(self, answer: Prediction, row: dict[str, Any]) -> None:
        """Add one row."""
        self._waiting.append(row)
        self.rows += 1
        self.errors += answer.status == "error"
        if len(self._waiting) >= ROW_GROUP:
            self._flush()

    def close(self, *, last: bool) -> Part:
        """Finish the part and let it appear."""
        self._flush()
        facts = {"job": self._job, "unit": self.unit, "start": self.start, "rows": self.rows}
        facts |= {"errors": self.errors, "last": last}
        with storing(self._folder.path):
            self._writer.add_key_value_metadata({METADATA_KEY: json.dumps(facts)})
            self._writer.close()
        size = self._folder.publish(self._scratch, self._name)
        return Part(self._name, self.unit, self.start, self.rows, self.errors, last, size)

    def discard(self) -> None:
        """Leave nothing behind."""
        with suppress(OSError, pa.ArrowException):
            self._writer.close()
        with suppress(OSError):
            os.unlink(self._scratch)

    def _flush(self) -> None:
        if self._waiting:
            with storing(self._folder.path):
                self._writer.write_batch(pa.RecordBatch.from_pylist(self._waiting, self._schema))
            self._waiting.clear()


class Ledger:
    """Which rows of which unit are done, kept in step with the folder.

    Args:
        identity: what makes two runs the same job; nested mappings of JSON values.
    """

    def __init__(self, folder: Folder, identity: Mapping[str, Any], job: str) -> None:
        self.folder, self.identity, self.job = folder, identity, job
        self.notes: list[str] = []
        self._parts: dict[str, Part] = {}
        self._progress: dict[int, tuple[int, bool]] = {}
        self._written_at = self._writing_took = 0.0

    @property
    def parts(self) -> list[Part]:
        """All finished parts by unit and first row."""
        return sorted(self._parts.values(), key=lambda part: (part.unit, part.start))

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self._parts.values())

    @property
    def errors(self) -> int:
        return sum(part.errors for part in self._parts.values())

    def progress(self, unit: int) -> tuple[int, bool]:
        """Return (rows done from the first on, whether that is all of them)."""
        return self._progress.get(unit, (0, False))

    def begin(self, *, resume: bool) -> None:
        """Take stock of the folder.

        Raises:
            UsageError: there is a batch already and `resume` is not asked for (code `batch_exists`), or it is another
                one (`another_batch`).
        """
        names = self.folder.names()
        own = [name for name in names if (m := _PART.fullmatch(name)) and _tag(m) == self.folder.tag]
        manifests = [name for name in names if _MANIFEST.fullmatch(name)]
        strangers = [name for name in names if _PART.fullmatch(name)] if not manifests else []
        for name in manifests:
            self._check_same_job(name)
        if not resume and (own or strangers or self.folder.manifest in manifests):
            raise UsageError(
                f"{self.folder.path} already holds results of a batch.",
                remedy="Add --resume to go on with it, or choose another folder.",
                code="batch_exists",
            )
        self._sweep(names)
        self._take_up(own)

    def record(self, part: Part) -> None:
        """Record a finished part; the manifest follows soon, never costing more than a twentieth of the time."""
        self._parts[part.file] = part
        self._progress[part.unit] = (part.start + part.rows, part.last)
        if time.monotonic() - self._written_at >= 20 * self._writing_took:
            self.write("running")

    def write(self, state: str, **facts: Any) -> None:
        """Write the manifest with `state` running, interrupted or finished."""
        begun = time.monotonic()
        manifest = {"schema": SCHEMA, "job": self.job, "state": state, **self.identity, **facts}
        manifest |= {"rows": self.rows, "errors": self.errors, "parts": [asdict(part) for part in self.parts]}
        self.folder.write_json(self.folder.manifest, manifest)
        self._written_at = time.monotonic()
        self._writing_took = self._written_at - begun

    def rescan(self) -> None:
        """Take up parts that others have finished, now that none of them works any more."""
        names = self.folder.names()
        self._sweep(names)
        self._take_up([name for name in names if (m := _PART.fullmatch(name)) and _tag(m) == self.folder.tag])

    def _sweep(self, names: list[str]) -> None:
        """Remove what a killed process was writing."""
        own = (self.folder.scratch_prefix, self.folder.scratch_manifest_prefix)
        for name in names:
            if name.startswith(own) and name.endswith(".tmp"):
                self.folder.remove(name)

    def _check_same_job(self, name: str) -> None:
        try:
            found = json.loads(self.folder.read(name))
            differences = _differences(found, self.identity) if found["schema"] == SCHEMA else ["its schema"]
        except (ValueError, TypeError, KeyError):
            differences = [f"{name} is not readable"]
        if differences:
            raise UsageError(
                f"{self.folder.path} holds another batch: {'; '.join(differences)}.",
                remedy="Go on with the same model, inputs and settings, or choose another folder.",
                code="another_batch",
            )
        if name == self.folder.manifest:
            self._parts = {record["file"]: Part(**record) for record in found["parts"]}

    def _take_up(self, names: list[str]) -> None:
        recorded, self._parts, self._progress = self._parts, {}, {}
        by_unit: defaultdict[int, list[Part]] = defaultdict(list)
        for name in names:
            part = recorded.get(name)
            if part is None or part.bytes != self.folder.size(name):
                part = self._read_part(name)
            if part is not None:
                by_unit[part.unit].append(part)
        gone = set(recorded) - set(names)
        if gone:
            self.notes.append(f"{len(gone)} recorded parts are gone and will be made again.")
        for unit, parts in by_unit.items():
            self._chain(unit, sorted(parts, key=lambda part: part.start))

    def _chain(self, unit: int, parts: list[Part]) -> None:
        """Keep the parts that follow one another from the first row on; what stands beyond a gap is made again."""
        done, finished = 0, False
        for part in parts:
            if part.start != done or finished:
                self.folder.remove(part.file)
                self.notes.append(f"{part.file} does not follow the part before it and will be made again.")
                continue
            self._parts[part.file] = part
            done, finished = part.start + part.rows, part.last
        self._progress[unit] = (done, finished)

    def _read_part(self, name: str) -> Part | None:
        """Read what a part says of itself; a damaged one is removed."""
        try:
            with storage.open_stream(f"{self.folder.path}/{name}") as file:
                facts = json.loads(pq.ParquetFile(file).metadata.metadata[METADATA_KEY.encode()])
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
            self.folder.remove(name)
            self.notes.append(f"{name} is damaged and will be made again.")
            return None
        if facts.pop("job") != self.job:
            raise UsageError(
                f"{self.folder.path}/{name} is of another batch.",
                remedy="Choose another folder, or take that file away.",
                code="another_batch",
            )
        return Part(file=name, bytes=self.folder.size(name) or 0, **facts)


def _tag(match: re.Match[str]) -> str:
    return f"{match[1]}of{match[2]}" if match[1] else ""


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Say in words what differs between a manifest and this job, `shard.index` apart."""
    result = []
    for key, value in wanted.items():
        there = found.get(key)
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            result += _differences(there if isinstance(there, Mapping) else {}, value, f"{name} ")
        elif there != value and name not in ("shard index", "inputs given"):
            result.append(f"{name} was {_short(there)}, now {_short(value)}")
    return result


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}…" if re.fullmatch(r"[0-9a-f]{64}", text) else text
