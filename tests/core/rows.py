"""All rows, asserted by test_promises.py and printed by scripts/check_core.py."""

import rows_ground
import rows_hard
import rows_linear
import rows_modules
import rows_pretrained
import rows_sparse
import rows_window

ROWS = [
    *rows_ground.ROWS,
    *rows_linear.ROWS,
    *rows_hard.ROWS,
    *rows_sparse.ROWS,
    *rows_window.ROWS,
    *rows_pretrained.ROWS,
    *rows_modules.ROWS,
]
