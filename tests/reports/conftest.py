"""Tests of reports: pictures are drawn only where a test looks at one, as drawing takes most of a report's time."""

from __future__ import annotations

import pytest
from PIL import Image

from rmadapter.reports import run_plots
from rmadapter.reports.sweep import figures


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """A figure is made but saved as one pixel (a second less for each), unless the test is marked ``drawn``."""
    if request.node.get_closest_marker("drawn"):
        return

    def save(figure, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (1, 1)).save(path)
        return path

    for module in (run_plots, figures):
        monkeypatch.setattr(module, "save_figure", save)
