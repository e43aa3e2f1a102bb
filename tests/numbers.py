"""Records that are numbers, for tests of the order in which they come."""

from __future__ import annotations

import dataclasses

from care_jax.structs import Record


@dataclasses.dataclass
class Numbers:
    """Records "first" to "first + size - 1"."""

    size: int
    first: int = 0

    def __len__(self) -> int:
        """The number of records."""
        return self.size

    def __getitem__(self, index: int) -> Record:
        """The record of an index; negative ones count from the end."""
        return Record(str(self.first + range(self.size)[index]), "numbers", "?", (), "1", "integer")
