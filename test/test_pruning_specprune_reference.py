# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""SpecPrune against a slow second implementation with explicit attention maps and plain sets."""

import math

import numpy as np
import pytest
import torch
from rig import SIZES, TEMPLATE_TOKENS, Rig, frames, model, moves

from vla_prune_ros.vla.decoder import rope_table

K_LOCAL, K_GLOBAL, K_DYNAMIC = 40, 48, 40  # at 256 patches per view; alpha is 1 below
OPTIONS = {'alpha': 1.0, 'k_local': K_LOCAL, 'k_global': K_GLOBAL, 'k_dynamic': K_DYNAMIC}


class Naive:
    """One episode of SpecPrune, coarse mode, written for reading."""

    def __init__(self, net, views):
        self.net, self.views = net, views
        self.patches = net.config.patches_per_view
        self.depth = net.config.llama.n_layers
        middle = {4: 2, 7: 4}[self.depth]  # ceil(14 * depth / 32)
        self.deep_layers = [middle, self.depth - 1]
        self.cut_layers = {4: [2, 2, 2, 2], 7: [2, 3, 4, 5]}[self.depth]
        self.deep = None

    def size(self, base):
        return max(1, math.floor(base * self.patches / 256 + 0.5))

    def view_of(self, i):
        return (i - 1) // self.patches

    def best(self, scores, count):
        """Best ids of each view; `scores` maps id to score."""
        chosen = set()
        for view in range(self.views):
            ids = [i for i in scores if self.view_of(i) == view]
            chosen |= set(sorted(ids, key=lambda i: (-scores[i], i))[:count])
        return chosen

    def changed(self, current, reference):
        """Ids of the patches that changed most."""
        grid, scores = self.net.config.featurizer.grid, {}
        for view in range(self.views):
            for patch in range(self.patches):
                y, x = (14 * k for k in divmod(patch, grid))
                a, b = (
                    f[view, y : y + 14, x : x + 14].astype(float).ravel()
                    for f in (current, reference)
                )
                cosine = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
                if cosine < 0.986:
                    scores[1 + view * self.patches + patch] = -cosine
        return self.best(scores, self.size(K_DYNAMIC))

    def run(self, embeddings, layout, current, reference):
        """One query: cut point -> ids kept."""
        net, llama = self.net, self.net.config.llama
        rope = rope_table(
            torch.arange(len(embeddings)), llama.head_dim, llama.rope_theta, torch.float32
        )
        words = [*layout.text][TEMPLATE_TOKENS:-1]
        ids, x, cuts, deep, importance, local = (
            [*range(len(embeddings))],
            embeddings,
            {},
            {},
            {},
            [],
        )
        first_query = self.deep is None
        for index, layer in enumerate(net.decoder.layers):
            q, k, v = (t[0] for t in layer.qkv(x[None], rope[..., ids, :]))
            maps = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(llama.head_dim), -1)
            rows = [ids.index(w) for w in words]
            per_word = maps[:, rows]  # [heads, words, keys]
            visual = [i for i in ids if i in layout.visual]
            scores = {i: float(per_word[:, :, ids.index(i)].mean()) for i in visual}
            entropy = float(-(per_word * per_word.log()).sum(-1).mean())
            x = x + layer.self_attn.o_proj((maps @ v).transpose(0, 1).flatten(1))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
            if index in self.deep_layers:
                deep[index] = scores
            if first_query:
                continue
            if index < 2 or index in self.cut_layers:
                self.weigh(importance, scores, entropy)
            keep = None
            if index < 2:
                local.append(self.best(scores, self.size(K_LOCAL)))
            if index == 1:
                recalled = set()
                for old in self.deep.values():
                    recalled |= self.best(old, self.size(K_GLOBAL))
                keep = local[0] | local[1] | recalled | self.changed(current, reference)
            if index in self.cut_layers:
                left = len(visual)
                for _ in range(self.cut_layers.count(index)):
                    floor = math.floor(60 * layout.n_visual / 512 + 0.5)
                    left -= max(0, min(int(0.1 * left), left - floor))
                keep = set(sorted(visual, key=lambda i: (-importance[i], i))[:left])
            if keep is not None:
                rest = [n for n, i in enumerate(ids) if i in keep or i not in layout.visual]
                ids, x = [ids[n] for n in rest], x[rest]
                cuts[index + 1] = ids
        self.deep = deep
        return cuts

    def weigh(self, importance, scores, entropy):
        order = sorted(scores, key=lambda i: (-scores[i], i))
        k = 5.3 / (len(order) - 1)
        weights = [1 / (1 + math.exp(k * rank)) for rank in range(len(order))]
        for rank, i in enumerate(order):
            newest = weights[rank] / sum(weights) / (entropy + 1e-6)
            importance[i] = 0.8 * importance.get(i, 0.0) + 0.2 * newest


@pytest.mark.parametrize('views', [1, 2])
@pytest.mark.parametrize('size', SIZES)
def test_every_cut_of_an_episode_is_that_of_the_slow_implementation(size, views):
    net = model(size)
    rig, naive = Rig(net, 'specprune', views, **OPTIONS), Naive(net, views)
    picture, old = frames(net.config, 0, views), None
    rng = np.random.default_rng(1)
    for query in range(4):
        # Fast motion keeps the coarse mode; a few patches change from query to query.
        actions = moves(8, (0.9, 0, 0)) if query else None
        out = rig.tick(images=picture, actions=actions)
        with torch.inference_mode():
            cuts = naive.run(out.embeddings[0], out.layout, picture, old)
        assert rig.trace.cuts == cuts
        if query:
            assert len(cuts) > 1 and len(cuts[2]) < out.layout.length
        old, picture = picture, picture.copy()
        for _ in range(5):
            y, x = rng.integers(0, net.config.image_size - 8, 2)
            picture[:, y : y + 8, x : x + 8] = rng.integers(0, 256, 3)
