"""CTC: greedy, prefix beam search, joint decoding and forced alignment, each against all alignments."""

import itertools
import math

import pytest
import torch

from mmattn.generate import GenerationConfig, generate
from mmattn.generate.ctc import Fusion, ctc_align, ctc_greedy, ctc_prefix_beam, ctc_prefix_beams
from mmattn.generate.ctc_joint import CTCPrefixScorer, JointState, joint_step
from tests.conftest import refused


def frames(*shape, seed=0, scale=2.0):
    """Random log-probabilities in float64."""
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).log_softmax(-1)


def collapse(path, blank=0):
    return tuple(label for label, _ in itertools.groupby(path) if label != blank)


def every_text(log_p, blank=0):
    """Every possible text and its probability: a sum over all paths of (S, V)."""
    S, V = log_p.shape
    found = {}
    for path in itertools.product(range(V), repeat=S):
        p = math.exp(sum(float(log_p[t, label]) for t, label in enumerate(path)))
        text = collapse(path, blank)
        found[text] = found.get(text, 0.0) + p
    return found


def padded(*clips):
    """Clips (S, V) as one batch and its mask, padded with confident scores that must be ignored."""
    longest = max(map(len, clips))
    log_p = torch.full((len(clips), longest, clips[0].shape[1]), -9.0, dtype=clips[0].dtype)
    log_p[:, :, -1] = 0.0
    mask = torch.zeros(len(clips), longest, dtype=torch.bool)
    for n, clip in enumerate(clips):
        log_p[n, : len(clip)], mask[n, : len(clip)] = clip, True
    return log_p, mask


@pytest.mark.parametrize("blank", [0, 2])
def test_greedy_collapses_best_path(blank):
    clips = [frames(7, 3, seed=n) for n in range(20)] + [frames(1, 3), frames(4, 3)]
    expected = [list(collapse(clip.argmax(-1).tolist(), blank)) for clip in clips]
    assert ctc_greedy(*padded(*clips), blank) == expected
    assert max(map(len, expected)) > 3
    assert ctc_greedy(torch.zeros(2, 0, 3)) == [[], []]


@pytest.mark.parametrize("blank", [0, 3])
def test_wide_prefix_beam_search_is_exact(blank):
    clips = [frames(5, 4, seed=1), frames(3, 4, seed=2), frames(1, 4, seed=3), frames(5, 4, seed=4, scale=8.0)]
    for clip, found in zip(clips, ctc_prefix_beams(*padded(*clips), 500, blank), strict=True):
        expected = every_text(clip, blank)
        assert len(found) == len(expected)
        for ids, score in found:
            assert abs(score - math.log(expected[tuple(ids)])) < 1e-8
        assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)


def test_narrow_prefix_beam_search_finds_best_without_duplicates():
    clips = [frames(6, 3, seed=n) for n in range(12)]
    batch = padded(*clips)
    for clip, best, few in zip(clips, ctc_prefix_beam(*batch, 8), ctc_prefix_beams(*batch, 4), strict=True):
        expected = every_text(clip)
        assert tuple(best[0]) == max(expected, key=expected.__getitem__)
        texts = [tuple(ids) for ids, _ in few]
        assert len(set(texts)) == len(texts)
        assert all(score <= math.log(expected[text]) + 1e-9 for text, (_, score) in zip(texts, few, strict=True))


def test_prefix_beam_search_is_batch_invariant():
    clips = [frames(n, 5, seed=n) for n in (9, 2, 6)]
    together = ctc_prefix_beams(*padded(*clips), 3)
    for clip, found in zip(clips, together, strict=True):
        (alone,) = ctc_prefix_beams(clip[None], None, 3)
        assert [ids for ids, _ in found] == [ids for ids, _ in alone]
        assert all(abs(a - b) < 1e-9 for (_, a), (_, b) in zip(found, alone, strict=True))
    assert ctc_prefix_beam(torch.zeros(1, 0, 3), None, 2) == [([], 0.0)]
    assert ctc_prefix_beam(frames(1, 4, 3), torch.zeros(1, 4, dtype=torch.bool), 2) == [([], 0.0)]
    refused("beams: expected at least 1, found 0", ctc_prefix_beam, frames(1, 4, 3), None, 0)


def test_prefix_beam_search_handles_zero_probabilities():
    log_p = torch.full((1, 4, 3), -math.inf)
    log_p[0, [0, 1, 2, 3], [1, 0, 1, 2]] = 0.0
    assert ctc_prefix_beams(log_p, None, 5) == [[([1, 1, 2], 0.0)]]


def silent_end(clip):
    """Frames (S, V) with one more id of negligible probability: the end token."""
    return torch.cat([clip, torch.full_like(clip[:, :1], -1e3)], dim=1)


