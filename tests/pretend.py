"""A pretend accelerator, so that device mistakes fail where there is no card.

    import pretend; pretend.install()   # in a process of its own, before fastai and the course are imported

From then on 'pretend:0' is a device like 'cuda:0', and the default of the course and of fastai. A tensor that lies on
it is computed with on the CPU, so numbers are those of a CPU, bit for bit; but an operation that mixes it with a
tensor on the CPU raises what CUDA raises, and so does numpy. `mistakes` lists what was raised, also where the caller
caught it. Nothing can be taken back: torch knows the device until the process ends.

A tensor on the device is a `Pretended`: torch sees a tensor of its shape without memory, and `elem` holds the CPU
tensor with the numbers. torch hands all operations on it to `_run`, as it hands operations on a real device to its
kernels.

What it cannot show: speed, memory, streams, graphs, autocast, random numbers drawn by the device's own generator
(here the CPU's), and code that asks for 'cuda' by name. A module does not move while the graph of a gradient holds
its parameters. Where a result would be wrong it raises NotImplementedError.
"""
import collections, torch, traceback, torch.utils._pytree as pytree
from functools import partial
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = 'pretend'
mistakes = [] # a line for each mix of devices so far
_aten = torch.ops.aten
_moves = {_aten._to_copy.default, _aten.copy_.default, _aten._local_scalar_dense.default} # from device to device
_indexed = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}

def _mistake(kind, text):
    at = [f for f in traceback.extract_stack() if not any(o in f.filename
                                                          for o in ('/torch/', '/fastai/', '/fastcore/', __file__))]
    mistakes.append(f'{text} (line {at[-1].lineno} of {at[-1].filename}: {at[-1].line})' if at else text)
    raise kind(text)

class Pretended(torch.Tensor):
    "A tensor that says it lies on the device; `elem` holds its numbers"
    @staticmethod
    def __new__(cls, elem):
        t = torch.Tensor._make_wrapper_subclass(cls, elem.size(),
                                                strides=elem.stride(), storage_offset=elem.storage_offset(),
                                                dtype=elem.dtype, layout=elem.layout, device=torch.device(NAME, 0))
        t.elem = elem
        return t
    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None): return _run(func, *args, **kwargs or {})
    def __repr__(self, **kwargs): return f"{self.elem!r} on '{NAME}:0'"
    def tolist(self): return self.elem.tolist()
    def numpy(self, *args, **kwargs):
        _mistake(TypeError, f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() to copy the "
                            "tensor to host memory first.")
    def __array__(self, *args, **kwargs): self.numpy()
    def set_meta(self, x, as_copy=False):
        pass # fastai would hand `__dict__` from tensor to tensor, and the numbers with it
    def __reduce_ex__(self, proto):
        """Saved as its numbers and the device's name: what torch.save writes of any tensor on a device
        without files of its own"""
        if getattr(self, '_is_param', False):
            return torch._utils._rebuild_parameter, (self.data, self.requires_grad, collections.OrderedDict())
        return (torch._utils._rebuild_device_tensor_from_cpu_tensor,
                (self.elem.detach(), self.dtype, str(self.device), self.requires_grad))

def _there(device): return device is not None and torch.device(device).type == NAME
def _layout(t): return t.shape, [s for s,n in zip(t.stride(), t.shape) if n > 1]

def _check(func, args, tensors):
    """CUDA's rules: all tensors on the device, but for indices, and for single numbers where an
    operation goes element by element"""
    ts, first = tensors, [args[0]] if args and isinstance(args[0], torch.Tensor) else []
    if func in _indexed: ts = first + [o for o in args[2:3] if o.dim()]
    elif torch.Tag.pointwise in func.tags or func is _aten.fill_.Tensor:
        ts = first*(func._schema.name[-1] == '_') + [o for o in ts if o.dim()]
    if any(not isinstance(o, Pretended) for o in ts):
        _mistake(RuntimeError, 'Expected all tensors to be on the same device, but found at least two devices, '
                               f'{NAME}:0 and cpu! ({func})')

