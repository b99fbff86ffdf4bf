"""An emulated CUDA device: tensors that report it, keep their values on the CPU, and refuse what a GPU refuses.

torch's own fake tensors (`FakeTensorMode`) know devices and shapes and no values: they stop at the first `float(loss)`,
`nonzero` or mask, and with a CUDA build at the first backward pass, where autograd asks the driver for a context. A
`EmulatedTensor` stores its value on the CPU: whole runs work, and their results can be compared with the CPU's. Fake
tensors define which operations may mix devices: test_emulated.py compares both.

To autograd's C++ its device is "meta", the only one that asks for no driver, stream or guard; in Python it is "cuda:0".

What it cannot show, and only `--device cuda` does:
- kernels: Triton's rasteriser (numba's replaces it), cuDNN, the fused and foreach optimisers, torch.compile;
- streams and pinned memory: a copy that is read too early, host memory that is freed under a copy;
- rounding and determinism: values are the CPU's, and sums by atomics (index_add) do not vary as a GPU's do;
- autocast beyond convolutions, linear layers and matrix products, which are the ones it halves here;
- memory, speed, several GPUs, NCCL; and `inference_mode`, which is `no_grad` here.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

CUDA = torch.device("cuda", 0)
MIXED_DEVICES = ("aten::copy_", "aten::_to_copy")
# An index may be on the CPU: it is moved.
INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index")
SCALARS_FROM_CPU = (*INDEXING, "aten::fill_", "aten::fill", "aten::masked_fill", "aten::masked_fill_")
# What autocast runs in half precision, as far as this project's networks call it.
HALVED = frozenset(
    {
        *(torch.conv2d, torch.nn.functional.conv2d, torch.nn.functional.linear, torch.matmul, torch.bmm, torch.mm),
        *(Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, Tensor.mm, Tensor.bmm, torch.addmm),
    }
)


class WrongDevice(RuntimeError):
    """An operation between devices, as a GPU would refuse it."""


class EmulatedTensor(Tensor):
    """A tensor that reports `cuda:0`; `value` is on the CPU."""

    value: Tensor

    @staticmethod
    def __new__(cls, value: Tensor) -> EmulatedTensor:
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            value.size(),
            strides=value.stride(),
            storage_offset=value.storage_offset(),
            dtype=value.dtype,
            device="meta",
        )

    def __init__(self, value: Tensor) -> None:
        self.value = value

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            args = (args[0], _listless(args[1]), *args[2:])
        elif func in HALVED and torch.is_autocast_enabled("cuda"):
            dtype = torch.get_autocast_dtype("cuda")
            args, kwargs = tree_map_only(Tensor, lambda one: _halved(one, dtype), (args, kwargs))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        return False

    def numpy(self, *, force: bool = False) -> np.ndarray:  # type: ignore[override]
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory "
            "first."
        )

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def new_tensor(self, data: Any, *, dtype: torch.dtype | None = None, device: Any = None, **options: Any) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, device=device or CUDA, **options)

    def __deepcopy__(self, memo: dict[int, Any]) -> EmulatedTensor:
        copied = self.detach().clone().requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        return memo.setdefault(id(self), copied)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"EmulatedTensor({self.value!r})"

    # What makes `nn.Module.to` exchange a parameter whole instead of its C++ half.
    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["value"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], meta: None, size: Any, stride: Any) -> EmulatedTensor:
        return EmulatedTensor(inner["value"])


def _listless(index: Any) -> Any:
    """An index whose lists are tensors: of a list, C++ makes a tensor on "meta", without values."""
    if isinstance(index, list | range):
        return torch.tensor(list(index))
    return tuple(_listless(one) for one in index) if isinstance(index, tuple) else index


def _halved(one: Tensor, dtype: torch.dtype) -> Tensor:
    return one.to(dtype) if one.is_cuda and one.dtype in (torch.float32, torch.float16, torch.bfloat16) else one


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation on values, its answer on the device where torch would put it. Raises WrongDevice."""
    tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    here = any(isinstance(one, EmulatedTensor) for one in tensors)
    if kwargs.get("device") is not None:
        here = torch.device(kwargs["device"]).type in ("cuda", "meta")
        kwargs = {**kwargs, "device": torch.device("cpu")}
        kwargs.pop("pin_memory", None)
    elif here:
        _check(func, args, tensors)
    inner_args, inner_kwargs = tree_map_only(EmulatedTensor, lambda one: one.value, (args, kwargs))
    answer = func(*inner_args, **inner_kwargs)
    if here and torch.Tag.inplace_view in func.tags:  # squeeze_ and the like: the wrapper's own shape changes as well
        with no_dispatch():
            func(*args, **kwargs)
    if func._schema.name == "aten::copy_":
        here = isinstance(args[0], EmulatedTensor)
    if not here:
        return answer
    return _aliased(func, args, kwargs, tree_map_only(Tensor, EmulatedTensor, answer))


