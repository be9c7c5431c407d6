"""A fake of TensorRT that computes with ONNX Runtime on the CPU.

It has the names, signatures and return values of the real bindings as far as bbt-fast uses them (a test compares the
two), refuses what TensorRT refuses, and runs a plan's graph on the memory whose addresses it is given. It says nothing
about TensorRT's kernels, speed, or which graphs it can build.

Tests set ``faults`` to make a step fail, and read ``builds`` and ``runs``.
"""

from __future__ import annotations

import ctypes
import enum
import json
from collections.abc import Sequence
from typing import Any, SupportsInt

import numpy as np
import onnx
import onnxruntime as ort

__version__ = "11.4.0.106"
MAGIC = b"fake TensorRT plan\n"

faults: set[str] = set()
"""Steps that fail: "parse", "profile", "build", "timings", "load", "context", "address", "execute", and "lengths", the
build of attention by lengths. With "wrong" a population's answers come out in the wrong order; with "wrong lengths"
attention by lengths sees some padding."""
builds: list[dict[str, Any]] = []
"""What has been built: the shapes, and the number of timings that were known before."""
runs: list[int] = []
"""The address of the device memory that each execution was given."""


class LayerType(enum.IntEnum):
    SHUFFLE = 14
    ATTENTION_INPUT = 50


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class MemoryPoolType(enum.IntEnum):
    WORKSPACE = 0


class BuilderFlag(enum.IntEnum):
    TF32 = 7


