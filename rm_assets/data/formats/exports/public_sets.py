"""Public data sets and trainers whose rows have names of their own, as rows of the formats that the records describe.

`{"history": "2+2?", "human_ref_A": "5.", "human_ref_B": "4.", "labels": 0}` is SHP's
`{"prompt": "2+2?", "response_a": "5.", "response_b": "4.", "label": "second"}`: its card says that 1 prefers A. A set
is known by fields that no other set has together, and each function names its source. To read another set, add
a function and a line to `PUBLIC_SETS`.
"""

import re
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import msgspec

from rm_assets.data.formats.conversations.written_lists import alternating
from rm_assets.data.formats.field_names import LABELS, SPELLINGS, Row, response_fields
from rm_assets.data.formats.preferences import PreferenceError
from rm_assets.data.tables.reasons import Reason
from rm_assets.json_settings import Label

# --- two answers and a verdict ---------------------------------------------------------------------------------


def _webgpt(row: Row) -> Row:
    """openai/webgpt_comparisons, by its card: the higher of `score_0` and `score_1` (-1 to 1) wins, equal ones tie."""
    question = row["question"]
    first, second = _number(row, "score_0"), _number(row, "score_1")
    sides = (row["answer_0"], row["answer_1"])
    label: Label = "tie" if first == second else "first" if first > second else "second"
    compared = _compared(row, {"question", "answer_0", "answer_1", "score_0", "score_1"}, sides, label)
    prompt = _prompt_of(question, "full_text") if isinstance(question, dict) else {"prompt": question}
    return {"margin": abs(first - second)} | compared | prompt


def _shp(row: Row) -> Row:
    """stanfordnlp/SHP and SHP-2, by their cards: `labels` is 1 where A is preferred, 0 where B is.

    The preferred one always has the higher score: a contradiction means that the labels were changed.
    """
    label: Label = "first" if _flag(row, "labels") else "second"
    one, other = (_number_of(row.get(name)) for name in ("score_A", "score_B"))
    if one is not None and other is not None and (one < other if label == "first" else one > other):
        raise PreferenceError(Reason.SCORES_DISAGREE, "`labels` prefers the response with the lower score")
    sides = (row["human_ref_A"], row["human_ref_B"])
    used = {"history", "human_ref_A", "human_ref_B", "labels"}
    return _compared(row, used, sides, label) | {"prompt": row["history"]}


def _summaries(row: Row) -> Row:
    """openai/summarize_from_feedback, `comparisons`: `choice` is the index of the better of two `summaries`."""
    info, summaries = row["info"], row["summaries"]
    if not isinstance(info, dict) or not _are_objects(summaries) or len(summaries) != 2:
        raise PreferenceError(Reason.WRONG_TYPE, "`info` is not an object, or `summaries` is not a list of two objects")
    sides = (summaries[0].get("text"), summaries[1].get("text"))
    label: Label = "second" if _flag(row, "choice") else "first"
    compared = _compared(row, {"info", "summaries", "choice"}, sides, label)
    return compared | _prompt_of(info, "post", "article")


def _alpaca_eval(row: Row) -> Row:
    """AlpacaEval's annotations (`validate_alpacaeval_preference`): 1 is `output_1`, 2 `output_2`, 1.5 or 0 a draw.

    A whole number may be another tool's; only AlpacaEval writes a fraction between 1 and 2.
    """
    preference = _number_of(row["preference"])
    if preference is None:
        return row
    is_theirs = not {"generator_1", "generator_2", "annotator"}.isdisjoint(row)
    if not (1 <= preference <= 2 or preference == 0) or (preference.is_integer() and not is_theirs):
        return row
    label: Label = "tie" if preference in (0, 1.5) else "first" if preference < 1.5 else "second"
    return _compared(row, {"output_1", "output_2", "preference"}, (row["output_1"], row["output_2"]), label)


