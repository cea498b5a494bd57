"""Every kernel and module keeps every promise: scripts/check_core.py prints the same as a table."""

import pytest
from checks import COLUMNS, TOLERANCE
from rows import ROWS


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_promise(row, column):
    found = COLUMNS[column](row)
    if found is None:
        pytest.skip("does not apply")
    assert found <= TOLERANCE
