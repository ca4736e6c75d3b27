"""A supervisor whose questions, or the answers to them, are lost on their way blames no stage for it."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from test_restarts import long_request, recipe_of, supervised, until
from toy_family import write_toy_family

from cascade_runtime.errors import ChannelError


@pytest.mark.parametrize("how", ["never answered", "said to be lost"])
def test_a_lost_question_is_asked_again(tmp_path: Path, how: str) -> None:
    with supervised(recipe_of(write_toy_family(tmp_path), silent_s=2.0)) as controller:
        handle = controller.crew.handles["target"]
        start, asked = handle.start, [0]

        def losing(method: str, *args: Any) -> Any:
            if method != "pulse":
                return start(method, *args)
            asked[0] += 1
            if asked[0] % 2:  # every other one
                lost: Future[Any] = Future()
                if how == "said to be lost":
                    lost.set_exception(ChannelError("a call was lost on its way"))
                return lost
            return start(method, *args)

        handle.start = losing
        assert until(lambda: asked[0] >= 4)
        assert len(controller.generate(long_request()).token_ids) == 60
        assert not controller.supervisor.recoveries and not controller.supervisor.down
        handle.start = start