@pytest.mark.parametrize("prefix", [(), (1,), (2, 2), (1, 2, 1), (2, 1, 1), (1, 1, 1)])
def test_prefix_scores_equal_sum_over_alignments(prefix):
    """V = 4 with blank 0 and end token 3, which has negligible probability in every frame."""
    clips = [frames(6, 3, seed=5), frames(4, 3, seed=6), frames(6, 3, seed=7, scale=10.0)]
    scorer = CTCPrefixScorer(*padded(*map(silent_end, clips)))
    for token in prefix:
        scorer.advance(torch.full_like(scorer.last, token))
    for clip, row in zip(clips, scorer.scores(3), strict=True):
        texts = every_text(clip)

        def begins(start, texts=texts):
            return sum(p for text, p in texts.items() if text[: len(start)] == start)

        whole = begins(prefix)
        if not whole:  # more than the frames have room for: all scores are equal
            torch.testing.assert_close(row[1:], torch.full_like(row[1:], -math.log(4)))
            continue
        assert row[0] == -math.inf
        for token, p in {1: begins((*prefix, 1)), 2: begins((*prefix, 2)), 3: texts.get(prefix, 0.0)}.items():
            assert abs(float(row[token]) - (math.log(p / whole) if p else -1e4)) < 1e-8
        assert abs(float(row.exp().sum()) - 1.0) < 1e-8  # one of them, or the end


def test_prefix_scores_equal_ctc_loss():
    """Log p of -300 and less, and probabilities that underflow in float32."""
    log_p = frames(2, 150, 20, seed=8, scale=6.0)
    scorer, text = CTCPrefixScorer(log_p), [5, 5, 9, 1, 17, 2, 2, 2, 11, 3]
    total = torch.zeros(2, dtype=torch.float64)
    for n, token in enumerate([*text, 19]):
        total += scorer.scores(19)[:, token]
        if n < len(text):
            scorer.advance(torch.full((2,), token))
    targets = torch.tensor([text, text])
    loss = torch.nn.functional.ctc_loss(log_p.transpose(0, 1), targets, (150, 150), (10, 10), reduction="none")
    assert (total + loss).abs().max() < 1e-8
    assert (loss > 200).all()


class Sentences:
    """The state of a stateless decoder: the sentence index of each row."""

    def __init__(self, rows):
        self.of = torch.arange(rows)

    def select(self, rows):
        self.of = self.of[rows.flatten()]


def written(table, log_p, mask, weight, **options):
    """Joint decoding with a table (B, V, V) of logits by sentence and last id; blank 0, start and end V - 1."""

    def step(ids, state):
        return table[state.of, ids[:, -1]].clone()

    end, state = table.shape[-1] - 1, JointState(Sentences(len(table)), log_p, mask)
    config = GenerationConfig(eos_token_id=end, suppress_tokens=[0], **options)
    return generate(joint_step(step, end, weight), state, torch.full((len(table), 1), end), config)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_joint_beam_search_finds_best_text(weight):
    """Texts of ids 1 and 2, start and end 3: both scores of every text are computed exhaustively."""
    clips = [frames(S, 3, seed=seed) for S, seed in ((5, 9), (3, 10), (4, 11), (5, 12))]
    table = 2 * torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(13), dtype=torch.float64)
    options = {"num_beams": 60, "num_return_sequences": 3, "max_new_tokens": 7, "length_penalty": 0.0}
    found = written(table, *padded(*map(silent_end, clips)), weight, **options)
    for n, clip in enumerate(clips):
        texts, scores = every_text(clip), {}
        for text, p in texts.items():
            path = (3, *text, 3)
            attention = sum(float(table[n].log_softmax(-1)[a, b]) for a, b in itertools.pairwise(path))
            scores[text] = (1 - weight) * attention + weight * math.log(p)
        best = sorted(scores, key=scores.__getitem__, reverse=True)[:3]
        if weight:  # without CTC, texts that are too long for the frames also score well
            assert [tuple(ids) for ids in found.tokens(without=(3,))[n]] == best
        for ids, score in zip(found.tokens(without=(3,))[n], found.scores[n].tolist(), strict=True):
            if tuple(ids) in scores:
                assert abs(score - scores[tuple(ids)]) < 1e-5


def test_joint_beam_search_is_batch_invariant():
    clips = [frames(n, 9, seed=n) for n in (12, 5, 9, 12, 1)]
    log_p, mask = padded(*clips)
    table = torch.randn(5, 9, 9, generator=torch.Generator().manual_seed(1))
    for beams in (1, 4):
        options = {"num_beams": beams, "max_new_tokens": 14}
        together = written(table, log_p, mask, 0.4, **options)
        for n, clip in enumerate(clips):
            alone = written(table[n : n + 1], *padded(clip), 0.4, **options)
            assert alone.tokens()[0] == together.tokens()[n]
            torch.testing.assert_close(alone.scores[0], together.scores[n])
        assert together.lengths[0, 0] > 1


