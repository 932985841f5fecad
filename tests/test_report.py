"""Figures on the pages are those of the results files, and the results files say how they were made."""

from __future__ import annotations

import json

import pytest

from lavila_fast.bench.report import PAGES, RESULTS, filled


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_figures_on_the_page_are_those_of_the_results(page):
    text = page.read_text(encoding="utf-8")
    assert "<!-- begin nano -->" in text
    assert filled(text) == text, "run: python -m lavila_fast.bench.report"


def test_a_changed_figure_is_noticed():
    text = "<!-- begin nano -->\n| sentence | 100% |\n<!-- end nano -->\n"
    assert filled(text) != text


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.name)
def test_every_result_names_its_command_and_machine(path):
    row = json.loads(path.read_text())
    assert row["command"].startswith("python -m lavila_fast.")
    assert row["machine"]
