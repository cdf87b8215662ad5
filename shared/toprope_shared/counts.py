"""The largest number that goes through every part: release counters, versions, floors.

It stands alone, so that who needs it alone imports nothing else.
"""

from __future__ import annotations

# As large as SQLite and a file know it: databases keep these numbers on both sides.
MAX_COUNT = 2**63 - 1
