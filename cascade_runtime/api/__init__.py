"""What a user asks and what a user gets: `GenerateRequest` and `Answer`. Plain data, the same in process and on Ray."""

from cascade_runtime.api.answer import Answer, Rejection, Timings, in_words
from cascade_runtime.api.answer_json import answer_from_dict
from cascade_runtime.api.piece import Piece
from cascade_runtime.api.request import GenerateRequest

__all__ = ["Answer", "GenerateRequest", "Piece", "Rejection", "Timings", "answer_from_dict", "in_words"]
