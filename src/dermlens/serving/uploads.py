"""Request body in memory -> the images and text fields in it. File names and paths are ignored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartState, parse_options_header

from dermlens.serving.problems import Problem

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_FIELD_BYTES = 4096  # a case mix of a hundred classes
MAX_PARTS = 64
RAW_TYPES = ("image/", "application/octet-stream")


@dataclass
class Upload:
    """The images in their order, and the short text fields beside them."""

    images: list[bytes] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)


def read_upload(body: bytes, content_type: str, *, max_images: int) -> Upload:
    """Take the images out of a request body.

    Args:
        body: the whole body.
        content_type: the header of the request: a form, or an image of any type (its content decides).
        max_images: the most images in one request.

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
        raise Problem("content_type", f"Content-Type is {given}. It must be a form or an image.")
    if not upload.images:
        raise Problem("no_image", "The request has no image.")
    if len(upload.images) > max_images:
        raise Problem("too_many_images", f"The request has {len(upload.images)} images. At most {max_images} allowed.")
    return upload


def _read_form(body: bytes, boundary: bytes) -> Upload:
    if not boundary:
        raise Problem("bad_multipart", "Content-Type names no boundary.")
    form = _Form()
    try:
        parser = MultipartParser(boundary, form.callbacks(), max_header_count=8, max_header_size=4096)
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise Problem("bad_multipart", f"The form is damaged: {str(error)[:120]}.") from None
    if parser.state != MultipartState.END:
        raise Problem("bad_multipart", "The form is incomplete: its last boundary is missing.")
    return form.upload


class _Form:
    """Collects the parts of a form. Of their headers only `name` in Content-Disposition counts."""

    def __init__(self) -> None:
        self.upload = Upload()
        self._parts = 0
        self._begin_part()

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin_part,
            "on_part_data": self._part_data,
            "on_part_end": self._end_part,
            "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._end_header,
        }

    def _begin_part(self) -> None:
        self._header, self._value, self._data = bytearray(), bytearray(), bytearray()
        self._name = b""

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._name = parse_options_header(bytes(self._value))[1].get(b"name", b"")
        elif self._header.lower() == b"content-encoding":
            raise Problem("content_encoding", "A part of the form has a Content-Encoding. None is allowed.")
        self._header, self._value = bytearray(), bytearray()

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._data += memoryview(data)[start:end]
        if self._name != b"image" and len(self._data) > MAX_FIELD_BYTES:
            raise Problem("bad_parameter", f"A text field has more than {MAX_FIELD_BYTES} bytes, the most allowed.")

    def _end_part(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise Problem("too_many_images", f"The form has more than {MAX_PARTS} parts, the most allowed.")
        if self._name == b"image":
            self.upload.images.append(bytes(self._data))
        elif self._name:
            self.upload.fields[self._name.decode("utf-8", "replace")] = self._data.decode("utf-8", "replace")
