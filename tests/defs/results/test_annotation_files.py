"""The table of annotation files, without a run."""

from rm_assets.defs.results.annotation_files import changes_tag, files_metadata
from rm_assets.defs.results.metadata import MAX_ROWS


def test_files_that_changed_come_first_with_their_sizes() -> None:
    before = {"a": [1, "x"], "b": [1234, "y"], "c": [3, "z"]}
    shown = files_metadata({"a": [1, "x"], "b": [5678, "w"], "d": [0, ""]}, "version", before)
    rows = [tuple(record.data.values()) for record in shown["files"].records]
    assert rows == [("b", "5,678", "changed"), ("c", "3", "gone"), ("d", "0", "new"), ("a", "1", "")]
    assert shown["changes"] == "1 new, 1 changed, 1 gone since the previous refresh"
    assert (shown["num_files"], shown["megabytes"], shown["content_version"]) == (3, 0.006, "version")


def test_nothing_is_called_new_where_the_files_before_are_not_recorded() -> None:
    shown = files_metadata({"a": [1, "x"]}, "version", None)
    assert shown["changes"] == "unknown"
    assert [record.data["change"] for record in shown["files"].records] == [""]


def test_of_many_files_those_that_changed_are_shown() -> None:
    before = {f"{number:04}": [1, "x"] for number in range(2 * MAX_ROWS)}
    shown = files_metadata(before | {"zz": [1, "new"]}, "version", before)
    first, *_, last = [record.data["file"] for record in shown["files"].records]
    assert (first, last) == ("zz", "… 101 more rows, not shown")


def test_the_tag_counts_only_what_there_is() -> None:
    assert changes_tag({"a": "new", "b": "gone", "c": "new"}) == "+2 -1"
    assert changes_tag({}) == ""
