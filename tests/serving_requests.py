"""The smallest clients that the server tests need."""

from __future__ import annotations

import http.client

import cv2

import tiny

PREDICT = "/api/v1/predictions"


def post_image(port: int, image: bytes, content_type: str = "image/png") -> int:
    """Send one image over a connection of its own; return the status."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", PREDICT, image, {"Content-Type": content_type})
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def get_status(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def picture(code: str = "RED", suffix: str = ".png", size: tuple[int, int] = (40, 40)) -> bytes:
    """Return an encoded image of a class's colour."""
    _, data = cv2.imencode(suffix, tiny.colour(code, size)[:, :, ::-1])
    return data.tobytes()
