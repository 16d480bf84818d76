# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Adapters: added, saved and loaded in peft's layout, merged; memory of a fine-tuning."""

import builtins
import json
from dataclasses import fields
from importlib.util import find_spec

import pytest
import torch
from conftest import REPOSITORY
from demonstrations import tiny_recipe, tiny_run
from safetensors.torch import load_file, save_file
from tiny import inputs, tiny_checkpoint, tiny_config, tiny_model
from torch import nn

from vla_prune_ros.training.finetune import finetune
from vla_prune_ros.training.lora import (
    FOLDER,
    add_adapters,
    load_adapters,
    merged,
    save_adapters,
    targets,
)
from vla_prune_ros.training.memory import count_adapters, memory, report
from vla_prune_ros.training.recipe import RECIPES, Recipe
from vla_prune_ros.training.train import main
from vla_prune_ros.vla import OpenVLAConfig, OpenVLAOFT
from vla_prune_ros.vla.checkpoint import stored_tensors
from vla_prune_ros.vla.heads import ActionHead

needs_peft = pytest.mark.skipif(find_spec('peft') is None, reason='adapters need peft')


def adapted(rank=3, convolutions=True):
    """A tiny model whose adapters change something."""
    model = tiny_model()
    add_adapters(model, rank, convolutions)
    for name, parameter in model.named_parameters():
        if '.lora_B' in name:
            nn.init.normal_(parameter, std=0.05)
    return model


def actions(model):
    with torch.no_grad():
        return model(*inputs(model.config)).actions


@needs_peft
@pytest.mark.parametrize('convolutions', [False, True])
def test_a_merged_model_computes_what_the_adapters_computed(convolutions):
    model = adapted(convolutions=convolutions)
    assert not torch.allclose(actions(model), actions(tiny_model()), atol=1e-3)
    torch.testing.assert_close(actions(merged(model)), actions(model), rtol=0, atol=1e-5)


@needs_peft
def test_adapters_are_saved_and_loaded(tmp_path):
    model = adapted()
    save_adapters(model, tmp_path)
    again = tiny_model()
    load_adapters(again, tmp_path)
    assert torch.equal(actions(again), actions(model))
    trained = {n for n, p in again.named_parameters() if p.requires_grad}
    assert trained == {n for n, p in model.named_parameters() if p.requires_grad}


class Published(nn.Module):
    """Layers under the names of a published checkpoint, as the authors' model has them."""

    def __init__(self, directory):
        super().__init__()
        for name, stored in stored_tensors(directory).items():
            if name.endswith('.weight') and len(stored.shape) in (2, 4):
                *parents, leaf = name.removesuffix('.weight').split('.')
                at = self
                for parent in parents:
                    if not hasattr(at, parent):
                        at.add_module(parent, nn.Module())
                    at = getattr(at, parent)
                layer = nn.Linear(1, 1) if len(stored.shape) == 2 else nn.Conv2d(1, 1, 1)
                with torch.no_grad():
                    layer.weight = nn.Parameter(torch.zeros(stored.shape))
                if len(stored.shape) == 2:
                    layer.out_features, layer.in_features = stored.shape
                else:
                    layer.out_channels, layer.in_channels, *kernel = stored.shape
                    layer.kernel_size = layer.stride = tuple(kernel)
                at.add_module(leaf, layer)


@needs_peft
def test_peft_reads_ours_on_the_published_names(tmp_path):
    from peft import PeftModel

    model = adapted()
    save_adapters(model, tmp_path)
    tiny_checkpoint(tmp_path / 'base')
    theirs = PeftModel.from_pretrained(Published(tmp_path / 'base'), tmp_path / FOLDER)
    deltas = dict(theirs.merge_and_unload().named_parameters())
    changed = {name for name, p in deltas.items() if name.endswith('weight') and p.any()}
    assert len(changed) == len(targets(tiny_model(), convolutions=True))
    plain, ours = tiny_model().state_dict(), merged(model).state_dict()
    for name in changed:
        own = name.replace('language_model.model.', 'decoder.')
        torch.testing.assert_close(ours[own] - plain[own], deltas[name], rtol=0, atol=1e-6)


