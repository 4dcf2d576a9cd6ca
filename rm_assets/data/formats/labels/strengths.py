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
"""Of HelpSteer's strengths, without their sign."""
INVALID = -100.0
"""HelpSteer's mark of an annotation that does not count."""


def read_strength(
    value: float, shape: str, label: Label | None, scale: Mapping[str, Label], evidence: list[Evidence]
) -> tuple[Label | None, float]:
    """Which response a strength prefers, beside a label or alone, and the margin.

    `scale` is the meaning of its values by the setting `labels`. What it implies for other rows is appended to
    `evidence`. Raises PreferenceError where no reading of it agrees with the label, or where it is not HelpSteer's.
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
    """How to say what the strengths of a shape mean."""
    example = json.dumps({column_of(shape): {"1": "first", "2": "tie", "3": "second"}}, ensure_ascii=False)
    return f"define these values in the setting labels, for example {example}"


def column_of(shape: str) -> str:
    """The column of the verdict in the name of a shape."""
    return shape.split(" of `")[0].strip("`")


def _on_scale(value: float, shape: str, scale: Mapping[str, Label]) -> tuple[Label, float]:
    """The meaning of a value, and its distance from the middle between both sides' values, if they do not overlap."""
    word = f"{value:g}"
    if word not in scale:
        problem = f"{shape} is {word}, which the setting labels does not define"
        raise PreferenceError(Reason.AMBIGUOUS_LABEL, problem)
    return scale[word], abs(value - middle) if (middle := _middle(scale)) is not None else 0.0


def _middle(scale: Mapping[str, Label]) -> float | None:
    try:
        first, second = ([float(word) for word in scale if scale[word] == side] for side in ("first", "second"))
    except ValueError:
        return None
    if not first or not second:
        return None
    lower, upper = (first, second) if max(first) < min(second) else (second, first)
    return (max(lower) + min(upper)) / 2 if max(lower) < min(upper) else None
