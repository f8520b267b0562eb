"""What a batch leaves: part files that appear whole or not at all, and a manifest that can be made again from them.

A part grows: every few seconds a file with more rows takes its place, until it is full or its unit ends. Its name
follows from the unit and the first row, its rows from the listing. Whoever repeats a piece of work, after a kill or
beside a worker that was given up too early, writes the same rows under the same name: none is lost or there twice.

The parts are the truth. Each says in its Parquet metadata which job, unit and rows it holds. `_manifest.json` records
them; a resumed job reads again what a kill kept out of it. Parquet readers skip names that begin with `_` or `.`.
"""

from __future__ import annotations

import json
import re
import secrets
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dermlens.batch import storage
from dermlens.errors import DermlensError, StorageError, UsageError
from dermlens.files import atomic_file
from dermlens.inference.prediction import Prediction

SCHEMA = "dermlens/batch/1"
ROW_GROUP = 2_000
METADATA_KEY = "dermlens.part"
_PART = re.compile(r"part-(?:(\d+of\d+)-)?(\d{6,})-(\d{9,})\.parquet")
_MANIFEST = re.compile(r"_manifest(?:-\d+of\d+)?\.json")
_UNFINISHED = (".tmp", "-new.parquet", "-new.json")


@dataclass(frozen=True)
class Part:
    """One part file: `rows` rows of a unit from `start` on; `last` when the unit ends with it."""

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
        return f"_manifest-{self.tag}.json" if self.tag else "_manifest.json"

    def part_name(self, unit: int, start: int) -> str:
        """Return the name of the part that begins with row `start` of a unit."""
        return f"part-{self.tag}{'-' if self.tag else ''}{unit:06d}-{start:09d}.parquet"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold a lock that the system frees however the process ends; a URL and Windows have none.

        Raises:
            UsageError: another process works on this folder.
            StorageError: the folder cannot be written to.
        """
        if storage.is_url(self.path) or sys.platform == "win32":
            yield
            return
        import fcntl

        with storing(self.path):
            Path(self.path).mkdir(parents=True, exist_ok=True)
            file = open(f"{self.path}/.lock{self.tag}", "w")  # noqa: SIM115
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                remedy = "Wait for it, or choose another folder."
                raise UsageError(f"Another process is working on {self.path}.", remedy=remedy) from None
            except OSError:  # a network file system without locks
                pass
            yield

    def names(self) -> list[str]:
        """Return all file names in it, sorted; none where there is no folder."""
        with storing(self.path), suppress(FileNotFoundError):
            fs, inside = storage.filesystem(self.path)
            return sorted(str(name).rpartition("/")[2] for name in fs.ls(inside, detail=False))
        return []

    def size(self, name: str) -> int | None:
        """Return a file's size in bytes, None where it is not there."""
        return storage.size_bytes(f"{self.path}/{name}")

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        with storing(self.path), suppress(FileNotFoundError):
            fs, inside = storage.filesystem(self.path)
            fs.rm_file(f"{inside}/{name}")

    @contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        """Give a local path to write to; then the file appears under its name, whole and lasting."""
        with storing(self.path):
            if not storage.is_url(self.path):
                with atomic_file(Path(self.path, name)) as path:
                    yield path
                return
            fs, inside = storage.filesystem(self.path)
            with tempfile.TemporaryDirectory(prefix="dermlens-part-") as place:
                path = Path(place, name)
                yield path
                fs.makedirs(inside, exist_ok=True)
                hidden = f"{inside}/.{name}.{secrets.token_hex(4)}.tmp"
                storage.RETRYING(lambda: (fs.put_file(str(path), hidden), fs.mv(hidden, f"{inside}/{name}")))

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a JSON file that appears whole or not at all."""
        with self.replacing(name) as path:
            path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")

    def own_parts(self, names: list[str]) -> list[str]:
        """Return which of the names are parts of this shard."""
        return [name for name in names if (m := _PART.fullmatch(name)) and (m[1] or "") == self.tag]

    def remove_unfinished(self, names: list[str]) -> None:
        """Remove what a killed process was writing."""
        for name in names:
            if name.startswith((f".part-{self.tag}", f".{self.manifest[:-5]}")) and name.endswith(_UNFINISHED):
                self.remove(name)

    def part(self, name: str, job: str) -> Part | None:
        """Return what a part says of itself; None where it is not there or damaged.

        Raises:
            UsageError: it is of another batch than `job`.
        """
        try:
            with storage.open_stream(f"{self.path}/{name}") as file:
                facts = json.loads(pq.ParquetFile(file).metadata.metadata[METADATA_KEY.encode()])
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
            return None
        if facts.pop("job") != job:
            remedy = "Choose another folder, or move that file away."
            raise UsageError(f"{self.path}/{name} belongs to another batch.", remedy=remedy, code="another_batch")
        return Part(file=name, bytes=self.size(name) or 0, **facts)

    def parts_of(self, unit: int, start: int, job: str) -> list[Part]:
        """Return the parts of a unit from the one that begins with row `start` on, as long as none is missing."""
        parts: list[Part] = []
        while (part := self.part(self.part_name(unit, start), job)) is not None:
            parts.append(part)
            start += part.rows
        return parts


@contextmanager
def storing(place: str) -> Iterator[None]:
    """Turn what a file system raises into a StorageError that says how to continue."""
    try:
        yield
    except Exception as error:  # plug-ins raise errors of their own
        ours = isinstance(error, (OSError, pa.ArrowException)) or storage.is_url(place)
        if isinstance(error, DermlensError) or not ours:
            raise
        what = f"The results cannot be written to {place}: {getattr(error, 'strerror', None) or error}."
        remedy = "Make room or correct the cause; the rows so far are safe. Then add --resume to continue."
        raise StorageError(what, remedy=remedy) from error


class PartWriter:
    """Collects the rows of one part and publishes it again and again, each time with all rows so far.

    Args:
        row: of the unit, to begin with. The part is the one of every `part_rows` rows that holds it; the rows before it
            are read from the folder.
    """

    def __init__(self, folder: Folder, schema: pa.Schema, job: str, unit: int, row: int, part_rows: int) -> None:
        self.unit, self.start = unit, row - row % part_rows
        self.rows = row - self.start
        self.errors = 0
        self._folder, self._schema, self._job = folder, schema, job
        self._name = folder.part_name(unit, self.start)
        self._batches: list[pa.RecordBatch] = []
        self._waiting: list[dict[str, Any]] = []
        if not self.rows:
            return
        with storing(folder.path), storage.open_stream(f"{folder.path}/{self._name}") as file:
            before = pq.ParquetFile(file).read().cast(schema).slice(0, self.rows)
        if before.num_rows < self.rows:
            raise StorageError(f"{self._name} has lost rows.", remedy="Delete that file and add --resume to continue.")
        self.errors = before["status"].to_pylist().count("error")
        self._batches = before.to_batches()

    def add(self, answer: Prediction, row: dict[str, Any]) -> None:
        """Add one row."""
        self._waiting.append(row)
        self.rows += 1
        self.errors += answer.status == "error"
        if len(self._waiting) >= ROW_GROUP:
            self._pack()

    def publish(self, *, last: bool) -> Part:
        """Let the part appear with all its rows, in place of the one with fewer rows; `last` ends the unit.

        Where another worker has come further meanwhile, its part stays and is returned: no row is ever taken back.
        """
        self._pack()
        there = self._folder.part(self._name, self._job) if self._folder.size(self._name) else None
        if there is not None and (there.rows, there.last) > (self.rows, last):
            return there
        facts: dict[str, Any] = {"unit": self.unit, "start": self.start, "rows": self.rows}
        facts |= {"errors": self.errors, "last": last}
        with self._folder.replacing(self._name) as path:
            with pq.ParquetWriter(path, self._schema, compression="zstd") as writer:
                writer.write_table(pa.Table.from_batches(self._batches, self._schema), row_group_size=ROW_GROUP)
                writer.add_key_value_metadata({METADATA_KEY: json.dumps({"job": self._job, **facts})})
            size = path.stat().st_size
        return Part(file=self._name, bytes=size, **facts)

    def _pack(self) -> None:
        if self._waiting:
            self._batches.append(pa.RecordBatch.from_pylist(self._waiting, self._schema))
            self._waiting.clear()


class Ledger:
    """Which rows of which unit are done, kept in step with the folder.

    Args:
        identity: what makes two runs the same job: group -> key -> JSON value.
    """

    def __init__(self, folder: Folder, identity: Mapping[str, Mapping[str, Any]], job: str) -> None:
        self.folder, self.identity, self.job = folder, identity, job
        self.notes: list[str] = []
        self._parts: dict[str, Part] = {}
        self._progress: dict[int, tuple[int, bool]] = {}
        self._written_at = self._writing_took = 0.0

    @property
    def parts(self) -> list[Part]:
        """All parts by unit and first row."""
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
        """Read what the folder holds.

        Raises:
            UsageError: there is a batch already and no `resume` (code `batch_exists`), or it is another one
                (`another_batch`).
        """
        names = self.folder.names()
        manifests = [name for name in names if _MANIFEST.fullmatch(name)]
        for name in manifests:
            self._check_same_job(name)
        parts = any(map(_PART.fullmatch, names)) if not manifests else self.folder.own_parts(names)
        if not resume and (parts or self.folder.manifest in manifests):
            remedy = "Add --resume to continue it, or choose another folder."
            raise UsageError(f"{self.folder.path} already holds a batch.", remedy=remedy, code="batch_exists")
        self._read_parts(names)

    def record(self, part: Part) -> None:
        """Record a part; the manifest is written at once, unless that would cost more than a twentieth of the time."""
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
        """Read the folder again, when no worker writes to it any more."""
        self._read_parts(self.folder.names())

    def _check_same_job(self, name: str) -> None:
        with storing(self.folder.path), storage.open_stream(f"{self.folder.path}/{name}") as file:
            text = file.read()
        try:
            found = json.loads(text)
            differences = _differences(found, self.identity) if found["schema"] == SCHEMA else ["its schema"]
        except (ValueError, TypeError, KeyError, AttributeError):
            differences = [f"{name} is not readable"]
        if differences:
            what = f"{self.folder.path} holds another batch: {'; '.join(differences)}."
            remedy = "Use the same model, inputs and settings, or choose another folder."
            raise UsageError(what, remedy=remedy, code="another_batch")
        if name == self.folder.manifest:
            self._parts = {record["file"]: Part(**record) for record in found["parts"]}

    def _read_parts(self, names: list[str]) -> None:
        """Keep the parts of each unit that follow one another from its first row on; remove all others."""
        self.folder.remove_unfinished(names)
        names, recorded, self._parts, self._progress = self.folder.own_parts(names), self._parts, {}, {}
        if missing := set(recorded) - set(names):
            self.notes.append(f"{len(missing)} recorded parts are missing and will be made again.")
        found = defaultdict[int, list[Part]](list)
        for name in names:
            part = recorded.get(name)
            if part is None or not part.last or part.bytes != self.folder.size(name):  # it may have grown since
                part = self.folder.part(name, self.job)
            if part is None:
                self._remove(name, "is damaged")
            else:
                found[part.unit].append(part)
        for unit, parts in found.items():
            done, finished = 0, False
            for part in sorted(parts, key=lambda part: part.start):
                if part.start != done or finished:
                    self._remove(part.file, "does not follow the part before it")
                    continue
                self._parts[part.file] = part
                done, finished = part.start + part.rows, part.last
            self._progress[unit] = (done, finished)

    def _remove(self, name: str, why: str) -> None:
        self.folder.remove(name)
        self.notes.append(f"{name} {why} and will be made again.")


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say in words what differs between a manifest and this job, except the number of its shard."""
    result = []
    for group, values in wanted.items():
        for key, value in values.items():
            there = found.get(group, {}).get(key)
            if there != value and (group, key) != ("shard", "index"):
                old, new = (f"{text[:12]}…" if len(text) == 64 else text for text in (str(there), str(value)))
                result.append(f"{group} {key} was {old}, now {new}")
    return result
