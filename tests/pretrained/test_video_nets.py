"""Random TimeSformers and VideoMAEs: ours equal transformers' in every layer, and in the masked loss."""

import pytest
import torch
from public import SHAPES, TOLERANCE, assert_refused, difference, disturbed, load, rewrite, save, shape

from mmattn.backbones.timesformer import TimeSformer, resize_times
from mmattn.backbones.videomae import TubeletTransformer, VideoMAE, tube_mask
from mmattn.pretrained.keymap import load_into
from mmattn.pretrained.videomae import convert_videomae_pretraining
from tests.conftest import refused, slow_but_first

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity


def video_sizes(draw, sizes):
    """Sizes common to both families; the frames are square, as transformers needs them."""
    patch = draw.choice([2, 3, 4])
    return sizes | {
        "patch_size": patch,
        "image_size": patch * draw.choice([1, 2, 3]),
        "num_channels": draw.choice([1, 3]),
        "layer_norm_eps": draw.choice([1e-6, 1e-3]),
        "qkv_bias": draw.random() < 0.7,
    }


def videos(config, rows=2):
    sides = (config.image_size, config.image_size)
    return torch.randn(rows, config.num_frames, config.num_channels, *sides, dtype=torch.float64)


def timesformer(seed, head="Model", **more):
    draw, sizes = shape(seed)
    config = transformers.TimesformerConfig(**video_sizes(draw, sizes), num_frames=draw.choice([1, 2, 5]), **more)
    return disturbed(getattr(transformers, f"Timesformer{head}")(config), seed)


@pytest.mark.parametrize("seed", slow_but_first(SHAPES))
def test_timesformer_parity(seed, tmp_path):
    whole = timesformer(seed, "ForVideoClassification" if seed % 2 else "Model")
    save(whole, tmp_path)
    ours, pixels = load(tmp_path), videos(whole.config)
    assert isinstance(ours, TimeSformer)
    with torch.no_grad():
        theirs = whole.base_model(pixels, output_hidden_states=True)
        T = pixels.shape[1]
        found = [torch.cat([cls, x.transpose(1, 2).flatten(1, 2)], 1) for x, cls in ours.hidden_states(pixels)]
        assert difference(found, theirs.hidden_states) <= TOLERANCE
        states, pooled = ours(pixels)
        last = theirs.last_hidden_state[:, 1:].unflatten(1, (-1, T)).transpose(1, 2)
        assert difference([states, pooled], [last, theirs.last_hidden_state[:, 0]]) <= TOLERANCE


def test_timesformer_of_other_sizes(tmp_path):
    """Positions in space and time are resized; other kinds of attention are refused."""
    save(timesformer(3), tmp_path)
    plain, ours = load(tmp_path), load(tmp_path, resize=True)
    own = plain.times.shape[0], plain.grid_size
    patch = plain.patches.stride
    channels = plain.patches.proj.in_channels
    pixels = torch.randn(1, own[0] + 3, channels, 3 * patch, 2 * patch, dtype=torch.float64)
    assert ours(pixels).states.shape[1:3] == (own[0] + 3, 6)
    refused(f"{own[0] + 3} frames of 3 x 2 patches, where the positions are for {own[0]}", plain, pixels)
    same = torch.randn(1, own[0], channels, own[1][0] * patch, own[1][1] * patch, dtype=torch.float64)
    with torch.no_grad():
        assert difference(list(ours(same)), list(plain(same))) == 0
    times = torch.arange(4.0)[:, None]
    assert resize_times(times, 8)[:, 0].tolist() == [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]
    assert_refused(tmp_path, "only 'divided_space_time' is supported", attention_type="joint_space_time")


def videomae(seed, head):
    draw, sizes = shape(seed)
    sizes = video_sizes(draw, sizes)
    tubelet = draw.choice([1, 2, 3])
    sizes |= {"tubelet_size": tubelet, "num_frames": tubelet * draw.choice([1, 2]) + (head == "Model" and tubelet > 1)}
    sizes["hidden_size"] += sizes["hidden_size"] % 2 * sizes["num_attention_heads"]  # sinusoids come in pairs
    heads = draw.choice([1, 2])
    sizes |= {"decoder_num_attention_heads": heads, "decoder_hidden_size": heads * 4}
    sizes |= {"decoder_num_hidden_layers": draw.choice([1, 2]), "decoder_intermediate_size": draw.choice([3, 8])}
    sizes |= {"use_mean_pooling": draw.random() < 0.5, "norm_pix_loss": draw.random() < 0.5}
    if head == "ForPreTraining":
        sizes |= {"image_size": 2 * sizes["patch_size"], "num_channels": 3}  # pixels are standardized over a patch
    config = transformers.VideoMAEConfig(**sizes)
    whole = disturbed(getattr(transformers, f"VideoMAE{head}")(config), seed)
    for module in whole.modules():  # the tables are made in float32
        table = getattr(module, "position_embeddings", None)
        if table is not None:
            module.position_embeddings = exact(table)
    return whole


