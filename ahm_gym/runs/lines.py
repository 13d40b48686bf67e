"""Text files to which programs append line by line."""

from __future__ import annotations

from pathlib import Path

from ahm_gym.runs.schema import refuse_devices


def complete_lines(path: Path, errors: str = "strict") -> list[str]:
    """The lines of a text file to which programs append; none if there is no file.

    An incomplete last line is still being written, or was cut off by a crash, and is left out.

    Args:
        path: the file.
        errors: what happens to bytes that are not UTF-8, as in `open`.

    Raises:
        InputError: if the path leads to something else than a file.
    """
    refuse_devices(path)
    text = path.read_text(encoding="utf-8", errors=errors) if path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()
