# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The published checkpoint layout: what loads, what is refused, what is written."""

import hashlib
import json
import os
import pickle
import re
import socket
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import inputs, norm_stats, tiny_checkpoint, tiny_config, tiny_model

from vla_prune_ros.vla import OpenVLAOFT
from vla_prune_ros.vla.checkpoint import published_shapes, save_pretrained, unused_shapes
from vla_prune_ros.vla.config import OpenVLAConfig
from vla_prune_ros.vla.published import differences

HEAD, PROPRIO = 'action_head--1_checkpoint.pt', 'proprio_projector--1_checkpoint.pt'
INDEX = 'model.safetensors.index.json'
GOLDEN = Path(__file__).parent / 'data' / 'oft_tiny' / 'checkpoint.zip'


@pytest.fixture
def directory(tmp_path):
    return tiny_checkpoint(tmp_path / 'checkpoint')


@pytest.fixture
def sharded(tmp_path):
    save_pretrained(tiny_model(), tmp_path / 'sharded', max_shard_bytes=100_000)
    return tmp_path / 'sharded'


def edit(path, change):
    """Rewrite a safetensors or .pt file after changing its dict of tensors."""
    if path.suffix == '.pt':
        tensors = torch.load(path, weights_only=True)
        torch.save(change(tensors) or tensors, path)
    else:
        tensors = load_file(path)
        save_file(change(tensors) or tensors, path)


def expect(directory, error, *names):
    with pytest.raises(error) as caught:
        OpenVLAOFT.from_pretrained(directory)
    for name in names:
        assert name in str(caught.value)


def digests(directory):
    return {
        path.name: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in directory.iterdir()
    }


def run(model):
    with torch.inference_mode():
        return model(*inputs(model.config)).actions


def test_7b_has_the_982_published_tensors():
    with torch.device('meta'):
        model = OpenVLAOFT(OpenVLAConfig())
    shapes = published_shapes(model)
    assert len(shapes) == 982
    assert len(unused_shapes(model.config)) == 44

    def count(prefix):
        return sum(name.startswith(prefix) for name in shapes)

    vision = 'vision_backbone.'
    assert (count(vision + 'featurizer.'), count(vision + 'fused_featurizer.')) == (343, 342)
    assert (count('projector.'), count('language_model.')) == (6, 291)
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}

    def parameters(prefix):
        return sum(size for name, size in sizes.items() if name.startswith(prefix))

    assert parameters(vision + 'featurizer.') == 303_230_976
    assert parameters(vision + 'fused_featurizer.') == 427_680_704
    assert parameters(vision + 'fused_featurizer.attn_pool.') == 15_238_352
    assert parameters('projector.') == 71_385_600
    assert parameters('language_model.') == 6_738_939_904
    assert sum(sizes.values()) == 7_541_237_184
    assert sum(p.numel() for p in model.action_head.parameters()) == 151_117_831
    assert sum(p.numel() for p in model.proprio_projector.parameters()) == 16_818_176


DINO_BLOCK = {
    **{f'norm{i}.{p}': (1024,) for i in (1, 2) for p in ('weight', 'bias')},
    **{f'ls{i}.scale_factor': (1024,) for i in (1, 2)},
    'attn.qkv.weight': (3072, 1024),
    'attn.qkv.bias': (3072,),
    'attn.proj.weight': (1024, 1024),
    'attn.proj.bias': (1024,),
    'mlp.fc1.weight': (4096, 1024),
    'mlp.fc1.bias': (4096,),
    'mlp.fc2.weight': (1024, 4096),
    'mlp.fc2.bias': (1024,),
}
SIGLIP_BLOCK = {
    **{f'norm{i}.{p}': (1152,) for i in (1, 2) for p in ('weight', 'bias')},
    'attn.qkv.weight': (3456, 1152),
    'attn.qkv.bias': (3456,),
    'attn.proj.weight': (1152, 1152),
    'attn.proj.bias': (1152,),
    'mlp.fc1.weight': (4304, 1152),
    'mlp.fc1.bias': (4304,),
    'mlp.fc2.weight': (1152, 4304),
    'mlp.fc2.bias': (1152,),
}
LLAMA_LAYER = {
    **{f'{n}_layernorm.weight': (4096,) for n in ('input', 'post_attention')},
    **{f'self_attn.{p}_proj.weight': (4096, 4096) for p in 'qkvo'},
    **{f'mlp.{p}_proj.weight': (11008, 4096) for p in ('gate', 'up')},
    'mlp.down_proj.weight': (4096, 11008),
}
ATTN_POOL = {
    'latent': (1, 1, 1152),
    'q.weight': (1152, 1152),
    'q.bias': (1152,),
    'kv.weight': (2304, 1152),
    'kv.bias': (2304,),
    'proj.weight': (1152, 1152),
    'proj.bias': (1152,),
    'norm.weight': (1152,),
    'norm.bias': (1152,),
    'mlp.fc1.weight': (4304, 1152),
    'mlp.fc1.bias': (4304,),
    'mlp.fc2.weight': (1152, 4304),
    'mlp.fc2.bias': (1152,),
}


