"""Prompts of several lengths, padded on the left, for a decoder-only model."""

import pytest
import torch
from torch import nn

from mmattn import Encoder, LearnedPositions, T5Bias
from mmattn.generate import CachedState, GenerationConfig, generate
from tests.conftest import refused, slow_but_first

V, E, HEADS, LAYERS, EOS, PAD = 40, 16, 4, 2, 1, 1
LENGTHS = (6, 1, 4, 3)
SEARCHES = {
    "greedy": {},
    "beam 3": {"num_beams": 3, "length_penalty": 0.7, "num_return_sequences": 2},
    "greedy, penalized": {"repetition_penalty": 1.5},
    "beam 3, penalized": {"num_beams": 3, "repetition_penalty": 1.3},
    "no repeat": {"no_repeat_ngram_size": 2},
    "beam 2, no repeat": {"num_beams": 2, "no_repeat_ngram_size": 3},
    "bad words": {"bad_words_ids": [[5, 6], [7]], "min_new_tokens": 4},
}


class LanguageModel(nn.Module):
    """A decoder-only model: learned positions, rotary ones, or a position bias."""

    def __init__(self, positions="learned", **options):
        super().__init__()
        self.embedding = nn.Embedding(V, E)
        self.positions = LearnedPositions(32, E) if positions == "learned" else None
        bias = T5Bias(HEADS, num_buckets=8, max_distance=16, bidirectional=False) if positions == "bias" else None
        options |= {"rotary": positions == "rotary", "position_bias": bias, "needs": ("causal",)}
        self.body = Encoder(E, LAYERS, HEADS, activation="gelu_tanh", **options)
        self.output = nn.Linear(E, V, bias=False)

    def step(self, ids, state):
        x = self.embedding(ids)
        if self.positions is not None:
            x = self.positions(x, state.offset)
        x = self.body(x, state.mask(ids.shape[1]), state.caches)
        state.length += ids.shape[1]
        return self.output(x[:, -1])

    def write(self, prompt, prompt_mask=None, **options):
        with torch.inference_mode():
            state = CachedState(self.body.make_cache(len(prompt)), prompt_mask=prompt_mask)
        options = {"eos_token_id": EOS, "pad_token_id": PAD, "max_new_tokens": 8, "min_new_tokens": 3} | options
        config = GenerationConfig(**options)
        return generate(self.step, state, prompt, config, prompt_mask=prompt_mask)


def vary(model):
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.dim() == 1 else 0.8))
    return model.double().eval()


@pytest.fixture(scope="module")
def prompts():
    mask = torch.arange(6) >= 6 - torch.tensor(LENGTHS)[:, None]
    ids = torch.randint(2, V, (4, 6), generator=torch.Generator().manual_seed(2))
    return ids.masked_fill(~mask, PAD), mask


@pytest.mark.parametrize("name", slow_but_first(SEARCHES, lambda name: "beam" in name))
@pytest.mark.parametrize("positions", ["learned", "rotary", "bias"])
def test_batched_prompts_equal_single(prompts, name, positions):
    model = vary(LanguageModel(positions))
    ids, mask = prompts
    together = model.write(ids, mask, **SEARCHES[name])
    for b, length in enumerate(LENGTHS):
        alone = model.write(ids[b : b + 1, -length:], **SEARCHES[name])
        assert alone.tokens()[0] == together.tokens()[b]
        assert torch.allclose(alone.scores[0], together.scores[b], atol=1e-9, rtol=0)
    assert len({tuple(texts[0]) for texts in together.tokens()}) == len(ids)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["greedy", "beam 3", "no repeat", "bad words"])
def test_same_ids_as_transformers(prompts, name):
    """A random GPT-2: pre-norm, learned positions, its three projections fused."""
    pytest.importorskip("transformers")
    from transformers import GenerationConfig as Theirs, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(4)
    shape = {"vocab_size": V, "n_embd": E, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 32}
    theirs = GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=EOS, eos_token_id=EOS, tie_word_embeddings=False))
    theirs = vary(theirs)
    model = vary(LanguageModel())
    state = theirs.state_dict()
    found = {"embedding.weight": state["transformer.wte.weight"], "positions.weight": state["transformer.wpe.weight"]}
    found["output.weight"] = state["lm_head.weight"]
    table = {"ln_1": "attention_residual.norm", "ln_2": "ffn_residual.norm", "attn.c_proj": "attention.out_proj"}
    table |= {"mlp.c_fc": "ffn.fc1", "mlp.c_proj": "ffn.fc2"}
    for kind in ("weight", "bias"):
        found[f"body.norm.{kind}"] = state[f"transformer.ln_f.{kind}"]
        for n in range(LAYERS):
            fused = state[f"transformer.h.{n}.attn.c_attn.{kind}"].chunk(3, dim=-1)
            for name_, part in zip("qkv", fused, strict=True):
                found[f"body.layers.{n}.attention.{name_}_proj.{kind}"] = part.mT if kind == "weight" else part
            for old, new in table.items():
                value = state[f"transformer.h.{n}.{old}.{kind}"]
                found[f"body.layers.{n}.{new}.{kind}"] = value.mT if value.dim() == 2 else value
    model.load_state_dict(found)
    ids, mask = prompts
    options = {"max_new_tokens": 8, "min_new_tokens": 3, "eos_token_id": EOS, "pad_token_id": PAD}
    options |= {"num_beams": 1, "do_sample": False} | SEARCHES[name]
    expected = theirs.generate(ids, attention_mask=mask.long(), generation_config=Theirs(**options))[:, 6:].tolist()
    tokens = [best for texts in model.write(ids, mask, **SEARCHES[name]).tokens() for best in texts]
    for ours, row in zip(tokens, expected, strict=True):
        assert [*ours, *[PAD] * 8][: len(row)] == row
    assert len(set(map(tuple, expected))) >= len(ids)


def test_masks_must_be_left_padded(prompts):
    ids, mask = prompts
    model = vary(LanguageModel())
    refused("padded at the left, before their first token: row 1 is not", model.write, ids, mask.flip(1))
    refused(r"prompt_mask must be \(4, 6\) torch.bool", model.write, ids, mask.long())
