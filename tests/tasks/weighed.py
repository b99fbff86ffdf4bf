"""A worker that needs a file of weights from a remote place, and works in a temp folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from schemas.ledger import Item
from tasks.store.node_cache import copied_file
from tasks.store.scratch import temp_folder
from tasks.units.engine import UnitOutput
from tests.tasks.conftest import HashWorker


@dataclass
class WeighedWorker(HashWorker):
    weights: str = ""  # URI
    content: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.content = copied_file(self.weights).read_bytes()

    def process(self, items: Sequence[Item]) -> UnitOutput:
        with temp_folder("work") as folder:
            (folder / "weights").write_bytes(self.content)
            return super().process(items)
