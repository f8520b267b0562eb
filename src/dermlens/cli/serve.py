"""`dermlens serve`: the web page and the API."""

from __future__ import annotations

from typing import Annotated

import typer

from dermlens.cli.options import (
    DEFAULT_MAX_BYTES,
    DEFAULT_MAX_PIXELS,
    MaxBytes,
    MaxPixels,
    Mix,
    Model,
    console_of_messages,
    need,
)
from dermlens.errors import UsageError

RATE_LIMIT_ELSEWHERE = 300


def serve(
    model: Model = "default",
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for the whole network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    token: Annotated[
        str | None, typer.Option(envvar="DERMLENS_TOKEN", show_envvar=True, help="Bearer token that clients must send.")
    ] = None,
    rate_limit: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Requests per minute and client; 0 sets no limit. "
            f"Default: 0 on this machine, {RATE_LIMIT_ELSEWHERE} on a network.",
        ),
    ] = None,
    queue: Annotated[int, typer.Option(min=1, help="Images that may wait or run at once; more get status 429.")] = 2,
    drain: Annotated[float, typer.Option(min=0, help="Seconds of new requests still answered after SIGTERM.")] = 3.0,
    max_bytes: MaxBytes = DEFAULT_MAX_BYTES,
    max_pixels: MaxPixels = DEFAULT_MAX_PIXELS,
    case_mix: Mix = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print no line per request.")] = False,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Classify images on a web page and through an API."""
    need("serve", "fastapi", "uvicorn", "prometheus_client", "python_multipart")
    import logging
    import os

    from dermlens.inference.predictor import Predictor
    from dermlens.serving.server import log_to_stderr, run
    from dermlens.serving.settings import LOOPBACK_HOSTS, Settings

    console = console_of_messages()
    token = _checked_token(os.environ.get("DERMLENS_TOKEN") if token is None else token)
    local = host in LOOPBACK_HOSTS
    settings = Settings(
        token=token,
        rate_limit=rate_limit if rate_limit is not None else 0 if local else RATE_LIMIT_ELSEWHERE,
        max_image_bytes=max_bytes,
        max_pixels=max_pixels,
        queue_images=queue,
        drain_s=drain,
    )
    log_to_stderr(logging.WARNING if quiet else logging.INFO)
    if not local and token is None:
        console.print("Anyone on the network can use this server. Set --token to protect it.", style="yellow")
    predictor = Predictor(model, max_bytes=max_bytes, max_pixels=max_pixels, case_mix=case_mix)
    run(predictor, settings, host, port, console=console, open_page=open_page)


def _checked_token(given: str | None) -> str | None:
    """Return the token without the line break at the end of a secrets file.

    Raises:
        UsageError: shorter than 8 characters, also when empty, or with anything but visible ASCII.
    """
    if given is None:
        return None
    token = given.strip()
    remedy = "Make one with `openssl rand -hex 24`."
    if len(token) < 8:
        raise UsageError(f"The token has {len(token)} characters. At least 8 are needed.", remedy=remedy)
    if not all("!" <= character <= "~" for character in token):
        raise UsageError(
            "The token has a space or a character outside ASCII. Only visible ASCII characters are allowed.",
            remedy=remedy,
        )
    return token
