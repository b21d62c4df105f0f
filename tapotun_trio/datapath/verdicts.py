"""Cached verdicts: what was decided for the packets of a flow."""

from __future__ import annotations

from typing import TypeVar

from .plane import Flows

V = TypeVar("V")


class Verdicts(dict[bytes, V]):
    """Verdicts by key. The plane has copies of them, so whoever discards one here discards all of its copies.

    Attributes:
        flows: the copies; None: there are none.
    """

    __slots__ = ("flows",)

    def __init__(self) -> None:
        super().__init__()
        self.flows: Flows | None = None

    def clear(self) -> None:
        """Discard all verdicts."""
        super().clear()
        if self.flows is not None:
            self.flows.forget()

    def discard(self, key: bytes) -> None:
        """Discard one verdict, if there is one."""
        if super().pop(key, None) is not None and self.flows is not None:
            self.flows.forget()
