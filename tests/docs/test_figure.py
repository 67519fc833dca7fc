"""The figure of docs/architecture.md shows the imports as they are."""

from __future__ import annotations

from docs import figure


def test_the_figure_is_that_of_the_sources() -> None:
    drawn = figure.TARGET.read_text(encoding="utf-8")
    assert drawn == figure.figure(), (
        "the imports have changed: run `make docs` and look at docs/assets/architecture.svg"
    )


def test_an_arrow_that_others_imply_is_left_out() -> None:
    assert figure.reduced({("a", "b"), ("b", "c"), ("a", "c"), ("d", "c")}) == [("a", "b"), ("b", "c"), ("d", "c")]


def test_every_package_with_imports_has_a_box() -> None:
    packages = {path.name for path in (figure.TARGET.parents[2] / "src/langevin").iterdir() if path.is_dir()}
    assert {name for name in packages if not name.startswith("_")} - set(figure.ROOMS) <= {"utils"}