def published_table():
    dino, siglip = 'vision_backbone.featurizer.', 'vision_backbone.fused_featurizer.'
    llama = 'language_model.model.'
    table = {dino + 'cls_token': (1, 1, 1024), dino + 'reg_token': (1, 4, 1024)}
    for prefix, dim in ((dino, 1024), (siglip, 1152)):
        table |= {prefix + 'pos_embed': (1, 256, dim)}
        table |= {prefix + 'patch_embed.proj.weight': (dim, 3, 14, 14)}
        table |= {prefix + 'patch_embed.proj.bias': (dim,)}
        table |= {prefix + 'norm.weight': (dim,), prefix + 'norm.bias': (dim,)}
    blocks = ((dino + 'blocks', 24, DINO_BLOCK), (siglip + 'blocks', 27, SIGLIP_BLOCK))
    for prefix, depth, block in (*blocks, (llama + 'layers', 32, LLAMA_LAYER)):
        table |= {f'{prefix}.{i}.{k}': s for i in range(depth) for k, s in block.items()}
    table |= {f'{siglip}attn_pool.{name}': shape for name, shape in ATTN_POOL.items()}
    for i, (rows, columns) in enumerate(((8704, 2176), (4096, 8704), (4096, 4096)), 1):
        table |= {f'projector.fc{i}.weight': (rows, columns), f'projector.fc{i}.bias': (rows,)}
    table |= {llama + 'embed_tokens.weight': (32064, 4096), llama + 'norm.weight': (4096,)}
    return table | {'language_model.lm_head.weight': (32064, 4096)}


def test_7b_names_and_shapes_are_those_of_the_published_files():
    with torch.device('meta'):
        model = OpenVLAOFT(OpenVLAConfig())
    assert published_shapes(model) == published_table()
    head = {name: tuple(p.shape) for name, p in model.action_head.named_parameters()}
    block = {'ffn.0.weight': (4096,), 'ffn.0.bias': (4096,)}
    block |= {'ffn.1.weight': (4096, 4096), 'ffn.1.bias': (4096,)}
    expected = {f'model.mlp_resnet_blocks.{i}.{k}': s for i in (0, 1) for k, s in block.items()}
    expected |= {f'model.layer_norm1.{p}': (28672,) for p in ('weight', 'bias')}
    expected |= {f'model.layer_norm2.{p}': (4096,) for p in ('weight', 'bias')}
    expected |= {'model.fc1.weight': (4096, 28672), 'model.fc1.bias': (4096,)}
    expected |= {'model.fc2.weight': (7, 4096), 'model.fc2.bias': (7,)}
    assert head == expected
    proprio = {name: tuple(p.shape) for name, p in model.proprio_projector.named_parameters()}
    assert proprio == {
        'fc1.weight': (4096, 8),
        'fc1.bias': (4096,),
        'fc2.weight': (4096, 4096),
        'fc2.bias': (4096,),
    }


def test_config_without_sizes_means_the_published_ones():
    assert OpenVLAConfig.from_dict({'text_config': {'model_type': 'llama'}}) == OpenVLAConfig()


def test_config_survives_a_round_trip():
    config = tiny_config(chunk_len=5, action_dim=3, proprio_dim=4)
    assert OpenVLAConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        ({'use_fused_vision_backbone': False}, 'fused'),
        ({'text_config': {'num_key_value_heads': 8}}, 'key/value'),
        ({'text_config': {'rope_scaling': {'type': 'linear'}}}, 'rope_scaling'),
        ({'vision_config': {'featurizer': {'embed_dim': 32}}}, 'mlp_hidden'),
        ({'vision_config': {'featurizer': {'img_size': 112}}}, 'share image size'),
    ],
)
def test_configs_of_other_models_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        OpenVLAConfig.from_dict(data)