_WINNER_PAIRS = [
    (f"winner_{stem}{first}", f"winner_{stem}{second}")
    for stem in ("", "model_", "response_", "output_", "answer_")
    for first, second in ("ab", "12")
]
_WINNERS: dict[str, Label] = {"winner_tie": "tie"}
for _first, _second in _WINNER_PAIRS:
    _WINNERS |= {_first: "first", _second: "second"}


def _one_hot(row: Row) -> Row:
    """lmarena-ai/arena-human-preference-55k: one of `winner_model_a`, `winner_model_b` and `winner_tie` is 1.

    Its prompts and responses are the JSON texts of lists, one item per turn.
    """
    given = {name: row[name] for name in _WINNERS if name in row}
    winners = {_WINNERS[name] for name in given if _flag(row, name)}
    if len(winners) != 1:
        raise PreferenceError(
            Reason.AMBIGUOUS_FIELD,
            f"{len(winners)} of {', '.join(f'`{name}`' for name in given)} are 1, instead of exactly one",
        )
    row = {name: value for name, value in row.items() if name not in given} | {"winner": winners.pop()}
    turns = {name: _turns(row.get(name)) for name in ("prompt", "response_a", "response_b")}
    prompt, first, second = turns.values()
    if prompt is None:
        return row
    if first is None or second is None:
        raise PreferenceError(Reason.WRONG_TYPE, "`prompt` is a list of turns, but a response is not")
    others = {name: value for name, value in row.items() if name not in turns}
    return others | {"response_a": _conversation(prompt, first), "response_b": _conversation(prompt, second)}


def _turns(value: Any) -> list[Any] | None:
    """The turns of a list of texts, or of its JSON text; None for any other value."""
    if isinstance(value, str) and value.startswith(('["', "[null")):
        try:
            value = msgspec.json.decode(value)
        except (msgspec.DecodeError, RecursionError):
            raise PreferenceError(Reason.WRONG_TYPE, "a list of turns written as text is not valid JSON") from None
    is_list = isinstance(value, list) and all(turn is None or isinstance(turn, str) for turn in value)
    return value if is_list else None


def _conversation(prompts: list[Any], replies: list[Any]) -> list[dict[str, Any]]:
    if len(prompts) != len(replies):
        counts = f"{len(prompts)} prompts and {len(replies)} replies"
        raise PreferenceError(Reason.WRONG_TYPE, f"a conversation of {counts}, instead of equally many")
    return alternating(prompts, replies)


# --- a good and a bad answer -----------------------------------------------------------------------------------


_VERDICTS = frozenset({*LABELS, *SPELLINGS["scores"], "chosen", "rejected", "ranks"})


def _output_pair(row: Row) -> Row:
    """LLaMA-Factory up to 0.7 (`preprocess_pairwise_dataset`): of a list of outputs the first one is the chosen one.

    The trainer left out what came after the second; here the first beats each of the others.
    """
    outputs = row["output"]
    if not isinstance(outputs, list) or len(outputs) < 2 or not _VERDICTS.isdisjoint(row):
        return row
    others = {name: value for name, value in row.items() if name != "output"}
    return others | {"chosen": outputs[0], "rejected": outputs[1] if len(outputs) == 2 else outputs[1:]}


def _rejected_response(row: Row) -> Row:
    """ms-swift (Custom-dataset.md): `rejected_response` is compared with the last of `messages`, or with `response`."""
    if "rejected" in row:
        return row
    others = {name: value for name, value in row.items() if name != "rejected_response"}
    others["rejected"] = row["rejected_response"]
    if "chosen" in row:
        return others
    messages = row.get("messages", [])
    if _are_objects(messages) and "chosen_response" not in row:
        if messages[-1].get("role", messages[-1].get("from")) not in ("assistant", "gpt"):
            problem = "`messages` does not end with an assistant's reply to compare `rejected_response` with"
            raise PreferenceError(Reason.MISSING_FIELD, problem)
        return others | {"messages": None, "prompt": messages[:-1], "chosen": messages[-1:]}
    chosen = next((name for name in ("chosen_response", "response", "output") if name in row), None)
    if chosen is None:
        problem = "`rejected_response` needs `messages`, `response` or `chosen_response` in the same row"
        raise PreferenceError(Reason.MISSING_FIELD, problem)
    others["chosen"] = others.pop(chosen)
    if "query" in row:
        others["prompt"] = others.pop("query")
    return others