@needs_peft
def test_the_authors_adapters_are_read_and_merged_with_their_heads(tmp_path, capsys):
    """`all-linear` also adapts lm_head and blocks that are not built; heads lie beside."""
    from peft import LoraConfig, get_peft_model

    base = tiny_checkpoint(tmp_path / 'base')
    config = LoraConfig(r=4, lora_alpha=8, target_modules='all-linear', init_lora_weights=False)
    tree = Published(base)
    names = [n for n, m in tree.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    config.target_modules = set(names) - {'language_model.model.embed_tokens'}
    run = tmp_path / 'run'
    get_peft_model(tree, config).save_pretrained(run / FOLDER)
    stored = load_file(run / FOLDER / 'adapter_model.safetensors')
    assert any('lm_head' in name for name in stored), 'as published'
    head = ActionHead(OpenVLAConfig.from_directory(base))
    state = {f'module.{name}': p for name, p in head.state_dict().items()}
    torch.save(state, run / 'action_head--50_checkpoint.pt')
    statistics = {'their_data': tiny_config().norm_stats['tabletop']}
    (run / 'dataset_statistics.json').write_text(json.dumps(statistics))

    assert main(['merge', str(base), str(run), str(tmp_path / 'out')]) == 0, capsys.readouterr()
    ours = OpenVLAOFT.from_pretrained(tmp_path / 'out')
    before = OpenVLAOFT.from_pretrained(base).state_dict()
    name = 'decoder.layers.1.mlp.up_proj'
    key = f'base_model.model.language_model.model.{name[8:]}'
    delta = 2 * stored[f'{key}.lora_B.weight'] @ stored[f'{key}.lora_A.weight']
    found = ours.state_dict()[f'{name}.weight'] - before[f'{name}.weight']
    torch.testing.assert_close(found, delta, rtol=0, atol=0.02)  # written in bfloat16
    assert list(ours.config.norm_stats) == ['their_data']
    loaded = ours.action_head.state_dict()['model.fc2.weight']
    torch.testing.assert_close(loaded, head.model.fc2.weight, rtol=0, atol=0.01)
    assert main(['merge', str(base), str(run), str(tmp_path / 'out')]) == 1, 'not overwritten'


@needs_peft
@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'use_dora': True}, 'use_dora True is not supported'),
        ({'lora_bias': True}, 'lora_bias True is not supported'),
        ({'init_lora_weights': 'pissa'}, "init_lora_weights 'pissa' is not supported"),
        ({'peft_type': 'IA3'}, "kind 'IA3', not LORA"),
        ({'r': 5}, r'the model needs \[5'),
    ],
)
def test_adapters_that_do_not_fit_are_refused(tmp_path, change, message):
    save_adapters(adapted(), tmp_path)
    path = tmp_path / FOLDER / 'adapter_config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        load_adapters(tiny_model(), tmp_path)


@needs_peft
def test_adapters_of_unknown_layers_and_missing_ones_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'adapter_config\.json'):
        load_adapters(tiny_model(), tmp_path)
    save_adapters(adapted(), tmp_path)
    path = tmp_path / FOLDER / 'adapter_model.safetensors'
    tensors = load_file(path)
    save_file(tensors | {'base_model.model.nose.lora_A.weight': torch.zeros(3, 3)}, path)
    with pytest.raises(ValueError, match='adapters of nose'):
        load_adapters(tiny_model(), tmp_path)


@needs_peft
def test_training_goes_on_from_adapters_and_saves_them(tmp_path):
    recipe = tiny_recipe(lora_rank=3, steps=2, ema=0.0)
    first = finetune(tiny_run(tmp_path, 'first', recipe), progress=False)
    run = tiny_run(tmp_path, 'second', recipe, adapter=first)
    second = finetune(run, progress=False)
    one, two = (load_file(d / FOLDER / 'adapter_model.safetensors') for d in (first, second))
    assert one.keys() == two.keys() and any(not torch.equal(one[k], two[k]) for k in one)
    base, tuned = (OpenVLAOFT.from_pretrained(d).state_dict() for d in (run.start, second))
    name = 'decoder.layers.0.mlp.up_proj'
    key = f'base_model.model.language_model.model.{name[8:]}'
    delta = two[f'{key}.lora_B.weight'] @ two[f'{key}.lora_A.weight']  # alpha is the rank
    found = tuned[f'{name}.weight'] - base[f'{name}.weight']
    torch.testing.assert_close(found, delta, rtol=0, atol=1e-6)


