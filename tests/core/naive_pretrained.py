"""BERT and ViT as plain loops, as in the papers; nothing here calls the code under test."""

import naive
import torch
from naive import Allowed


def bert(module, ids, allowed):
    """Token + type + position, normalized; post-norm layers; tanh of a linear map of the first token."""
    rows = []
    for row in ids.tolist():
        count, embedded = 0, []
        for i, token in enumerate(row):
            place = i
            if module.pad_id is not None:  # RoBERTa: padding is not counted, and positions start after its id
                count += token != module.pad_id
                place = module.pad_id + (count if token != module.pad_id else 0)
            embedded.append(
                module.embedding.weight[token] + module.token_types.weight[0] + module.positions.weight[place]
            )
        rows.append(torch.stack(embedded))
    states = naive.encoder(module.encoder, naive.layer_norm(module.norm, torch.stack(rows)), allowed)
    return states, torch.tanh(naive.linear(module.pooler.dense, states[:, 0]))


def vit(module, patches):
    """patches: (B, h, w, C P P). Prefix tokens, linear maps of the patches, pre-norm layers, final norm, pooling."""
    B, h, w, _ = patches.shape
    weight, bias = module.patches.proj.weight.flatten(1), module.patches.proj.bias
    samples = []
    for b in range(B):
        tokens = [] if module.prefix is None else list(module.prefix)
        for row in range(h):
            for column in range(w):
                tokens.append(weight @ patches[b, row, column] + bias + module.positions[0, :, row, column])
        samples.append(torch.stack(tokens))
    states = naive.encoder(module.encoder, torch.stack(samples), Allowed())
    if module.pooling == "map":
        read = naive.attention(module.head.attention, module.head.query.expand(B, 1, -1), states)[:, 0]
        return states, read + naive.feed_forward(module.head.ffn, naive.layer_norm(module.head.norm, read))
    tokens = states[:, :2] if module.pooling == "prefix" else states[:, :1]
    return states, sum(tokens.unbind(1)) / tokens.shape[1]
