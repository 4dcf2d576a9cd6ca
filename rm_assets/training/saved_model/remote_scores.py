"""Verifies that a server (ours, vLLM or OpenRLHF's) gives the golden scores of a model."""

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import msgspec

from rm_assets.addresses import mask_credentials
from rm_assets.training.saved_model.golden_scores import GoldenScoresError, largest_difference, read_golden_scores

_SECONDS = 300.0
"""How long an answer may take: before the first one, a server may compile the model."""
_MISSING = (404, 405)


class _Rewards(msgspec.Struct):
    rewards: list[float]


class _Probabilities(msgspec.Struct):
    probs: list[float]


class _Classes(msgspec.Struct):
    data: list[_Probabilities]


def verify_server(directory: Path, url: str, tolerance: float | None = None) -> str:
    """Verify a server, and return a line with its endpoint and the largest difference from a directory's golden scores.

    Tries, in this order, `/rewards` (rm_assets.training.serve), `/classify` (vLLM) and `/get_reward` (OpenRLHF); the
    first two render the messages themselves. Raises GoldenScoresError if there is none, or if a score differs by more
    than `tolerance`, by default the file's own.
    """
    golden = read_golden_scores(directory)
    expected = [item["score"] for item in golden["conversations"]]
    for path, ask in (("/rewards", _own_scores), ("/classify", _vllm_scores), ("/get_reward", _openrlhf_scores)):
        found = ask(url.rstrip("/") + path, golden["conversations"])
        if found is None:
            continue
        if len(found) != len(expected):
            raise GoldenScoresError(
                f"{path} of {_shown(url)} gave {len(found)} scores for {len(expected)} conversations"
            )
        difference = largest_difference(expected, found)
        allowed = golden["tolerance"] if tolerance is None else tolerance
        if not difference <= allowed:
            raise GoldenScoresError(
                f"{path} of {_shown(url)} does not give the golden scores of {str(directory)!r}: the largest "
                f"difference is {difference:.2g}, more than {allowed:.2g}; transformers' bfloat16 differs by up to "
                f"{golden['largest_bfloat16_difference']:.2g}: compare the served model, chat template and dtype"
            )
        return f"golden scores verified by {path} of {_shown(url)}, largest difference {difference:.2g}"
    raise GoldenScoresError(
        f"{_shown(url)} has none of the endpoints /rewards, /classify and /get_reward: check the URL"
    )


def _own_scores(url: str, conversations: list[dict[str, Any]]) -> list[float] | None:
    answer = _post(url, {"conversations": [item["messages"] for item in conversations]}, _Rewards)
    return answer if answer is None else list(answer.rewards)


def _vllm_scores(url: str, conversations: list[dict[str, Any]]) -> list[float] | None:
    """The scores from vLLM's classifier, which has a single class; without its activation, the value is the score."""
    scores = []
    for item in conversations:
        answer = _post(url, {"messages": item["messages"], "use_activation": False}, _Classes)
        if answer is None:
            return None
        if [len(each.probs) for each in answer.data] != [1]:
            raise GoldenScoresError(
                f"{_shown(url)} did not give exactly one score for a conversation: is it a reward model?"
            )
        scores.append(answer.data[0].probs[0])
    return scores


def _openrlhf_scores(url: str, conversations: list[dict[str, Any]]) -> list[float] | None:
    answer = _post(url, {"query": [item["text"] for item in conversations]}, _Rewards)
    return answer if answer is None else list(answer.rewards)


def _post(url: str, content: dict[str, Any], kind: Any) -> Any:
    """The decoded answer to a request; None if the server does not have this endpoint."""
    try:
        request = urllib.request.Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})
        if request.type not in ("http", "https"):
            raise ValueError("not an http or https address")
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            return msgspec.json.decode(answer.read(), type=kind)
    except urllib.error.HTTPError as error:
        if error.code in _MISSING:
            return None
        detail = " ".join(error.read(500).decode("utf-8", "replace").split())
        raise GoldenScoresError(f"{_shown(url)} refuses the golden conversations ({error.code}): {detail}") from None
    except (OSError, ValueError) as error:
        raise GoldenScoresError(f"{_shown(url)} gives no scores: {error}") from None


def _shown(url: str) -> str:
    return repr(mask_credentials(url))
