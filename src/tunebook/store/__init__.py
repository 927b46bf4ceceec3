"""Where results are kept: the cache and its policies, run files, and every way in which a file cannot be served."""

from tunebook.store._merge import better_supported
from tunebook.store._recorded import Recorded, RecordedRace
from tunebook.store.cache import MAX_CACHE_BYTES, CacheContents, read_any, read_cache
from tunebook.store.location import Location
from tunebook.store.misses import Miss, MissKind
from tunebook.store.pins import MAX_PINS_BYTES, Pins, pins_path, read_pins, update_pins
from tunebook.store.policy import Policy, ResolvedPolicy, resolve_policy
from tunebook.store.publish import Published, publish
from tunebook.store.run_files import MAX_RUN_BYTES, Run, read_run
from tunebook.store.run_writer import RunWriter
from tunebook.store.sessions import new_session_id

__all__ = [
    "MAX_CACHE_BYTES",
    "MAX_PINS_BYTES",
    "MAX_RUN_BYTES",
    "CacheContents",
    "Location",
    "Miss",
    "MissKind",
    "Pins",
    "Policy",
    "Published",
    "Recorded",
    "RecordedRace",
    "ResolvedPolicy",
    "Run",
    "RunWriter",
    "better_supported",
    "new_session_id",
    "pins_path",
    "publish",
    "read_any",
    "read_cache",
    "read_pins",
    "read_run",
    "resolve_policy",
    "update_pins",
]