def _ultrainteract(row: Row) -> Row:
    """openbmb/UltraInteract_pair: `trajectory` is the conversation that both replies continue."""
    if not _are_objects(row["trajectory"]) or "conversations" in row:
        return row
    return {"conversations" if name == "trajectory" else name: value for name, value in row.items()}


# --- many scored answers ---------------------------------------------------------------------------------------


def _ultrafeedback(row: Row) -> Row:
    """openbmb/UltraFeedback and UltraSafety: `completions` with a `response` and an `overall_score` each.

    The system message is left out: each completion had its own `custom_system_prompt`.
    """
    completions = row["completions"]
    if not _are_objects(completions) or not any("overall_score" in item for item in completions):
        return row
    scored = [{"response": item.get("response"), "score": item.get("overall_score")} for item in completions]
    return {name: value for name, value in row.items() if name != "completions"} | {"responses": scored}


def _stack_exchange(row: Row) -> Row:
    """HuggingFaceH4/stack-exchange-preferences, by its card: the `pm_score` of an answer is that of its votes."""
    answers = row["answers"]
    if not _are_objects(answers) or not any("pm_score" in item for item in answers):
        return row
    scored = [{"response": item.get("text"), "score": item.get("pm_score")} for item in answers]
    return {name: value for name, value in row.items() if name != "answers"} | {"responses": scored}


# --- benchmarks, whose rows are of a usual format and name their part ------------------------------------------


def _judgebench(row: Row) -> Row:
    """ScalerLab/JudgeBench: `source` is the data set of the question, by which its figures are given."""
    return _with_subset(row, "source")


def _rm_bench(row: Row) -> Row:
    """THU-KEG/RM-Bench: `domain` is that of a prompt with three chosen and three rejected replies, one per style."""
    sides = (row["chosen"], row["rejected"])
    are_lists = all(isinstance(side, list) and all(isinstance(reply, str) for reply in side) for side in sides)
    return _with_subset(row, "domain") if are_lists else row


def _with_subset(row: Row, name: str) -> Row:
    return row if "subset" in row or not isinstance(row[name], str) else row | {"subset": row[name]}


# --- which set a row is of -------------------------------------------------------------------------------------


class PublicSet(NamedTuple):
    """Fields that no other set has together, the rarest one first, and how its rows become usual ones.

    That is a function, or where one answer is named as the better one, the usual names of its fields.
    """

    fields: tuple[str, ...]
    usual: Callable[[Row], Row] | dict[str, str]


