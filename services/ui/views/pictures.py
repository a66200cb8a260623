"""Pictures of a question: from the field's files to what is sent, and drawn again from what is stored."""

from base64 import b64encode
from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st

from services.ui.client import GatewayError, Json
from services.ui.text import plain_markdown

#: What the field offers to choose; what a file is, the gateway finds out by itself.
TYPES = ("png", "jpg", "jpeg", "webp", "dcm")
#: Most megabytes of one file.
FILE_MB = 10
#: Asked for whoever sends pictures and writes nothing.
WHAT_IS_SEEN = "What can be seen here?"
WIDTH_PX = 240
HINT = "Pictures are kept without what their files say besides; cover names that are written into one."


def taken_from(files: Sequence[Any]) -> list[str]:
    """The files of the field as they are sent: base64."""
    return [b64encode(file.getvalue()).decode() for file in files]


def show_stored(images: Sequence[Json], load: Callable[[str], bytes]) -> None:
    """The pictures of a message, side by side; `load` gives the PNG of an id, or raises GatewayError."""
    if not images:
        return
    with st.container(horizontal=True):
        for number, image in enumerate(images, start=1):
            try:
                png = b64encode(load(image["id"])).decode()
            except GatewayError as error:
                told = plain_markdown(f"Picture {number} cannot be shown. {error.detail}")
                st.caption(f":material/broken_image: {told}")
                continue
            # within the page: what Streamlit serves at an address of its own asks nobody who they are
            st.image(f"data:image/png;base64,{png}", width=WIDTH_PX, caption=f"Picture {number}")


def tell_unsent(images: Sequence[str]) -> None:
    """How many pictures go with a question that was not sent; nothing without any."""
    if images:
        count = "1 picture" if len(images) == 1 else f"{len(images)} pictures"
        st.caption(f":material/attach_file: With {count}.")
