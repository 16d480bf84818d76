# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What a parameter is and how a node declares it.

A table per node is what everything else follows from: `parameters.py` in the folder of each node,
a tuple of `Spec` or a dataclass whose fields are parameters. The tables need no ROS, so launch
files, documentation and tests can read them; `declare` turns them into descriptors with ranges,
choices and units.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any

MAX_INT = 2**31 - 1


class ParameterError(ValueError):
    """A value or a file of parameters that is not allowed; one line says which and what is."""


@dataclass(frozen=True)
class Spec:
    """One parameter. Its type is that of the default; a limit of None is no limit.

    A text that is also given by number takes integers: `ros2 param set` makes them of digits.
    """

    name: str
    default: bool | int | float | str | tuple[str, ...] | tuple[float, ...]
    description: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    read_only: bool = True
    or_number: bool = False

    def check(self, value: Any) -> None:
        """What a ROS type and range cannot say.

        Raises:
            ParameterError: not what the parameter can be.
        """
        if (
            (self.choices and value not in self.choices)
            or (isinstance(value, float) and math.isnan(value))
            or (self.or_number and type(value) not in (int, str))
        ):
            raise self.refusal(value)

    def refusal(self, value: Any) -> ParameterError:
        """That a value is not allowed, and what is."""
        kinds = {bool: 'true or false', int: 'an integer', float: 'a number such as 1.0',
                 str: 'a text', tuple: 'a list of texts'}  # fmt: skip
        if isinstance(self.default, tuple) and isinstance(self.default[0], float):
            kinds[tuple] = 'a list of numbers such as 1.0'
        valid = f'one of {", ".join(self.choices)}' if self.choices else kinds[type(self.default)]
        if self.minimum is not None:
            valid += f' from {self.minimum}'
        if self.maximum not in (None, MAX_INT):
            valid += f' to {self.maximum}'
        return ParameterError(f'parameter {self.name}: {value!r} is not {valid}')


def parameter(
    default: Any,
    description: str,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
    read_only: bool = True,
    name: str = '',
) -> Any:
    """A field of a dataclass that is a parameter at the same time, by default of its own name."""
    spec = Spec(name, default, description, minimum, maximum, choices, read_only)
    return field(default=default, metadata={'spec': spec})


def specs_of(config: type) -> tuple[Spec, ...]:
    """The parameters among the fields of a dataclass."""
    declared = ((f.name, f.metadata['spec']) for f in fields(config) if 'spec' in f.metadata)
    return tuple(replace(spec, name=spec.name or name) for name, spec in declared)


def declare(node: Any, specs: Iterable[Spec]) -> dict[str, Any]:
    """Declare parameters on a node; returns their values.

    Raises:
        ParameterError: a value from the command line, a launch or a file is not allowed.
    """
    from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException

    values = {}
    for spec in specs:
        default = list(spec.default) if isinstance(spec.default, tuple) else spec.default
        try:
            parameter = node.declare_parameter(spec.name, default, _descriptor(spec))
        except (InvalidParameterTypeException, InvalidParameterValueException) as error:
            raise spec.refusal(_given(node)[spec.name].value) from error
        spec.check(parameter.value)
        values[spec.name] = parameter.value
    return values


def _given(node: Any) -> dict[str, Any]:
    return getattr(node, '_parameter_overrides', {})  # rclpy has no public access to them


def report_unknown(node: Any, *, qos: bool = False) -> None:
    """Warn of every parameter that was given to a node and that it does not have.

    Args:
        node: of rclpy.
        qos: look at QoS overrides, which are only known when the topics are, or at all others.
    """
    for name in sorted(_given(node)):
        if not node.has_parameter(name) and name.startswith('qos_overrides.') is qos:
            node.get_logger().warning(f'{no_such_parameter(node, name)}: ignored')


def no_such_parameter(node: Any, name: str) -> str:
    """That a node does not have a parameter, and which one may have been meant."""
    known = sorted(node.get_parameters_by_prefix(''))
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f'no parameter {name!r}' + (f' (did you mean {near[0]!r}?)' if near else '')


def files_of(arguments: Sequence[str]) -> list[str]:
    """The parameter files on a command line."""
    return [value for flag, value in pairwise(arguments) if flag == '--params-file']


def check_file(path: str, *nodes: str) -> None:
    """Refuse a parameter file that would leave a node on its defaults.

    Args:
        path: the file.
        nodes: their names with the namespace.

    Raises:
        ParameterError: it cannot be read, or has nothing for one of the nodes.
    """
    import yaml

    try:
        with open(path, encoding='utf-8') as stream:
            names = sorted(_sections(yaml.safe_load(stream)))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ParameterError(f'params file {path}: {" ".join(str(error).split())}') from error
    for node in nodes:
        if not any(_matches(name, node) for name in names):
            raise ParameterError(
                f'params file {path} has no section for {node}, only for '
                f'{", ".join(names) or "nobody"}; an empty one means the defaults: '
                f'{node}: {{ros__parameters: {{}}}}'
            )


def _sections(content: Any, prefix: str = '') -> Iterator[str]:
    """Names of the nodes that a parameter file speaks of, wildcards as they are written."""
    for name, value in content.items() if isinstance(content, dict) else ():
        if name == 'ros__parameters':
            yield prefix
        else:
            yield from _sections(value, f'{prefix}/{str(name).strip("/")}')


def _matches(pattern: str, name: str) -> bool:
    """Whether a section is for a node: * stands for one word, ** for any number of them."""
    words = re.escape(pattern).replace(r'/\*\*', '(/[^/]+)*').replace(r'\*', '[^/]+')
    return re.fullmatch(words, name) is not None


def _descriptor(spec: Spec) -> Any:
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

    descriptor = ParameterDescriptor(
        description=spec.description, read_only=spec.read_only, dynamic_typing=spec.or_number
    )
    if spec.choices:
        descriptor.additional_constraints = f'one of {", ".join(spec.choices)}'
    limited = spec.minimum is not None or spec.maximum is not None
    if limited and isinstance(spec.default, float):
        low = -math.inf if spec.minimum is None else spec.minimum
        high = math.inf if spec.maximum is None else spec.maximum
        descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
    elif limited:
        low = -MAX_INT if spec.minimum is None else int(spec.minimum)
        high = MAX_INT if spec.maximum is None else int(spec.maximum)
        descriptor.integer_range = [IntegerRange(from_value=low, to_value=high)]
    return descriptor
