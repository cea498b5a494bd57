"""Random models of the BERT family: ours equal transformers' in every layer, with padding in the batch."""

import pytest
import torch
from public import (
    SHAPES,
    TOLERANCE,
    assert_parity,
    assert_refused,
    difference,
    disturbed,
    load,
    rewrite,
    save,
    shape,
    text,
)
from safetensors.torch import load_file

from mmattn.backbones.bert import BertEncoder
from mmattn.pretrained import read_pretrained
from tests.conftest import refused, slow_but_first

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

SMALL = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 12, "vocab_size": 20}
SMALL_DISTILBERT = {"dim": 8, "n_heads": 2, "n_layers": 2, "hidden_dim": 12, "vocab_size": 20}
SPAN = {"qa_outputs.*": "span.*"}


def models(family, seed):
    """(a transformers model, its config, the name of its inner model), with varied task heads."""
    draw, sizes = shape(seed)
    common = {"vocab_size": draw.choice([11, 30, 57]), "max_position_embeddings": draw.choice([16, 24, 40])}
    if family == "distilbert":
        renamed = {"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"}
        renamed |= {"intermediate_size": "hidden_dim", "hidden_act": "activation"}
        sizes = {renamed[name]: value for name, value in sizes.items()}
        sizes["activation"] = draw.choice(["gelu", "relu"])
        config = transformers.DistilBertConfig(**sizes, **common, sinusoidal_pos_embds=draw.random() < 0.5)
        names = ["Model", "ForMaskedLM", "ForSequenceClassification", "ForQuestionAnswering"]
        return draw, getattr(transformers, "DistilBert" + draw.choice(names))(config), config
    common |= {"type_vocab_size": draw.choice([1, 2, 3]), "layer_norm_eps": draw.choice([1e-12, 1e-5, 1e-3])}
    if family == "electra":
        width, other = sizes["hidden_size"], draw.choice([5, 7, 20])  # never the width
        config = transformers.ElectraConfig(**sizes, **common, embedding_size=width if seed % 3 == 1 else other)
        names = ["Model", "ForPreTraining", "ForMaskedLM", "ForMultipleChoice"]
        names += ["ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"]
        return draw, getattr(transformers, "Electra" + draw.choice(names))(config), config
    if family == "bert":
        config = transformers.BertConfig(**sizes, **common)
        names = ["Model", "Model", "ForPreTraining", "ForMaskedLM"]
        names += ["ForSequenceClassification", "ForTokenClassification"]
        return draw, getattr(transformers, "Bert" + draw.choice(names))(config), config
    kind = draw.choice(["Roberta", "XLMRoberta"])
    config = getattr(transformers, kind + "Config")(**sizes, **common, pad_token_id=draw.choice([0, 1, 3]))
    names = ["Model", "Model", "ForMaskedLM", "ForSequenceClassification", "ForQuestionAnswering"]
    return draw, getattr(transformers, kind + draw.choice(names))(config), config


@pytest.mark.parametrize("seed", slow_but_first(SHAPES))
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra"])
def test_parity(family, seed, tmp_path):
    draw, whole, config = models(family, seed)
    disturbed(whole, seed)
    save(whole, tmp_path)
    ours = load(tmp_path)
    theirs = whole.base_model
    pad_id, types = config.pad_token_id, getattr(config, "type_vocab_size", 0)
    room = config.max_position_embeddings - (pad_id + 1 if family == "roberta" else 0)
    ids, mask = text(draw, seed, config.vocab_size, room, pad_id)
    more = {"token_type_ids": torch.randint(types, ids.shape)} if types > 1 and draw.random() < 0.7 else {}
    assert_parity(theirs, ours, ids, mask, *more.values(), input_ids=ids, attention_mask=mask.long(), **more)
    state = ours.state_dict()
    assert ("pooler.dense.weight" in state) == (getattr(theirs, "pooler", None) is not None)
    assert ("project.weight" in state) == (getattr(config, "embedding_size", ours.embed_dim) != ours.embed_dim)
    assert not ours.training


@pytest.mark.parametrize("name", ["Bert", "Roberta", "XLMRoberta", "DistilBert", "Electra"])
def test_head_of_question_answering(name, tmp_path):
    """The scores of starts and ends by the head's tensors, under the given names beside the encoder's."""
    config = getattr(transformers, name + "Config")(**SMALL_DISTILBERT if name == "DistilBert" else SMALL)
    whole = disturbed(getattr(transformers, name + "ForQuestionAnswering")(config), 0)
    save(whole, tmp_path)
    kind, (keywords, state, names) = read_pretrained(tmp_path, dtype=torch.float64, head=SPAN)
    assert names["span.weight"] == "qa_outputs.weight"
    head = {part: state.pop(f"span.{part}") for part in ("weight", "bias")}
    assert state.keys() == read_pretrained(tmp_path)[1].state.keys()
    ours = kind(**keywords).double().eval()
    ours.load_state_dict(state)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 4:] = False
    ids = torch.randint(3, 20, (2, 6)).masked_fill(~mask, config.pad_token_id)
    with torch.no_grad():
        expected = whole(ids, attention_mask=mask.long())
        found = torch.nn.functional.linear(ours(ids, mask).states, **head)
    assert difference(found.unbind(-1), [expected.start_logits, expected.end_logits]) <= TOLERANCE


