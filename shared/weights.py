"""Names the weights of a folder. It reads bytes and knows no model."""

import hashlib
from pathlib import Path


def hash_weights(folder: Path) -> str:
    """SHA-256 over the folder's safetensors files in the order of their names, in hexadecimal."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
