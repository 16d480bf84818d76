# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The one client of the graph: for every command that drives nodes from outside.

It owns its context, node and executor, and starts no process. Everything it waits for has a
deadline, after which it says what did not come; what arrives is kept by the stamp it carries,
because topics keep no order among each other. `peers.py` builds on it: a policy, a bridge.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from rcl_interfaces.srv import SetParametersAtomically
from rclpy.client import Client as ServiceClient
from rclpy.context import Context
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from rclpy.serialization import deserialize_message

from vla_prune_ros.ros.children import Children, slowness
from vla_prune_ros.ros.messages import NO_EVENTS, RELIABLE, to_ns
from vla_prune_ros.ros.process import make_executor

TICK = 0.2  # s between two looks at the children while nothing arrives
SOON = 0.005  # s, the first time: some things come without a message
ASK_AGAIN = 3.0  # s without an answer of a service, at first; DDS may not have matched it yet
LIMIT = 10_000  # stamps that an inbox keeps


class GraphError(RuntimeError):
    """The graph did not do what was asked of it; the text says what."""


class Received(NamedTuple):
    """One message: its stamp (ns), its content, when it was sent and when it came.

    `arrived` is in s of `time.perf_counter`. `sent` is in s of the system's clock: what two
    messages are apart, even if this process had to wait for its turn meanwhile.
    """

    stamp: int
    value: Any
    arrived: float
    sent: float


class Inbox:
    """What came on one topic, by stamp, whatever the order of arrival.

    Attributes:
        latest: content of the newest message, by arrival; None before the first.
        is_open: whether messages are kept; while it is False they are not even decoded.
    """

    def __init__(self, decode: Callable[[Any], Any]) -> None:
        self.latest: Any = None
        self.is_open = True
        self._decode = decode
        self._kept: dict[int, list[Received]] = {}

    def add(self, message: Any, arrived: float, sent: float) -> None:
        """Take a message with a header."""
        if not self.is_open:
            return
        stamp = to_ns(message.header.stamp)
        self.latest = self._decode(message)
        self._kept.setdefault(stamp, []).append(Received(stamp, self.latest, arrived, sent))
        if len(self._kept) > LIMIT:
            del self._kept[next(iter(self._kept))]

    def at(self, stamp: int) -> list[Received]:
        """Messages with a stamp."""
        return self._kept.get(stamp, [])

    def within(self, first: int, last: int) -> list[Received]:
        """The first message of every stamp from `first` to `last`, in the order of the stamps."""
        return [self._kept[stamp][0] for stamp in sorted(self._kept) if first <= stamp <= last]

    def __iter__(self) -> Iterator[Received]:
        return (message for messages in self._kept.values() for message in messages)

    def clear(self) -> None:
        """Forget all but `latest`."""
        self._kept.clear()


