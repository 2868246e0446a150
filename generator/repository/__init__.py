"""The model repository on disk: what is in it, what would change, and publishing that survives a crash."""

from generator.repository.journal import published_root, recover, staging
from generator.repository.layout import Layout
from generator.repository.publish import Change, plan_changes, publish
from generator.repository.record import Record, find_records, read_record

__all__ = [
    "Change",
    "Layout",
    "Record",
    "find_records",
    "plan_changes",
    "publish",
    "published_root",
    "read_record",
    "recover",
    "staging",
]