def test_save_and_load_give_the_same_function(directory, tmp_path):
    model = OpenVLAOFT.from_pretrained(directory)
    save_pretrained(model, tmp_path / 'again', tokenizer=directory)
    again = OpenVLAOFT.from_pretrained(tmp_path / 'again')
    assert torch.equal(run(model), run(again))
    assert again.config == model.config
    assert (tmp_path / 'again' / 'tokenizer.json').read_bytes() == (
        directory / 'tokenizer.json'
    ).read_bytes()


def mark_lm_head(tensors):
    tensors['language_model.lm_head.weight'].fill_(3)


def test_the_small_files_are_those_of_the_authors_scripts(tmp_path):
    with zipfile.ZipFile(GOLDEN) as archive:  # written with the authors' classes
        archive.extractall(tmp_path / 'theirs')
    model = OpenVLAOFT.from_pretrained(tmp_path / 'theirs')
    save_pretrained(model, tmp_path / 'ours')

    def read(name):
        folders = (tmp_path / 'theirs', tmp_path / 'ours')
        return [json.loads((folder / name).read_text()) for folder in folders]

    theirs, ours = read('preprocessor_config.json')
    assert ours == theirs
    theirs, ours = read('dataset_statistics.json')
    assert ours == theirs
    theirs, ours = read('config.json')
    derived = {'hf_llm_id', 'llm_max_length', 'timm_model_ids', 'timm_override_act_layers',
               'output_projector_states', 'transformers_version'}  # fmt: skip
    for key in theirs.keys() - derived - {'norm_stats', 'text_config', 'vision_config'}:
        assert ours[key] == theirs[key], key
    # What `update_auto_map` of the authors writes.
    assert ours['auto_map'] == {
        'AutoConfig': 'configuration_prismatic.OpenVLAConfig',
        'AutoModelForVision2Seq': 'modeling_prismatic.OpenVLAForActionPrediction',
    }
    assert (
        ours['text_config'].items()
        >= {
            key: value for key, value in theirs['text_config'].items() if key != 'torch_dtype'
        }.items()
    )
    # `find_checkpoint_file` of the authors wants exactly one of each.
    names = [path.name for path in (tmp_path / 'ours').iterdir()]
    for head in ('action_head', 'proprio_projector'):
        assert len([name for name in names if head in name and 'checkpoint' in name]) == 1


def test_a_saved_checkpoint_has_every_file_that_is_needed_to_load_it(directory, tmp_path):
    model = OpenVLAOFT.from_pretrained(directory)
    save_pretrained(model, tmp_path / 'new', tokenizer=directory)
    assert {path.name for path in (tmp_path / 'new').iterdir()} == {
        'config.json', 'preprocessor_config.json', 'dataset_statistics.json', 'model.safetensors',
        HEAD, PROPRIO, 'tokenizer.json', 'tokenizer_config.json',
    }  # fmt: skip


def test_unused_tensors_are_written_back(directory, tmp_path):
    edit(directory / 'model.safetensors', mark_lm_head)
    save_pretrained(OpenVLAOFT.from_pretrained(directory), tmp_path / 'again')
    before, after = (load_file(d / 'model.safetensors') for d in (directory, tmp_path / 'again'))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert bool((after['language_model.lm_head.weight'] == 3).all())


def test_shards_equal_the_single_file(sharded):
    assert len([*sharded.glob('model-*.safetensors')]) > 1
    assert not (sharded / 'model.safetensors').exists()
    assert torch.equal(run(OpenVLAOFT.from_pretrained(sharded)), run(tiny_model()))


def test_half_precision_files_load_in_the_requested_type(tmp_path):
    directory = tiny_checkpoint(tmp_path / 'half', dtype=torch.bfloat16)
    assert (
        torch.load(directory / HEAD, weights_only=True)['model.fc1.bias'].dtype == torch.bfloat16
    )
    assert torch.load(directory / PROPRIO, weights_only=True)['fc1.bias'].dtype == torch.float32
    for dtype in (torch.float32, torch.bfloat16):
        model = OpenVLAOFT.from_pretrained(directory, dtype)
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert run(model).dtype == dtype