class TensorIOMode(enum.IntEnum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class ExecutionContextAllocationStrategy(enum.IntEnum):
    STATIC = 0
    USER_MANAGED = 2


class LayerInformationFormat(enum.IntEnum):
    ONELINE = 0


class DataType(enum.Enum):
    FLOAT = onnx.TensorProto.FLOAT
    HALF = onnx.TensorProto.FLOAT16
    BF16 = onnx.TensorProto.BFLOAT16
    INT32 = onnx.TensorProto.INT32
    INT64 = onnx.TensorProto.INT64
    BOOL = onnx.TensorProto.BOOL


class ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    def __init__(self) -> None: ...

    def log(self, severity: Severity, msg: str) -> None:
        raise AssertionError("a logger must override log")


class IProgressMonitor:
    def __init__(self) -> None: ...


class IHostMemory(bytes):
    """The real one hands out its bytes by the buffer protocol."""

    @property
    def nbytes(self) -> int:
        return len(self)


class Dims(tuple[int, ...]):
    def __new__(cls, shape: Sequence[SupportsInt] = ()) -> Dims:
        return super().__new__(cls, map(int, shape))


class ITensor:
    def __init__(self, value: onnx.ValueInfoProto) -> None:
        self.name = value.name


class IAttention:
    key_value_lengths: ITensor | None = None


class ILayer:
    def __init__(self, node: onnx.NodeProto) -> None:
        self.name = node.name
        self.type = LayerType.ATTENTION_INPUT if node.op_type == "Attention" else LayerType.SHUFFLE
        self._attention = IAttention()


class IAttentionBoundaryLayer(ILayer):
    @property
    def attention(self) -> IAttention:
        return self._attention


class IAttentionInputLayer(IAttentionBoundaryLayer):
    """The type that a layer must be changed to before its attention is accessible."""


class INetworkDefinition:
    def __init__(self, flags: int, logger: ILogger) -> None:
        self._typed = bool(flags & 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self._logger = logger
        self._model: onnx.ModelProto | None = None
        self._layers: list[ILayer] = []

    @property
    def num_inputs(self) -> int:
        return len(self._graph.input)

    def get_input(self, index: SupportsInt) -> ITensor:
        return ITensor(self._graph.input[int(index)])

    def add_input(self, name: str, dtype: DataType, shape: Dims) -> ITensor:
        assert (dtype, tuple(shape)) == (DataType.INT32, (-1,))
        value = onnx.helper.make_tensor_value_info(name, dtype.value, ["batch"])
        self._graph.input.append(value)
        return ITensor(value)

    @property
    def num_layers(self) -> int:
        return len(self._graph.node)

    def get_layer(self, index: SupportsInt) -> ILayer:
        return self._layers[int(index)]

    @property
    def _graph(self) -> onnx.GraphProto:
        assert self._model is not None, "nothing was parsed"
        return self._model.graph


class ParserError:
    def __init__(self, index: int, node: onnx.NodeProto) -> None:
        self._index, self._node = index, node

    def node(self) -> int:
        return self._index

    def node_name(self) -> str:
        return self._node.name

    def node_operator(self) -> str:
        return self._node.op_type

    def desc(self) -> str:
        return "No importer registered for this operator"

    def file(self) -> str:
        return "ModelImporter.cpp"

    def line(self) -> int:
        return 42

    def func(self) -> str:
        return "parseNode"

    def local_function_stack(self) -> list[str]:
        return ["outer", "inner"]


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network, self._errors = network, []

    def parse(self, model: bytes, path: str | None = None) -> bool:
        assert self._network._typed, "the network must be strongly typed"
        graph = onnx.load_from_string(model)
        onnx.load_external_data_for_model(graph, str(path).rpartition("/")[0])
        for node in graph.graph.node:
            extra = [attribute for attribute in node.attribute if attribute.name == "TRT_decomposable"]
            assert (node.op_type == "Attention") == bool(extra and extra[0].i), "fused kernels may be missing"
            for attribute in extra:
                node.attribute.remove(attribute)
        self._network._model = graph
        self._network._layers = [ILayer(node) for node in graph.graph.node]
        if "parse" in faults:
            self._errors = [ParserError(i, node) for i, node in list(enumerate(graph.graph.node))[:3]]
        return not self._errors

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: SupportsInt) -> ParserError:
        return self._errors[int(index)]


class IOptimizationProfile:
    def __init__(self) -> None:
        self._shapes: dict[str, tuple[Dims, Dims, Dims]] = {}

    def set_shape(self, input: str, min: Dims, opt: Dims, max: Dims) -> None:
        if not all(low <= best <= high for low, best, high in zip(min, opt, max, strict=True)):
            raise ValueError(f"inconsistent shapes for {input}")
        self._shapes[input] = (min, opt, max)


class ITimingCache:
    def __init__(self, content: bytes) -> None:
        self._known = json.loads(content) if content else {"version": __version__, "layers": []}

    def serialize(self) -> IHostMemory:
        return IHostMemory(json.dumps(self._known).encode())


class IBuilderConfig:
    def __init__(self) -> None:
        self.progress_monitor: Any = None
        self._profiles: list[IOptimizationProfile] = []
        self._timings: ITimingCache | None = None
        self._tf32, self._workspace = True, 0

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: SupportsInt) -> None:
        assert pool is MemoryPoolType.WORKSPACE
        self._workspace = int(pool_size)

    def clear_flag(self, flag: BuilderFlag) -> None:
        assert flag is BuilderFlag.TF32
        self._tf32 = False

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        if "profile" in faults:
            return -1
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
        try:
            return None if "timings" in faults else ITimingCache(serialized_timing_cache)
        except ValueError:
            return None

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        self._timings = cache
        return ignore_mismatch or cache._known["version"] == __version__


class Builder:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def create_network(self, flags: SupportsInt = 0) -> INetworkDefinition:
        return INetworkDefinition(int(flags), self._logger)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        (profile,) = config._profiles
        assert config._workspace > 0
        assert not config._tf32
        assert config._timings is not None
        monitor = config.progress_monitor
        monitor.phase_start("Building Engine", None, 2)
        monitor.phase_start("Timing", "Building Engine", 1)
        assert monitor.step_complete("Timing", 0)
        monitor.phase_finish("Timing")
        fault = "Error Code 2: OutOfMemory" if "build" in faults else _misfit(network._graph, profile._shapes)
        if "lengths" in faults and any(layer._attention.key_value_lengths for layer in network._layers):
            fault = "Error Code 10: Internal Error (Could not find any implementation for node Attention.)"
        monitor.phase_finish("Building Engine")
        if fault:
            self._logger.log(ILogger.Severity.ERROR, fault)
            return None
        _mask_by_lengths(network)
        layers = config._timings._known["layers"]
        builds.append({"shapes": profile._shapes, "known": len(layers)})
        layers.append(network._graph.name)
        assert network._model is not None
        header = {"version": __version__, "shapes": profile._shapes}
        return IHostMemory(MAGIC + json.dumps(header).encode() + b"\n" + network._model.SerializeToString())


