"""What this installation can do, whether it measures right, and whether a model of one's own is fit to be measured.

Answers without PyTorch too, then with the line that installs it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from etastar.errors import InvalidArgument, MissingExtra

__all__ = ["DoctorReport", "DoctorRow", "doctor"]

_OUTPUT = "etastar-out"
_FORM = "must be module:function, a function that returns (model, loss_fn, batches)"


@dataclass(frozen=True, slots=True)
class DoctorRow:
    """One thing looked at.

    Attributes:
        what: Its name.
        state: How it was found.
        remedy: What to do; empty where nothing is.
        passed: False where something is wrong, not merely absent or worth knowing.
    """

    what: str
    state: str
    remedy: str = ""
    passed: bool = True


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """All rows, in the order they were looked at.

    Attributes:
        rows: The environment, then the self-check, then the model given.
    """

    rows: tuple[DoctorRow, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return all(row.passed for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"passed": self.passed, "rows": [asdict(row) for row in self.rows]}


def doctor(model: str | None = None) -> DoctorReport:
    """Look at the environment, check the measurements against exact answers, and preflight a model.

    Args:
        model: ``module:function``; the function returns ``(model, loss_fn, batches)`` as `preflight` takes them. The
            current directory is searched too.

    Raises:
        InvalidArgument: No such module or function, one that raises, or one that returns something else.
        MissingExtra: A model was given, and PyTorch is not installed.
    """
    rows = [DoctorRow("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    rows += [*_packages(), _memory(), _output(Path(_OUTPUT))]
    try:
        import etastar.network  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except MissingExtra:
        if model is not None:
            raise MissingExtra("etastar doctor --model", "network") from None
        return DoctorReport(tuple(rows))
    except Exception as error:  # a broken installation of PyTorch raises whatever it likes
        rows.append(DoctorRow("PyTorch", _told(error), "reinstall it: pip install --force-reinstall torch", False))
        return DoctorReport(tuple(rows))
    rows += [*_torch(), *_self_check()]
    if model is not None:
        rows += _preflight(model)
    return DoctorReport(tuple(rows))


def _packages() -> Iterator[DoctorRow]:
    """Of etastar's own requirements: what is there, and the line that adds what is not."""
    try:
        wanted = importlib.metadata.requires("etastar") or []
    except importlib.metadata.PackageNotFoundError:
        yield DoctorRow("etastar", "not installed as a package", "pip install etastar")
        return
    yield DoctorRow("etastar", importlib.metadata.version("etastar"))
    seen: set[str] = set()
    for requirement in wanted:
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", requirement)
        name = re.match(r"[\w.-]+", requirement)
        if name is None or name[0] in seen or (extra is not None and extra[1] in ("dev", "all")):
            continue
        seen.add(name[0])
        line = "pip install etastar" if extra is None else f"pip install 'etastar[{extra[1]}]'"
        yield _package(name[0], re.search(r">=([\d.]+)", requirement), line, optional=extra is not None)


def _package(name: str, least: re.Match[str] | None, line: str, optional: bool) -> DoctorRow:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return DoctorRow(name, "not installed (optional)" if optional else "not installed", line, optional)
    if least is not None and _numbers(version) < _numbers(least[1]):
        return DoctorRow(
            name, f"{version}, older than {least[1]}", f"pip install --upgrade '{name}>={least[1]}'", False
        )
    return DoctorRow(name, version)


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3]]


def _memory() -> DoctorRow:
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on this system
        return DoctorRow("free memory", "unknown on this system")
    few = "measurements keep graphs of up to 1 GiB" if free < 1 << 30 else ""
    return DoctorRow("free memory", f"{free / 2**30:.1f} GiB", few)


def _output(folder: Path) -> DoctorRow:
    """Whether results could be written; nothing is."""
    there = folder.resolve()
    while not there.exists() and there != there.parent:
        there = there.parent
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return DoctorRow("output folder", f"{folder}/ can be written")
    return DoctorRow("output folder", f"{folder}/ cannot be written", "give --out a directory of your own", False)


def _torch() -> Iterator[DoctorRow]:
    import torch

    threads = os.environ.get("OMP_NUM_THREADS")
    asked = f", OMP_NUM_THREADS={threads}" if threads else ""
    yield DoctorRow("threads", f"{torch.get_num_threads()} of {os.cpu_count()} processors{asked}", _crowded())
    precision = torch.get_float32_matmul_precision()
    remedy = "" if precision == "highest" else "products are good to 3 digits: set_float32_matmul_precision('highest')"
    yield DoctorRow("float32 matmul precision", precision, remedy)
    devices = ["CPU"]
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        devices.append(f"{name} ({free / 2**30:.1f} of {total / 2**30:.1f} GiB free)")
    if torch.backends.mps.is_available():
        devices.append("MPS")
    yield DoctorRow("devices", ", ".join(devices))
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        remedy = "curvature runs in one process only; measure checkpoints offline"
        yield DoctorRow("torch.distributed", "initialised", remedy, False)
    else:
        yield DoctorRow("torch.distributed", "not initialised")


