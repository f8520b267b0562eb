"""What is meant to break it, does not: never a 5xx, bounded memory, and alive at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import live
from benchmarks import EXAMPLE
from benchmarks.fresh import memory_mb
from benchmarks.hardening import hostile_uploads as hostile
from live import post_image

SAMPLE, ALL = 300, 10_000
MEMORY_MIB = 400  # room above the first answer: the largest image allowed, decoded, and its working copies


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[tuple[int, int]]:
    with live.as_process("--model", str(model), "--drain", "0") as (process, port):
        yield process.pid, port


def test_every_hostile_upload_gets_its_answer(server: tuple[int, int]) -> None:
    rows = hostile.run_corpus(hostile.Sender(server[1]).post)
    assert [(case.name, status, code) for case, status, code in rows if status not in case.allowed] == []


@pytest.mark.parametrize("count", [SAMPLE, pytest.param(ALL, marks=pytest.mark.long)])
def test_mutated_files_never_break_the_server(server: tuple[int, int], count: int) -> None:
    pid, port = server
    sender = hostile.Sender(port)
    good = EXAMPLE.read_bytes()
    assert sender.post(good)[0] == 200
    before = memory_mb(process=pid)
    statuses = Counter(sender.post(body)[0] for body in hostile.mutations(count, seed=count))
    assert set(statuses) <= {200, 415, 422}, statuses
    assert statuses[200] and statuses[422]
    assert memory_mb(process=pid) - before < MEMORY_MIB
    assert sender.post(good)[0] == 200


@pytest.mark.long
def test_one_small_request_of_many_pixels_does_not_take_the_memory(model: Path) -> None:
    """Twelve PNG files of 140 KB, each just below the limit of pixels: decoded together they would need gigabytes."""
    huge = hostile.bomb(7000, 7000, most=150_000_000)
    with live.as_process("--model", str(model), "--drain", "0") as (process, port):
        body = hostile.form(*[("image", huge)] * 12)
        assert post_image(port, body, "multipart/form-data; boundary=XX") == 200
        assert memory_mb(process=process.pid) < 1200