def test_joint_scores_of_impossible_texts_are_finite():
    """A decoder that never ends, over fewer frames than output tokens, and over no frames."""
    log_p, mask = frames(2, 3, 5, seed=3).float(), torch.tensor([[True] * 3, [False] * 3])
    table = torch.zeros(2, 5, 5)
    table[:, :, 4] = -80.0
    for beams in (1, 3):
        found = written(table, log_p, mask, 0.1, num_beams=beams, max_new_tokens=9)
        assert found.scores.isfinite().all()
        assert found.lengths[1] == 1  # no frames, no output
    refused(r"ctc_weight: expected 0..1, found 1\.5", written, table, log_p, mask, 1.5, max_new_tokens=9)


@pytest.mark.parametrize("ids", [[1], [2, 2], [1, 2, 1], [1, 1, 2], [2, 1, 2, 1]])
def test_forced_alignment_is_optimal(ids):
    for seed in range(8):
        log_p = frames(6, 3, seed=seed)
        paths = [path for path in itertools.product(range(3), repeat=6) if list(collapse(path)) == ids]
        best = max(paths, key=lambda path: sum(float(log_p[t, label]) for t, label in enumerate(path)))
        spans = ctc_align(log_p, ids)
        aligned = [0] * 6
        for token, (first, last) in zip(ids, spans, strict=True):
            aligned[first : last + 1] = [token] * (last + 1 - first)
        assert tuple(aligned) == best
        assert all(a[1] < b[0] for a, b in itertools.pairwise(spans))


def test_forced_alignment_edge_cases():
    assert ctc_align(frames(3, 4), []) == []
    assert ctc_align(frames(1, 4), [2]) == [(0, 0)]
    assert ctc_align(frames(3, 4), [2, 2]) == [(0, 0), (2, 2)]
    refused("2 frames have no room for 2 ids with 1 repetitions", ctc_align, frames(2, 4), [2, 2])
    refused("without the blank, 0, found it at position 1", ctc_align, frames(5, 4), [2, 0])


class Chain:
    """A language model of three ids, whose next id depends on the last one."""

    order, bos, eos = 2, 0, 3

    def __init__(self, seed=0):
        self.table = frames(4, 4, seed=seed)

    def log_probs(self, context):
        return self.table[context[-1]]

    def score(self, ids):
        text = [self.bos, *ids, self.eos]
        return sum(float(self.table[a][b]) for a, b in itertools.pairwise(text))


@pytest.mark.parametrize(("weight", "bonus"), [(0.7, 0.0), (1.5, 0.4), (0.0, 0.3)])
def test_wide_beam_search_with_shallow_fusion_is_exact(weight, bonus):
    model = Chain()
    clips = [frames(5, 3, seed=n) for n in range(4)] + [frames(2, 3, seed=9)]
    found = ctc_prefix_beams(*padded(*map(silent_end, clips)), 400, fusion=Fusion(model, weight, bonus))
    for clip, rows in zip(clips, found, strict=True):
        texts = every_text(clip)
        expected = {t: math.log(p) + weight * model.score(t) + bonus * len(t) for t, p in texts.items()}
        likely = [(tuple(ids), score) for ids, score in rows if score > -500]
        assert {ids for ids, _ in likely} == set(expected)
        assert all(abs(score - expected[ids]) < 1e-6 for ids, score in likely)
        assert likely[0][0] == max(expected, key=expected.__getitem__)


def test_shallow_fusion_changes_the_best_hypothesis():
    """Two ids are acoustically ambiguous; the language model determines which of them follow each other."""
    log_p = torch.full((1, 9, 4), -9.0)
    log_p[0, ::2, 0] = 0.0
    log_p[0, 1::2, 1:3] = torch.tensor([0.51, 0.49]).log()
    model = Chain()
    follows = [[0.0, 0.5, 0.5, 0.1], [0, 0.05, 0.9, 0.1], [0, 0.9, 0.05, 0.1], [0, 0, 0, 1]]
    model.table = torch.tensor(follows).add(1e-9).log()
    assert ctc_prefix_beam(log_p, None, 3)[0][0] == [1, 1, 1, 1]
    assert ctc_prefix_beam(log_p, None, 3, fusion=Fusion(model, 1.0))[0][0] in ([1, 2, 1, 2], [2, 1, 2, 1])
    alone = ctc_prefix_beams(log_p, None, 3, fusion=Fusion(model, 0.0))
    for (ids, score), (others, other) in zip(alone[0], ctc_prefix_beams(log_p, None, 3)[0], strict=True):
        assert ids == others
        assert abs(score - other) < 1e-6


def test_ids_outside_the_language_model_are_not_output():
    """A public model may have more scores than its tokenizer has characters."""
    log_p = torch.cat([frames(1, 6, 3, seed=2), torch.full((1, 6, 3), -20.0, dtype=torch.float64)], -1)
    (wide,) = ctc_prefix_beams(log_p, None, 50, fusion=Fusion(Chain(), 0.7, 0.1))
    narrow = torch.cat([log_p[:, :, :3], torch.full((1, 6, 1), -20.0, dtype=torch.float64)], -1)
    (known,) = ctc_prefix_beams(narrow, None, 50, fusion=Fusion(Chain(), 0.7, 0.1))
    assert [ids for ids, _ in wide[:9]] == [ids for ids, _ in known[:9]]
