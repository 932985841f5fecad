"""The account of an output, or of several: what there is, what failed and why, what it cost, how well time was used.

    account([found(OUT)], price=0.80)["cost_per_1000_hours"]

Videos are counted from the records beside the outputs, time from the history of their runs. Where these know different
things (a run before there were histories, an output that was merged), each says what it knows, and shares are of the
runs that are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lavila_fast.archive.accounts.history import History, RunCost, added
from lavila_fast.archive.accounts.stages import BESIDE, ENGINE
from lavila_fast.archive.accounts.totals import totals
from lavila_fast.archive.journals.journal import ACCOUNT
from lavila_fast.archive.journals.videos import DONE, FAILED, PARTIAL, SKIPPED, VideoRecord, find_records, read_records
from lavila_fast.archive.journals.videos import ENDING as RECORDS
from lavila_fast.errors import InputError


@dataclass(frozen=True)
class Known:
    """What lies beside an output."""

    output: str
    records: list[VideoRecord]
    runs: list[RunCost]


def known(output: str) -> Known:
    """Read what lies beside an output.

    Raises:
        InputError: there is nothing, or it cannot be read.
    """
    path = find_records(output)
    try:
        records = list(read_records(path).values())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give this user the right to read it") from error
    return Known(output, records, History.read(history_of(path)).runs)


def history_of(records: Path) -> Path:
    """The history that lies beside records."""
    return records.with_name(records.name.removesuffix(RECORDS) + ACCOUNT)


def account(outputs: Sequence[Known], price: float | None = None) -> dict[str, Any]:
    """The account, for JSON; of several outputs, as shares of one archive have them, all are one.

    Args:
        outputs: What is known of each.
        price: Of a machine for an hour.
    """
    records = _joined(outputs)
    runs = [run for one in outputs for run in one.runs]
    whole = added(runs)
    told = totals(records)
    asked = sum(_length(one) for one in records)
    covered = sum(_length(one) * (one.coverage or 0.0) for one in records)
    return {
        "outputs": [one.output for one in outputs],
        "videos": {name: told[name] for name in ("total", "done", "partial", "failed", "skipped")},
        "clips": told["clips"],
        "damaged": told["damaged"],
        "hours": round(asked / 3600, 4),
        "coverage": round(covered / asked, 4) if asked else None,
        "coverage_counts": _tenths(records),
        "reasons": told["reasons"],
        "worst": told["worst"],
        "runs": whole.runs,
        "unfinished": sum(one.unfinished for one in runs),
        "seconds": round(whole.seconds, 3),
        "clips_per_second": _ratio(whole.clips, whole.seconds),
        "times_real_time": _ratio(whole.video_seconds, whole.seconds),
        "stages": _shares(whole),
        "decode_share_of_cpu": _ratio(whole.decode_cpu, whole.cpu, 1.0) or None,  # workers do not tell
        "frames_decoded_for_each_wanted": _ratio(whole.decoded, whole.frames),
        "engine_busy": _busy(whole),
        "of_bare_engine": _ratio(whole.bare_seconds, whole.bare_of),
        "of_bare_engine_from_clips": whole.bare_clips,
        **_cost(whole, price),
        "history": [asdict(one) for one in runs],
    }


def _joined(outputs: Sequence[Known]) -> list[VideoRecord]:
    """Records of all; of a video of which several outputs have stretches, one."""
    found: dict[tuple[str | None, str], VideoRecord] = {}
    for one in (record for output in outputs for record in output.records):
        key = one.id, one.video
        found[key] = _both(found[key], one) if key in found else one
    return list(found.values())


def _both(one: VideoRecord, other: VideoRecord) -> VideoRecord:
    first = other if other.error and not one.error else one
    states = {one.status, other.status}
    status = PARTIAL if states & {PARTIAL, FAILED} else DONE if DONE in states else SKIPPED
    return replace(
        first,
        status=FAILED if states == {FAILED} else status,
        seconds=one.seconds + other.seconds,
        coverage=min((one.coverage or 0.0) + (other.coverage or 0.0), 1.0),
        clips=one.clips + other.clips,
        damaged=one.damaged + other.damaged,
    )


def _tenths(records: Sequence[VideoRecord]) -> list[int]:
    """How many videos are covered to a tenth, two tenths, … all."""
    counts = [0] * 10
    for one in records:
        if one.coverage is not None and one.status != SKIPPED:
            counts[min(int(10 * one.coverage), 9)] += 1
    return counts


def _length(record: VideoRecord) -> float:
    return max((record.duration or record.begin) - record.begin, 0.0)


def _ratio(one: float, other: float, most: float | None = None) -> float | None:
    if not other:
        return None
    return round(one / other if most is None else min(one / other, most), 4)


def _busy(whole: RunCost) -> float | None:
    """Share of the time in which a model was at work."""
    return _ratio(sum(whole.stages.get(name, 0.0) for name in (ENGINE, BESIDE)), whole.seconds, 1.0)


def _shares(whole: RunCost) -> dict[str, float]:
    """Of the main thread's time; the engine's in two, where it is known how it divides."""
    spent = dict(whole.stages)
    if whole.encode_share is not None and ENGINE in spent:
        engine = spent.pop(ENGINE)
        spent = {
            "encoding": engine * whole.encode_share,
            "writing sentences": engine * (1 - whole.encode_share),
            **spent,
        }
    every = sum(spent.values())
    return {name: round(seconds / every, 4) for name, seconds in spent.items()} if every else {}


def _cost(whole: RunCost, price: float | None) -> dict[str, Any]:
    if price is None:
        return {}
    cost, hours = whole.seconds / 3600 * price, whole.video_seconds / 3600
    per = round(cost / hours * 1000, 2) if hours else None
    return {"price": price, "cost": round(cost, 4), "cost_per_1000_hours": per}
