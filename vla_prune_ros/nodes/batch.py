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

from rclpy.node import Node
from rclpy.parameter_service import ParameterService


class BatchParameterService(ParameterService):
    """The parameter services of a node; `apply()` runs once per change, however large."""

    def __init__(self, node: Node, apply: Callable[[], None]) -> None:
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
            return super()._set_parameters_callback(request, response)
        finally:
            self._batch = False
            self._flush()
