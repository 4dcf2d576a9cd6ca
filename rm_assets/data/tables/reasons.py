"""Why a line or a pair is rejected: the closed set of reason codes, and what each means."""

from enum import StrEnum


class Reason(StrEnum):
    """Why a line or a pair went no further. A closed set: every reject carries exactly one."""

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
    # the preference it states
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
    Reason.NOT_UTF8: "The line's bytes are no UTF-8 text.",
    Reason.LINE_TOO_LONG: "The line has more bytes than max_line_bytes.",
    Reason.UNREADABLE_FILE: "What a directory or glob names is no regular file, or may not be read (line 0).",
    Reason.CHANGING_FILE: "The file changed whenever it was read; none of its lines is used in this run (line 0).",
    Reason.DAMAGED_ARCHIVE: "The compressed file ends early, is malformed, fails its checksum or needs more "
    "than 128 MiB to decompress; none of its lines is used (line 0).",
    Reason.DAMAGED_FILE: "The JSON list, Parquet or CSV file is malformed or cut short, or the file is not what its "
    "name says; none of its rows is used (line 0).",
    Reason.DECOMPRESSION_BOMB: "The compressed file or table expands beyond max_expansion; none of its lines is used "
    "(line 0).",
    Reason.MALFORMED_ROW: "The row of a CSV or TSV file has more or fewer fields than its header, a NUL byte, or "
    "whole rows between two quotes.",
    Reason.NOT_JSON: "The line is not one JSON value, or is nested more than 64 deep.",
    Reason.NOT_AN_OBJECT: "The line is JSON, but no object.",
    Reason.UNKNOWN_FORMAT: "The object has the fields of no known format.",
    Reason.MISSING_FIELD: "A field that the format needs is not there.",
    Reason.WRONG_TYPE: "A field is not of the type that the format needs.",
    Reason.REPEATED_FIELD: "An object gives a field that is read more than once.",
    Reason.AMBIGUOUS_FIELD: "Two fields say the same thing differently; the setting columns says which one is meant.",
    Reason.AMBIGUOUS_LABEL: "The label or strength of a comparison may mean either response; the setting labels says "
    "which.",
    Reason.UNSUPPORTED_FIELD: "The row has chat_template_kwargs, tools or reasoning where they are not read.",
    Reason.HELD_BACK_FILE: "The line is sound, but its file is held back for other lines, perhaps of another file.",
    Reason.INCOMPLETE_PAIR: "The other line of a pair in two-line files is missing or a reject.",
    Reason.EMPTY_MESSAGE: "The prompt, or a message of it, is empty.",
    Reason.EMPTY_REPLY: "A reply is empty.",
    Reason.IDENTICAL_REPLIES: "Both replies are equal.",
    Reason.UNSHARED_PROMPT: "The two sides answer different prompts.",
    Reason.TURN_MARKERS: "A prompt is a conversation in the turn markers of some template, which are not read.",
    Reason.ROLES_OUT_OF_ORDER: "A message's role cannot follow the one before it, or a reply is not the assistant's.",
    Reason.MARGIN_NOT_FINITE: "The margin is no finite float32.",
    Reason.NOT_TEXT: "The row or a message holds more than text: an image, a video, a sound or a placeholder of one.",
    Reason.TIE: "The annotation prefers no reply: a tie, equal scores, or nothing to compare with.",
    Reason.UNLABELLED: "The row is there, but holds no label: nobody has judged it yet, or the task was skipped.",
    Reason.SCORES_DISAGREE: "The scores or the margin contradict the label or the ranks.",
    Reason.TOO_MANY_RESPONSES: "A ranking has more than 256 responses, or its pairs more than 67108864 characters.",
    Reason.CONTROL_TOKEN: "A text contains a control token of the tokenizer, which could forge a turn or an end.",
    Reason.TEMPLATE_ERROR: "The chat template refuses the conversation.",
    Reason.MESSAGE_LOST: "The chat template leaves a whole message, tool list, tool call or the last reasoning out.",
    Reason.IDENTICAL_AFTER_TEMPLATE: "The chat template writes both sides alike.",
    Reason.IDENTICAL_AFTER_TOKENIZATION: "Both sides have the same token ids.",
    Reason.TOKENIZER_ERROR: "The tokenizer itself fails on the conversation, as some do on megabytes of spaces.",
    Reason.TOO_LONG: "A side has more tokens than max_length; replies are never cut.",
    Reason.DUPLICATE: "An equal pair stands earlier, up to Unicode form and white space.",
    Reason.CONFLICT: "The same replies also stand with the labels the other way round, and `conflicts` is against it.",
    Reason.OVERLAPS_EVALUATION: "The prompt shares a run of 13 words with a prompt of an evaluation file.",
}
"""What each reason says, in one sentence."""

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
"""The reasons that count towards holding a file back: damage, not disagreement."""
