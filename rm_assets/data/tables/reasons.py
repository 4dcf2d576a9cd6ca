"""Why a line or a pair is rejected: the reason codes and their meanings."""

from enum import StrEnum


class Reason(StrEnum):
    """Why a line or a pair was rejected; every reject has exactly one reason."""

    # the line as bytes and as JSON
    NOT_UTF8 = "not_utf8"
    LINE_TOO_LONG = "line_too_long"
    UNREADABLE_FILE = "unreadable_file"
    CHANGING_FILE = "changing_file"
    DAMAGED_ARCHIVE = "damaged_archive"
    DAMAGED_FILE = "damaged_file"
    DECOMPRESSION_BOMB = "decompression_bomb"
    MALFORMED_ROW = "malformed_row"
    NOT_JSON = "not_json"
    NOT_AN_OBJECT = "not_an_object"
    UNKNOWN_FORMAT = "unknown_format"
    MISSING_FIELD = "missing_field"
    WRONG_TYPE = "wrong_type"
    REPEATED_FIELD = "repeated_field"
    AMBIGUOUS_FIELD = "ambiguous_field"
    AMBIGUOUS_LABEL = "ambiguous_label"
    UNSUPPORTED_FIELD = "unsupported_field"
    HELD_BACK_FILE = "held_back_file"
    # the preference in the line
    INCOMPLETE_PAIR = "incomplete_pair"
    EMPTY_MESSAGE = "empty_message"
    EMPTY_REPLY = "empty_reply"
    IDENTICAL_REPLIES = "identical_replies"
    UNSHARED_PROMPT = "unshared_prompt"
    TURN_MARKERS = "turn_markers"
    ROLES_OUT_OF_ORDER = "roles_out_of_order"
    MARGIN_NOT_FINITE = "margin_not_finite"
    NOT_TEXT = "not_text"
    TIE = "tie"
    UNLABELLED = "unlabelled"
    SCORES_DISAGREE = "scores_disagree"
    TOO_MANY_RESPONSES = "too_many_responses"
    # rendering and tokenization
    CONTROL_TOKEN = "control_token"
    TEMPLATE_ERROR = "template_error"
    MESSAGE_LOST = "message_lost"
    IDENTICAL_AFTER_TEMPLATE = "identical_after_template"
    IDENTICAL_AFTER_TOKENIZATION = "identical_after_tokenization"
    TOKENIZER_ERROR = "tokenizer_error"
    TOO_LONG = "too_long"
    # all pairs together
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"
    OVERLAPS_EVALUATION = "overlaps_evaluation"


MEANINGS = {
    Reason.NOT_UTF8: "The line is not valid UTF-8.",
    Reason.LINE_TOO_LONG: "The line has more than max_line_bytes bytes.",
    Reason.UNREADABLE_FILE: "The file is not a regular file, or cannot be read; it is rejected as a whole (line 0).",
    Reason.CHANGING_FILE: "The file changed during every attempt to read it; none of its lines is used in this run "
    "(line 0).",
    Reason.DAMAGED_ARCHIVE: "The compressed file is truncated, malformed, fails its checksum or needs more than "
    "128 MiB to decompress; none of its lines is used (line 0).",
    Reason.DAMAGED_FILE: "The JSON list, Parquet or CSV file is malformed or truncated, or its content does not match "
    "its file name; none of its rows is used (line 0).",
    Reason.DECOMPRESSION_BOMB: "The compressed file or table expands beyond max_expansion; none of its lines is used "
    "(line 0).",
    Reason.MALFORMED_ROW: "The CSV or TSV row has more or fewer fields than the header, contains a NUL byte, or "
    "encloses other rows in quotes.",
    Reason.NOT_JSON: "The line is not a single JSON value, or is nested more than 64 levels deep.",
    Reason.NOT_AN_OBJECT: "The line is valid JSON but not an object.",
    Reason.UNKNOWN_FORMAT: "The object's fields match no known format.",
    Reason.MISSING_FIELD: "A field required by the format is missing.",
    Reason.WRONG_TYPE: "A field has the wrong type for the format.",
    Reason.REPEATED_FIELD: "A field that is read occurs more than once in one object.",
    Reason.AMBIGUOUS_FIELD: "Two fields with the same meaning differ; choose one in the setting columns.",
    Reason.AMBIGUOUS_LABEL: "The label or strength of a comparison could mean either response; define it in "
    "the setting labels.",
    Reason.UNSUPPORTED_FIELD: "The row has chat_template_kwargs, tools or reasoning in a field where these are "
    "not read.",
    Reason.HELD_BACK_FILE: "The line is valid, but its file is held back because of other lines, possibly in another "
    "file.",
    Reason.INCOMPLETE_PAIR: "The other line of a pair in a two-line file is missing or rejected.",
    Reason.EMPTY_MESSAGE: "The prompt, or one of its messages, is empty.",
    Reason.EMPTY_REPLY: "A reply is empty.",
    Reason.IDENTICAL_REPLIES: "Both replies are identical.",
    Reason.UNSHARED_PROMPT: "The two sides have different prompts.",
    Reason.TURN_MARKERS: "The prompt, or both replies, have turn markers of a chat template, which are not parsed.",
    Reason.ROLES_OUT_OF_ORDER: "A message's role cannot follow the previous one, or a reply is not the assistant's.",
    Reason.MARGIN_NOT_FINITE: "The margin is not a finite number that fits in float32.",
    Reason.NOT_TEXT: "The row or a message contains more than text: an image, a video, audio or a placeholder for one.",
    Reason.TIE: "The annotation prefers neither reply: a tie, equal scores, or nothing to compare with.",
    Reason.UNLABELLED: "The row has no label: nobody has judged it yet, or the task was skipped.",
    Reason.SCORES_DISAGREE: "The scores or the margin contradict the label or the ranks.",
    Reason.TOO_MANY_RESPONSES: "A ranking has more than 256 responses, or its pairs more than 67,108,864 characters.",
    Reason.CONTROL_TOKEN: "A text contains a control token of the tokenizer, which could forge the end of a turn.",
    Reason.TEMPLATE_ERROR: "The chat template rejects the conversation.",
    Reason.MESSAGE_LOST: "The chat template drops a whole message, tool list, tool call or the last reasoning.",
    Reason.IDENTICAL_AFTER_TEMPLATE: "The chat template renders both sides identically.",
    Reason.IDENTICAL_AFTER_TOKENIZATION: "Both sides have the same token ids.",
    Reason.TOKENIZER_ERROR: "The tokenizer fails on the conversation, as some do on megabytes of spaces.",
    Reason.TOO_LONG: "A side has more than max_length tokens; replies are never truncated.",
    Reason.DUPLICATE: "An equal pair occurs earlier; differences in Unicode form and white space are ignored.",
    Reason.CONFLICT: "The same replies also occur with flipped labels, and the setting conflicts excludes this pair.",
    Reason.OVERLAPS_EVALUATION: "The prompt shares a run of 13 words with a prompt of an evaluation file.",
}
"""The meaning of each reason, in one sentence."""

MALFORMED = frozenset(
    {
        Reason.NOT_UTF8,
        Reason.LINE_TOO_LONG,
        Reason.MALFORMED_ROW,
        Reason.NOT_JSON,
        Reason.NOT_AN_OBJECT,
        Reason.UNKNOWN_FORMAT,
        Reason.MISSING_FIELD,
        Reason.WRONG_TYPE,
        Reason.REPEATED_FIELD,
        Reason.AMBIGUOUS_LABEL,
    }
)
"""The reasons that count towards holding a file back: signs of a damaged or misread file, not of disagreement."""
