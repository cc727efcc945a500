"""Where what is costly to compute is kept between runs."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Of figures, samples of instructors and encoded prompts; may not exist yet."""
    return Path(os.environ.get("INSTIL_CACHE", Path.home() / ".cache" / "instil"))
