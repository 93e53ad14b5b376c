"""POST /upload-asset: inputs become files of the sandbox's own, with public URLs."""

from __future__ import annotations

import base64
import binascii
import mimetypes
import re
import secrets
from pathlib import Path

_DATA_URL = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)(;[\w=.-]+)*;base64,(?P<data>.*)", re.DOTALL)


class NotAnAsset(Exception):
    """Not a data URL."""


class Uploads:
    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory

    def keep(self, data_url: str) -> str:
        """Store what a data URL holds; the name of its file. Blocks. Raises NotAnAsset."""
        found = _DATA_URL.fullmatch(data_url)
        if found is None:
            raise NotAnAsset
        try:
            content = base64.b64decode(found["data"], validate=True)
        except binascii.Error as error:
            raise NotAnAsset from error
        name = secrets.token_hex(16) + (mimetypes.guess_extension(found["type"]) or ".bin")
        beside = self._directory / f"{name}.part"
        beside.write_bytes(content)
        beside.replace(self._directory / name)
        return name

    def path(self, name: str) -> Path | None:
        """The file of that name, if it is one of ours."""
        path = self._directory / name
        return path if re.fullmatch(r"[0-9a-f]{32}\.\w+", name) and path.is_file() else None
