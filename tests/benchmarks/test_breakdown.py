"""A generation is taken apart by the names of its kernels, which are real ones here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bbt_fast.benchmarks.harness import breakdown as taken
from bbt_fast.benchmarks.harness.attention_calls import short_name
from bbt_fast.benchmarks.harness.breakdown import GAPS, KINDS, OPTIMIZER, breakdown, kind_of, shares

NAMES = {
    "attention": [
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_6_128x128x64_4x1x1_cga1x1x1_kernel0_0",
        "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128, 4, false, false, cutlass::half_t>>",
        "fmha_cutlassF_f16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel<cutlass::half_t>::Params)",
        "void onnxruntime::flash::flash_fwd_kernel<onnxruntime::flash::Flash_fwd_kernel_traits<64, 128, 128, 4>>",
        "_gemm_mha_v2_0x5a1b",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "torch_attn::_varlen_attn",
    ],
    "products": [
        "nvjet_hsh_128x192_64x5_2x1_v_bz_bias_TNT",
        "nvjet_hsh_192x192_64x4_1x2_h_bz_coopB_bias_TNT",
        "ampere_fp16_s16816gemm_fp16_128x128_ldg8_f2f_stages_32x5_tn",
        "sm90_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1",
        "void cutlass::Kernel2<cutlass_80_tensorop_f16_s16816gemm_relu_f16_256x128_32x3_tn_align8>",
        "void cublasLt::splitKreduce_kernel<32, 16, int, float, __half, float, __half, false, true, false>",
        "triton_tem_fused_addmm_gelu_3",
        "_linear_gelu",
        "aten::addmm",
        "aten::bmm",
        "aten::_scaled_mm",
        "mkldnn::_linear_pointwise",
    ],
    "gelu": [
        "void at::native::vectorized_elementwise_kernel<4, at::native::GeluCUDAKernelImpl(at::TensorIteratorBase&)>",
        "void onnxruntime::cuda::_UnaryElementWise<__half, __half, onnxruntime::cuda::OP_Gelu<__half>, 256, 4>",
        "triton_poi_fused_gelu_2",
        "aten::gelu",
    ],
    "norms": [
        "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<c10::Half, float, false>",
        "void onnxruntime::cuda::cuApplyLayerNorm<__half, float, __half, false>",
        "void onnxruntime::contrib::cuda::SkipLayerNormKernelSmall<__half, 256, 4, false>",
        "triton_per_fused_add_native_layer_norm_4",
        "aten::native_layer_norm",
    ],
    "adds": [
        "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<c10::Half>>",
        "void at::native::elementwise_kernel<128, 4, gpu_kernel_impl_nocast<at::native::CUDAFunctor_add<float>>>",
        "void onnxruntime::cuda::_BinaryElementWiseSimple<true, true, __half, onnxruntime::cuda::OP_Add<__half>>",
        "aten::add",
    ],
    "copies": [
        "Memcpy HtoD (Pinned -> Device)",
        "Memset (Device)",
        "void at::native::elementwise_kernel<128, 4, at::native::gpu_kernel_impl_nocast<direct_copy_kernel_cuda>>",
        "void at::native::(anonymous namespace)::CatArrayBatchedCopy_vectorized<OpaqueType<2u>, unsigned int>",
        "void onnxruntime::cuda::_GatherKernel<__half>",
        "aten::constant_pad_nd",
        "aten::copy_",
    ],
    "other": ["aten::mul", "void at::native::vectorized_elementwise_kernel<4, at::native::AUnaryFunctor<MulFunctor>>"],
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in NAMES.items() for name in names])
def test_a_kernel_is_known_by_its_name(kind: str, name: str) -> None:
    assert kind_of(name) == kind


def test_an_operators_own_time_counts_and_the_rest_is_gaps() -> None:
    weights = torch.randn(256, 256)
    found = breakdown(lambda: torch.nn.functional.gelu(weights @ weights), torch.device("cpu"))
    kinds = found["kinds"]
    assert set(kinds) == set(KINDS) - {OPTIMIZER}
    assert kinds["products"] > 0
    assert kinds["gelu"] > 0
    assert kinds["attention"] == kinds["norms"] == 0
    assert {"aten::mm", "aten::gelu"} <= {kernel["name"] for kernel in found["kernels"]}


def test_on_cuda_the_devices_kernels_count_and_not_the_hosts_operators() -> None:
    def event(name: str, device: str, us: float, *, marked: bool = False, activity: str = "kernel") -> Any:
        kind = SimpleNamespace(name=device)
        return SimpleNamespace(
            name=name,
            device_type=kind,
            time_range=SimpleNamespace(elapsed_us=lambda: us),
            self_cpu_time_total=us,
            is_user_annotation=marked,
            activity_type=activity,
        )

    seen = [
        event("nvjet_a", "CUDA", 600),
        event("nvjet_a", "CUDA", 300),
        event("aten::addmm", "CPU", 5000),
        event("a generation", "CUDA", 9000, marked=True),
        event("## Call CompiledFxGraph", "CUDA", 9000, activity=taken.MARK),
    ]
    spent, launches = taken._spent(seen, on_cuda=True)
    assert spent == {"nvjet_a": pytest.approx(0.9 / taken.CALLS)}
    found = taken._by_kind(spent, launches, wall=0.5)
    assert found["kinds"]["products"] + found["kinds"][GAPS] == pytest.approx(0.5)
    assert found["kernels"] == [
        {"name": "nvjet_a", "kind": "products", "ms": spent["nvjet_a"], "launches": 2 / taken.CALLS}
    ]


def test_shares_are_of_the_whole_generation_with_its_optimizer() -> None:
    kinds = dict.fromkeys(KINDS[:-1], 0.0) | {"products": 6.0, GAPS: 1.0}
    figures = {"breakdown": {"kinds": kinds}, "parts_ms": {"optimizer": 2.0, "project": 1.0}}
    found = shares(figures)
    assert found is not None
    assert (found["products"], found[GAPS], found[OPTIMIZER]) == (0.6, 0.1, 0.3)
    assert shares({"parts_ms": {}}) is None
    assert "| a | 0% | 60% |" in taken.table({"a": figures, "b": {}})
    assert taken.table({"b": {}}) == ""


@pytest.mark.parametrize(
    ("kernel", "short"),
    [
        (NAMES["attention"][1], "pytorch_flash::flash_fwd_kernel"),
        (NAMES["attention"][2], "fmha_cutlassF_f16_aligned_64x64_rf_sm80"),
        (NAMES["attention"][4], "_gemm_mha_v2_0x5a1b"),
    ],
)
def test_a_kernels_short_name_is_without_types_and_arguments(kernel: str, short: str) -> None:
    assert short_name(kernel) == short
