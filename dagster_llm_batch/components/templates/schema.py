"""The form of a reply. Each field becomes a column of the labeled table."""

from typing import Literal

from pydantic import BaseModel, Field


class TicketLabel(BaseModel):
    """The label of one ticket."""

    topic: Literal["billing", "bug", "how_to"] = Field(description="What the ticket is about.")