class Client:
    """A node of this process. Use it as a context manager, from one thread."""

    def __init__(
        self,
        name: str,
        children: Children | None = None,
        patience: float = 90.0,
        domain_id: int | None = None,
        check: Callable[[], None] = lambda: None,
        quick: bool = False,
    ) -> None:
        """Describe it.

        Args:
            name: of the node.
            children: processes that are needed; their logs are shown when something fails.
            patience: seconds to wait for anything, on an idle machine.
            domain_id: ROS domain; None: that of the environment.
            check: raises when waiting has become pointless.
            quick: wait on events as the nodes do; then no time of sending is known, for rclpy's
                executor of events fails where it is asked for.
        """
        self._quick = quick
        self._name, self._domain_id = name, domain_id
        self._children, self._check_more = children, check
        self.patience = patience
        self._services: dict[str, ServiceClient] = {}
        # A context of its own has no signal handlers: Ctrl-C is to raise here.
        self._context = Context()

    def __enter__(self) -> Client:
        self._context.init([], domain_id=self._domain_id)
        self.node = Node(self._name, context=self._context, enable_rosout=False)
        make = make_executor if self._quick else SingleThreadedExecutor
        self._executor = make(context=self._context)
        self._executor.add_node(self.node)
        return self

    def __exit__(self, *error: object) -> None:
        self._executor.shutdown(timeout_sec=0)
        self.node.destroy_node()
        self._context.try_shutdown()

    # -- topics --------------------------------------------------------------------------------
    def listen(
        self,
        kind: type,
        topic: str,
        decode: Callable[[Any], Any],
        qos: QoSProfile = RELIABLE,
    ) -> Inbox:
        """Collect a topic whose messages have a header; the time of arrival is before decoding."""
        inbox = Inbox(decode)

        def take(data: bytes, sent: float = 0.0) -> None:
            arrived = time.perf_counter()
            if inbox.is_open:
                inbox.add(deserialize_message(data, kind), arrived, sent)

        def take_with_info(data: bytes, info: dict[str, int]) -> None:
            take(data, info['source_timestamp'] / 1e9)

        callback: Any = take if self._quick else take_with_info
        silent = SubscriptionEventCallbacks(use_default_callbacks=False)
        self.node.create_subscription(kind, topic, callback, qos, raw=True, event_callbacks=silent)
        return inbox

    def publisher(self, kind: type, topic: str, qos: QoSProfile = RELIABLE) -> Publisher:
        """A publisher."""
        return self.node.create_publisher(kind, topic, qos, event_callbacks=NO_EVENTS)

    # -- waiting -------------------------------------------------------------------------------
    def wait(
        self,
        ready: Callable[[], Any],
        what: str,
        patience: float | None = None,
        progress: Callable[[], Any] = lambda: None,
    ) -> Any:
        """Spin until `ready()` is true; returns what it gave.

        Args:
            ready: what is waited for.
            what: its name in the error.
            patience: seconds; None: those of the client. A busy machine gets more.
            progress: whenever it changes, the time begins anew.

        Raises:
            ChildDiedError: a process that is needed has ended.
            GraphError: it took too long.
        """
        patience = self.patience if patience is None else patience
        begun, look, seen, pause = time.monotonic(), 0.0, progress(), SOON
        while not (result := ready()):
            now = time.monotonic()
            if now >= look:
                self._check()
                look = now + TICK
            if seen != (current := progress()):
                begun, seen = now, current
            if now - begun > patience and now - begun > patience * slowness():
                raise self.error(f'waited {now - begun:.0f} s in vain for {what}')
            self._executor.spin_once(timeout_sec=pause)
            pause = min(TICK, 2 * pause)
        return result

    def spin(self, seconds: float, until: Callable[[], Any] = lambda: False) -> bool:
        """Let time pass, or less until something holds; whether it holds."""
        deadline = time.monotonic() + seconds
        while not (held := bool(until())) and (left := deadline - time.monotonic()) > 0:
            self._check()
            self._executor.spin_once(timeout_sec=min(left, TICK))
        return held

    def error(self, text: str) -> GraphError:
        """An error with the end of the children's logs."""
        tails = self._children.tails() if self._children else []
        return GraphError('\n'.join([text, *tails]))

    def _check(self) -> None:
        self._check_more()
        if self._children is not None:
            self._children.check()

    # -- services ------------------------------------------------------------------------------
    def wait_for_service(self, kind: type, name: str) -> ServiceClient:
        """A client of a service, once that is there."""
        if name not in self._services:
            self._services[name] = self.node.create_client(kind, name)
        service = self._services[name]
        self.wait(service.service_is_ready, f'the service {name}')
        return service

    def call(self, kind: Any, name: str, request: Any = None, patience: float = 0.0) -> Any:
        """Call a service that may be called again; the answer to the last call.

        An answer can be lost while the two directions of a service are matched one after the
        other, so the call is repeated, ever more rarely.
        """
        service = self.wait_for_service(kind, name)
        request = kind.Request() if request is None else request
        future: Any = None
        due, pause = 0.0, ASK_AGAIN

        def answered() -> bool:
            nonlocal future, due, pause
            now = time.monotonic()
            if future is None or (now > due and not future.done()):
                if future is not None:
                    service.remove_pending_request(future)
                    pause *= 2
                future, due = service.call_async(request), now + pause
            return future.done()

        self.wait(answered, f'an answer of {name}', patience or self.patience)
        return future.result()

    def set_parameters(self, node: str, values: Mapping[str, Any]) -> None:
        """Set parameters of a node, all or none.

        Raises:
            GraphError: they were refused.
        """
        request = SetParametersAtomically.Request(
            parameters=[Parameter(k, value=v).to_parameter_msg() for k, v in values.items()]
        )
        name = f'{node}/set_parameters_atomically'
        result = self.call(SetParametersAtomically, name, request).result
        if not result.successful:
            raise GraphError(f'/{node} refused {dict(values)}: {result.reason}')