def _mask_by_lengths(network: INetworkDefinition) -> None:
    """Compute with a mask what TensorRT's attention does by lengths."""
    nodes = []
    for node, layer in zip(network._graph.node, network._layers, strict=True):
        lengths = layer._attention.key_value_lengths
        if lengths is not None:
            assert len(node.input) == 3, "masks and lengths exclude each other"
            text = _LENGTHS_TO_MASK.format(q=node.input[0], k=node.input[1], lengths=lengths.name, to=node.name)
            if "wrong lengths" in faults:
                text = text.replace(" = Less (", " = LessOrEqual (")
            nodes += onnx.parser.parse_graph(text).node
            node.input.append(f"{node.name}.mask")
        nodes.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del network._graph.node[:]
    network._graph.node.extend(copies)


_LENGTHS_TO_MASK = """masked (int32[batch] {lengths}) => (bool[B,1,Q,K] "{to}.mask") {{
    "{to}.keys" = Shape <start = 2, end = 3> ("{k}")
    "{to}.queries" = Shape <start = 2, end = 3> ("{q}")
    "{to}.scalar" = Squeeze ("{to}.keys")
    "{to}.zero" = Constant <value_int = 0> ()
    "{to}.one" = Constant <value_int = 1> ()
    "{to}.axes" = Constant <value_ints = [1, 2, 3]> ()
    "{to}.ones" = Constant <value_ints = [1]> ()
    "{to}.positions" = Range ("{to}.zero", "{to}.scalar", "{to}.one")
    "{to}.wide" = Cast <to = 7> ({lengths})
    "{to}.lengths" = Unsqueeze ("{to}.wide", "{to}.axes")
    "{to}.seen" = Less ("{to}.positions", "{to}.lengths")
    "{to}.shape" = Concat <axis = 0> ("{to}.ones", "{to}.ones", "{to}.queries", "{to}.keys")
    "{to}.mask" = Expand ("{to}.seen", "{to}.shape")
}}"""


def _misfit(graph: onnx.GraphProto, shapes: dict[str, tuple[Dims, Dims, Dims]]) -> str | None:
    """Say how a profile does not fit a graph's inputs, or None: named dimensions of one name are of one size."""
    named: dict[str, tuple[int, ...]] = {}
    for value in graph.input:
        if value.name not in shapes:
            return f"no profile for {value.name}"
        dims = value.type.tensor_type.shape.dim
        for axis, dim in enumerate(dims):
            sizes = tuple(shape[axis] for shape in shapes[value.name])
            if dim.dim_param:
                if named.setdefault(dim.dim_param, sizes) != sizes:
                    return f"{dim.dim_param} is {named[dim.dim_param]} and {sizes}"
            elif set(sizes) != {dim.dim_value}:
                return f"axis {axis} of {value.name} is {dim.dim_value}, not {sizes}"
    return None


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        magic, _, rest = serialized_engine.partition(b"\n")
        header, _, model = rest.partition(b"\n")
        if magic + b"\n" != MAGIC or json.loads(header)["version"] != __version__ or "load" in faults:
            self._logger.log(ILogger.Severity.ERROR, "the plan was built by another version")
            return None
        return ICudaEngine(json.loads(header)["shapes"], onnx.load_from_string(model), self._logger)


class EngineInspector:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph

    def get_engine_information(self, format: LayerInformationFormat) -> str:
        return "\n".join(node.name for node in self._graph.node)


