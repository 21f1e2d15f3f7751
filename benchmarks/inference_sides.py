"""The sides of comparisons of inference, by name: with other engines, and over files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import densekit_steps
import engine_steps
import file_steps
import serving_steps
import torchvision_steps
from densekit.bench.rounds import Candidate
from densekit.precision import Format
from densekit_steps import Workload

Sides = tuple[Candidate, Candidate, Workload]


def engines(work: Workload, precisions: Sequence[Format], folder: Path) -> dict[str, Sides]:
    """The network of `densekit predict` against other ways to compute it, in their precision.

    Of OpenVINO and ONNX Runtime (the extra `export`), those that are installed. An export is
    written to `folder`, once for all rows.
    """
    found = {}
    for count in (1, work.batch_size):
        one = work.model_copy(update={"batch_size": count})
        for name, theirs in _engines(one, precisions).items():
            precision = name.rpartition("-")[2]
            step = partial(densekit_steps.inference, one, precision)
            ours = Candidate(f"densekit, {precision}", step)
            found[f"engines-{count}/{name}"] = ours, theirs, one
        if find_spec("openvino") and find_spec("nncf"):
            step = partial(densekit_steps.int8, one, folder)
            int8 = Candidate("densekit, openvino-int8", step)
            found[f"engines-{count}/int8"] = int8, _openvino(one, "fp32"), one
    return found


def _engines(work: Workload, precisions: Sequence[Format]) -> dict[str, Candidate]:
    peers = {}
    for precision in precisions:
        step = partial(torchvision_steps.inference, work, precision, "channels_last")
        name = f"torchvision, channels_last, {precision}"
        peers[f"torchvision-{precision}"] = Candidate(name, step)
        if find_spec("openvino"):
            peers[f"openvino-{precision}"] = _openvino(work, precision)
    if find_spec("onnxruntime"):
        step = partial(engine_steps.onnxruntime, work)
        name = f"ONNX Runtime {version('onnxruntime')}, fp32"
        peers["onnxruntime-fp32"] = Candidate(name, step)
    return peers


def _openvino(work: Workload, precision: Format) -> Candidate:
    step = partial(engine_steps.openvino, work, precision)
    return Candidate(f"OpenVINO {version('openvino')}, {precision}", step)


def files(work: Workload, paths: Sequence[str], tuned: Format, folder: Path) -> dict[str, Sides]:
    """Files to answers, one pass over `paths` a step; `tuned` is this machine's precision, and
    `folder` where an export is written, once for all rows.

    Paddle's side needs PADDLE_PYTHON: an interpreter that has paddlepaddle and pillow.
    """
    passed = work.model_copy(update={"batch_size": len(paths)})

    def ours(precision: str) -> Candidate:
        step = partial(file_steps.densekit, paths, work, precision)
        return Candidate(f"densekit predict, {precision}", step)

    plain = partial(file_steps.torchvision, paths, work, "fp32", "contiguous")
    best = partial(file_steps.torchvision, paths, work, tuned, "channels_last")
    sides = {
        "predict/as-it-comes": (ours("fp32"), Candidate("torchvision, NCHW, fp32, PIL", plain)),
        "predict/tuned": (
            ours(tuned),
            Candidate(f"torchvision, channels_last, {tuned}, PIL", best),
        ),
    }
    step = partial(file_steps.int8, paths, work, folder)
    quantized = Candidate("densekit predict, openvino-int8", step)
    if find_spec("openvino") and find_spec("nncf"):
        sides["predict/int8"] = quantized, ours(tuned)
    if python := os.environ.get("PADDLE_PYTHON"):
        step = partial(file_steps.paddle, paths, work, python)
        paddle = Candidate("Paddle's inference, MKL-DNN, fp32, PIL", step)
        sides["predict/paddle"] = ours("fp32"), paddle
        sides["predict/paddle-tuned"] = ours(tuned), paddle
        if "predict/int8" in sides:
            sides["predict/paddle-int8"] = quantized, paddle
    return {name: (*pair, passed) for name, pair in sides.items()}


def serving(work: Workload, paths: Sequence[str], precisions: Sequence[Format]) -> dict[str, Sides]:
    """`densekit serve` and 64 clients against its bare predictor and other servers.

    LitServe where it is installed.
    """
    asked = work.model_copy(update={"batch_size": len(paths)})
    sides = {}
    for precision in precisions:
        ours = Candidate(
            f"densekit serve, {precision}",
            partial(serving_steps.densekit, paths, work, precision),
        )
        bare = partial(file_steps.densekit, paths, work, precision)
        sides[f"bare-{precision}"] = ours, Candidate(f"densekit predict, {precision}", bare, True)
        if find_spec("litserve"):
            step = partial(serving_steps.litserve, paths, work, precision)
            theirs = Candidate(serving_steps.litserve_name(precision), step)
            sides[f"litserve-{precision}"] = ours, theirs
        if precision == "fp32":
            plain = partial(serving_steps.fastapi, paths, work)
            theirs = Candidate("FastAPI, PIL, torchvision's network, NCHW, fp32", plain)
            sides["fastapi-fp32"] = ours, theirs
    return {f"serving/{name}": (*pair, asked) for name, pair in sides.items()}
