"""Image files as RGB."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from rmadapter.errors import InputError


def read_image(path: Path) -> Image.Image:
    """The image as RGB; transparency is dropped as PIL does, orientation tags are not applied (as torchvision).

    Raises:
        InputError: missing, truncated, or no image; the message names the file.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I;16"):
                # PIL clips 16-bit grey at 255 where the eye expects it scaled.
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            elif image.mode == "P" and "transparency" in image.info:
                image = image.convert("RGBA")
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"image {path} cannot be read: {error}") from error
