"""Markers for editors of film: DaVinci Resolve's EDL, and Final Cut Pro's FCPXML, which Resolve and Premiere read, too.

A clip of the narration becomes a marker at the picture where it begins; its name is the first sentence, and what else
was said of the clip is the marker's note (FCPXML) or follows it. Times are whole pictures of the video's own rate, or
of `USUAL_RATE` where the video is not at hand.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import BinaryIO
from xml.etree import ElementTree as ET

from lavila_fast.archive.formats.parquet import as_text
from lavila_fast.archive.formats.writer import ClipRows, Writer, cue_lines, encode, one_line
from lavila_fast.records import Narration

USUAL_RATE = Fraction(30)
BEGINS = 3600  # second of the timeline at which Resolve's begin: 01:00:00:00
_NO_XML = re.compile("[\ufffe\uffff]")  # besides controls, which are no longer there
_COLOUR = "ResolveColorBlue"


def picture(seconds: float, rate: Fraction) -> int:
    """Number of the picture that is shown from this second on, or nearest to it."""
    return round(Fraction(seconds) * rate)


def timecode(number: int, rate: Fraction) -> str:
    """``hh:mm:ss:ff`` of a picture, without dropped numbers; of 29.97 pictures a second every 30th ends a second."""
    second, rest = divmod(number, per_second := round(rate))
    minutes, second = divmod(second, 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{second:02}:{rest:0{max(2, len(str(per_second - 1)))}}"


class Edl(Writer):
    """DaVinci Resolve's list of markers: on its timeline, *Import*, *Timeline Markers from EDL*; one video a file."""

    def write(self, clips: ClipRows, file: BinaryIO) -> None:
        """See `Writer.write`."""
        for number, rows in enumerate(clips, 1):
            if number == 1:
                file.write(encode(f"TITLE: {one_line(rows[0].video)}\nFCM: NON-DROP FRAME\n\n"))
            file.write(self._marker(number, rows))

    def _marker(self, number: int, rows: Sequence[Narration]) -> bytes:
        first = rows[0]
        rate = self.videos.rate(first.video) or USUAL_RATE
        begin, end = picture(first.start, rate), picture(first.end, rate)
        at = BEGINS * round(rate) + begin
        times = timecode(at, rate), timecode(at + 1, rate)
        name = " / ".join(dict.fromkeys(cue_lines(row.text for row in rows))).replace("|", "/")
        event = f"{number:03}  001      V     C        {' '.join(times * 2)}"
        return encode(f"{event}\n |C:{_COLOUR} |M:{name} |D:{max(end - begin, 1)}\n\n")


class Fcpxml(Writer):
    """FCPXML 1.9: an event with a clip a video, and a marker on it for each narrated one."""

    def write(self, clips: ClipRows, file: BinaryIO) -> None:
        """See `Writer.write`; rows of one video come one after the other. All markers are in memory."""
        root = ET.Element("fcpxml", version="1.9")
        resources, event = ET.SubElement(root, "resources"), ET.Element("event", name="lavila-fast")
        for number, (video, own) in enumerate(itertools.groupby(clips, key=lambda rows: rows[0].video), 1):
            self._video(number, video, own, resources, event)
        root.append(event)
        ET.indent(root)
        file.write(b'<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE fcpxml>\n')
        file.write(ET.tostring(root, "utf-8", xml_declaration=False) + b"\n")

    def _video(
        self, number: int, video: str, clips: Iterable[Sequence[Narration]], resources: ET.Element, event: ET.Element
    ) -> None:
        rate = self.videos.rate(video) or USUAL_RATE
        path = self.videos.path(video).absolute()
        name, form, asset = _for_xml(one_line(path.stem)), f"r{2 * number - 1}", f"r{2 * number}"
        markers = [self._marker(rows, rate) for rows in clips]
        last = max(picture(float(end), rate) for _, end in markers)
        end = self.videos.end(video)
        whole = _seconds(max(last, picture(end, rate) if end else 0), rate)
        ET.SubElement(resources, "format", id=form, frameDuration=_seconds(1, rate))
        kept = ET.SubElement(
            resources, "asset", id=asset, name=name, start="0s", duration=whole, hasVideo="1", format=form
        )
        ET.SubElement(kept, "media-rep", kind="original-media", src=path.as_uri())
        clip = ET.SubElement(event, "asset-clip", ref=asset, name=name, start="0s", duration=whole, format=form)
        clip.extend(marker for marker, _ in markers)

    def _marker(self, rows: Sequence[Narration], rate: Fraction) -> tuple[ET.Element, float]:
        first, *more = dict.fromkeys(_for_xml(line) for line in cue_lines(row.text for row in rows))
        begin, end = rows[0].start, rows[0].end
        length = max(picture(end, rate) - picture(begin, rate), 1)
        marker = ET.Element(
            "marker", start=_seconds(picture(begin, rate), rate), duration=_seconds(length, rate), value=first
        )
        if more:
            marker.set("note", " / ".join(more))
        return marker, end


def _for_xml(text: str) -> str:
    """A line without what XML has no characters for."""
    return as_text(_NO_XML.sub("\ufffd", text))


def _seconds(pictures: int, rate: Fraction) -> str:
    """Time of some pictures as FCPXML says it: a fraction of whole numbers."""
    return f"{pictures * rate.denominator}/{rate.numerator}s"