def _check(func: Any, args: Any, tensors: list[Tensor]) -> None:
    name = func._schema.name
    if name in MIXED_DEVICES:
        return
    elsewhere = [one for one in tensors if not isinstance(one, EmulatedTensor)]
    if name in INDEXING and isinstance(args[0], EmulatedTensor):
        elsewhere = [one for one in elsewhere if all(one is not index for index in args[1])]
    scalars = torch.Tag.pointwise in func.tags or name in SCALARS_FROM_CPU
    changed = args[0] if func._schema.is_mutable and args and isinstance(args[0], Tensor) else None
    if any(one.dim() or not scalars or one is changed for one in elsewhere):
        raise WrongDevice(
            f"Expected all tensors to be on the same device, but {func} got some on cuda:0 and others on cpu"
        )


def _aliased(func: Any, args: Any, kwargs: dict[str, Any], answer: Any) -> Any:
    """The answer of an operation in place is the very argument that it changed."""
    schema = func._schema
    if not schema.is_mutable:
        return answer
    arguments = dict(zip((one.name for one in schema.arguments), args, strict=False)) | kwargs
    written = {
        frozenset(one.alias_info.before_set): arguments.get(one.name)
        for one in schema.arguments
        if one.alias_info is not None and one.alias_info.is_write
    }
    answers = answer if isinstance(answer, tuple) else (answer,)
    same = tuple(
        written.get(frozenset(one.alias_info.before_set), found) if one.alias_info is not None else found
        for one, found in zip(schema.returns, answers, strict=False)
    )
    return same if isinstance(answer, tuple) else same[0] if same else None


class _Emulating(TorchDispatchMode):
    """Catches what has no emulated tensor among its arguments: factories, and copies to the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextlib.contextmanager
def emulated_cuda() -> Iterator[torch.device]:
    """A machine with one GPU, as far as torch says, in this thread and in those that start meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        answers: dict[str, Callable[..., Any]] = {
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "get_device_name": lambda device=None: "no GPU",
            "is_bf16_supported": lambda including_emulation=True: True,
            "is_current_stream_capturing": lambda: False,
            "synchronize": lambda device=None: None,
            "_lazy_init": lambda: None,
            "manual_seed_all": lambda seed: None,
        }
        for name, answer in answers.items():
            patch.setattr(torch.cuda, name, answer)
        patch.setattr(Tensor, "pin_memory", _pinned)
        patch.setattr(torch.inference_mode, "__enter__", _without_gradients)
        patch.setattr("deca_core.raster._rasterize_triton", _rasterize)
        patch.setattr(threading.Thread, "run", _with_mode(threading.Thread.run))
        # As FakeTensorMode does where no GPU is.
        lifted = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        torch._C._ensureCUDADeviceGuardSet()
        try:
            with _Emulating():
                yield torch.device("cuda")
        finally:
            torch._C._set_only_lift_cpu_tensors(lifted)


def _with_mode(run: Callable[[threading.Thread], None]) -> Callable[[threading.Thread], None]:
    def inside(thread: threading.Thread) -> None:
        with _Emulating():
            run(thread)

    return inside


def _without_gradients(mode: Any) -> None:
    """inference_mode as no_grad: its tensors have no version counter, which views of wrapper tensors ask for."""
    mode._inference_mode_context = torch.no_grad() if mode.mode else contextlib.nullcontext()
    mode._inference_mode_context.__enter__()


def _pinned(tensor: Tensor, device: Any = None) -> Tensor:
    if isinstance(tensor, EmulatedTensor):
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
    return tensor


def _rasterize(vertices: Tensor, faces: Tensor, height: int, width: int) -> Tensor:
    """In the place of the Triton kernel, which reads both from the GPU: the CPU's kernel on their values."""
    from deca_core.raster import rasterize

    if not (isinstance(vertices, EmulatedTensor) and isinstance(faces, EmulatedTensor)):
        raise WrongDevice(f"the kernel reads vertices on {vertices.device} and faces on {faces.device} from the GPU")
    return rasterize(vertices.cpu(), faces.cpu(), height, width, "numba").to(vertices.device)
