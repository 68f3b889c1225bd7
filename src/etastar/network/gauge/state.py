"""A gauge's state: saved in tensors and plain values, so that a resumed run is a run that never stopped."""

from __future__ import annotations

from typing import Any

from etastar.errors import InvalidArgument
from etastar.network.gauge.observer import Observer

__all__ = ["load_state", "save_state"]

_VERSION = 3


def save_state(observer: Observer) -> dict[str, Any]:
    """Counters, rows, and the two buffers where the next gradient is still to meet them."""
    after = observer.phase == "after"
    return {
        "version": _VERSION,
        "every": observer.every,
        "names": list(observer.layout.names),
        "shapes": [list(t.shape) for t in observer.layout.tensors],
        "steps": observer.steps,
        "extra_gradients": observer.extra_gradients,
        "block_start": observer.block_start,
        "second_in": observer.second_in,
        "based": observer.based,
        "update": [t.clone() for t in observer.update or []] if observer.has_update else None,
        "second": [t.clone() for t in observer.aside or []] if after else None,
        "event": [t.clone() for t in observer.event] if after else [],
        "pair": [t.clone() for t in observer.pair] if after else [],
        "step_size": None if observer.step_size is None else observer.step_size.clone(),
        "recorder": observer.recorder.state(),
    }


def load_state(observer: Observer, state: dict[str, Any]) -> None:
    """Put it back; nothing is changed where it does not fit."""
    observer.refresh()
    layout = observer.layout
    wanted = {
        "version": _VERSION,
        "every": observer.every,
        "names": list(layout.names),
        "shapes": [list(t.shape) for t in layout.tensors],
    }
    for key, value in wanted.items():
        if key not in state or state[key] != value:
            raise InvalidArgument(f"state[{key!r}]", state.get(key), f"this gauge needs {value!r}")
    observer.forget()
    for key in ("steps", "extra_gradients", "block_start", "second_in"):
        setattr(observer, key, int(state[key]))
    observer.based = bool(state["based"]) and layout.slices is not None
    for key, name in (("update", "update"), ("second", "aside")):
        if state[key] is not None:
            saved = zip(state[key], layout.tensors, strict=True)
            setattr(observer, name, [t.to(p.device, copy=True) for t, p in saved])
    observer.has_update = state["update"] is not None
    observer.phase = "none" if state["second"] is None else "after"
    observer.event = [t.to(layout.device) for t in state["event"]]
    observer.pair = [t.to(layout.device) for t in state["pair"]]
    observer.step_size = None if state["step_size"] is None else state["step_size"].to(layout.device)
    observer.recorder.load(state["recorder"], layout.device)
