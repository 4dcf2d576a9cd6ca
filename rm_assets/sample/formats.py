"""Writes pairs as the field does: one function per format, each from a pair to a JSON-ready record."""

from typing import Any

from rm_assets.sample.compose import Message, Pair, message

Record = dict[str, Any]


def plain(pair: Pair) -> Record:
    """Three strings; only for a single question without a system message."""
    (question,) = pair.prompt
    return {
        "prompt": question["content"],
        "chosen": pair.chosen,
        "rejected": pair.rejected,
        "subset": pair.topic,
    }


def messages(pair: Pair) -> Record:
    """Three lists of messages."""
    chosen, rejected = ([message("assistant", text)] for text in (pair.chosen, pair.rejected))
    return {"prompt": pair.prompt, "chosen": chosen, "rejected": rejected, "subset": pair.topic}


def conversations(pair: Pair) -> Record:
    """Two whole conversations, which share all but the last message."""
    chosen, rejected = ([*pair.prompt, message("assistant", text)] for text in (pair.chosen, pair.rejected))
    return {"chosen": chosen, "rejected": rejected, "subset": pair.topic}


def transcripts(pair: Pair) -> Record:
    """Two strings, each a whole dialogue with its speakers marked."""
    return {
        "chosen": transcript(pair.prompt, pair.chosen),
        "rejected": transcript(pair.prompt, pair.rejected),
    }


def transcript(prompt: list[Message], reply: str) -> str:
    """The dialogue as one string: two line feeds, speaker, colon, text."""
    speakers = {"user": "Human", "assistant": "Assistant"}
    turns = [*prompt, message("assistant", reply)]
    return "".join(f"\n\n{speakers[turn['role']]}: {turn['content']}" for turn in turns)
