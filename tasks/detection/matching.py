"""The Hungarian algorithm for many small problems at once, in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np


def assign(costs: np.ndarray, row_mask: np.ndarray) -> np.ndarray:
    """Assigns each row its own column, so that the sum of the costs is least (Kuhn 1955).

    By shortest augmenting paths (Jonker and Volgenant 1987). All P problems take each step together: a loop over
    problems would cost more than the arithmetic. Most rows take their best column at once and need no path.

    Args:
        costs: (P, N, M), finite; N objects and M queries.
        row_mask: (P, N) bool, True = a row that takes part. At most M rows of a problem do, in the cheapest choice.

    Returns:
        Column of each row (P, N) int64; -1 for one that takes no part, or for which there is no column.

    >>> assign(np.array([[[1.0, 2.0, 9.0], [1.0, 5.0, 9.0]]]), np.ones((1, 2), bool)).tolist()
    [[1, 0]]
    """
    problems, rows, columns = costs.shape
    if not problems or not rows:
        return np.full((problems, rows), -1)
    costs = np.asarray(costs, np.float64)
    spare = max(0, int(row_mask.sum(1).max()) - columns)
    if spare:  # columns of equal cost, so high that they are taken only when the others are
        high = (np.ptp(costs) + 1) * rows + costs.max()
        costs = np.concatenate([costs, np.full((problems, rows, spare), high)], 2)
    state = _Assignment(costs, row_mask)
    while len(left := np.nonzero((row_mask & (state.column_of < 0)).any(1))[0]):
        state.augment(left, (row_mask[left] & (state.column_of[left] < 0)).argmax(1))
    return np.where(state.column_of < columns, state.column_of, -1)


class _Assignment:
    """Columns of rows, rows of columns, and prices, of all problems."""

    def __init__(self, costs: np.ndarray, row_mask: np.ndarray) -> None:
        problems, rows, columns = costs.shape
        self.costs, self.v = costs, np.zeros((problems, columns))
        self.u, best = costs.min(2), costs.argmin(2)  # (P, N)
        self.column_of: Any = np.full((problems, rows), -1)
        self.row_of: Any = np.full((problems, columns), -1)
        everyone = np.arange(problems)
        for n in range(rows):  # the best column, where it is free
            free = row_mask[:, n] & (self.row_of[everyone, best[:, n]] < 0)
            self.row_of[everyone[free], best[free, n]] = n
            self.column_of[free, n] = best[free, n]

    def augment(self, at: np.ndarray, starts: np.ndarray) -> None:
        """Assigns one more row, `starts` (p,), of the problems `at` (p,)."""
        count, columns, rows = len(at), self.costs.shape[2], self.costs.shape[1]
        every = np.arange(count)
        far, path = np.full((count, columns), np.inf), np.full((count, columns), -1)
        seen, reached = np.zeros((count, columns), bool), np.zeros((count, rows), bool)
        row, low, sink = starts.copy(), np.zeros(count), np.full(count, -1)
        active = every
        while len(active):
            p, i = at[active], row[active]
            reached[active, i] = True
            through = low[active, None] + self.costs[p, i] - self.u[p, i, None] - self.v[p]  # (a, M)
            nearer = (through < far[active]) & ~seen[active]
            far[active] = np.where(nearer, through, far[active])
            path[active] = np.where(nearer, i[:, None], path[active])
            column = np.where(seen[active], np.inf, far[active]).argmin(1)  # (a,)
            low[active] = far[active, column]
            seen[active, column] = True
            row[active] = self.row_of[p, column]
            ends = row[active] < 0
            sink[active[ends]] = column[ends]
            active = active[~ends]
        columns_of = self.column_of[at]  # (p, N)
        gain = low[:, None] - np.take_along_axis(far, columns_of.clip(0), 1)
        gain[every, starts] = low
        self.u[at] += np.where(reached, gain, 0.0)
        self.v[at] -= np.where(seen, low[:, None] - np.where(seen, far, 0.0), 0.0)
        active = every
        while len(active):  # back along the paths
            p, column = at[active], sink[active]
            i = path[active, column]
            self.row_of[p, column] = i
            sink[active] = self.column_of[p, i]
            self.column_of[p, i] = column
            active = active[i != starts[active]]
