"""Answers from remembered examples: attention over the training questions, whose values are solved for in closed form.

For small data. A network of a few hundred pictures learns their noise; a kernel over them has nothing to learn but one
linear system.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LONGEST = 3  # words in a phrase
MAX_PHRASES = 8192  # told apart, a power of two; the most frequent
MAX_EXAMPLES = 20_000  # the system has their square
WIDTH = 0.2  # of the pictures' kernels, in medians of the squared distance
START, END, FIRST = 1, 2, 3  # digits of a phrase's code; a token's is FIRST + its id, 0 is none
DESCRIPTORS = {"colour": 192, "edges": 384, "layout": 144}  # sizes


def describe(pixel_values: Tensor) -> Tensor:
    """Fixed descriptors of pictures: what colours there are, how edges run, what is where.

    Colour: a histogram of 4 x 4 x 4 colours, of the whole and of the upper and the lower half (Swain and Ballard 1991).
    Edges: eight directions in 4 x 4 cells at three resolutions (Dalal and Triggs 2005, section 6). Both under a square
    root, which makes the Euclidean distance one of distributions (Hellinger's). Layout: the picture at 6 x 8 pixels
    (Torralba et al. 2008).

    Args:
        pixel_values: (N, 3, H, W) in -1..1; H and W at least 4. All zeros stand for no picture.

    Returns:
        (N, 720) float64, colour, edges and layout side by side; zeros where there is no picture.
    """
    N, _, H, W = pixel_values.shape
    x = (pixel_values.double() * 0.5 + 0.5).clamp(0, 1)
    level = (x * 3.999).long()
    code = level[:, 0] * 16 + level[:, 1] * 4 + level[:, 2]  # (N, H, W)
    code = (code + 64 * (torch.arange(H, device=x.device) >= H // 2)[:, None]).flatten(1)  # (N, H W)
    halves = x.new_zeros(N, 128).scatter_add(1, code, torch.ones_like(code, dtype=x.dtype)) / (H * W / 2)
    colour = torch.cat([(halves[:, :64] + halves[:, 64:]) / 2, halves], 1)  # (N, 192)

    edges, grey = [], x.mean(1)  # (N, H, W)
    # Turned a little: grey levels often give gradients at an exact eighth of a turn, which must not lie between two.
    theta = (torch.arange(8, dtype=x.dtype, device=x.device) + 0.5) * (math.pi / 8) - 0.01
    for halved in range(3):
        grey = grey if halved == 0 else _pool(grey, max(4, H >> halved), max(4, W >> halved))
        dx = F.pad(grey[:, :, 2:] - grey[:, :, :-2], (1, 1))
        dy = F.pad(grey[:, 2:] - grey[:, :-2], (0, 0, 1, 1))
        along = dx[:, None] * theta.cos()[:, None, None] + dy[:, None] * theta.sin()[:, None, None]  # (N, 8, H', W')
        nearest = along.abs().argmax(1, keepdim=True) == torch.arange(8, device=x.device)[:, None, None]
        strength = nearest * (dx**2 + dy**2).sqrt()[:, None]
        cells = _pool(strength, 4, 4) * (grey.shape[1] * grey.shape[2] / 16)  # (N, 8, 4, 4): sums
        edges.append((cells / (cells.norm(dim=1, keepdim=True) + 0.5)).flatten(1))  # (N, 128)
    found = torch.cat([colour.sqrt(), torch.cat(edges, 1).clamp_min(0).sqrt(), _pool(x, 6, 8).flatten(1)], 1)
    return found * (pixel_values != 0).flatten(1).any(1, keepdim=True)


def _pool(x: Tensor, rows: int, columns: int) -> Tensor:
    """The mean of each of rows x columns cells: (..., H, W) to (..., rows, columns); as products, which export."""
    return _means(x.shape[-2], rows).to(x) @ x @ _means(x.shape[-1], columns).to(x).T


def _means(size: int, cells: int) -> Tensor:
    """(cells, size): row c averages what lies in cell c."""
    place, cell = torch.arange(size), torch.arange(cells)[:, None]
    inside = (place >= cell * size // cells) & (place < -(-(cell + 1) * size // cells))
    return inside.double() / inside.sum(1, keepdim=True)


class ExampleMemory(nn.Module):
    """Kernel ridge regression from questions about pictures to answers.

    score(x) = sum_j k(x, x_j) a_j  with  (K + ridge I) a = targets  and
    k(x, x_j) = exp(-|w - w_j|^2) (1 + picture s(p, p_j)).

    w are the question's phrases of one to three words, start and end among them, weighted by log(M / examples with the
    phrase) and of length one; s is the mean of Gaussian kernels on `describe`'s three descriptors. Without a picture s
    is zero: what is left is the same regression on words alone. Attention over remembered examples with weights k and
    values a: with a = targets / sum_j k it would be the estimate of Nadaraya 1964 and Watson 1964; solving for a is
    Saunders et al. 1998, section 2. All is computed in float64, so that mixed precision does not touch it.

    Args:
        vocab_size: of the question's tokens.
        num_answers: V.
        max_text_len: most tokens of a question.
        size: room for examples M, distinct questions U and pictures R.
        picture: how much a picture alike counts beside a question alike.
        ridge: large: smooth; small: by heart.
    """

    def __init__(
        self,
        vocab_size: int,
        num_answers: int,
        max_text_len: int,
        size: tuple[int, int, int],
        picture: float = 6.0,
        ridge: float = 4.0,
    ) -> None:
        super().__init__()
        examples, questions, pictures = size
        if not 0 < examples <= MAX_EXAMPLES:
            raise ValueError(f"memory: expected 1 to {MAX_EXAMPLES:,} training examples, found {examples:,}")
        if ridge <= 0 or picture < 0:
            raise ValueError(f"memory_ridge must be positive, memory_picture not negative: found {ridge}, {picture}")
        self.base, self.picture_weight, self.ridge = vocab_size + FIRST, picture, ridge
        width = LONGEST * max_text_len + LONGEST  # phrases in the longest question, with start and end
        integers = {"dtype": torch.int32}
        self.register_buffer("phrases", torch.full((MAX_PHRASES,), torch.iinfo(torch.long).max))  # sorted codes
        self.register_buffer("rarity", torch.zeros(MAX_PHRASES))
        self.register_buffer("asked", torch.zeros(questions, max_text_len, **integers))  # ids + 1; 0: none
        self.register_buffer("contents", torch.zeros(questions, width, **integers))  # each question's phrases
        self.register_buffer("weights", torch.zeros(questions, width))  # w, at its phrases
        self.register_buffer("pictures", torch.zeros(pictures, sum(DESCRIPTORS.values())))
        self.register_buffer("spread", torch.ones(len(DESCRIPTORS)))  # the unit of each descriptor's distances
        self.register_buffer("question", torch.zeros(examples, **integers))  # of each example
        self.register_buffer("picture", torch.zeros(examples, **integers))
        self.register_buffer("values", torch.zeros(examples, num_answers))  # a

    @property
    def is_filled(self) -> bool:
        """Whether anything is remembered."""
        return bool(self.values.any())

    def codes(self, input_ids: Tensor, key_mask: Tensor) -> Tensor:
        """A number for each phrase of one to three words, start and end counted: (B, L) to (B, 3 L + 3); 0 is none."""
        digits = torch.where(key_mask, input_ids.long() + FIRST, 0)
        digits = F.pad(F.pad(digits, (1, 0), value=START), (0, 1))  # (B, L + 2)
        place = torch.arange(digits.shape[1], device=digits.device)
        digits = torch.where(place == key_mask.sum(1, keepdim=True) + 1, END, digits)
        code, found = digits, [digits]
        for n in range(1, LONGEST):
            code = torch.where(digits[:, n:] > 0, code[:, :-1] * self.base + digits[:, n:], 0)
            found.append(code)
        return torch.cat(found, 1)

    def look_up(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Where in `phrases` the codes are, and whether they are. A bisection: ONNX has no searchsorted."""
        place, step = torch.zeros_like(codes), MAX_PHRASES // 2
        while step:
            place = torch.where(self.phrases[place + step] <= codes, place + step, place)
            step //= 2
        return place, self.phrases[place] == codes

    def words(self, input_ids: Tensor, key_mask: Tensor) -> Tensor:
        """w: (B, MAX_PHRASES), of length one or, where no phrase is known, zero."""
        place, known = self.look_up(self.codes(input_ids, key_mask))
        shape = (place.shape[0], MAX_PHRASES + 1)
        there = self.rarity.double().new_zeros(shape).scatter(1, torch.where(known, place, MAX_PHRASES), 1.0)
        return F.normalize(there[:, :-1] * self.rarity.double(), dim=1)

    def kernel(self, pictures: Tensor, input_ids: Tensor, key_mask: Tensor, image_index: Tensor | None) -> Tensor:
        """k of B questions about N described pictures to the M examples: (B, M)."""
        w = self.words(input_ids, key_mask)
        cosine = F.embedding_bag(
            self.contents, w.T.contiguous(), per_sample_weights=self.weights.double(), mode="sum"
        ).T
        alike = self._alike(pictures)  # (N, R)
        alike = alike if image_index is None else alike.index_select(0, image_index)
        near = (2 * cosine - 2).exp().index_select(1, self.question)  # |w - w_j|^2 = 2 - 2 cos
        return near * (1 + self.picture_weight * alike.index_select(1, self.picture))

    def _alike(self, pictures: Tensor) -> Tensor:
        """s: (N, 720) described to (N, R)."""
        total = 0.0
        parts = (d.double().split(list(DESCRIPTORS.values()), 1) for d in (pictures, self.pictures))
        for x, y, spread in zip(*parts, self.spread.double(), strict=True):
            total = total + (-_squared_distances(x, y) / (WIDTH * spread)).exp()
        seen = pictures.any(1)[:, None] & self.pictures.any(1)
        return torch.where(seen, total / len(DESCRIPTORS), 0.0)

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, key_mask: Tensor, image_index: Tensor | None = None
    ) -> Tensor:
        """As VQAModel's. Returns scores (B, V) float64, about 0..1: an estimate of each answer's soft score."""
        return self.kernel(describe(pixel_values), input_ids, key_mask, image_index) @ self.values.double()

    def recall(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        key_mask: Tensor,
        image_index: Tensor | None,
        answers: Tensor,
        count: int = 3,
    ) -> tuple[Tensor, Tensor]:
        """The remembered questions that speak most for each one's answer (B,).

        Returns:
            What each adds to the answer's score, (B, count), and its tokens (B, count, max_text_len), -1 where none.
        """
        weights = self.kernel(describe(pixel_values), input_ids, key_mask, image_index)
        added = weights * self.values.double().T[answers]  # (B, M)
        total = added.new_zeros(len(added), len(self.asked)).index_add(1, self.question, added)
        most, which = total.topk(min(count, len(self.asked)))
        return most, self.asked[which].long() - 1

    @torch.no_grad()
    def fit(self, pictures: Tensor, image_index: Tensor, input_ids: Tensor, key_mask: Tensor, targets: Tensor) -> None:
        """Remembers the examples: a function of them alone, nothing random.

        Args:
            pictures: (R, 720), described.
            image_index: (M,) which one each question asks about.
            input_ids: (M, L).
            key_mask: (M, L) bool, True = a real token.
            targets: (M, V) soft scores.
        """
        M, device = len(targets), self.values.device
        tokens = torch.where(key_mask, input_ids + 1, 0)[:, : int(key_mask.sum(1).max())].to(device)
        asked, which, times = tokens.unique(dim=0, return_inverse=True, return_counts=True)
        codes = self.codes(asked - 1, asked > 0).sort(1).values  # (U, 3 L + 3)
        new = codes.diff(dim=1, prepend=torch.zeros_like(codes[:, :1])) > 0  # each phrase once a question
        phrases, place = codes[new].unique(return_inverse=True)
        count = torch.zeros_like(phrases).index_add_(0, place, times[:, None].expand_as(codes)[new])
        kept = count.argsort(descending=True, stable=True)[: int((count > 1).sum())][:MAX_PHRASES].sort().values
        self.phrases[: len(kept)] = phrases[kept]
        self.rarity[: len(kept)] = (M / count[kept].double()).log().to(self.rarity)
        place, known = self.look_up(codes)
        weights = torch.where(known & new, self.rarity[place], 0.0).double()
        self.asked[: len(asked), : asked.shape[1]] = asked.int()
        self.contents[: len(asked), : codes.shape[1]] = torch.where(weights > 0, place, 0).int()
        self.weights[: len(asked), : codes.shape[1]] = F.normalize(weights, dim=1).to(self.weights)
        self.pictures[: len(pictures)] = pictures.to(self.pictures)
        seen = self.pictures[self.pictures.any(1)].double()
        if len(seen) > 1:
            medians = [_squared_distances(x, x).median() for x in seen.split(list(DESCRIPTORS.values()), 1)]
            self.spread.copy_(torch.stack(medians).clamp_min(1e-6))
        self.question.copy_(which)
        self.picture.copy_(image_index)
        rows = [
            self.kernel(self.pictures, asked[w] - 1, asked[w] > 0, p)
            for w, p in zip(which.split(512), image_index.to(device).split(512), strict=True)
        ]
        system = torch.cat(rows)  # (M, M)
        system.diagonal().add_(self.ridge)
        self.values.copy_(torch.cholesky_solve(targets.to(system), torch.linalg.cholesky(system)))


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """(N, D) and (R, D) to (N, R)."""
    return ((x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T).clamp_min(0)
