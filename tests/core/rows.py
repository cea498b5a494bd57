"""All rows: what test_promises.py asserts and scripts/check_core.py prints."""

import rows_ground

ROWS = [*rows_ground.ROWS]