def test_other_heads_raise(bert):
    """A head that is read is there, whole, known and the only one."""
    folder, _ = bert
    state = load_file(folder / "model.safetensors")
    body = {name: tensor for name, tensor in state.items() if name.startswith("bert.")}
    head = {"qa_outputs.weight": torch.zeros(2, 8), "qa_outputs.bias": torch.zeros(2)}
    for tensors, message in (
        (state, r"missing key: qa_outputs\.\*"),
        (body | head | {"qa_outputs.dense.weight": torch.zeros(2)}, r"unknown key: qa_outputs\.dense\.weight"),
        (state | head, r"unknown keys: cls\.predictions\.bias"),
    ):
        rewrite(folder, tensors)
        assert refused(message, read_pretrained, folder, head=SPAN).startswith(str(folder))
        load(folder)  # without it
    rewrite(folder, model_type="vit")
    refused(
        r"expected a BertEncoder, whose head qa_outputs\.\* is read; found a Vision", read_pretrained, folder, head=SPAN
    )


@pytest.fixture
def bert(tmp_path):
    """A folder with a random BERT, and the model."""
    model = disturbed(transformers.BertForPreTraining(transformers.BertConfig(**SMALL)), 0)
    save(model, tmp_path)
    return tmp_path, model.bert


def equal(folder, theirs, **keywords):
    ids = torch.randint(1, 20, (2, 6))
    with torch.no_grad():
        found = load(folder, **keywords)(ids)
        expected = theirs(ids)
    return difference(found, [expected.last_hidden_state, expected.pooler_output]) <= TOLERANCE


def test_old_checkpoint_names(bert):
    """gamma and beta, position_ids among the tensors, a pickle: the old format of bert-base-uncased."""
    folder, theirs = bert
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {}
    for name, tensor in state.items():
        for new, was in old.items():
            name = name.replace(new, was)
        renamed[name] = tensor
    renamed["bert.embeddings.position_ids"] = torch.arange(512)[None]
    torch.save(renamed, folder / "pytorch_model.bin")
    assert any("gamma" in name for name in renamed)
    assert equal(folder, theirs)


def test_half_precision_files_load_in_single_precision(bert):
    folder, theirs = bert
    state = load_file(folder / "model.safetensors")
    half = {name: tensor.half() for name, tensor in state.items()}
    rewrite(folder, half, dtype="float16", position_embedding_type=None)
    theirs.half().double()
    assert equal(folder, theirs)


def test_keywords_override_the_checkpoint(bert):
    folder, theirs = bert
    assert equal(folder, theirs, attention={"kind": "sliding_window", "window": 600})
    model = load(folder, attention=None, dropout=0.0)
    assert model.dropout.p == model.encoder.layers[0].attention.kernel.dropout == 0.0
    assert load(folder).encoder.layers[0].attention.kernel.dropout == 0.1
    refused("attentoin", load, folder, attentoin="dense", error=TypeError)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'; only 'absolute'"),
        ({"is_decoder": True}, "is_decoder=True; only False is supported"),
        ({"hidden_act": "gelu_10"}, "activation 'gelu_10' is not supported"),
        ({"num_hidden_layers": 1}, r"unexpected keys: bert\.encoder\.layer\.1"),
        ({"num_hidden_layers": 3}, r"missing keys: encoder\.layers\.2"),
        ({"vocab_size": 21}, r"word_embeddings\.weight' \(embedding\.weight\) is \(20, 8\), should be \(21, 8\)"),
        ({"model_type": "berd"}, "model_type 'berd'; known are bert, roberta"),
        ({"model_type": "roberta"}, r"unknown keys: bert\.embeddings"),
        ({"hidden_size": None}, "config.json has no 'hidden_size'"),
        ({"num_attention_heads": 3}, "embed_dim=8 is not divisible by num_heads=3"),
    ],
)
def test_mismatched_config_raises(bert, config, message):
    assert_refused(bert[0], message, **config)


def test_unknown_keys_raise(bert):
    state = load_file(bert[0] / "model.safetensors") | {"bert.encoder.adapter.weight": torch.zeros(2)}
    assert_refused(bert[0], r"unknown key: bert\.encoder\.adapter\.weight", state)


def test_electra_of_other_sizes_raises(tmp_path):
    save(transformers.ElectraModel(transformers.ElectraConfig(**SMALL, embedding_size=5)), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    assert_refused(tmp_path, r"unknown key: pooler\.dense\.bias", state | {"pooler.dense.bias": torch.zeros(8)})
    assert_refused(tmp_path, r"unexpected keys: embeddings_project\.bias", state, embedding_size=8)
    body = {name: tensor for name, tensor in state.items() if "project" not in name}
    assert_refused(tmp_path, r"missing keys: project\.bias, project\.weight", body, embedding_size=5)


def test_too_long_and_token_types():
    model = BertEncoder(20, 8, 1, 2, max_len=6, pad_id=1, num_types=0)
    assert model(torch.randint(2, 20, (1, 4))).states.shape == (1, 4, 8)
    refused("5 tokens is too long: max_len=6 leaves 4", model, torch.randint(2, 20, (1, 5)))
    refused("no token types", model, torch.randint(2, 20, (1, 4)), None, torch.zeros(1, 4, dtype=torch.long))
    model = BertEncoder(20, 8, 1, 2, max_len=6)
    refused("a sequence of 7 tokens is longer than max_len=6", model, torch.randint(20, (1, 7)))
