"""Random causal language models of transformers, and what makes them exact in float64."""

import contextlib
from typing import Any
from unittest import mock

import torch
import transformers
from public import shape
from public_seq2seq import sharpened

V = 40
FAMILIES = ("gpt2", "llama", "mistral", "qwen2", "qwen3")
CLASSES = {"gpt2": "GPT2", "llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}


def norm(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


def angles(self: Any, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As theirs, in the type of x, with rates from the configuration."""
    given = self.config.rope_parameters
    size = getattr(self.config, "head_dim", None) or self.config.hidden_size // self.config.num_attention_heads
    rates = given["rope_theta"] ** (-torch.arange(0, size, 2, dtype=x.dtype) / size)
    kind, factor = given["rope_type"], 1.0
    if kind == "linear":
        rates = rates / given["factor"]
    elif kind == "llama3":
        old, low, high = (given[k] for k in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"))
        waves = 2 * torch.pi / rates
        smooth = (old / waves - low) / (high - low)
        between = (1 - smooth) * rates / given["factor"] + smooth * rates
        rates = torch.where(waves > old / low, rates / given["factor"], torch.where(waves < old / high, rates, between))
    elif kind == "yarn":
        rates, factor = in_float64(self.config)
    turned = torch.cat([position_ids[..., None].to(x.dtype) * rates] * 2, dim=-1)
    return factor * turned.cos(), factor * turned.sin()


def in_float64(config: Any) -> tuple[torch.Tensor, float]:
    """Rates and attention factor of YaRN by transformers' own function, which computes them in single precision."""
    double = mock.patch.object(torch, "float", torch.float64), mock.patch.object(torch, "float32", torch.float64)
    with double[0], double[1]:
        return transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))


@contextlib.contextmanager
def exactly() -> Any:
    """transformers computes norms and angles in single precision, which exceeds a tolerance of 1e-8."""
    with contextlib.ExitStack() as stack:
        for family, name in CLASSES.items():
            module = getattr(transformers.models, family)
            code = getattr(module, f"modeling_{family}")
            if family != "gpt2":
                stack.enter_context(mock.patch.object(getattr(code, f"{name}RMSNorm"), "forward", norm))
                stack.enter_context(mock.patch.object(getattr(code, f"{name}RotaryEmbedding"), "forward", angles))
        yield


def model(family: str, seed: int, **config: Any) -> tuple[Any, Any]:
    """A random model of transformers, and the generator for more."""
    draw, sizes = shape(seed)
    kind = getattr(transformers, f"{CLASSES[family]}Config")
    common = {"vocab_size": V, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if family == "gpt2":
        options: dict[str, Any] = {
            "n_embd": sizes["hidden_size"],
            "n_head": sizes["num_attention_heads"],
            "n_layer": sizes["num_hidden_layers"],
            "n_inner": draw.choice([None, sizes["intermediate_size"]]),
            "n_positions": draw.choice([30, 40]),
            "activation_function": sizes["hidden_act"],
            "layer_norm_epsilon": draw.choice([1e-5, 1e-3]),
            "tie_word_embeddings": draw.random() < 0.7,
        }
    else:
        heads = sizes["num_attention_heads"]
        options = {
            **sizes,
            "hidden_size": heads * draw.choice([2, 4, 8]),
            "num_key_value_heads": draw.choice([n for n in range(1, heads + 1) if heads % n == 0]),
            "max_position_embeddings": 64,
            "rms_norm_eps": draw.choice([1e-6, 1e-3]),
            "tie_word_embeddings": draw.random() < 0.4,
            "rope_parameters": {"rope_type": "default", "rope_theta": draw.choice([100.0, 10000.0])},
        }
        rope = draw.choice(["default", "linear", "llama3", "yarn"])
        if family == "llama" and rope != "default":
            options["rope_parameters"] |= {"rope_type": rope, "factor": draw.choice([2.0, 8.0])}
            if rope == "llama3":
                old = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
                options["rope_parameters"] |= old
            elif rope == "yarn":
                options["rope_parameters"] |= {"original_max_position_embeddings": draw.choice([16, 64])}
                options["rope_parameters"] |= draw.choice([{}, {"attention_factor": 0.8}, {"beta_fast": 8.0}])
        if family == "llama":
            options |= {"attention_bias": draw.random() < 0.3, "mlp_bias": draw.random() < 0.3}
        if family != "qwen2" and draw.random() < 0.5:
            options["head_dim"] = draw.choice([2, 4, 6])
        elif family == "qwen3":
            options["head_dim"] = 4
        if family == "mistral":
            options["sliding_window"] = draw.choice([None, 3, 5])
        if family in ("qwen2", "qwen3") and draw.random() < 0.5:
            options |= {"use_sliding_window": True, "sliding_window": draw.choice([2, 4]), "max_window_layers": 1}
    options |= common | config
    theirs = getattr(transformers, f"{CLASSES[family]}{'LMHeadModel' if family == 'gpt2' else 'ForCausalLM'}")
    return draw, sharpened(theirs(kind(**options)), seed, gain=1.5)