def test_lora_without_peft_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without_peft(name, *args, **kwargs):
        if name.split('.')[0] == 'peft':
            raise ModuleNotFoundError(f'No module named {name!r}')
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', without_peft)
    with pytest.raises(ModuleNotFoundError, match='pip install peft'):
        add_adapters(tiny_model(), 4)


# -- memory ------------------------------------------------------------------------------------
def test_adapters_and_weights_of_the_published_model_are_counted():
    with torch.device('meta'):
        model = OpenVLAOFT(OpenVLAConfig())
    assert len(targets(model)) == 423 and count_adapters(model, 32, False) == 107_862_016
    assert len(targets(model, convolutions=True)) == 425
    counted = memory(OpenVLAConfig(), RECIPES['oft']['house'])
    assert counted.frozen == pytest.approx(14.73e9, rel=1e-3)
    trained = 107_862_016 + 151_117_831 + 16_818_176
    assert counted.trained == 18 * trained and counted.average == 4 * trained
    assert counted.sample == pytest.approx(4.90e9, rel=0.002)
    again = memory(OpenVLAConfig(), RECIPES['oft']['house'], checkpointing=True)
    assert again.sample + again.again == pytest.approx(0.49e9, rel=0.02)
    assert counted.largest(24e9) == 0 and again.largest(24e9) == 4


def saved_bytes(model, batch, checkpointing=False):
    """What autograd keeps of one pass, without weights."""
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes(), tensor
        return tensor

    data = inputs(model.config, batch=batch)
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast('cpu', torch.bfloat16),
    ):
        actions = model(*data, attention_mask=torch.ones(batch, 12, dtype=torch.bool)).actions
    assert actions.requires_grad
    return sum(size for size, _ in kept.values())


@needs_peft
def test_activations_are_those_that_autograd_keeps():
    torch.manual_seed(0)
    for layers in (2, 6):
        llama = type(tiny_config().llama)(64, layers, 4, 160, 256)
        model = OpenVLAOFT(tiny_config(llama=llama)).to(torch.bfloat16)
        add_adapters(model, 4)
        counted = (saved_bytes(model, 3) - saved_bytes(model, 1)) / 2  # copies of weights cancel
        recipe = tiny_recipe(lora_rank=4)
        expected = memory(model.config, recipe, views=2, prompt=12).sample
        assert expected == pytest.approx(counted, rel=0.12 if layers == 2 else 0.06)
        own = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert memory(model.config, recipe).trained == 18 * own


def test_all_weights_are_trained_in_float32_without_adapters():
    recipe = tiny_recipe(lora_rank=0, ema=0.0)
    counted = memory(tiny_config(), recipe, half=False)
    weights = sum(p.numel() for p in tiny_model().parameters())
    assert counted.frozen == 0 and counted.trained == 16 * weights
    text = report(tiny_config(), recipe, 2, False, False, 8)
    assert '8 sample(s) at a time' in text and '80 GB' in text


# -- pages -------------------------------------------------------------------------------------
def test_the_page_has_the_numbers_of_the_recipes():
    text = (REPOSITORY / 'doc/training.md').read_text()
    table = text.partition('| | `oft released`')[2].partition('\n\n')[0]
    rows = [line.strip('| ').split('|') for line in table.splitlines()[2:]]
    columns = [('oft', 'released'), ('lightvla', 'released'), ('oft', 'house')]
    columns.append(('lightvla', 'house'))
    shown = set()
    for head, *cells in rows:
        name = head.split('`')[1]
        shown.add(name)
        for (kind, recipe), cell in zip(columns, cells, strict=True):
            assert cell.strip() == str(getattr(RECIPES[kind][recipe], name)), (name, kind, recipe)
    hidden = {f.name for f in fields(Recipe)} - shown
    assert hidden == {'final_share', 'betas', 'clip_labels'}
