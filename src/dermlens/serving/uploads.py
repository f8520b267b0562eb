"""A request body in memory -> the images and fields in it. File names and paths are never looked at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from dermlens.serving.problems import Problem

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks


MAX_FIELD_BYTES = 256
MAX_PARTS = 64
RAW_TYPES = ("image/", "application/octet-stream")


@dataclass
class Upload:
    """The images in the order they came, and the short text fields beside them."""

    images: list[bytes] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)


def read_upload(body: bytes, content_type: str, *, max_images: int) -> Upload:
    """Take the images out of a request body.

    Args:
        body: the whole body, within its limit.
        content_type: the request's header: a form, or an image of any type (its content decides).

    Raises:
        Problem: `content_type`, `bad_multipart`, `no_image`, `too_many_images` or `bad_parameter`.
    """
    kind, options = parse_options_header(content_type)
    if kind == b"multipart/form-data":
        upload = _read_form(body, options.get(b"boundary", b""))
    elif kind.decode("latin-1").startswith(RAW_TYPES):
        upload = Upload([body] if body else [])
    else:
        given = repr(kind[:60].decode("latin-1")) if kind else "missing"
        raise Problem("content_type", f"Content-Type is {given}. A form with images, or one image, is needed.")
    if not upload.images:
        raise Problem("no_image", "The request holds no image.")
    if len(upload.images) > max_images:
        raise Problem(
            "too_many_images", f"The request holds {len(upload.images)} images. At most {max_images} may come."
        )
    return upload


def _read_form(body: bytes, boundary: bytes) -> Upload:
    if not boundary:
        raise Problem("bad_multipart", "Content-Type names no boundary.")
    reader = _FormReader(body)
    try:
        parser = MultipartParser(boundary, reader.callbacks(), max_header_count=8, max_header_size=4096)
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise Problem("bad_multipart", f"The form is damaged: {str(error)[:120]}.") from None
    if not reader.ended:
        raise Problem("bad_multipart", "The form is cut off: its last boundary is missing.")
    return reader.upload


class _FormReader:
    """Collects the parts of a form; of their headers only `name` in Content-Disposition counts."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.upload = Upload()
        self.ended = False
        self._parts = 0
        self._begin_part()

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin_part,
            "on_part_data": self._part_data,
            "on_part_end": self._end_part,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._end_header,
            "on_end": self._end,
        }

    def _begin_part(self) -> None:
        self._header, self._value = bytearray(), bytearray()
        self._name = b""
        self._data = bytearray()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._name = parse_options_header(bytes(self._value))[1].get(b"name", b"")
        elif self._header.lower() == b"content-encoding":
            raise Problem("content_encoding", "A part of the form has a Content-Encoding. None is allowed.")
        self._header, self._value = bytearray(), bytearray()

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._data += memoryview(data)[start:end]
        if self._name != b"image" and len(self._data) > MAX_FIELD_BYTES:
            raise Problem("bad_parameter", f"A field other than `image` has more than {MAX_FIELD_BYTES} bytes.")

    def _end_part(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise Problem("too_many_images", f"The form has more than {MAX_PARTS} parts.")
        if self._name == b"image":
            self.upload.images.append(bytes(self._data))
        elif self._name:
            name = self._name.decode("utf-8", "replace")
            self.upload.fields[name] = self._data.decode("utf-8", "replace")

    def _end(self) -> None:
        self.ended = True
