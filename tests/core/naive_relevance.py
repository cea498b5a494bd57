"""The equations of Chefer et al. 2021, one sample at a time, on lists of numbers."""


def identity(n):
    return [[float(i == j) for j in range(n)] for i in range(n)]


def zeros(n, m):
    return [[0.0] * m for _ in range(n)]


def times(a, b):
    return [[sum(a[i][k] * b[k][j] for k in range(len(b))) for j in range(len(b[0]))] for i in range(len(a))]


def plus(a, b):
    return [[x + y for x, y in zip(p, q, strict=True)] for p, q in zip(a, b, strict=True)]


def transposed(a):
    return [list(column) for column in zip(*a, strict=True)]


def normalized(R):
    """Equations 8 and 9."""
    found = []
    for i, row in enumerate(R):
        hat = [value - float(i == j) for j, value in enumerate(row)]
        total = sum(hat)
        found.append([(value / total if total else 0.0) + float(i == j) for j, value in enumerate(hat)])
    return found


def fused(weights, gradient):
    """Equation 5, for weights and gradient (h, L, S)."""
    h, L, S = weights.shape
    return [
        [sum(max(float(gradient[k, i, j] * weights[k, i, j]), 0.0) for k in range(h)) / h for j in range(S)]
        for i in range(L)
    ]


class Naive:
    """The relevancy maps of any number of sequences: R[s][q], as lists."""

    def __init__(self, **lengths):
        self.R = {
            s: {q: identity(n) if s == q else zeros(n, m) for q, m in lengths.items()} for s, n in lengths.items()
        }

    def within(self, s, A):
        """Equations 6 and 7."""
        self.R[s] = {q: plus(R, times(A, R)) for q, R in self.R[s].items()}

    def across(self, *moves):
        """Equations 10 and 11, for all (s, q, A) at once."""
        before = self.R
        self.R = {s: dict(row) for s, row in before.items()}
        for s, q, A in moves:
            for r in before:
                if r == q:
                    gain = times(transposed(normalized(before[s][s])), times(A, normalized(before[q][q])))
                else:
                    gain = times(A, before[q][r])
                self.R[s][r] = plus(self.R[s][r], gain)
