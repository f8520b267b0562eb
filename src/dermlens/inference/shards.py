"""Images out of tar shards (WebDataset's layout), read as a stream and never unpacked."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from dermlens.errors import ImageError, StorageError
from dermlens.inference import storage
from dermlens.inference.listing import is_image_name

DAMAGED = (tarfile.TarError, OSError, EOFError, zlib.error)


def read_tar(path: str, max_bytes: int) -> Iterator[tuple[str, bytes | ImageError, int]]:
    """Yield (name, bytes or why there are none, offset in the archive) for each image, in the archive's order.

    The name is PATH/MEMBER. Members that are no images by their extension (`.json`, `.cls`) are passed over. When the
    shard is missing, holds no image or ends before its end, a last item named PATH says so: what came before stays.
    """
    try:
        file = storage.open_stream(path)
    except FileNotFoundError:
        yield path, ImageError(f"The shard {path!r} does not exist.", remedy="Check the path.", code="not_found"), 0
        return
    except storage.LASTING as error:
        yield (
            path,
            ImageError(f"The shard {path!r} cannot be opened: {error}.", remedy="Check it.", code="unreadable"),
            0,
        )
        return
    count = 0
    try:
        with file, tarfile.open(fileobj=cast(BinaryIO, _Stream(file, path)), mode="r|*", tarinfo=_Member) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                if (member.isfile() or member.islnk() or member.issym()) and _is_image(member.name):
                    data = _bytes(tar, member, max_bytes) if member.isfile() else _link(member)
                    yield f"{path}/{member.name}", data, member.offset
                    count += 1
            if not getattr(tar, "saw_end", False):
                yield path, _incomplete(path, count, "it has no end mark"), 0
            elif not count:
                yield path, _empty(path), 0
    except DAMAGED as error:
        yield path, _incomplete(path, count, str(error) or type(error).__name__), 0


class _Stream:
    """Tells a disk or network that fails, which ends the job, from an archive that is damaged, which costs its rest."""

    def __init__(self, file: BinaryIO, path: str) -> None:
        self._file, self._path = file, path

    def read(self, size: int) -> bytes:
        try:
            return self._file.read(size)
        except Exception as error:  # plug-ins raise errors of their own
            raise StorageError(
                f"The shard {self._path!r} could not be read on: {type(error).__name__}: {error}.",
                remedy="When it can be reached again, go on with --resume.",
                code="unreachable",
            ) from error


class _Member(tarfile.TarInfo):
    """Notes on the archive that its end mark was met: tarfile takes a cut or damaged archive for a finished one."""

    @classmethod
    def fromtarfile(cls, tarfile_: Any) -> Any:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            tarfile_.saw_end = True
            raise


def _is_image(name: str) -> bool:
    hidden = any(part == "__MACOSX" or (part.startswith(".") and part.strip(".")) for part in name.split("/"))
    return is_image_name(name) and not hidden


def _bytes(tar: tarfile.TarFile, member: tarfile.TarInfo, max_bytes: int) -> bytes | ImageError:
    if member.size > max_bytes:
        return ImageError(
            f"The image {member.name!r} has {member.size:,} bytes. At most {max_bytes:,} are allowed.",
            remedy="Save a smaller copy, or raise max_bytes if you trust the file.",
            code="too_many_bytes",
        )
    content = tar.extractfile(member)
    data = b"" if content is None else content.read()
    if len(data) < member.size:
        raise tarfile.ReadError("unexpected end of data")
    return data


def _link(member: tarfile.TarInfo) -> ImageError:
    return ImageError(
        f"The image {member.name!r} is only a link to {member.linkname!r}, which a stream cannot go back to.",
        remedy="Pack files instead of links (tar --dereference --hard-dereference).",
        code="unreadable",
    )


def _incomplete(path: str, count: int, why: str) -> ImageError:
    return ImageError(
        f"The shard {path!r} is cut off or damaged after {count} images: {why}.",
        remedy="Copy or make it again; its later images are not among these rows.",
        code="bad_shard",
    )


def _empty(path: str) -> ImageError:
    return ImageError(f"The shard {path!r} holds no images.", remedy="Check what is in it.", code="no_images")
