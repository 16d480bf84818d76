# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Parameters that are set by one request come into force together.

`ros2 param load` and most tools send many parameters in one request of `set_parameters`. ROS
answers each of them for itself, and rclpy applies them one after the other: an inference could
see a new mode with old options. Here each is still checked and answered for itself, but those
that were accepted are applied at once, before the answer leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rcl_interfaces.msg import SetParametersResult
from rclpy.node import Node
from rclpy.parameter_service import ParameterService

from vla_prune_ros.ros.parameters import no_such_parameter


class BatchParameterService(ParameterService):
    """The parameter services of a node; `apply()` runs once per change, however large."""

    def __init__(self, node: Node, apply: Callable[[], None]) -> None:
        self._node = node
        self._apply = apply
        self._batch = False
        self._changed = False
        super().__init__(node)
        node.add_post_set_parameters_callback(self._after_set)

    def _after_set(self, parameters: list[Any]) -> None:
        self._changed = True
        if not self._batch:
            self._flush()

    def _flush(self) -> None:
        if self._changed:
            self._changed = False
            self._apply()

    def _set_parameters_callback(self, request: Any, response: Any) -> Any:
        self._batch = True
        try:
            response = super()._set_parameters_callback(request, response)
        finally:
            self._batch = False
            self._flush()
        for parameter, result in zip(request.parameters, response.results, strict=True):
            self._explain([parameter.name], result)
        return response

    def _set_parameters_atomically_callback(self, request: Any, response: Any) -> Any:
        response = super()._set_parameters_atomically_callback(request, response)
        self._explain([p.name for p in request.parameters], response.result)
        return response

    def _explain(self, names: list[str], result: SetParametersResult) -> None:
        """Say which name is unknown; rclpy does not."""
        unknown = [name for name in names if not self._node.has_parameter(name)]
        if unknown and not result.successful:
            result.reason = '; '.join(no_such_parameter(self._node, name) for name in unknown)