def _each(f, o):
    "`f` of every tensor in what an operation takes or gives"
    if isinstance(o, torch.Tensor): return f(o)
    return type(o)([_each(f, i) for i in o]) if isinstance(o, (list, tuple)) else o

def _run(func, *args, **kwargs):
    "What the operation `func` gives for tensors some of which lie on the device, or for a new one there"
    tensors, old, to = [], {}, kwargs.get('device')
    def out(t):
        tensors.append(t)
        if not isinstance(t, Pretended): return t
        old[id(t.elem)] = t
        return t.elem
    plain, named = _each(out, args), {k: _each(out, v) for k,v in kwargs.items()}
    if old and func not in _moves: _check(func, args, tensors)
    if _there(to): named['device'] = torch.device('cpu')
    there = (_there(to) if to is not None else isinstance(args[0], Pretended) if func is _aten.copy_.default
             else bool(old))
    def back(o):
        t = old.get(id(o)) # worked on in place
        if t is None: return Pretended(o) if there else o
        if _layout(t) != _layout(o): raise NotImplementedError(f'{func} changes the shape of a tensor in place')
        return t
    return _each(back, func(*plain, **named))

_both = {} # a class -> its subclass that is also `Pretended`
_as_subclass = torch.Tensor.as_subclass

def _class(kind):
    if issubclass(kind, Pretended): return kind
    if kind in (torch.Tensor, torch.nn.Parameter): return Pretended
    if kind not in _both:
        # `__torch_function__` by name: torch switches it off in
        # Pretended. Related as the classes themselves are: they may meet
        _both[kind] = type(f'Pretended{kind.__name__}', (_class(kind.__base__), kind),
                           dict(__torch_function__=classmethod(kind.__torch_function__.__func__)))
    return _both[kind]

def _cast(self, kind):
    "`Tensor.as_subclass`: a TensorImage of fastai's stays one as it moves to the device and back"
    if not isinstance(self, Pretended):
        on_cpu = next(k for k in kind.__mro__ if not issubclass(k, Pretended))
        return _as_subclass(self, on_cpu)
    with torch._C.DisableTorchFunctionSubclass(): res = _aten.alias.default(self)
    res.__class__ = _class(kind)
    return res

_load = torch.load
def _loaded(f, map_location=None, **kwargs):
    "`torch.load`: what was saved on the CPU moves to the device if asked"
    if not isinstance(map_location, (str, torch.device)) or not _there(map_location):
        return _load(f, map_location, **kwargs)
    return pytree.tree_map_only(torch.Tensor, lambda o: o.to(map_location), _load(f, **kwargs))

def install():
    "Make the device, and the default of fastai and of the course; returns it."
    _setup_privateuseone_for_python_backend(NAME)
    every, new = install.libraries = [torch.library.Library(o, 'IMPL') for o in ('_', 'aten')]
    every.fallback(_run, 'PrivateUse1') # for new tensors; operations on old ones come by __torch_dispatch__
    for ops in _aten.arange, _aten.eye, _aten.linspace, _aten.range:
        # torch makes them of nothing, and then of another shape
        for o in ops.overloads():
            if 'out' not in o: new.impl(getattr(ops, o), partial(_run, getattr(ops, o)), 'PrivateUse1')
    torch._C._set_only_lift_cpu_tensors(True) # torch.tensor(..., device=) is then made on the CPU and moved
    # parameters keep their identity when a module moves, as on CUDA
    torch.__future__.set_swap_module_params_on_conversion(True)
    torch.Tensor.as_subclass, torch.load = _cast, _loaded
    import fastai.torch_core, tlcourse.base
    dev, pick = torch.device(NAME, 0), tlcourse.base.pick_device
    fastai.torch_core.default_device = lambda use=-1: dev
    tlcourse.base.pick_device = lambda name='auto': dev if name in (None, 'auto') else pick(name)
    import tlcourse.training
    tlcourse.training._fused += NAME, # the kernel that a CPU and CUDA take
    return dev
