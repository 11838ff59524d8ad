"""Where the bundled drawings come from: npm packages by name, version and hash, and how to read each of them."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import subprocess
import tarfile
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rmadapter.data.emoji.atlas import SIDE
from rmadapter.errors import InputError


@dataclass(frozen=True)
class Package:
    """An npm package; ``integrity`` is npm's own: the SHA-512 of its archive in base64."""

    name: str
    version: str
    integrity: str

    @property
    def archive(self) -> str:
        """The file name that ``npm pack`` gives it."""
        return f"{self.name.replace('@', '').replace('/', '-')}-{self.version}.tgz"


NAMES = Package(
    "unicode-emoji-json",
    "0.9.0",
    "HdrQW/7SdbXUsTd8uTATv7LvQJkCSgbAgRCDCtOhQ6xn3EAx+xZHQtRniOXWJK3ywIqPegkNhP4U4EbuFsiQng==",
)
PACKAGES = {
    "noto": Package(
        "emoji-datasource-google",
        "16.0.0",
        "ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
    ),
    "twemoji": Package(
        "emoji-datasource-twitter",
        "16.0.0",
        "7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
    ),
    "fluent": Package(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
    ),
    "emojione": Package(
        "@iconify-json/emojione",
        "1.2.3",
        "T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
    ),
    "openmoji": Package(
        "@iconify-json/openmoji",
        "1.2.29",
        "vXdhkqcXVSO6suy+m9LbcUM3OdVyuNOtpV8/als/WqfkQIRxevL5Geb/g+6GH/Qwnq1OqksEmaDGTCmZ5nFKJQ==",
    ),
    "noto-v1": Package(
        "@iconify-json/noto-v1",
        "1.2.5",
        "/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
    ),
    "fluent-color": Package(
        "@iconify-json/fluent-emoji",
        "1.2.7",
        "D8G6bKAyIsyxP1rzZtIWr/gg/fO4Rg1+DyCWlfqKK4h8W+4Em/Y0P6QYgJUQTlUcagzJvSyg+9OBv4hz4Hc/QA==",
    ),
}
# emoji-datasource's own names of the two vendors, in its folders and fields.
DATASOURCE = {"noto": "google", "twemoji": "twitter"}


def fetch(package: Package, folder: Path) -> Path:
    """The package's archive in ``folder``, fetched with ``npm pack`` where it is not there.

    Raises:
        InputError: npm is missing or fails, or the archive is not the one that is expected.
    """
    path = folder / package.archive
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
        try:
            subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            raise InputError(f"{path} is missing, and so is npm, which would fetch it") from None
        except subprocess.CalledProcessError as error:
            raise InputError(f"{path} is missing, and {' '.join(command)} failed: {error.stderr.strip()}") from None
    found = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if found != package.integrity:
        raise InputError(
            f"{path} is not {package.name} {package.version}: SHA-512 {found}, expected {package.integrity}"
        )
    return path


def read_member(archive: Path, name: str) -> bytes:
    """The content of the file ``name`` of the package."""
    with tarfile.open(archive) as tar:
        return _content(tar, f"package/{name}")


def _content(tar: tarfile.TarFile, member: str | tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None, f"{member} is no file"
    return file.read()


def read_names(archive: Path) -> list[dict[str, Any]]:
    """Every emoji of Unicode's list as ``{"code", "name", "group"}``, the group as Unicode names it."""
    entries = json.loads(read_member(archive, "data-by-emoji.json"))
    return [
        {"code": _code(map(ord, characters)), "name": entry["name"], "group": entry["group"]}
        for characters, entry in entries.items()
    ]


def _code(points: Any) -> str:
    """Code points in hexadecimal without the variation selector, which vendors write or leave out."""
    return "-".join(f"{point:04X}" for point in points if point != 0xFE0F)


class Datasource:
    """Drawings of an emoji-datasource package: PNG files of 64 x 64 pixels."""

    def __init__(self, archive: Path, vendor: str):
        self._archive = tarfile.open(archive)  # noqa: SIM115 (read from until the build ends)
        self._folder = f"package/img/{vendor}/64"
        entries = json.loads(_content(self._archive, "package/emoji.json"))
        # Only the vendor's own drawings: elsewhere the package fills gaps with another's.
        self._files = {
            _code(int(point, 16) for point in entry["unified"].split("-")): entry["image"]
            for entry in entries
            if entry[f"has_img_{vendor}"]
        }
        self._pictures = {
            member.name: _content(self._archive, member)
            for member in self._archive
            if member.name.startswith(f"{self._folder}/")
        }

    def has(self, code: str, name: str) -> bool:
        """Whether the vendor draws it."""
        return f"{self._folder}/{self._files.get(code)}" in self._pictures

    def draw(self, code: str, name: str) -> np.ndarray:
        """uint8 [48, 48, 4]."""
        with Image.open(io.BytesIO(self._pictures[f"{self._folder}/{self._files[code]}"])) as image:
            # Premultiplied while it is made smaller, or the colour behind full transparency would bleed in.
            small = image.convert("RGBA").convert("RGBa").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            return np.asarray(small.convert("RGBA"))


class Iconify:
    """Drawings of an Iconify set: SVG by name, the CLDR short name with dashes."""

    def __init__(self, archive: Path):
        self._set = json.loads(read_member(archive, "icons.json"))

    def has(self, code: str, name: str) -> bool:
        """Whether the set draws it."""
        return self._icon(name) is not None

    def _icon(self, name: str) -> dict[str, Any] | None:
        key = slug(name)
        for _ in range(3):  # an alias may lead to an alias
            if key in self._set["icons"]:
                return self._set["icons"][key]
            alias = self._set.get("aliases", {}).get(key)
            if alias is None or alias.keys() - {"parent", "hidden"}:  # one that also turns or mirrors is left out
                return None
            key = alias["parent"]
        return None

    def draw(self, code: str, name: str) -> np.ndarray:
        """uint8 [48, 48, 4]."""
        icon = self._icon(name)
        assert icon is not None, f"{name}: ask has() first"
        return draw_icon(icon, self._set)


def draw_icon(icon: dict[str, Any], icon_set: dict[str, Any]) -> np.ndarray:
    """One icon of a set in Iconify's format, which has the sizes that the icon does not say: uint8 [48, 48, 4]."""
    import resvg_py

    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = (icon.get(side, icon_set.get(side, 16)) for side in ("width", "height"))
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="{SIDE}" height="{SIDE}">{icon["body"]}</svg>'
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE, skip_system_fonts=True)
    with Image.open(io.BytesIO(bytes(png))) as image:
        return np.asarray(image.convert("RGBA"))


def slug(name: str) -> str:
    """The CLDR short name as Iconify writes it: plain lower-case letters and digits, joined by dashes."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower().replace("'", "")
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def open_style(style: str, archive: Path) -> Datasource | Iconify:
    """The drawings in the archive of ``style``."""
    return Datasource(archive, DATASOURCE[style]) if style in DATASOURCE else Iconify(archive)