def _crowded() -> str:
    """What to do where others keep the processors busy, and threads of small products wait for one another."""
    import torch

    try:
        load = os.getloadavg()[0]
    except (AttributeError, OSError):  # not on this system
        return ""
    if torch.get_num_threads() == 1 or load < 0.5 * (os.cpu_count() or 1):
        return ""
    return f"the machine is busy (load {load:.1f}): small networks train faster with OMP_NUM_THREADS=1"


def _self_check() -> Iterator[DoctorRow]:
    from etastar.recipes.self_check import check_gauge, check_meter, check_preflight

    checks: dict[str, Callable[[], tuple[str, bool]]] = {
        "self-check: preflight": check_preflight,
        "self-check: meter": check_meter,
        "self-check: gauge": check_gauge,
    }
    for what, check in checks.items():
        try:
            state, passed = check()
        except Exception as error:  # whatever it is, the other rows still say what they say
            state, passed = _told(error), False
        remedy = "" if passed else "measurements of this installation cannot be trusted; please report this table"
        yield DoctorRow(what, state, remedy, passed)


def _preflight(spec: str) -> Iterator[DoctorRow]:
    from etastar.network import Severity, preflight

    model, loss_fn, batches = _built(spec)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            report = preflight(model, loss_fn, batches)
    except Exception as error:
        raise InvalidArgument("model", spec, f"its loss or batches raised {_told(error)}") from error
    if not report.findings:
        yield DoctorRow(spec, "sound")
    for finding in report.findings:
        wrong = finding.severity is Severity.REFUSED
        state = f"{finding.severity.name.lower()}: {' '.join(finding.cause.split())}"
        yield DoctorRow(f"{spec}: {finding.name}", state, finding.remedy, not wrong)


def _built(spec: str) -> tuple[Any, Any, Any]:
    """What the function named by the user returns, checked."""
    from torch import nn

    function = _function(spec)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for the answer
            found = function()
    except (Exception, SystemExit) as error:
        raise InvalidArgument("model", spec, f"the function raised {_told(error)}") from error
    if not isinstance(found, tuple) or len(found) != 3:
        length = f" of {len(found)}" if isinstance(found, tuple) else ""
        raise InvalidArgument("model", spec, f"{_FORM}, not a {type(found).__name__}{length}")
    model, loss_fn, batches = found
    if not isinstance(model, nn.Module):
        raise InvalidArgument("model", spec, f"{_FORM}: its model is a {type(model).__name__}, no torch.nn.Module")
    if not callable(loss_fn):
        raise InvalidArgument("model", spec, f"{_FORM}: its loss_fn is a {type(loss_fn).__name__}, not callable")
    if not isinstance(batches, Iterable):
        raise InvalidArgument("model", spec, f"{_FORM}: its batches are a {type(batches).__name__}, not iterable")
    return model, loss_fn, batches


def _function(spec: str) -> Callable[[], Any]:
    module_name, _, name = spec.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), name]):
        raise InvalidArgument("model", spec, _FORM)
    here = os.getcwd()
    sys.path.insert(0, here)  # as `python -m` does; an installed command does not
    try:
        with contextlib.redirect_stdout(sys.stderr):
            module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        missing = isinstance(error, ModuleNotFoundError) and module_name.startswith(str(error.name))
        remedy = f"no module {module_name} here or installed" if missing else f"importing it raised {_told(error)}"
        raise InvalidArgument("model", spec, remedy) from error
    finally:
        with contextlib.suppress(ValueError):  # unless the module itself tidied up
            sys.path.remove(here)
    function = getattr(module, name, None)
    if not callable(function):
        near = ", ".join(get_close_matches(name, dir(module), 3)) or "none"
        kind = "no" if function is None else "no callable"
        raise InvalidArgument("model", spec, f"{module_name} has {kind} {name}; close: {near}")
    return function


def _told(error: BaseException, limit: int = 160) -> str:
    """An exception of somebody else's code in one line, with the place it came from."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = "" if trace is None else f" ({Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno})"
    text = " ".join(str(error).split())
    short = text if len(text) <= limit else f"{text[: limit - 1]}…"
    return f"{type(error).__name__}{': ' if short else ''}{short}{place}"