class ICudaEngine:
    def __init__(self, shapes: dict[str, Any], model: onnx.ModelProto, logger: ILogger) -> None:
        self._shapes, self._model, self._logger = shapes, model, logger
        self._values = {value.name: value for value in (*model.graph.input, *model.graph.output)}

    @property
    def device_memory_size_v2(self) -> int:
        return 512 * max(int(np.prod(most)) for _, _, most in self._shapes.values())

    @property
    def num_io_tensors(self) -> int:
        return len(self._values)

    def get_tensor_name(self, index: SupportsInt) -> str:
        return list(self._values)[int(index)]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._shapes else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType(self._values[name].type.tensor_type.elem_type)

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self._model.graph)

    def create_execution_context(
        self, strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    ) -> IExecutionContext | None:
        if "context" in faults:
            return None
        return IExecutionContext(self, strategy is ExecutionContextAllocationStrategy.STATIC)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, has_memory: bool) -> None:
        self._engine, self._has_memory, self._memory = engine, has_memory, 0
        self._inputs: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        model = _widened(engine._model)
        self._session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    def set_device_memory(self, memory: SupportsInt, size: SupportsInt) -> None:
        self._memory = int(memory)
        self._has_memory = int(memory) > 0 and int(size) >= self._engine.device_memory_size_v2

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self._engine._shapes[name]
        fits = all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))
        if not fits:
            return self._refuse(f"{name} of shape {shape} is outside the profile {least} to {most}")
        self._inputs[name] = shape
        return True

    def infer_shapes(self) -> list[str]:
        return [name for name in self._engine._shapes if name not in self._inputs]

    def get_tensor_shape(self, name: str) -> Dims:
        if name in self._inputs:
            return Dims(self._inputs[name])
        return Dims(self._output_shape(name))

    def set_tensor_address(self, name: str, memory: SupportsInt) -> bool:
        self._addresses[name] = int(memory)
        return "address" not in faults

    def execute_async_v3(self, stream_handle: SupportsInt) -> bool:
        if int(stream_handle) == 0:
            return self._refuse("the default stream")
        if not self._has_memory:
            return self._refuse("no device memory")
        if set(self._addresses) != set(self._engine._values) or "execute" in faults:
            return self._refuse("Error Code 1: Cuda Runtime (an illegal memory access was encountered)")
        runs.append(self._memory)
        dtypes = {name: self._engine.get_tensor_dtype(name) for name in self._engine._values}
        inputs = {name: _read(self._addresses[name], self._inputs[name], dtypes[name]) for name in self._inputs}
        (output,) = self._session.run(None, inputs)
        if "wrong" in faults and len(output) > 1:
            output = output[::-1]
        (name,) = set(self._addresses) - set(self._inputs)
        assert output.shape == self._output_shape(name)
        _write(self._addresses[name], output, dtypes[name])
        return True

    def _refuse(self, why: str) -> bool:
        self._engine._logger.log(ILogger.Severity.ERROR, why)
        return False

    def _output_shape(self, name: str) -> tuple[int, ...]:
        """Return an output's shape from the sizes that its named dimensions have in the inputs."""
        sizes: dict[str, int] = {}
        for value in self._engine._model.graph.input:
            for dim, size in zip(value.type.tensor_type.shape.dim, self._inputs[value.name], strict=True):
                sizes[dim.dim_param] = size
        sizes["population"] = max(self._inputs["hidden"][0], self._inputs["prompt"][0])
        if "text" in sizes:
            sizes["sequence"] = sizes["text"] + self._inputs["prompt"][1]
        dims = self._engine._values[name].type.tensor_type.shape.dim
        return tuple(sizes[dim.dim_param] if dim.dim_param else dim.dim_value for dim in dims)


def _widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph that computes in fp32 what another computes in bf16, which ONNX Runtime cannot on a CPU."""
    bf16, fp32 = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    graph = wide.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == bf16:
            value.type.tensor_type.elem_type = fp32
    for tensor in graph.initializer:
        if tensor.data_type == bf16:
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype("f4"), tensor.name))
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == bf16:
                attribute.i = fp32
    return wide


def _read(address: int, shape: tuple[int, ...], dtype: DataType) -> np.ndarray[Any, Any]:
    """Return the array at an address; bf16 as fp32."""
    stored = np.dtype(np.uint16 if dtype is DataType.BF16 else onnx.helper.tensor_dtype_to_np_dtype(dtype.value))
    raw = (ctypes.c_char * (stored.itemsize * int(np.prod(shape)))).from_address(address)
    array = np.frombuffer(raw, stored).reshape(shape)
    return (array.astype(np.uint32) << 16).view(np.float32) if dtype is DataType.BF16 else array


def _write(address: int, array: np.ndarray[Any, Any], dtype: DataType) -> None:
    """Write an array to an address; fp32 as bf16 if the plan's output is bf16."""
    if dtype is DataType.BF16:
        array = array.astype(onnx.helper.tensor_dtype_to_np_dtype(dtype.value))
    array = np.ascontiguousarray(array)
    ctypes.memmove(address, array.ctypes.data, array.nbytes)
