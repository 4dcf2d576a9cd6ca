"""The strength of a preference: HelpSteer's from -3 to 3, one on a scale of the setting `labels`, or a label's size.

`"preference_strength": -2` alone prefers the first response by two. But the field may also hold a Likert scale from 1
to 7, and beside a label its values may have no sign. The other rows of the shape show which of these it is (see
`rm_assets.data.formats.labels.consistency`).
"""

import json
from collections.abc import Mapping

from rm_assets.data.formats.preferences import Evidence, EvidenceKind, PreferenceError
from rm_assets.data.tables.reasons import Reason
from rm_assets.json_settings import Label

LARGEST = 3.0
"""Largest magnitude of HelpSteer's strengths."""
INVALID = -100.0
"""HelpSteer writes this for an annotation that does not count."""


def read_strength(
    value: float, shape: str, label: Label | None, scale: Mapping[str, Label], evidence: list[Evidence]
) -> tuple[Label | None, float]:
    """Which response a strength prefers, beside a label or alone, and the margin; None if it does not count.

    `scale` is what the setting `labels` says of its values; if it is empty, HelpSteer's scale applies. What the value
    implies for other rows of the shape is appended to `evidence`. Raises PreferenceError for a value outside its scale.
    """
    if value == INVALID:
        return None, 0.0
    if scale:
        return _on_scale(value, shape, scale)
    sign: Label = "tie" if value == 0 else "first" if value < 0 else "second"
    if label == "tie":
        return label, 0.0
    if label is not None:
        if value < 0 or label != sign:
            kind = EvidenceKind.SIGNED if value < 0 else EvidenceKind.SIZE
            evidence.append(Evidence(shape, kind, f"{value:g}"))
        return sign if value < 0 else label, abs(value)
    if abs(value) > LARGEST:
        evidence.append(Evidence(shape, EvidenceKind.BEYOND, f"{value:g}"))
        problem = f"{shape} is {value:g}, outside -3 to 3; {scale_advice(shape)}"
        raise PreferenceError(Reason.AMBIGUOUS_LABEL, problem)
    if value:
        evidence.append(Evidence(shape, EvidenceKind.NEGATIVE if value < 0 else EvidenceKind.POSITIVE, f"{value:g}"))
    return sign, abs(value)


def scale_advice(shape: str) -> str:
    """What to set so that the strengths of a shape have a meaning."""
    example = json.dumps({column_of(shape): {"1": "first", "2": "tie", "3": "second"}}, ensure_ascii=False)
    return f"define these values in the setting labels, for example {example}"


def column_of(shape: str) -> str:
    """The verdict's column in a shape, or in a text that begins with one: "label" for "`label` of `a` and `b`"."""
    return shape.split(" of `")[0].strip("`")


def _on_scale(value: float, shape: str, scale: Mapping[str, Label]) -> tuple[Label, float]:
    """Which response the setting says a value prefers, and its distance from the middle of the scale; 0 without one."""
    word = f"{value:g}"
    if word not in scale:
        problem = f"{shape} is {word}, which the setting labels does not define"
        raise PreferenceError(Reason.AMBIGUOUS_LABEL, problem)
    return scale[word], abs(value - middle) if (middle := _middle(scale)) is not None else 0.0


def _middle(scale: Mapping[str, Label]) -> float | None:
    """Halfway between the values of the two sides; None if one side has none, they overlap or one is not a number."""
    try:
        first, second = ([float(word) for word in scale if scale[word] == side] for side in ("first", "second"))
    except ValueError:
        return None
    if not first or not second:
        return None
    lower, upper = (first, second) if max(first) < min(second) else (second, first)
    return (max(lower) + min(upper)) / 2 if max(lower) < min(upper) else None
