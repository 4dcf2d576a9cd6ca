"""Serves a saved model over HTTP: `python -m rm_assets.training.serve MODEL_DIRECTORY`.

The port opens after the model has given its golden scores. `POST /get_reward` is OpenRLHF's contract (its
cli/serve_rm.py): {"query": [text, ...]}, rendered conversations, gives {"rewards": [number, ...]}. `POST /rewards` is
the same for messages: {"conversations": [[message, ...] or {"messages": [...], "tools": [...]}, ...]}. `GET /health`
answers once the server is ready. A request that is not valid gets a 4xx answer, {"error": reason}, and no scores.

Exit codes: 0 stopped by a signal, 1 not started (the reason is on stderr), 2 wrong arguments.
"""

import argparse
import asyncio
import math
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
import transformers
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from rm_assets.data.formats.preferences import PreferenceError
from rm_assets.display_text import one_line
from rm_assets.settings import SettingsError
from rm_assets.training.jobs.training_job import TrainingError
from rm_assets.training.saved_model.conversations import conversation_ids, read_conversation, rendered_ids
from rm_assets.training.saved_model.golden_scores import verify_golden_scores
from rm_assets.training.saved_model.stock_scoring import (
    ConversationError,
    SavedModel,
    load_saved_model,
    sequence_logits,
)
from rm_assets.training.score import positive

_MAX_CONNECTIONS = 256
"""Requests at a time; uvicorn answers 503 to more."""


class RequestError(ValueError):
    """A request that is refused, with its HTTP status."""

    def __init__(self, status: int, problem: str) -> None:
        super().__init__(problem)
        self.status = status


class _Queries(msgspec.Struct):
    query: list[str]


class _Conversation(msgspec.Struct):
    messages: list[Any]
    tools: Any = None


class _Conversations(msgspec.Struct):
    conversations: list[list[Any] | _Conversation]


def main(arguments: list[str]) -> int:
    """Serve the model that the arguments name until a signal stops it; returns the exit code."""
    given = _parser().parse_args(arguments)
    try:
        transformers.logging.disable_progress_bar()
        saved = load_saved_model(given.model, torch.bfloat16 if given.bfloat16 else torch.float32)
        tolerance = math.inf if given.bfloat16 else None
        difference = verify_golden_scores(given.model, saved, given.batch_size, tolerance=tolerance)
        listening = _listen(given.host, given.port)
    except (TrainingError, SettingsError, OSError) as error:
        _log(f"error: {one_line(error)}")
        return 1
    _log(f"golden scores verified, largest difference {difference:.2g}" + " in bfloat16" * given.bfloat16)
    host, port = listening.getsockname()[:2]
    _log(f"serving {str(given.model)!r} on http://{f'[{host}]' if ':' in host else host}:{port}")
    app = build_app(saved, given.batch_size, given.max_sequences, given.max_request_bytes)
    config = uvicorn.Config(app, log_level="warning", limit_concurrency=_MAX_CONNECTIONS, server_header=False)
    uvicorn.Server(config).run(sockets=[listening])
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rm_assets.training.serve",
        description="Serves a saved reward model over HTTP, after verifying its golden scores.",
    )
    parser.add_argument("model", type=Path, help="the model directory")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; by default only this machine")
    parser.add_argument("--port", type=_port, default=5000, help="port to listen on; 0: any free one")
    parser.add_argument("--batch-size", type=positive, default=16, help="sequences per forward pass; changes no score")
    parser.add_argument("--max-sequences", type=positive, default=1024, help="sequences that one request may hold")
    parser.add_argument("--max-request-bytes", type=positive, default=16 * 2**20, help="largest body of a request")
    parser.add_argument("--bfloat16", action="store_true", help="score in bfloat16; the difference is only reported")
    return parser


def _port(text: str) -> int:
    if not 0 <= (port := int(text)) < 2**16:  # getaddrinfo would take the lower 16 bits
        raise ValueError
    return port


def _listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections at this address; raises OSError if it is taken or not one of this machine."""
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
        return listening
    except OSError as error:
        raise OSError(f"cannot listen on {host!r}, port {port}: {error}; give another --host or --port") from None


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- the application -----------------------------------------------------------------------------------------


def build_app(saved: SavedModel, batch_size: int, max_sequences: int, max_request_bytes: int) -> Starlette:
    """The endpoints; the model scores one request at a time, in a thread, so that `/health` always answers."""
    scoring = asyncio.Lock()

    def endpoint(read: Callable[[SavedModel, bytes, int], list[list[int]]]) -> Callable[[Request], Any]:
        async def answer(request: Request) -> JSONResponse:
            try:
                body = await _body(request, max_request_bytes)
                async with scoring:
                    scores = await run_in_threadpool(_scores, saved, body, read, batch_size, max_sequences)
            except RequestError as error:
                return JSONResponse({"error": str(error)}, error.status)
            return JSONResponse({"rewards": scores, "scores": scores, "extra_logs": {}})

        return answer

    async def health(_: Request) -> JSONResponse:
        return JSONResponse({"status": "ready"})

    return Starlette(
        routes=[
            Route("/get_reward", endpoint(_ids_of_queries), methods=["POST"]),
            Route("/rewards", endpoint(_ids_of_conversations), methods=["POST"]),
            Route("/health", health),
        ]
    )


async def _body(request: Request, limit: int) -> bytes:
    """The body of a request; raises RequestError once it exceeds the limit, without reading the rest."""
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > limit:
                raise RequestError(413, f"the request has more than {limit} bytes: send several smaller ones")
    except ClientDisconnect:
        raise RequestError(400, "the request ended early") from None
    return bytes(body)


def _scores(
    saved: SavedModel,
    body: bytes,
    read: Callable[[SavedModel, bytes, int], list[list[int]]],
    batch_size: int,
    max_sequences: int,
) -> list[float]:
    """The score of each sequence of a request, in its order; raises RequestError."""
    scores = sequence_logits(saved, read(saved, body, max_sequences), batch_size)
    for number, score in enumerate(scores):
        if not math.isfinite(score):
            raise RequestError(500, f"the model gives sequence {number} a score that is not finite: {score}")
    return scores


def _ids_of_queries(saved: SavedModel, body: bytes, max_sequences: int) -> list[list[int]]:
    queries = _decoded(body, _Queries, '{"query": [text, ...]}').query
    return _all_ids(queries, "query", max_sequences, lambda text: rendered_ids(saved, text))


def _ids_of_conversations(saved: SavedModel, body: bytes, max_sequences: int) -> list[list[int]]:
    found = _decoded(body, _Conversations, '{"conversations": [[message, ...], ...]}').conversations

    def ids(given: list[Any] | _Conversation) -> list[int]:
        row = {"messages": given} if isinstance(given, list) else msgspec.to_builtins(given)
        return conversation_ids(saved, *read_conversation(row))

    return _all_ids(found, "conversation", max_sequences, ids)


def _decoded(body: bytes, kind: Any, form: str) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise RequestError(422, f"the request is not {form}: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(400, f"the request is not JSON: {error}") from None


def _all_ids(given: list[Any], name: str, limit: int, ids: Callable[[Any], list[int]]) -> list[list[int]]:
    if len(given) > limit:
        raise RequestError(413, f"the request has {len(given)} sequences, more than {limit}: send several smaller ones")
    found = []
    for number, item in enumerate(given):
        try:
            found.append(ids(item))
        except (ConversationError, PreferenceError, SettingsError, RecursionError) as error:
            raise RequestError(422, f"{name} {number} cannot be scored: {one_line(error)}") from None
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
