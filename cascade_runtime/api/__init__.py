"""What a user asks and what a user gets: `GenerateRequest` and `Answer`. Plain data, the same in process and on Ray.

request.py   GenerateRequest          answer.py, answer_html.py   Answer, also for a notebook
piece.py     Piece, of a stream       window.py   WindowAnswer, of a session
served.py    ServedModel, Health
"""

from cascade_runtime.api.answer import Answer, Rejection, Timings, in_words
from cascade_runtime.api.piece import Piece
from cascade_runtime.api.request import GenerateRequest
from cascade_runtime.api.served import Health, ServedModel
from cascade_runtime.api.window import WindowAnswer

__all__ = [
    "Answer",
    "GenerateRequest",
    "Health",
    "Piece",
    "Rejection",
    "ServedModel",
    "Timings",
    "WindowAnswer",
    "in_words",
]
