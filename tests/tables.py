"""Tables of cases, each with a name for the report."""

from __future__ import annotations

import pytest


def table(names: str, *rows: tuple[object, ...]) -> pytest.MarkDecorator:
    """Run the test once a row. The first of each row says what it is about; the rest are the arguments in ``names``."""
    return pytest.mark.parametrize(names.split(), [row[1:] for row in rows], ids=[str(row[0]) for row in rows])
