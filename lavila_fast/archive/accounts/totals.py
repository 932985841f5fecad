"""What became of all videos, in a few figures.

totals(list(read_records(find_records("out.jsonl")).values()))
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from lavila_fast.archive.journals.videos import SKIPPED, STATUSES, VideoRecord

_WORST, _EXAMPLES = 10, 3  # videos that are named, and lines of each reason


def totals(records: Sequence[VideoRecord]) -> dict[str, Any]:
    """Counts, failures by reason (the first lines of each), and the videos of which least is narrated."""
    counts = Counter(one.status for one in records)
    reasons: dict[str, dict[str, Any]] = {}
    for one in records:
        if one.error:
            reason = reasons.setdefault(one.code or "unknown", {"videos": 0, "first": one.error, "examples": []})
            reason["videos"] += 1
            reason["examples"] += [one.error] * (len(reason["examples"]) < _EXAMPLES)
    known = [one for one in records if one.coverage is not None and one.status != SKIPPED]
    least = sorted((one for one in known if (one.coverage or 0.0) < 1), key=lambda one: one.coverage or 0.0)
    return {
        "total": len(records),
        **{name: counts[name] for name in STATUSES},
        "clips": sum(one.clips for one in records),
        "damaged": sum(one.damaged for one in records),
        "seconds": round(sum(one.seconds for one in records), 3),
        "duration": round(sum((one.duration or one.begin) - one.begin for one in records), 3),
        "reasons": dict(sorted(reasons.items(), key=lambda item: -item[1]["videos"])),
        "worst": [{"video": one.video, "coverage": one.coverage, "duration": one.duration} for one in least[:_WORST]],
    }
