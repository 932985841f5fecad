"""Figures on the pages are those of the results files, and the results files say how they were made."""

from __future__ import annotations

import json

import pytest

from lavila_fast.bench.report import PAGES, RESULTS, filled_page
from lavila_fast.machine import processor


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_figures_on_the_page_are_those_of_the_results(page):
    text = page.read_text(encoding="utf-8")
    assert "<!-- begin " in text
    assert filled_page(text) == text, "run: python -m lavila_fast.bench.report"


def test_a_changed_figure_is_noticed():
    text = "<!-- begin nano -->\n| sentence | 100% |\n<!-- end nano -->\n"
    assert filled_page(text) != text


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.name)
def test_every_result_names_its_command_and_machine(path):
    row = json.loads(path.read_text())
    assert row["command"].startswith("python -m lavila_fast.")
    assert row["machine"]


def test_the_processor_is_named_as_the_system_names_it(tmp_path):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Model: 7 Deluxe\nmodel name\t: other\n")
    assert processor(tmp_path / "cpuinfo") == "Model: 7 Deluxe"
    (tmp_path / "arm").write_text("processor\t: 0\nFeatures\t: sve\n")
    assert processor(tmp_path / "arm") == processor(tmp_path / "none") != ""
