"""Words that are URLs, and what of one may be shown and written: never a password, a signature or a token.

is_url("s3://films/a.mp4")                                     # True
shown_url("https://ann:secret@host/a.mp4?X-Amz-Signature=5f…") # https://host/a.mp4
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from lavila_fast.errors import InputError

SCHEMES = ("s3", "s3a", "gs", "gcs", "hf", "http", "https", "memory", "file")
WEB = ("http", "https")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_HARMLESS = ("id", "v", "name", "file", "filename", "path", "versionid")
"""Parts of a query that say which file is meant. All others may be keys to it, and are not written."""
_QUERY = re.compile(r"\?[^\s'\"<>()]*=[^\s'\"<>()]*")
_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")


def is_url(word: object) -> bool:
    """Whether a word on the command line or in a list is a URL."""
    return isinstance(word, str) and _URL.match(word) is not None


def scheme_of(url: str) -> str:
    """Its scheme in small letters.

    Raises:
        InputError: it is none that is read.
    """
    found = _URL.match(url)
    scheme = found[1].lower() if found else ""
    if found and not url[found.end() :].strip("" if scheme == "file" else "/"):
        raise InputError(f"{url}: names no file; give one such as s3://BUCKET/NAME or https://HOST/NAME")
    if "::" in url or scheme not in SCHEMES:
        what = "chains of URLs are not read" if "::" in url else f"nothing is read from {scheme}://"
        raise InputError(
            f"{shown_url(url)}: {what}; give one that begins with s3://, gs://, https://, hf:// or file://"
        )
    return scheme


def local_of(url: str) -> Path | None:
    """The path that a ``file://`` URL stands for; None for others."""
    if scheme_of(url) != "file":
        return None
    split = urlsplit(url)
    if split.netloc not in ("", "localhost"):
        raise InputError(f"{url}: lies on {split.netloc}; give file:///PATH for a file of this machine")
    return Path(unquote(split.path))


def shown_url(url: str) -> str:
    """The URL as it is shown and written, which is also its name: without what opens doors; other words stay."""
    scheme, sign, rest = url.partition("://")
    if not sign:
        return url
    host, slash, path = rest.partition("/")
    host = host.rpartition("@")[2]
    if scheme.lower() in WEB:
        host, _, query = host.partition("?") if "?" in host else (host, "", "")
        path, _, asked = path.partition("#")[0].partition("?")
        query = asked or query
        kept = [(name, value) for name, value in parse_qsl(query) if name.lower() in _HARMLESS]
        path += f"?{urlencode(kept)}" if kept else ""
    return f"{scheme.lower()}://{host}{slash}{path}"


def without_secrets(text: str) -> str:
    """A text of somebody else's, such as an error, on one line and with its URLs as they may be shown."""
    return _QUERY.sub("", _IN_TEXT.sub(lambda found: shown_url(found[0]), " ".join(text.split())))


def joined(folder: str, name: str) -> str:
    """The URL of a name in a folder."""
    return f"{folder.rstrip('/')}/{name}"
