"""Forms in memory: what counts is the field `image`, and nothing else."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dermlens.serving.problems import Problem
from dermlens.serving.uploads import read_upload

TYPE = "multipart/form-data; boundary=XX"


def part(name: str, data: bytes, more: str = "") -> bytes:
    head = f'--XX\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
    return head.encode() + data + b"\r\n"


def test_images_and_fields_come_out_as_they_went_in() -> None:
    tricky = b"a\r\n--X\r\n--XY\r\nb"
    body = part("image", tricky, '; filename="../../x"') + part("code", b"MEL") + part("image", b"two") + b"--XX--\r\n"
    upload = read_upload(body, TYPE, max_images=2)
    assert upload.images == [tricky, b"two"] and upload.fields == {"code": "MEL"}


@given(st.binary(max_size=300), st.integers(0, 400))
def test_any_bytes_are_an_upload_or_a_problem(data: bytes, cut: int) -> None:
    body = (part("image", data) + b"--XX--\r\n")[:cut]
    with contextlib.suppress(Problem):
        upload = read_upload(body, TYPE, max_images=4)
        assert upload.images == [data] or b"\r\n--XX" in data


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"--XX--\r\n", "no_image"),
        (part("photo", b"x") + b"--XX--\r\n", "no_image"),
        (part("image", b"x"), "bad_multipart"),
        (b"garbage", "bad_multipart"),
        (part("note", b"x" * 4097) + b"--XX--\r\n", "bad_parameter"),
        (part("a", b"") * 70 + b"--XX--\r\n", "too_many_images"),
        (part("image", b"x", '"\r\nContent-Encoding: gzip') + b"--XX--\r\n", "content_encoding"),
        (b"--XX\r\n" + b"A: b\r\n" * 50 + b"\r\n", "bad_multipart"),
    ],
)
def test_a_strange_form_is_a_problem(body: bytes, code: str) -> None:
    with pytest.raises(Problem) as caught:
        read_upload(body, TYPE, max_images=4)
    assert caught.value.code == code
