"""Faults of a GPU's path: the fused engine, the microbatch as a graph. They are seen in Triton's interpreter."""

import torch

from dpkernels import device
from tests.mutations.planting import Check, Fault

PLANNED = "tests.clipping.test_planned_store:"
STORE = "curriculumdp.clipping.planned_store:PlannedStore"
CAPTURED = Check(
    "tests.clipping.test_cuda_graph:"
    "test_captured_microbatches_add_each_unit_once_and_nothing_of_the_microbatch_before"
)
NORM, ROWS = "dpkernels.rows_norm_triton:", "tests.dpkernels.test_rows:"
NORM_KERNELS = "dpkernels.rows_norm_kernels:"
SUMMED, MULTIPLIED = "rows_norm_forward_product", "rows_norm_product"
OF_ITS_DRAWS = Check(ROWS + "test_a_units_gradients_are_the_sums_over_its_draws_and_its_norm_is_theirs")
ALONE = Check(ROWS + "test_a_sample_that_is_replaced_changes_no_bit_of_the_others", {"name": "rows_norm"})
UPDATE = "curriculumdp.curriculum.private:PrivatePhase.update"
IN_ONE_PASS = "noise_step(total, key, sigma, clip_norm, self.expected_units, state, step, rate, decay)"
ONE_PASS = Check(
    "tests.curriculum.test_step_of_a_gpu:"
    "test_the_update_in_one_pass_is_noise_then_the_expected_batch_then_adam_and_ema"
)
REPEATS = Check("tests.curriculum.test_repeats:test_algorithms_that_do_not_repeat_raise_and_fp32_is_fp32")
DEALT = Check(
    "tests.dpkernels.test_recompute:test_the_sum_is_the_same_to_the_bit_however_units_are_dealt_to_programs",
    {"programs": 2},
)
RECOMPUTED = "dpkernels.conv2d_triton:_recompute_kernel"
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
        "a graph that replays on freed memory",
        "curriculumdp.clipping.cuda_graph:Captured.__init__",
        "self._body, self._inputs = body, Static(inputs)",
        "self._inputs = Static(inputs)",
        Check("tests.clipping.test_cuda_graph:test_a_graph_keeps_alive_what_its_body_reads"),
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
        STORE + ".add_clipped",
        "squared = squared + squared_row_norms(self._columns(segment).flatten(1))",
        "pass",
        Check(PLANNED + "test_every_way_gives_the_references_norms_and_sums", {"ways": {}}),
    ),
    Fault(
        "the last of three projections missing from a GPU's norm",
        STORE + ".projections",
        "shared_input_grads(x, grads, weights, biases, squares)",
        "shared_input_grads(x, grads, weights, biases, squares); squares[2].zero_()",
        Check(
            PLANNED + "test_what_the_fused_execution_hands_over_gives_the_references_norms_and_sums",
            {"what": "projections", "way": "store"},
        ),
    ),
    Fault(
        "the norm of a recomputed layer's last use for the sum of both",
        STORE + "._take",
        TWICE,
        "pass",
        Check(
            PLANNED + "test_a_layer_used_twice_is_refused_where_its_gradient_is_not_stored",
            {"way": "recompute"},
        ),
    ),
    Fault(
        "the norms of two layers for the sum of their shared parameter",
        STORE + ".__init__",
        "_refuse_shared_parameters(net)",
        "pass",
        Check(PLANNED + "test_layers_that_share_a_parameter_are_refused_by_name", {"ways": {}}),
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
        "an average of another width on a GPU",
        UPDATE,
        IN_ONE_PASS,
        IN_ONE_PASS.replace("decay", "self.config.ema"),
        Check(
            "tests.curriculum.test_average:test_a_gpus_update_is_given_the_decay_of_a_cpus",
            {"changes": {"private__ema_width": 0.15}},
        ),
    ),
    Fault(
        "a backward summed twice on a GPU",
        "curriculumdp.clipping.per_unit:PerUnitGradients.add_clipped_grads",
        "self._fresh = False",
        "pass",
        Check(PLANNED + "test_a_backward_is_summed_once"),
    ),
    Fault(
        "the second of two sources missing from a GPU's norm",
        STORE + "._store_two",
        "self.parts((id(layer), number), count)",
        "self.parts((id(layer), 0), count)",
        Check(
            PLANNED + "test_what_the_fused_execution_hands_over_gives_the_references_norms_and_sums",
            {"what": "two sources", "way": "store"},
        ),
    ),
    Fault(
        "the bias of a norm's input missing from its unit's norm",
        NORM + "_draws_kernel",
        "tl.sum(stored * stored, 0)",
        "tl.where(segment == 2, 0.0, tl.sum(stored * stored, 0))",
        OF_ITS_DRAWS,
    ),
    Fault(
        "a norm's and a bias' gradient of another unit's draws",
        NORM + "_draws_kernel",
        "(unit * draws + draw)",
        "(draw * tl.num_programs(1) + unit)",
        OF_ITS_DRAWS,
    ),
    Fault(
        "a norm's statistics over two samples",
        NORM_KERNELS + "_rows_forward_kernel",
        "sums += z",
        "sums += 0.5 * z + 0.5 * (load_tile(a, b, sample // 2 * 2, place, channel, inside, S) + offset[None, :])",
        ALONE,
    ),
    Fault(
        "a residual path from another sample",
        "dpkernels.rows_norm_tiles:summed_tile",
        "row = (sample * S.positions + place)[:, None]",
        "row = (sample // 2 * 2 * S.positions + place)[:, None]",
        Check(ROWS + "test_a_sample_that_is_replaced_changes_no_bit_of_the_others", {"name": SUMMED}),
    ),
    Fault(
        "a residual path's gradient from another sample",
        "dpkernels.rows_norm_tiles:load_product",
        "g_product + row * S.out",
        "g_product + (row - row // S.positions % 2 * S.positions) * S.out",
        Check(ROWS + "test_a_sample_that_is_replaced_changes_no_bit_of_the_others", {"name": MULTIPLIED}),
    ),
    Fault(
        "a sum that no norm has computed, left uncomputed",
        "curriculumdp.clipping.unet_blocks:Pass.settled",
        "add_rows(pending.terms, pending.bias, x)",
        "pass",
        Check(
            "tests.clipping.test_fused_unet:test_what_no_norm_has_computed_is_computed_before_a_convolution"
        ),
    ),
    Fault(
        "two units' weight gradients of a concatenation taken for one",
        "dpkernels.conv2d_triton:_two_sources_kernel",
        "unit = tl.program_id(2)",
        "unit = tl.program_id(2) // 2 * 2",
        Check(
            PLANNED + "test_what_the_fused_execution_hands_over_gives_the_references_norms_and_sums",
            {"what": "two sources", "way": "store"},
        ),
    ),
    Fault(
        "a norm's gradient with another sample's statistics",
        NORM_KERNELS + "_rows_backward_kernel",
        "statistic = sample * S.all + channel // S.wide",
        "statistic = sample // 2 * 2 * S.all + channel // S.wide",
        ALONE,
    ),
    Fault(
        "floats added atomically to what memory holds",
        NORM_KERNELS + "_rows_backward_kernel",
        "tl.store(out + CHANNELS, straight, mask=live)",
        "tl.atomic_add(out + CHANNELS, straight, mask=live)",
        Check(ROWS + "test_what_the_memory_of_the_results_held_does_not_show", {"name": "rows_norm"}),
    ),
    Fault(
        "attention to another sample's keys",
        "dpkernels.attention_triton:_places",
        "tl.program_id(1).to(tl.int64) // H.heads, ",
        "tl.program_id(1).to(tl.int64) // H.heads // 2 * 2, ",
        Check(ROWS + "test_a_sample_that_is_replaced_changes_no_bit_of_the_others", {"name": "attention"}),
    ),
    Fault(
        "the gradient of a time embedding from another sample",
        "curriculumdp.clipping.unet_blocks:_norm",
        "return grads, sums[:, 2]",
        "return grads, sums[:, 2].flip(0)",
        Check(
            "tests.clipping.test_fused_unet:test_a_unit_that_is_replaced_changes_no_bit_of_the_others",
            {"hostile": float("inf")},
        ),
    ),
    Fault(
        "a recomputed unit summed by two programs",
        RECOMPUTED,
        "first, programs = tl.program_id(1), tl.num_programs(1)",
        "first, programs = tl.program_id(1), 1",
        DEALT,
    ),
    Fault(
        "a recomputed unit scaled as another",
        RECOMPUTED,
        "total += rint(tile * factor).to(tl.int64)",
        "total += rint(tile * tl.load(scale + first)).to(tl.int64)",
        DEALT,
    ),
    Fault(
        "operands of tf32 products cut to ten bits, so that norms come out small",
        "dpkernels.conv2d_tiles:weight_tile",
        "g_tile, x_tile = to_tf32(g_tile), to_tf32(x_tile)",
        "pass",
        Check(
            "tests.dpkernels.test_conv2d_triton:"
            "test_operands_of_tf32_products_are_rounded_where_the_hardware_would_cut_them"
        ),
    ),
    Fault(
        "positions of the next unit read in the last step of a unit",
        "dpkernels.conv2d_taps_triton:_taps_kernel",
        "inside = live & (above >= 0) & (above < SIZE)",
        "inside = (above >= 0) & (above < SIZE)",
        Check(
            "tests.dpkernels.test_conv2d_taps:test_a_unit_that_is_not_finite_does_not_touch_its_neighbour",
            {"bad": float("nan"), "which": 1},
        ),
    ),
    Fault(
        "a row of taps missing from a unit's norm",
        "dpkernels.conv2d_taps_triton:_taps_kernel",
        "square + 2 * CHANNEL_TILES * ROW_TILES, MODE)",
        "square + CHANNEL_TILES * ROW_TILES, MODE)",
        Check(
            "tests.dpkernels.test_conv2d_taps:test_a_row_of_taps_is_the_gradient_and_its_parts_are_the_norm",
            {"size": (3, 2)},
        ),
    ),
    Fault(
        "floating point added atomically, in any order",
        "dpkernels.conv2d_tiles:put_tile",
        "tl.store(square, tl.sum(tl.ravel(wide * wide), 0))",
        "tl.atomic_add(square, tl.sum(tl.ravel(wide * wide), 0))",
        Check("tests.dpkernels.test_recompute:test_no_kernel_adds_atomically_but_by_add_shared"),
    ),
    Fault(
        "sums that programs share in floating point",
        "dpkernels.grid:add_shared",
        'tl.static_assert(place.dtype.element_ty == tl.int64, "sums of floating point would depend on the order")',
        "pass",
        Check(
            "tests.dpkernels.test_recompute:test_floating_point_is_refused_where_programs_share_a_sum",
            {"dtype": torch.float32},
        ),
    ),
]
if not device.INTERPRETER:  # with a GPU at hand its own tests see to them
    GPU_FAULTS = []
