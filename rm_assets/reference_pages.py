"""Generates the tables of SETTINGS.md and data/REJECTS.md from the code: `python -m rm_assets.reference_pages`.

The text of a page is written by hand. Only the part between its two marker comments is replaced.
"""

import re
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from rm_assets.data.tables.reasons import MALFORMED, MEANINGS
from rm_assets.settings import GROUPS
from rm_assets.settings_loading import PREFIX, without_none

_PACKAGE = Path(__file__).parent
_GENERATED = re.compile(r"(?<=<!-- generated -->\n).*(?=<!-- end of generated -->)", re.DOTALL)
_KINDS = {bool: "`true` · `false`", int: "integer", float: "number", str: "text", date: "YYYY-MM-DD"}


def main() -> None:
    """Rewrite the generated part of each page."""
    for page in PAGES:
        page.write_text(updated(page))


def updated(page: Path) -> str:
    """The text of a page with its generated part as the code has it now."""
    table = "\n" + "\n".join(PAGES[page]()) + "\n\n"
    text, num_found = _GENERATED.subn(lambda _: table, page.read_text())
    assert num_found == 1, f"{page} has no single generated part"
    return text


def settings_tables() -> Iterator[str]:
    """One section per group of settings, as lines of Markdown."""
    for title, group in GROUPS.items():
        yield from (f"## {title}", "", group.__doc__ or "", "")
        yield from ("| setting | environment variable | default | values | meaning |", "|---|---|---|---|---|")
        for name, field in group.model_fields.items():
            meaning = " ".join((field.description or "").split())
            yield (
                f"| `{name}` | `{PREFIX}{name.upper()}` | {_default(field.default)} "
                f"| {_values(field.annotation, field.metadata)} | {meaning} |"
            )
        yield ""


def reasons_table() -> Iterator[str]:
    """Every reject reason, as lines of Markdown."""
    yield from ("| reason | meaning | malformed |", "|---|---|---|")
    for reason, meaning in MEANINGS.items():
        yield f"| `{reason}` | {meaning} | {'yes' if reason in MALFORMED else ''} |"


PAGES: dict[Path, Callable[[], Iterator[str]]] = {
    _PACKAGE / "SETTINGS.md": settings_tables,
    _PACKAGE / "data" / "REJECTS.md": reasons_table,
}


def _default(value: Any) -> str:
    if value is None:
        return "unset"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`".replace("'", '"')


def _values(annotation: Any, bounds: list[Any]) -> str:
    """What a setting takes: its choices, or its kind and bounds, such as `integer ≥ 1`."""
    annotation = without_none(annotation)
    if get_origin(annotation) is Literal:
        return " · ".join(f"`{choice}`" for choice in get_args(annotation))
    if get_origin(annotation) is list:
        return f"JSON list of {_values(get_args(annotation)[0], [])}"
    if get_origin(annotation) is dict:
        return "JSON object"
    signs = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
    limits = [f"{sign} {getattr(bound, name)}" for bound in bounds for name, sign in signs if hasattr(bound, name)]
    return f"{_KINDS[annotation]} {' and '.join(limits)}".rstrip()


if __name__ == "__main__":
    main()
