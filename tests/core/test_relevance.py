"""Relevancy maps against the paper's equations as plain loops, and on a task with known evidence."""

import pytest
import torch
from naive_relevance import Naive, fused
from torch import nn

from mmattn import CoAttention, Decoder, Encoder, Mask, MultiHeadAttention, MultimodalFusionBlock, capture, relevance
from mmattn.explain import Step, rollout
from mmattn.fusion import AttentionPooling
from tests.conftest import learn, refused

E, HEADS = 8, 2


def gradients(model, run):
    """For each path the list of (weights, gradient) per call, by autograd."""
    with capture(model) as maps:
        score = run()
    found = {}
    for path, calls in maps.items():
        found[path] = [(w.detach(), torch.autograd.grad(score.sum(), w, retain_graph=True)[0]) for w in calls]
    return found


class Seq2Seq(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = Encoder(E, 2, HEADS, ffn_dim=12)
        self.decoder = Decoder(E, 2, HEADS, ffn_dim=12)

    def forward(self, x, y, y_mask=None):
        memory = self.encoder(y, None if y_mask is None else Mask(y_mask))
        return self.decoder(x, memory, Mask(is_causal=True), None if y_mask is None else Mask(y_mask))


class Blocks(nn.Module):
    """Latents that attend to an image that no attention produced."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(MultimodalFusionBlock(E, HEADS, ffn_dim=12) for _ in range(2))

    def forward(self, x, y):
        for block in self.blocks:
            x = block(x, y)
        return x


class Three(nn.Module):
    """A text and an image, each encoded; latents attend to both."""

    def __init__(self):
        super().__init__()
        self.text, self.image = Encoder(E, 1, HEADS, ffn_dim=12), Encoder(E, 1, HEADS, ffn_dim=12)
        self.read = AttentionPooling(E, HEADS, num_queries=3)
        self.fuse = MultimodalFusionBlock(E, HEADS, ffn_dim=12)

    def forward(self, x, y):
        text = self.text(x)
        z = self.read(text) + text.mean(1, keepdim=True)  # a path without attention
        return self.fuse(z, self.image(y))


def naive_encoder(A, L, S):
    naive = Naive(x=L)
    for i in range(2):
        naive.within("x", A(f"layers.{i}.attention"))
    return {("layers.0.attention", "layers.0.attention"): naive.R["x"]["x"]}


def naive_seq2seq(A, L, S):
    naive = Naive(x=L, y=S)
    for i in range(2):
        naive.within("y", A(f"encoder.layers.{i}.attention"))
    for i in range(2):
        naive.within("x", A(f"decoder.layers.{i}.self_attention"))
        naive.across(("x", "y", A(f"decoder.layers.{i}.cross_attention")))
    x, y = "decoder.layers.0.self_attention", "encoder.layers.0.attention"
    return {(x, x): naive.R["x"]["x"], (x, y): naive.R["x"]["y"], (y, y): naive.R["y"]["y"]}


def naive_co_attention(A, L, S):
    naive = Naive(x=L, y=S)
    for i in range(2):
        at = f"layers.{i}."
        naive.across(("x", "y", A(at + "exchange.a_to_b")), ("y", "x", A(at + "exchange.b_to_a")))
        naive.within("x", A(at + "layer_a.attention"))
        naive.within("y", A(at + "layer_b.attention"))
    names = {"x": "layers.0.exchange.a_to_b", "y": "layers.0.exchange.a_to_b.key"}
    return {(names[s], names[q]): naive.R[s][q] for s in "xy" for q in "xy"}


def naive_blocks(A, L, S):
    naive = Naive(x=L, y=S)
    for i in range(2):
        naive.within("x", A(f"blocks.{i}.self_attention"))
        naive.across(("x", "y", A(f"blocks.{i}.cross_attention")))
    x, y = "blocks.0.self_attention", "blocks.0.cross_attention.key"
    return {(x, x): naive.R["x"]["x"], (x, y): naive.R["x"]["y"]}


def naive_three(A, L, S):
    naive = Naive(x=L, y=S, z=3)
    naive.within("x", A("text.layers.0.attention"))
    naive.across(("z", "x", A("read.attention")))
    naive.within("y", A("image.layers.0.attention"))
    naive.within("z", A("fuse.self_attention"))
    naive.across(("z", "y", A("fuse.cross_attention")))
    names = {"x": "text.layers.0.attention", "y": "image.layers.0.attention", "z": "read.attention"}
    return {(names[s], names[q]): naive.R[s][q] for s, q in ("xx", "yy", "zz", "zx", "zy")}


MODELS = {
    "encoder": (lambda: Encoder(E, 2, HEADS, ffn_dim=12), lambda m, x, y: m(x), naive_encoder),
    "encoder, decoder": (Seq2Seq, lambda m, x, y: m(x, y), naive_seq2seq),
    "co-attention": (
        lambda: CoAttention(E, 2, HEADS, ffn_dim=12),
        lambda m, x, y: torch.cat(m(x, y), 1),
        naive_co_attention,
    ),
    "fusion blocks": (Blocks, lambda m, x, y: m(x, y), naive_blocks),
    "three sequences": (Three, lambda m, x, y: m(x, y), naive_three),
}


def made(name, L, S, batch=2):
    torch.manual_seed(0)
    build, call, naive = MODELS[name]
    model = build().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x, y = torch.randn(batch, L, E, dtype=torch.float64), torch.randn(batch, S, E, dtype=torch.float64)
    readout = torch.randn(E, dtype=torch.float64)
    return model, lambda: (call(model, x, y) @ readout).tanh().sum(1), naive


@pytest.mark.parametrize(("L", "S"), [(3, 5), (4, 4), (1, 2)])
@pytest.mark.parametrize("name", MODELS)
def test_equals_the_equations(name, L, S):
    model, run, naive = made(name, L, S)
    ours, found = relevance(model, run), gradients(model, run)
    for n in range(2):
        expected = naive(lambda path, n=n: fused(*(t[n] for t in found[path][0])), L, S)
        assert set(ours) == set(expected)
        for names, R in expected.items():
            torch.testing.assert_close(ours[names][n], torch.tensor(R, dtype=torch.float64), rtol=1e-8, atol=1e-8)


def test_gradients_equal_finite_differences():
    """One cross- and one self-attention; the gradient by finite differences of each weight."""
    model, run, _ = made("fusion blocks", 2, 3, batch=1)
    kernels = {"blocks.0.self_attention": 2, "blocks.0.cross_attention": 3}
    found = gradients(model, run)
    for path, S in kernels.items():
        kernel = model.get_submodule(path).kernel
        plain = kernel.weights
        for place in torch.cartesian_prod(torch.arange(HEADS), torch.arange(2), torch.arange(S)).tolist():
            scores = []
            for step in (1e-5, -1e-5):

                def moved(*given, plain=plain, place=place, step=step):
                    weights = plain(*given).clone()
                    weights[(0, *place)] += step
                    return weights

                kernel.weights = moved
                with capture(model):
                    scores.append(float(run().detach()))
            kernel.weights = plain
            expected = (scores[0] - scores[1]) / 2e-5
            assert found[path][0][1][(0, *place)] == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_plan_names_the_sequences():
    model, run, _ = made("co-attention", 4, 4)
    plan, derived = [], relevance(model, run)
    for i in range(2):
        at, n = f"layers.{i}.", len(plan)
        reads = (n - 2, n - 1) if n else (-1, -1)  # both attend to the other's previous state
        plan += [Step(at + "exchange.a_to_b", "text", "image", reads)]
        plan += [Step(at + "exchange.b_to_a", "image", "text", reads[::-1])]
        plan += [Step(at + "layer_a.attention", "text", "text"), Step(at + "layer_b.attention", "image", "image")]
    named = relevance(model, run, plan)
    renamed = {"text": "layers.0.exchange.a_to_b", "image": "layers.0.exchange.a_to_b.key"}
    assert set(named) == {(s, q) for s in renamed for q in renamed}
    for (s, q), R in named.items():
        torch.testing.assert_close(R, derived[renamed[s], renamed[q]])
    in_turn = relevance(model, run, [step._replace(reads=None) for step in plan])
    assert not torch.allclose(in_turn["image", "text"], named["image", "text"])


def test_single_sample_equals_padded_batch():
    torch.manual_seed(0)
    model = Seq2Seq().double().eval()
    x, y = torch.randn(2, 4, E).double(), torch.randn(2, 6, E).double()
    y[1, 3:] = 100.0
    mask = torch.arange(6) < torch.tensor([[6], [3]])
    both = relevance(model, lambda: model(x, y, mask)[:, 1, 0])
    alone = relevance(model, lambda: model(x[1:], y[1:, :3])[:, 1, 0])
    source = ("decoder.layers.0.self_attention", "encoder.layers.0.attention")
    torch.testing.assert_close(both[source][1:, :, :3], alone[source])
    assert both[source][1, :, 3:].abs().max() == 0
    assert both[source][0].min() >= 0
    assert both[source][0, 1].max() > 0
    own = both[source[0], source[0]]
    assert own[0].triu(1).abs().max() == 0  # causal


def test_zero_values_have_zero_relevance():
    """By construction the output depends on one token only, regardless of the other weights."""
    torch.manual_seed(0)
    attention = MultiHeadAttention(E, HEADS).eval()
    x, query = torch.randn(4, 6, E), torch.randn(4, 1, E)
    with torch.no_grad():
        attention.v_proj.weight[:, 0], attention.v_proj.weight[:, 1:] = 1.0, 0.0  # values depend on channel 0 only
        attention.out_proj.weight.abs_()
        x[:, :, 0] = 0.0
        x[:, 2, 0] = 3.0
    R = relevance(attention, lambda: attention(query, x).sum((1, 2)))["", "key"]  # (4, 1, 6)
    assert R[:, 0, 2].min() > 0
    assert R[:, 0, [0, 1, 3, 4, 5]].abs().max() == 0


class Pointer(nn.Module):
    """Classifies the sequence by its one marked token."""

    def __init__(self, classes=4):
        super().__init__()
        self.classes = classes
        self.embedding = nn.Embedding(2 * classes, 16)
        self.encoder, self.read = Encoder(16, 2, 2, ffn_dim=32), AttentionPooling(16, 2)
        self.out = nn.Linear(16, classes)

    def forward(self, ids, mask):
        tokens = self.encoder(self.embedding(ids), Mask(mask))
        return self.out(self.read(tokens, Mask(mask)).squeeze(1))

    def draw(self, batch, L=9):
        mask = torch.arange(L) < torch.randint(3, L + 1, (batch, 1))
        ids, marked = torch.randint(self.classes, (batch, L)), (torch.rand(batch, L) * mask).argmax(1)
        ids[torch.arange(batch), marked] += self.classes
        return ids, mask, marked, ids[torch.arange(batch), marked] - self.classes


def test_relevance_and_rollout_peak_at_the_answer():
    torch.manual_seed(0)
    model = Pointer()

    def loss():
        ids, mask, _, label = model.draw(64)
        return nn.functional.cross_entropy(model(ids, mask), label)

    learn(torch.optim.Adam(model.parameters(), lr=5e-3), 150, loss)
    model.eval().requires_grad_(False)  # as in a shipped model
    ids, mask, marked, label = model.draw(300)

    def run():
        logits = model(ids, mask)
        assert (logits.argmax(-1) == label).float().mean() > 0.99
        return (logits - logits.mean(-1, keepdim=True)).gather(1, label[:, None]).squeeze(1)

    found = relevance(model, run)["read.attention", "encoder.layers.0.attention"][:, 0]  # (B, 9)
    with capture(model) as maps:
        model(ids, mask)
    read = maps["read.attention"][0].mean(1)  # (B, 1, 9)
    rolled = (read @ rollout(maps, key_mask=mask, within="encoder"))[:, 0]

    def hits(peaks):
        return float((peaks.argmax(-1) == marked).float().mean())

    assert hits(found) > 0.85
    assert hits(rolled) > 0.95
    assert hits(read[:, 0]) < hits(found) - 0.1  # the attended tokens had already mixed with others
    for peaks in (found, rolled):
        assert peaks.masked_fill(mask, 0.0).abs().max() == 0


def test_parameters_are_unchanged():
    model, run, _ = made("encoder", 3, 3)
    free = relevance(model, run)
    assert all(parameter.grad is None for parameter in model.parameters())
    model.requires_grad_(False)
    with torch.no_grad():
        frozen = relevance(model, run)
    for names, R in free.items():
        torch.testing.assert_close(frozen[names], R)
        assert not R.requires_grad
    assert sum(len(module._forward_hooks) for module in model.modules()) == 0


def test_hard_attention_has_relevance():
    torch.manual_seed(0)
    attention = MultiHeadAttention(E, HEADS, kind="monotonic", options={"initial_offset": 0.0}).eval()
    x, y = torch.randn(2, 3, E), torch.randn(2, 5, E)
    found = relevance(attention, lambda: attention(x, y).sum((1, 2)))
    assert set(found) == {("", ""), ("", "key")}
    assert found["", "key"].max() > 0


def test_compiled_model():
    model, run, _ = made("encoder", 3, 3)
    plain = relevance(model, run)
    compiled = torch.compile(model, backend="eager")
    x = torch.randn(2, 3, E, dtype=torch.float64)
    compiled(x)
    found = relevance(compiled, lambda: compiled(x).sum((1, 2)))
    assert set(found) == set(plain)
    torch._dynamo.reset()


def test_concatenated_sequences_form_a_new_sequence():
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": Encoder(E, 1, HEADS), "b": Encoder(E, 1, HEADS), "both": Encoder(E, 2, HEADS)})
    x, y = torch.randn(2, 3, E), torch.randn(2, 4, E)
    found = relevance(model, lambda: model["both"](torch.cat([model["a"](x), model["b"](y)], 1)).tanh().sum((1, 2)))
    shapes = {s: tuple(R.shape) for (s, q), R in found.items() if s == q}
    assert shapes == {f"{name}.layers.0.attention": (2, n, n) for name, n in (("a", 3), ("b", 4), ("both", 7))}


def test_shared_encoder_over_two_sequences():
    torch.manual_seed(0)
    model = Encoder(E, 1, HEADS)
    x, y = torch.randn(2, 3, E), torch.randn(2, 3, E)
    found = relevance(model, lambda: (model(x) * model(y)).sum((1, 2)))
    assert {s for s, _ in found} == {"layers.0.attention", "layers.0.attention (2)"}


def test_invalid_arguments():
    one, x = Encoder(E, 1, HEADS), torch.randn(4, 3, E)
    two = nn.ModuleList([Encoder(E, 1, HEADS), Encoder(E, 1, HEADS)])
    step = Step("layers.0.attention", "x", "x")
    twice, itself = [step, step], [step._replace(reads=(0, 0))]
    steps = [Step(f"{i}.layers.0.attention", "x", "x") for i in range(2)]
    for message, model, run, *plan in (
        ("no attention ran", one, lambda: x.sum()),
        ("the score has no gradient", one, lambda: one(x).detach().sum()),
        ("does not depend on any attention", one, lambda: one(x).detach().sum() + x.clone().requires_grad_().sum()),
        (r"call 2 of 'layers.0.attention' did not happen; captured were: .* \(1\)", one, lambda: one(x).sum(), twice),
        ("cannot read 'x' after step 0", one, lambda: one(x).sum(), itself),
        ("ran on a batch of 3, '0.layers.0.attention' on 4", two, lambda: two[1](two[0](x).transpose(0, 1)).sum()),
        ("sees 4 tokens of 'x', which had 3", two, lambda: two[1](torch.cat([two[0](x), x[:, :1]], 1)).sum(), steps),
    ):
        refused(message, relevance, model, run, *plan)


def test_bare_kernel_needs_a_plan():
    kernel, x = MultiHeadAttention(E, HEADS).kernel, torch.randn(4, 1, 3, E)
    bare = nn.ModuleDict({"bare": nn.ModuleDict({"kernel": kernel})})
    refused("'bare' is no MultiHeadAttention", relevance, bare, lambda: kernel(x, x, x).sum())
    found = relevance(bare, lambda: kernel(x, x, x).square().sum(), [Step("bare", "x", "x")])
    assert found["x", "x"].shape == (4, 3, 3)
