"""The queue: order, company, and an end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from dermlens import Predictor
from dermlens.inference.predictor import PixelBudget
from dermlens.serving.batching import Batcher
from dermlens.serving.problems import Problem
from live import picture


def test_many_requests_at_once_are_each_given_their_own_answers(predictor: Predictor, pictures: list[bytes]) -> None:
    sizes: list[int] = []
    batcher = Batcher(predictor, queue_images=100, batch_images=4, on_batch=sizes.append)

    async def ask() -> list[list[str | None]]:
        images = [[pictures[(n + k) % 3] for k in range(1 + n % 3)] for n in range(20)]
        answers = await asyncio.gather(*(batcher.predict(each, ["x"] * len(each)) for each in images))
        return [[answer.diagnosis_code for answer in each] for each in answers]

    codes = ["RED", "GREEN", "BLUE"]
    assert asyncio.run(ask()) == [[codes[(n + k) % 3] for k in range(1 + n % 3)] for n in range(20)]
    batcher.close()
    assert sum(sizes) == sum(1 + n % 3 for n in range(20)) and 1 < max(sizes) <= 4
    assert batcher.pending == 0


def test_one_poisoned_image_does_not_spoil_its_company(model: Any, pictures: list[bytes]) -> None:
    class Fragile(Predictor):
        def predict_many(self, images: Any, **options: Any) -> Iterator[Any]:
            if b"poison" in images:
                raise MemoryError
            return super().predict_many(images, **options)

    batcher = Batcher(Fragile(model), queue_images=9, batch_images=4)

    async def ask() -> list[Any]:
        jobs = [batcher.predict([image], ["x"]) for image in (pictures[0], b"poison", pictures[2])]
        return list(await asyncio.gather(*jobs, return_exceptions=True))

    first, poisoned, last = asyncio.run(ask())
    batcher.close()
    assert (first[0].diagnosis_code, last[0].diagnosis_code) == ("RED", "BLUE")
    assert isinstance(poisoned, MemoryError)


def test_a_request_larger_than_the_queue_is_let_in_while_there_is_room(
    predictor: Predictor, pictures: list[bytes]
) -> None:
    batcher = Batcher(predictor, queue_images=2, batch_images=4)

    async def ask() -> list[Any]:
        jobs = [batcher.predict(pictures[:count], ["x"] * count) for count in (1, 3, 1)]
        return list(await asyncio.gather(*jobs, return_exceptions=True))

    hold = threading.Event()
    batcher._try = lambda group: hold.wait(30) and Batcher._try(batcher, group)  # type: ignore[method-assign,misc]

    async def ask_and_let_go() -> list[Any]:
        answers = asyncio.create_task(ask())
        while batcher.pending < 4:  # all three requests have come
            await asyncio.sleep(0)
        hold.set()
        return await answers

    first, second, third = asyncio.run(ask_and_let_go())
    batcher.close()
    assert (len(first), len(second)) == (1, 3), "one of three finds room beside one that runs"
    assert isinstance(third, Problem) and third.code == "queue_full"


def test_an_answer_nobody_waits_for_counts_until_its_thread_lets_go(predictor: Predictor) -> None:
    hold, entered = threading.Event(), threading.Event()
    batcher = Batcher(predictor, queue_images=1, batch_images=1)

    def occupy() -> None:
        entered.set()
        hold.wait(30)

    async def ask() -> None:
        job = asyncio.create_task(batcher.call(occupy))
        await asyncio.to_thread(entered.wait, 30)
        job.cancel()
        await asyncio.sleep(0)
        with pytest.raises(Problem):
            batcher.admit()
        hold.set()

    asyncio.run(ask())
    batcher.close()
    assert batcher.pending == 0


def test_the_rest_of_a_request_that_was_given_up_is_not_done(model: Any, pictures: list[bytes]) -> None:
    hold, entered = threading.Event(), threading.Event()
    asked: list[int] = []

    class Slow(Predictor):
        def predict_many(self, images: Any, **options: Any) -> Iterator[Any]:
            asked.append(len(images))
            entered.set()
            hold.wait(30)
            return super().predict_many(images, **options)

    batcher = Batcher(Slow(model), queue_images=9, batch_images=4)
    batcher._pixels = PixelBudget(1)  # each image is a group of its own

    async def ask() -> None:
        job = asyncio.create_task(batcher.predict(pictures, ["x"] * 3))
        await asyncio.to_thread(entered.wait, 30)
        job.cancel()
        await asyncio.sleep(0)
        hold.set()

    asyncio.run(ask())
    batcher.close()
    assert asked == [1] and batcher.pending == 0


def test_a_fault_anywhere_fails_its_images_and_not_the_thread(predictor: Predictor, red: bytes) -> None:
    faults = iter([ZeroDivisionError] * 4)

    def fault(size: int) -> None:
        for error in faults:
            raise error

    batcher = Batcher(predictor, queue_images=9, batch_images=1, on_batch=fault)
    for _ in range(4):
        with pytest.raises(ZeroDivisionError):
            asyncio.run(batcher.predict([red], ["x"]))
    assert batcher.alive
    assert asyncio.run(batcher.predict([red], ["x"]))[0].diagnosis_code == "RED"
    batcher.close()
    assert batcher.pending == 0 and not batcher.alive


def test_what_nobody_waits_for_any_more_is_not_done(predictor: Predictor, red: bytes) -> None:
    hold, entered = threading.Event(), threading.Event()
    done: list[int] = []
    batcher = Batcher(predictor, queue_images=9, batch_images=1)

    def occupy() -> None:
        entered.set()
        hold.wait(30)

    async def ask() -> None:
        busy = [asyncio.create_task(batcher.call(occupy)) for _ in range(2)]
        late = asyncio.create_task(batcher.call(lambda: done.append(1)))
        await asyncio.to_thread(entered.wait, 30)
        late.cancel()
        await asyncio.sleep(0)
        hold.set()
        await asyncio.gather(*busy, late, return_exceptions=True)

    asyncio.run(ask())
    batcher.close()
    assert done == [] and batcher.pending == 0


def test_after_the_end_nothing_is_taken_until_it_is_opened_again(predictor: Predictor, red: bytes) -> None:
    batcher = Batcher(predictor, queue_images=9, batch_images=1)
    batcher.close()
    with pytest.raises(Problem) as caught:
        asyncio.run(batcher.predict([red], ["x"]))
    assert caught.value.code == "draining"
    batcher.open()
    assert asyncio.run(batcher.predict([red], ["x"]))[0].diagnosis_code == "RED"
    batcher.close()


def test_large_images_wait_for_each_other(model: Any) -> None:
    """Two of these images have more pixels than may be decoded at one time."""
    large = picture("RED", size=(300, 300))
    at_once: list[int] = []
    running = [0]
    lock = threading.Lock()

    class Counting(Predictor):
        def predict_many(self, images: Any, **options: Any) -> Iterator[Any]:
            with lock:
                running[0] += len(images)
                at_once.append(running[0])
            answers = list(super().predict_many(images, **options))
            with lock:
                running[0] -= len(images)
            return iter(answers)

    batcher = Batcher(Counting(model), queue_images=20, batch_images=4)
    batcher._pixels = PixelBudget(160_000)
    answers = asyncio.run(batcher.predict([large] * 6, ["x"] * 6))
    batcher.close()
    assert [answer.diagnosis_code for answer in answers] == ["RED"] * 6
    assert set(at_once) == {1}
