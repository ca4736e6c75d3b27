"""What a user asks and what a user gets: `GenerateRequest` and `Answer`. Plain data, the same in process and on Ray."""

from cascade_runtime.api.answer import Answer, Timings
from cascade_runtime.api.piece import Piece
from cascade_runtime.api.request import GenerateRequest

__all__ = ["Answer", "GenerateRequest", "Piece", "Timings"]