def test_loaded_model_is_complete_and_has_left_the_meta_device(directory):
    model = OpenVLAOFT.from_pretrained(directory)
    assert {p.device.type for p in (*model.parameters(), *model.buffers())} == {'cpu'}
    assert model.unused.keys() == unused_shapes(model.config).keys()
    assert not model.training


def test_weights_are_copies_that_outlive_the_files(directory):
    model = OpenVLAOFT.from_pretrained(directory)
    before = run(model)
    for path in directory.glob('*.safetensors'):
        path.write_bytes(b'\0' * path.stat().st_size)  # in place: a mapping would see it
    assert torch.equal(run(model), before)


@pytest.mark.parametrize('name', [HEAD, PROPRIO])
def test_wrapper_prefix_is_stripped(directory, name):
    before = run(OpenVLAOFT.from_pretrained(directory))
    edit(directory / name, lambda t: {f'module.{k}': v for k, v in t.items()})
    assert torch.equal(run(OpenVLAOFT.from_pretrained(directory)), before)


@pytest.mark.parametrize('step', [40000, 300000])
def test_any_single_step_suffix_is_found(directory, step):
    for name in ('action_head', 'proprio_projector'):
        (directory / f'{name}--1_checkpoint.pt').rename(
            directory / f'{name}--{step}_checkpoint.pt'
        )
    OpenVLAOFT.from_pretrained(directory)


def test_statistics_file_overrides_the_config(directory):
    path = directory / 'config.json'
    data = json.loads(path.read_text())
    data['norm_stats'] = {'decoy': {}}
    path.write_text(json.dumps(data))
    assert OpenVLAConfig.from_directory(directory).norm_stats == norm_stats()
    (directory / 'dataset_statistics.json').unlink()
    assert OpenVLAConfig.from_directory(directory).norm_stats == {'decoy': {}}


