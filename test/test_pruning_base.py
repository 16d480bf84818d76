# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Options, registry and history shared by all pruning modes."""

import numpy as np
import pytest
import torch
from tiny import inputs, tiny_config, tiny_model

from vla_prune_ros.pruning import MODES, History, Option, PruningMethod, make_selector

CONFIG = tiny_config()


def test_registry_starts_with_none_and_names_are_those_of_the_classes():
    assert next(iter(MODES)) == 'none'
    assert 'random' in MODES
    assert all(method.name == name for name, method in MODES.items())


def test_unknown_mode_lists_the_valid_ones():
    with pytest.raises(ValueError, match='nonsense') as caught:
        make_selector('nonsense', CONFIG)
    assert all(name in str(caught.value) for name in MODES)


@pytest.mark.parametrize('name', MODES)
def test_unknown_option_lists_the_valid_ones(name):
    with pytest.raises(ValueError, match='no_such_option') as caught:
        make_selector(name, CONFIG, no_such_option=1)
    assert all(option.name in str(caught.value) for option in MODES[name].options)


@pytest.mark.parametrize('name', MODES)
def test_every_option_is_described_and_its_default_is_valid(name):
    for option in MODES[name].options:
        assert option.description
        assert option.check(option.default) == option.default
    names = [option.name for option in MODES[name].options]
    assert len(set(names)) == len(names)
    assert MODES[name].summary


@pytest.mark.parametrize(
    ('option', 'value'),
    [
        (Option('n', int, 1, 'd', 0, 5), 6),
        (Option('n', int, 1, 'd', 0, 5), -1),
        (Option('n', int, 1, 'd'), True),
        (Option('n', int, 1, 'd'), 1.0),
        (Option('r', float, 0.5, 'd', 0.0, 1.0), float('nan')),
        (Option('r', float, 0.5, 'd', 0.0, 1.0), '0.5'),
        (Option('b', bool, True, 'd'), 1),
        (Option('s', str, 'a', 'd', choices=('a', 'b')), 'c'),
    ],
)
def test_values_of_wrong_type_or_range_are_refused(option, value):
    with pytest.raises(ValueError, match=f'option {option.name}'):
        option.check(value)


def test_whole_numbers_are_accepted_for_floats():
    value = Option('r', float, 0.5, 'd', 0.0, 1.0).check(1)
    assert value == 1.0 and type(value) is float


def test_values_report_defaults_and_changes():
    assert make_selector('random', CONFIG, keep=3).values == {
        **{option.name: option.default for option in MODES['random'].options},
        'keep': 3,
    }


def test_mode_none_equals_no_selector_bit_for_bit():
    model = tiny_model()
    with torch.inference_mode():
        dense = model(*inputs(model.config))
        none = model(*inputs(model.config), selector=make_selector('none', model.config))
    assert torch.equal(dense.actions, none.actions)
    assert torch.equal(dense.kept, none.kept)


def test_base_method_asks_for_nothing():
    plan = PruningMethod(CONFIG).begin(None, None)
    assert (plan.points, plan.scores, plan.skip_layers, plan.cache) == (set(), {}, set(), None)


def image(value):
    return np.full((2, 4, 4, 3), value, np.uint8)


def test_history_frames_enter_only_when_the_query_is_over_and_are_bounded():
    history = History(capacity=3)
    for k in range(5):
        assert all(frame.images[0, 0, 0, 0] < k for frame in history.frames)
        history.close_query(image(k))
        history.record_executed(np.zeros((8, 7)))
    assert [frame.step for frame in history.frames] == [16, 24, 32]
    assert history.step == 40
    assert history.last_query_step == 32
    assert history.queries == 5


def test_history_keeps_the_actions_since_the_last_query_in_order():
    history = History()
    history.record_executed(np.arange(14.0).reshape(2, 7))
    history.record_executed(np.full((1, 7), 9.0))
    assert [action[0] for action in history.executed] == [0.0, 7.0, 9.0]
    history.close_query(image(0))
    assert len(history.executed) == 0
    assert history.step == 3


def test_history_stores_copies_of_actions():
    history, actions = History(), np.zeros((1, 7))
    history.record_executed(actions)
    actions[:] = 5
    assert history.executed[0].sum() == 0


def test_history_actions_are_bounded():
    history = History(max_actions=4)
    history.record_executed(np.arange(42.0).reshape(6, 7))
    assert [action[0] for action in history.executed] == [14.0, 21.0, 28.0, 35.0]


def test_history_reset_clears_every_field_and_keeps_the_reason_until_the_next_query():
    history = History()
    assert history.reset_reason == 'start'
    history.record_executed(np.zeros((8, 7)))
    history.close_query(image(0))
    history.slots['x'] = 1
    history.record_executed(np.zeros((8, 7)))
    assert history.reset_reason is None
    history.reset('gap')
    fresh = vars(History())
    assert {**vars(history), 'reset_reason': 'start'} == fresh
    assert history.reset_reason == 'gap'
    history.close_query(image(1))
    assert history.reset_reason is None
