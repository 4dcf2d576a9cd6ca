"""The tables of settings and reject reasons on their pages are those of the code."""

from pathlib import Path

import pytest

from rm_assets.data.tables.reasons import MEANINGS, Reason
from rm_assets.reference_pages import PAGES, updated


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_up_to_date(page: Path) -> None:
    assert page.read_text() == updated(page), "run python -m rm_assets.reference_pages"


def test_every_reason_has_a_meaning() -> None:
    assert set(MEANINGS) == set(Reason)