def test_loading_neither_writes_nor_opens_a_connection(directory, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError('network access')

    monkeypatch.setattr(socket, 'socket', refuse)
    monkeypatch.setattr(socket, 'create_connection', refuse)
    before = digests(directory)
    directory.chmod(0o555)
    try:
        OpenVLAOFT.from_pretrained(directory)
    finally:
        directory.chmod(0o755)
    assert digests(directory) == before


KEY = 'projector.fc2.weight'


def test_missing_tensor_is_named(directory):
    edit(directory / 'model.safetensors', lambda t: {k: v for k, v in t.items() if k != KEY})
    expect(directory, ValueError, 'missing', KEY)


@pytest.mark.parametrize('key', [*unused_shapes(tiny_config())][:2])
def test_missing_unused_tensor_is_named_too(directory, key):
    edit(directory / 'model.safetensors', lambda t: {k: v for k, v in t.items() if k != key})
    expect(directory, ValueError, 'missing', key)


def test_unexpected_tensor_is_named(directory):
    edit(directory / 'model.safetensors', lambda t: {**t, 'projector.fc4.bias': torch.zeros(3)})
    expect(directory, ValueError, 'unexpected', 'projector.fc4.bias')


def test_misshapen_tensor_is_named_with_both_shapes(directory):
    edit(directory / 'model.safetensors', lambda t: {**t, KEY: torch.zeros(32, 5)})
    expect(directory, ValueError, KEY, '[32, 5]', '[32, 160]')


def test_quantised_tensor_is_refused(directory):
    edit(directory / 'model.safetensors', lambda t: {**t, KEY: t[KEY].to(torch.int8)})
    expect(directory, ValueError, KEY, 'int8')


@pytest.mark.parametrize(
    ('name', 'key'), [(HEAD, 'model.mlp_resnet_blocks.1.ffn.1.weight'), (PROPRIO, 'fc2.bias')]
)
def test_defects_of_the_pt_files_are_named(directory, name, key):
    original = torch.load(directory / name, weights_only=True)
    torch.save({k: v for k, v in original.items() if k != key}, directory / name)
    expect(directory, ValueError, name, 'missing', key)
    torch.save({**original, 'extra.bias': torch.zeros(1)}, directory / name)
    expect(directory, ValueError, name, 'unexpected', 'extra.bias')
    torch.save({**original, key: torch.zeros(2, 3)}, directory / name)
    expect(directory, ValueError, name, key, '[2, 3]')
    torch.save({**original, key: 'text'}, directory / name)
    expect(directory, ValueError, name, 'state dict')


@pytest.mark.parametrize('name', ['action_head', 'proprio_projector'])
def test_two_matching_pt_files_are_refused_and_none_is_reported(directory, name):
    first, second = f'{name}--1_checkpoint.pt', f'{name}--20_checkpoint.pt'
    (directory / second).write_bytes((directory / first).read_bytes())
    expect(directory, ValueError, first, second)
    (directory / first).unlink()
    (directory / second).unlink()
    expect(directory, FileNotFoundError, name)


class Payload:
    """Pickles to a call, as a malicious file would."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (os.mkdir, (str(self.trace),))


@pytest.mark.parametrize('legacy', [False, True])
def test_pickled_code_is_not_run(directory, legacy, tmp_path):
    trace = tmp_path / 'ran'
    if legacy:
        (directory / HEAD).write_bytes(pickle.dumps(Payload(trace), protocol=2))
    else:
        torch.save({'model.fc1.bias': Payload(trace)}, directory / HEAD)
    expect(directory, ValueError, HEAD)
    assert not trace.exists()


def test_missing_shard_is_named(sharded):
    shard = sorted(sharded.glob('model-*.safetensors'))[1]
    shard.unlink()
    expect(sharded, FileNotFoundError, shard.name)


def test_shard_without_a_tensor_of_the_index_is_named(sharded):
    where = json.loads((sharded / INDEX).read_text())['weight_map']
    edit(sharded / where[KEY], lambda t: {k: v for k, v in t.items() if k != KEY})
    expect(sharded, ValueError, 'missing', KEY)


def test_tensor_in_two_shards_is_named(sharded):
    where = json.loads((sharded / INDEX).read_text())['weight_map']
    other = next(name for name in where.values() if name != where[KEY])
    edit(sharded / other, lambda t: {**t, KEY: torch.zeros(1)})
    expect(sharded, ValueError, KEY, other)


def test_index_beside_a_foreign_single_file_is_ambiguous(sharded, directory):
    (sharded / 'model.safetensors').write_bytes((directory / 'model.safetensors').read_bytes())
    expect(sharded, ValueError, 'model.safetensors', INDEX)


def test_index_may_not_point_outside_the_directory(sharded):
    index = json.loads((sharded / INDEX).read_text())
    index['weight_map'][KEY] = '../escape.safetensors'
    (sharded / INDEX).write_text(json.dumps(index))
    expect(sharded, FileNotFoundError, '../escape.safetensors')


@pytest.mark.parametrize('name', ['config.json', 'dataset_statistics.json', INDEX])
@pytest.mark.parametrize('text', ['{', '[]', ''])
def test_malformed_json_is_named(sharded, name, text):
    (sharded / name).write_text(text)
    expect(sharded, ValueError, name)


def test_truncated_file_is_named(directory):
    path = directory / 'model.safetensors'
    path.write_bytes(path.read_bytes()[:-10])
    expect(directory, ValueError, 'model.safetensors')
    path.unlink()
    expect(directory, FileNotFoundError, 'model.safetensors')


def test_directory_that_is_a_hub_name_is_not_looked_up():
    name = 'moojink/openvla-7b-oft-finetuned-libero-spatial'
    with pytest.raises(FileNotFoundError, match=re.escape(name)):
        OpenVLAOFT.from_pretrained(name)


def test_saving_beside_other_weights_is_refused(directory):
    with pytest.raises(FileExistsError, match='action_head--1'):
        save_pretrained(tiny_model(), directory, step=2)


def test_saving_again_replaces_shards_by_a_single_file(sharded):
    model = OpenVLAOFT.from_pretrained(sharded)
    save_pretrained(model, sharded)
    assert not [*sharded.glob('model-*')]
    assert torch.equal(run(OpenVLAOFT.from_pretrained(sharded)), run(model))


def test_names_of_errors_are_limited():
    many = {f'tensor{i}': (1,) for i in range(9)}
    assert 'tensor4 and 4 more' in next(differences({}, many))
