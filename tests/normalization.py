"""What `unicodedata.normalize` of CPython takes, counted for tests."""

import unicodedata

import numpy as np
import pytest

NORMALIZE = unicodedata.normalize


def num_steps(form: str, text: str) -> int:
    """A step for each character, and one for each two marks that are swapped.

    It sorts the marks of the decomposed text by insertion: two marks change places if the first has the higher class.
    """
    decomposed = "".join(NORMALIZE(form.replace("C", "D"), character) for character in text)
    classes = np.array([unicodedata.combining(character) for character in decomposed], np.uint8)
    runs = [run for run in np.split(classes, np.flatnonzero(classes == 0)) if len(run) > 2]
    return len(decomposed) + sum(int(((run > c).cumsum() * (run == c)).sum()) for run in runs for c in set(run[1:]))


def counted_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps of each call from now on, in their order."""
    steps: list[int] = []

    def normalize(form: str, text: str) -> str:
        steps.append(num_steps(form, text))
        return NORMALIZE(form, text)

    monkeypatch.setattr(unicodedata, "normalize", normalize)
    return steps
