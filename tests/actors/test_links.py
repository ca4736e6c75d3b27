"""An address is for one neighbour: nobody else is let in there afterwards, and nothing of it stays on the disk."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from actors.links import Links
from benchmarks.faults.recipe import recipe
from cascade_runtime.channels import ChannelSpec, connect
from cascade_runtime.errors import ChannelError
from cascade_runtime.messages import DraftBlock
from cascade_runtime.tracing import Tracer

SPEC = ChannelSpec(backend="stream", link="light-mid", epoch=1, secret=b"sixteen bytes or more")
BLOCK = DraftBlock(7, 0, 0, (1, 2), (1, 1), 0)


@pytest.mark.parametrize("backend", ["stream", "local"])
def test_who_has_come_is_the_last_to_be_let_in(backend: str) -> None:
    light, mid = Links(recipe(), 0, Tracer("light")), Links(recipe(), 1, Tracer("mid"))
    assert light.awaited == []
    with pytest.raises(ChannelError, match="light listens nowhere"):
        light.accept(0.1)
    for epoch in (1, 2):  # and again after a new address was given
        spec = light.listen(replace(SPEC, backend=backend, epoch=epoch))
        assert light.awaited == [0]
        with ThreadPoolExecutor(1) as pool:
            joining = pool.submit(mid.connect, spec, 5.0)
            down, up = light.accept(5.0), joining.result()
        if backend == "stream":
            path = Path(spec.address.removeprefix("unix:"))
            assert not path.exists() and not path.parent.exists()
        assert light.awaited == []
        with pytest.raises(ChannelError, match="light listens nowhere"):
            light.accept(0.1)
        with pytest.raises(ChannelError):
            connect(spec, 0.2)
        down.tell(BLOCK)
        down.flush()
        assert list(up.take(3)) == [BLOCK]
        down.channel.close()
        up.channel.close()