def exact(table):
    """Sinusoids in float64, as transformers computes them before it rounds to float32."""
    places = torch.arange(table.shape[1], dtype=torch.float64)[:, None]
    columns = torch.arange(table.shape[2])
    angles = places / 10000 ** (2 * (columns // 2).double() / table.shape[2])
    exact = torch.where(columns % 2 == 0, angles.sin(), angles.cos())[None]
    assert (exact - table).abs().max() < 1e-6
    return exact


@pytest.mark.parametrize("seed", slow_but_first(SHAPES))
def test_videomae_parity(seed, tmp_path):
    """The encoder alone, of a model of any kind; the pooled vector is that of the classifier."""
    head = ("Model", "ForVideoClassification")[seed % 2]
    whole = videomae(seed, head)
    save(whole, tmp_path)
    ours, pixels = load(tmp_path), videos(whole.config)
    with torch.no_grad():
        theirs = whole.base_model(pixels, output_hidden_states=True)
        states, pooled = ours(pixels)
        assert difference(ours.hidden_states(pixels), theirs.hidden_states) <= TOLERANCE
        assert difference([states.flatten(1, 2)], [theirs.last_hidden_state]) <= TOLERANCE
        if seed % 2:
            assert difference([whole.classifier(pooled)], [whole(pixels).logits]) <= TOLERANCE


@pytest.mark.parametrize("seed", slow_but_first(SHAPES))
def test_videomae_masked_loss(seed, tmp_path):
    """The whole autoencoder: predicted pixels, loss, and its gradient."""
    whole = videomae(seed, "ForPreTraining")
    converted = convert_videomae_pretraining(whole.config.to_dict(), whole.state_dict())
    ours, pixels = VideoMAE(**converted.keywords).double().eval(), videos(whole.config, 3)
    load_into(ours, converted)
    mask = tube_mask(3, ours.encoder.grid_size, 0.5, torch.Generator().manual_seed(seed))
    theirs = whole(pixels, bool_masked_pos=mask)
    loss = ours.loss(pixels, mask)
    assert difference([ours(pixels, mask), loss], [theirs.logits, theirs.loss]) <= TOLERANCE
    loss.backward()
    theirs.loss.backward()
    gradients = [ours.encoder.patches.proj.weight.grad, ours.decoder.mask_token.grad]
    wanted = [whole.videomae.embeddings.patch_embeddings.projection.weight.grad, whole.mask_token.grad]
    assert difference(gradients, wanted) <= TOLERANCE


def test_videomae_files(tmp_path):
    """Published files name the biases otherwise, and those for pretraining have a decoder, which is ignored."""
    whole = videomae(1, "ForPreTraining")
    save(whole, tmp_path)
    state = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    for name in [name for name in state if name.endswith(("query.bias", "value.bias"))]:
        short = name.replace("query.bias", "q_bias").replace("value.bias", "v_bias")
        state[short] = state.pop(name)
    pixels = videos(whole.config)
    expected = load(tmp_path)(pixels).states
    rewrite(tmp_path, state)
    ours = load(tmp_path)
    assert isinstance(ours, TubeletTransformer)
    assert torch.equal(ours(pixels).states, expected)
    refused("no decoder", convert_videomae_pretraining, whole.config.to_dict(), {})
    more = load(tmp_path, resize=True)
    assert torch.equal(more(pixels).states, expected)
    frames, side = 2 * whole.config.num_frames, 3 * whole.config.patch_size
    other = torch.randn(1, frames, 3, side, side, dtype=torch.float64)
    assert more(other).states.shape[2] == 9
    refused("tubelets, where the positions are for", ours, other)


def test_tube_masks():
    mask = tube_mask(4, (3, 2, 5), 0.9)
    assert mask.shape == (4, 30)
    assert (mask.view(4, 3, 10).sum(2) == 9).all()
    assert torch.equal(mask.view(4, 3, 10)[:, 0], mask.view(4, 3, 10)[:, 2]), "the same places in all frames"
    assert len({tuple(row.tolist()) for row in mask}) > 1
    refused("at least two patches", tube_mask, 1, (4, 1, 1))
