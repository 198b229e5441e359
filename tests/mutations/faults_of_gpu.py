"""Faults of a GPU's path: the fused engine, the microbatch as a graph. They are seen in Triton's interpreter."""

from dpkernels import device
from tests.mutations.planting import Check, Fault

FUSED = "tests.clipping.test_planned_store:"
ENGINE = "curriculumdp.clipping.triton_gradients:FusedGradients"
CAPTURED = Check(
    "tests.clipping.test_cuda_graph:"
    "test_captured_microbatches_add_each_unit_once_and_nothing_of_the_microbatch_before"
)
UPDATE = "curriculumdp.curriculum.private:PrivatePhase.update"
IN_ONE_PASS = (
    "noise_step(total, key, sigma, clip_norm, self.expected_units, state, step, rate, self.config.ema)"
)
ONE_PASS = Check(
    "tests.curriculum.test_step_of_a_gpu:"
    "test_the_update_in_one_pass_is_noise_then_the_expected_batch_then_adam_and_ema"
)
REPEATS = Check("tests.curriculum.test_repeats:test_algorithms_that_do_not_repeat_raise_and_fp32_is_fp32")
TWICE = 'raise GradientError(f"a {type(layer).__name__} is used twice in a forward: plan it as stored")'

GPU_FAULTS = [
    Fault(
        "attention whose backward does not repeat",
        "curriculumdp.curriculum.engine:repeat_to_the_bit",
        "torch.use_deterministic_algorithms(True, warn_only=False)",
        "torch.use_deterministic_algorithms(True, warn_only=True)",
        REPEATS,
    ),
    Fault(
        "TF32 for fp32",
        "curriculumdp.curriculum.engine:repeat_to_the_bit",
        "torch.backends.cudnn.allow_tf32 = False",
        "pass",
        REPEATS,
    ),
    Fault(
        "the warm-up of a graph counts",
        "curriculumdp.curriculum.clipped_sum:Microbatch.add",
        "self.total.copy_(before)",
        "pass",
        CAPTURED,
    ),
    Fault(
        "a graph replayed on the units of the microbatch before",
        "curriculumdp.clipping.cuda_graph:Captured.__call__",
        "self._inputs.take(inputs)",
        "pass",
        CAPTURED,
    ),
    Fault(
        "padding that counts on a GPU",
        "dpkernels.clip_sum_triton:clip_scale",
        "torch.where(present & norms.isfinite(), ",
        "torch.where(norms.isfinite(), ",
        CAPTURED,
    ),
    Fault(
        "layers stored by their ordinary rule missing from a GPU's norm",
        ENGINE + "._sum_clipped",
        "squared = squared + squared_row_norms(self._columns(segment).flatten(1))",
        "pass",
        Check(FUSED + "test_every_way_gives_the_references_norms_and_sums", {"ways": {}}),
    ),
    Fault(
        "the last of three projections missing from a GPU's norm",
        ENGINE + "._shared_parts",
        "self._squares.update({id(layer): part for layer, part in zip(layers, whole, strict=True)})",
        "self._squares.update({id(layer): part for layer, part in zip(layers[:2], whole[:2], strict=True)})",
        Check(
            FUSED + "test_three_projections_of_one_input_give_the_references_norms_and_sums",
            {"times": 1, "bias": True},
        ),
    ),
    Fault(
        "the norm of a recomputed layer's last use for the sum of both",
        ENGINE + ".take",
        TWICE,
        "pass",
        Check(
            FUSED + "test_a_layer_used_twice_is_refused_where_its_gradient_is_not_stored",
            {"way": "recompute"},
        ),
    ),
    Fault(
        "the norms of two layers for the sum of their shared parameter",
        ENGINE + ".__init__",
        "self._refuse_shared_parameters()",
        "pass",
        Check(FUSED + "test_layers_that_share_a_parameter_are_refused_by_name", {"ways": {}}),
    ),
    Fault(
        "times C forgotten in a GPU's noise",
        UPDATE,
        IN_ONE_PASS,
        IN_ONE_PASS.replace("sigma", "sigma / clip_norm"),
        ONE_PASS,
    ),
    Fault(
        "one noise in every step of a GPU",
        UPDATE,
        IN_ONE_PASS,
        IN_ONE_PASS.replace("key", "bytes(32)"),
        ONE_PASS,
    ),
    Fault(
        "a backward summed twice on a GPU",
        ENGINE + ".add_clipped_grads",
        "self._fresh = False",
        "pass",
        Check(FUSED + "test_a_backward_is_summed_once"),
    ),
]
if not device.INTERPRETER:  # with a GPU at hand its own tests see to them
    GPU_FAULTS = []
