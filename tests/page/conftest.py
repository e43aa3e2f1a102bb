"""A browser for the tests of pages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser import Page, open_page


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Iterator[Page]:
    """A tab."""
    with open_page(tmp_path_factory.mktemp("profile")) as page:
        yield page
