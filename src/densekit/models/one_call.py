"""A DenseNet's form for evaluation: made when first needed, and again when the network changed.

`auto` and `lean` take it where nothing asks for a gradient; ops/lean/inference.py, on a GPU
inference_gpu.py, computes the whole network in one call. What it cannot, the modules compute as
ever.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from densekit.ops.choose import in_one_call
from densekit.ops.lean.inference import Network, NetworkParts
from densekit.ops.lean.inference_gpu import GpuNetwork
from densekit.ops.refusals import HOOKS
from densekit.ops.sync_bn import SyncBatchNorm2d
from densekit.ops.transforms import transform_of

SLIDING = ("kernel_size", "stride", "padding")
OneCall = Callable[[Tensor], Tensor]
OPTIONS = {
    nn.Conv2d: ("in_channels", "out_channels", *SLIDING, "dilation", "groups", "padding_mode"),
    nn.BatchNorm2d: ("num_features", "affine", "track_running_stats"),
    nn.MaxPool2d: (*SLIDING, "dilation", "ceil_mode", "return_indices"),
    nn.AvgPool2d: (*SLIDING, "ceil_mode", "count_include_pad", "divisor_override"),
}
"""Of a module: what its forward pass depends on beside its tensors, and a norm's eps."""


def one_call(model: Any, x: Tensor, built: Callable[..., nn.Module]) -> OneCall | None:
    """What computes model(x), if that is a network `built` and its op takes the form; else None.

    Nothing of it is in the model's state_dict, and no copy of the model has it.
    """
    if type(x) is not Tensor or torch.is_grad_enabled() or model.training or _is_seen(x):
        return None
    autocast = torch.is_autocast_enabled(x.device.type)
    dtype = torch.get_autocast_dtype(x.device.type) if autocast else x.dtype
    if x.dtype != torch.float32 or not in_one_call(model.op, x.device, dtype):
        return None
    form = _FORMS.get(model)
    if form is None or not form.holds():
        form = _FORMS[model] = _Form(model, built)
    return form.network(x, dtype)


def forget_one_call(model: nn.Module) -> None:
    """The next evaluation makes the form again."""
    _FORMS.pop(model, None)


class _Form:
    """A network's parts and what they were like when this was made.

    It refers to all modules but the network itself, which would never be freed.
    """

    def __init__(self, model: Any, built: Callable[..., nn.Module]) -> None:
        _, *self._modules = model.modules()
        self._children = [m._modules for m in model.modules() if m._modules]
        self._hooks = [getattr(m, name) for m in model.modules() for name in HOOKS]
        self._options = [(options, m) for m in self._modules for options in _getters(m)]
        self._norms = [m for m in self._modules if isinstance(m, nn.BatchNorm2d)]
        self._tensors = [d for m in self._modules for d in (m._parameters, m._buffers) if d]
        self._parts = _parts(model) if _is_as_built(model, built) else None
        self._state = self._seen()
        self._device = next(model.parameters()).device
        self._networks: dict[torch.dtype, OneCall] = {}

    def holds(self) -> bool:
        """That the network is as it was: its modules, their options, and every tensor."""
        try:
            return self._seen() == self._state
        except RuntimeError:  # a tensor of torch.inference_mode has come in, which has no version
            return False

    def network(self, x: Tensor, dtype: torch.dtype) -> OneCall | None:
        """None where a module has to be called, or the form cannot compute it."""
        watched = any(self._hooks) or any(getattr(nn.modules.module, f"_global{h}") for h in HOOKS)
        if self._parts is None or watched or x.device != self._device or not self._parts.take(x):
            return None
        if dtype not in self._networks:
            kind = Network if x.device.type == "cpu" else GpuNetwork
            self._networks[dtype] = kind(self._parts, dtype)
        return self._networks[dtype]

    def _seen(self) -> list[Any]:
        """Compared in each call, so it is made of little but loops (0.23 ms, DenseNet-121).

        A tensor's version counts changes in place, of optimizers and of load_state_dict too; those
        by way of `.data` it does not, which is why `train()` forgets the form.
        """
        tensors = [t for d in self._tensors for t in d.values() if t is not None]
        return [
            [m.training or "forward" in m.__dict__ for m in self._modules],
            list(map(type, self._modules)),
            [tuple(d.values()) for d in self._children],
            [options(m) for options, m in self._options],
            [m.eps for m in self._norms],
            [t.data_ptr() for t in tensors],
            [] if self._parts is None else [t._version for t in tensors],
        ]


_FORMS: weakref.WeakKeyDictionary[nn.Module, _Form] = weakref.WeakKeyDictionary()


def _is_seen(x: Tensor) -> bool:
    """Whether someone else has to see torch's operations: a compiler, a counter, a transform."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or transform_of(x) is not None
    )


# Whether it is as it was built ----------------------------------------------------------------


def _is_as_built(model: Any, built: Callable[..., nn.Module]) -> bool:
    """Another classifier may have taken the place of the first one."""
    kind: type = type(model)
    if kind is not built or any(m.training or "forward" in vars(m) for m in model.modules()):
        return False
    sync = isinstance(model.features.norm5, SyncBatchNorm2d)
    if _structure(model) != _structure_of(kind, model.config, sync):
        return False
    channels = model.features.norm5.num_features
    head = model.classifier
    if type(head) is not nn.Identity and not (
        type(head) is nn.Linear and head.in_features == channels
    ):
        return False
    tensors = [*model.parameters(), *model.buffers()]
    return all(
        type(t) in (Tensor, nn.Parameter)
        and t.dtype in (torch.float32, torch.int64)  # the latter counts a norm's batches
        and t.device == tensors[0].device
        and not t.is_inference()  # which has no version
        for t in tensors
    )


@functools.lru_cache(maxsize=8)
def _structure_of(built: Callable[..., nn.Module], config: Any, sync: bool) -> list[Any]:
    with torch.device("meta"):
        return _structure(built(config, sync_bn=sync))


def _structure(model: nn.Module) -> list[Any]:
    """Of every module but the classifier: name, type, options, and the shapes of its tensors."""
    return [
        (name, type(m), [options(m) for options in _getters(m)], _shapes(m))
        for name, m in model.named_modules()
        if name.partition(".")[0] != "classifier"
    ]


def _shapes(module: nn.Module) -> dict[str, Any]:
    tensors = {**module._parameters, **module._buffers}
    return {name: None if t is None else t.shape for name, t in tensors.items()}


def _getters(module: nn.Module) -> list[Any]:
    return [GETTERS[kind] for kind in GETTERS if isinstance(module, kind)]


GETTERS = {kind: attrgetter(*names) for kind, names in OPTIONS.items()}


def _parts(model: Any) -> NetworkParts:
    features = dict(model.features.named_children())
    return NetworkParts(
        conv0=features["conv0"],
        norm0=features.get("norm0"),
        blocks=[list(part.values()) for name, part in features.items() if "denseblock" in name],
        transitions=[part for name, part in features.items() if "transition" in name],
        norm5=features["norm5"],
        classifier=model.classifier if isinstance(model.classifier, nn.Linear) else None,
    )