PUBLIC_SETS = (
    PublicSet(("score_0", "score_1", "answer_0", "answer_1", "question"), _webgpt),
    PublicSet(("human_ref_A", "human_ref_B", "history", "labels"), _shp),
    PublicSet(("summaries", "info", "choice"), _summaries),
    PublicSet(
        ("response_j", "response_k", "question"), {"response_j": "chosen", "response_k": "rejected"}
    ),  # lvwerra/stack-exchange-paired
    PublicSet(  # MedicalGPT
        ("response_chosen", "response_rejected"), {"response_chosen": "chosen", "response_rejected": "rejected"}
    ),
    PublicSet(  # CValues-Comparison
        ("pos_resp", "neg_resp", "prompt"), {"pos_resp": "chosen", "neg_resp": "rejected"}
    ),
    PublicSet(("rejected_response",), _rejected_response),
    PublicSet(  # ms-swift from 3.8 on: two whole conversations
        ("rejected_messages", "messages"), {"messages": "chosen", "rejected_messages": "rejected"}
    ),
    PublicSet(("trajectory", "chosen", "rejected"), _ultrainteract),
    PublicSet(("completions",), _ultrafeedback),
    PublicSet(("qid", "answers", "question"), _stack_exchange),
    PublicSet(("preference", "instruction", "output_1", "output_2"), _alpaca_eval),
    PublicSet(("output", "instruction"), _output_pair),
    PublicSet(("original_id", "response_A", "response_B", "source"), _judgebench),
    PublicSet(("domain", "chosen", "rejected"), _rm_bench),
    *(PublicSet(winners, _one_hot) for winners in _WINNER_PAIRS),
)
MARKS = frozenset(public_set.fields[0] for public_set in PUBLIC_SETS)
"""A row without any of these fields is of none of the sets."""
_NULLABLE = frozenset({"score_0", "score_1", "labels", "choice", *_WINNERS})
"""The verdicts among these fields."""
FIELDS = frozenset(field for public_set in PUBLIC_SETS for field in public_set.fields).union(
    _WINNERS,
    {"full_text", "overall_score", "pm_score", "post", "article", "query", "generator_1", "generator_2", "annotator"},
    {"score_A", "score_B"},
)
"""What is read of them: none may be given twice in one object."""


def normalize_row(row: Row, own_columns: Collection[str]) -> Row:
    """The row of a public set as a row of a usual format; any other row, and one of own columns, as it is."""
    given = {name: value for name, value in row.items() if value is not None}
    for public_set in PUBLIC_SETS:
        if row.keys() >= set(public_set.fields) and set(own_columns).isdisjoint(public_set.fields):
            if missing := set(public_set.fields) - given.keys():
                _require_label(public_set, missing, given)
                continue
            usual = public_set.usual
            found = _renamed(given, usual) if isinstance(usual, dict) else usual(given)
            if found is not given:
                return found
    return row


def _renamed(row: Row, names: dict[str, str]) -> Row:
    """The row with the usual names, unless it also has a field that is called so."""
    sides = {*SPELLINGS["chosen"], *SPELLINGS["rejected"]} - names.keys()
    return row if not sides.isdisjoint(row) else {names.get(name, name): value for name, value in row.items()}


def _require_label(public_set: PublicSet, missing: set[str], given: Row) -> None:
    """Raise PreferenceError for a row of a set, with its answers, whose verdict is its only null field."""
    answers = set(public_set.fields) - missing if public_set.usual is not _one_hot else response_fields(given)
    if answers and missing <= _NULLABLE:
        raise PreferenceError(Reason.UNLABELLED, f"`{min(missing)}` is null")


def _compared(row: Row, used: set[str], sides: tuple[Any, Any], label: Label) -> Row:
    """The row as a comparison, without the fields that were used for it."""
    others = {name: value for name, value in row.items() if name not in used}
    return others | {"response_a": sides[0], "response_b": sides[1], "label": label}


def _prompt_of(row: Row, *names: str) -> Row:
    """The first of these fields that is not empty, as `prompt`; an empty row if the row has none of them."""
    given = [row[name] for name in names if name in row]
    return {"prompt": next(filter(None, given), given[0])} if given else {}


def _number(row: Row, name: str) -> float:
    value = _number_of(row[name])
    if value is None:
        raise PreferenceError(Reason.WRONG_TYPE, f"`{name}` is not a number")
    return value


def _number_of(value: Any) -> float | None:
    """A number, which in a CSV file is a text; None for any other value."""
    is_text = isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,9}(\.[0-9]{1,20})?", value.strip())
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9
    return float(value) if is_text or is_number else None


def _flag(row: Row, name: str) -> bool:
    value = row[name]
    number = {"true": 1.0, "false": 0.0}.get(str(value).lower(), _number_of(value))
    if number not in (0, 1):
        raise PreferenceError(Reason.WRONG_TYPE, f"`{name}` is neither 0 nor 1")
    return number == 1


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)
