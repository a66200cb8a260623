"""Shows a picture that is kept. It decides for nobody who may see it."""

from typing import Annotated, Any

from fastapi import Path, Response

from services.api.errors import document
from services.api.state import Gateway

ImageId = Annotated[str, Path(max_length=36)]
#: The `responses=` of a route that shows a picture.
PICTURES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The picture",
        "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
    },
    **document(401, 403, 404, 410, 422, 429),
}


class PictureResponse(Response):
    """A PNG that nobody else may keep, and no browser takes for anything else."""

    media_type = "image/png"

    def __init__(self, png: bytes, status_code: int = 200) -> None:
        headers = {"Cache-Control": "private, no-store", "Content-Security-Policy": "default-src 'none'"}
        super().__init__(png, status_code=status_code, headers=headers)


def picture_of(gateway: Gateway, conversation_id: str, image_id: str) -> PictureResponse:
    """A picture of this conversation. Raises NotFound, and CannotDecrypt when it was erased."""
    with gateway.database.read() as connection:
        key = gateway.conversations.key(connection, conversation_id)
        png = gateway.conversations.read_picture(
            connection, image_id, conversation_id=conversation_id, key=key
        )
    return PictureResponse(png)
