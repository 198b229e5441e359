"""Faults that let one person move the un-noised sum by more than the clip norm (design D3, steps 1 to 3)."""

import numpy as np
import torch

from curriculumdp.curriculum.batch import PLAIN
from curriculumdp.curriculum.unit_draws import Variety
from dpkernels.grid import GRID
from tests.mutations.planting import Check, Fault

P1 = "tests.curriculum.test_sensitivity:"
CENTRAL = "tests.curriculum.test_central:"
CLIP = "curriculumdp.clipping.clip:add_clipped_rows"
STEP = "curriculumdp.curriculum.private:PrivatePhase.clipped_sum"
NORMS = "norms = squared_norms(grads).sqrt()"
QUERY = "add_clipped_rows(vectors, total, query.clip_norm, present)"
PACKED = "for units in microbatches(rows, compute.microbatch)[world.rank :: world.size]"

HOSTILE = Check(P1 + "test_a_hostile_unit_moves_the_sum_by_at_most_the_clip_norm", {"factor": 1e4})
INFINITE = Check(P1 + "test_a_hostile_unit_moves_the_sum_by_at_most_the_clip_norm", {"factor": float("inf")})
TIGHT = Check(P1 + "test_the_bound_holds_at_other_clip_norms", {"clip_norm": 1e-3})
SMALL = {"worlds": 1, "microbatch": 4, "draws": 3}
PACKING = Check(P1 + "test_the_bound_holds_whatever_the_world_the_packing_and_the_draws", SMALL)
ADDITIVE = Check(P1 + "test_a_steps_sum_is_exactly_the_sum_of_what_each_unit_adds_alone")
COPIES = Check(P1 + "test_many_copies_of_an_image_in_one_unit_count_once")
NEIGHBOURS = Check(P1 + "test_taking_a_unit_out_changes_no_other_units_draws_or_gradient")
OWN_VECTOR = Check(
    P1 + "test_the_sums_of_two_neighbours_differ_by_exactly_the_units_own_vector",
    {"precision": "bf16", "microbatch": 4, "worlds": 1},
)
DRAWS = "tests.curriculum.test_varied_draws:"
ANYBODY = DRAWS + "test_no_units_draws_depend_on_who_else_is_in_the_set_the_sample_or_the_microbatch"
LAYOUT = Check(
    "tests.dpkernels.test_reference_layers:test_convolution",
    {"case": "3x3", "layout": "channels_last", "draws": 3},
)

SUM_FAULTS = [
    Fault(
        "a mean for a sum",
        STEP,
        "return work.total.clone(), seen",
        "return work.total // max(1, int(sum(part.present.sum() for part in seen))), seen",
        ADDITIVE,
    ),
    Fault(
        "a parameter missing from the norm",
        CLIP,
        NORMS,
        "norms = squared_norms(grads[:, :-80]).sqrt()",
        TIGHT,
    ),
    Fault(
        "channels_last read as if contiguous",
        "dpkernels.conv2d:_units_as_channels",
        "return samples.unflatten(",
        "return samples.as_strided(samples.shape, torch.empty(samples.shape).stride()).unflatten(",
        LAYOUT,
    ),
    Fault(
        "clipping per draw",
        STEP,
        PACKED,
        "for units in microbatches(np.repeat(rows, self.config.draws), compute.microbatch)[world.rank :: world.size]",
        PACKING,
        uses={"np": np},
    ),
    Fault(
        "clipping per microbatch",
        CLIP,
        NORMS,
        "norms = squared_norms(grads[present].sum(0, keepdim=True)).sqrt().expand(len(grads))",
        HOSTILE,
    ),
    Fault(
        "clipping per layer",
        "curriculumdp.clipping.dense_store:DenseStore.add_clipped",
        "return add_clipped_rows(self.grads, total, clip_norm, present)",
        "return [add_clipped_rows(v.flatten(1), total[s.offset : s.offset + s.shape.numel()], clip_norm, present)"
        " for v, s in zip(self._views, self.parameters.segments)][-1]",
        TIGHT,
    ),
    Fault(
        "clipping after averaging",
        "curriculumdp.clipping.dense_store:DenseStore.add_clipped",
        "return add_clipped_rows(self.grads, total, clip_norm, present)",
        "return add_clipped_rows(self.grads.mean(0, keepdim=True).repeat(self.units, 1), total, clip_norm, present)",
        HOSTILE,
    ),
    Fault(
        "a record's owner under another name passed over",
        "curriculumdp.data.records:Records.units",
        "if not units and owners:",
        "if units and owners:",
        Check(
            "tests.data.test_metadata:test_a_key_that_may_be_the_owner_under_another_name_is_not_passed_over",
            {"owner": "patient"},
        ),
    ),
    Fault(
        "padded rows that count",
        "curriculumdp.curriculum.batch:draw_batch",
        "present = (units >= 0) & (counts > 0)",
        "present = counts > 0",
        Check(P1 + "test_padding_and_empty_places_contribute_exactly_nothing"),
    ),
    Fault(
        "slots of units without images dropped before microbatches are cut",
        STEP,
        PACKED,
        PACKED.replace("(rows,", "(rows[run.images.counts[rows] > 0],"),
        OWN_VECTOR,
    ),
    Fault(
        "units without images packed behind the others",
        STEP,
        PACKED,
        PACKED.replace("(rows,", "(rows[np.argsort(run.images.counts[rows] == 0, kind='stable')],"),
        OWN_VECTOR,
        uses={"np": np},
    ),
    Fault(
        "a unit's images treated as units",
        STEP,
        PACKED,
        "for units in microbatches(np.repeat(rows, run.images.counts[rows]), compute.microbatch)[:3]",
        COPIES,
        uses={"np": np},
    ),
    Fault(
        "the clip margin removed",
        CLIP,
        "factors = torch.where(norms > clip_norm * AIM, clip_norm * AIM / norms, 1.0)",
        "factors = torch.where(norms > clip_norm, clip_norm / norms, 1.0)",
        Check(
            P1 + "test_of_many_clipped_vectors_none_exceeds_the_bound_by_a_single_step_of_the_grid",
            {"clip_norm": 0.3, "dtype": torch.float32},
        ),
    ),
    Fault(
        "a norm from factors that fp32 sums pass",
        "dpkernels.linear_triton:linear_squares",
        "return torch.where(terms < 2.0**127, bound, torch.inf).square_()",
        "return bound.square_()",
        Check(
            "tests.dpkernels.test_conv2d_triton:test_a_norm_from_factors_is_infinite_where_a_sum_in_fp32_may_be"
        ),
    ),
    Fault("a factor of zero times infinity", CLIP, "grads[row].zero_()", "pass", INFINITE),
    Fault(
        "units summed before rounding",
        "dpkernels.clip_sum:add_rounded_rows",
        "sums.add_(part.mul(factor).round_().sum(0, dtype=torch.float64).long())",
        "sums.add_(part.mul(factor).sum(0, dtype=torch.float64).round_().long())",
        ADDITIVE,
    ),
    Fault(
        "gradients pile up over microbatches",
        "curriculumdp.clipping.parameters:Parameters.begin",
        "self._written.clear()",
        "pass",
        ADDITIVE,
    ),
    Fault(
        "a step's sum carries the last one's",
        STEP,
        "work.total.zero_()",
        "pass",
        Check(P1 + "test_a_steps_sum_has_nothing_of_the_step_before"),
    ),
    Fault(
        "a non-finite unit counts",
        CLIP,
        "kept = finite & present",
        "kept = present",
        INFINITE,
    ),
    Fault(
        "unit draws by the place in the batch",
        "curriculumdp.curriculum.batch:draw_batch",
        "words = unit_words(key, step, _sent(indices, device), draws, HEAD_WORDS + pixels + pixels % 2)",
        "words = unit_words(key, step, torch.arange(len(indices)), draws, HEAD_WORDS + pixels + pixels % 2)",
        NEIGHBOURS,
    ),
    Fault(
        "strata of noise levels dealt by the place in the batch",
        "curriculumdp.curriculum.unit_draws:spread_levels",
        "(units[:, None] * GOLDEN + shift)",
        "(torch.arange(len(units))[:, None] * GOLDEN + shift)",
        Check(ANYBODY, {"variety": Variety(spread=True), "draws": 1}),
    ),
    Fault(
        "noise levels spread over the ranks of a step's sample",
        "curriculumdp.curriculum.unit_draws:spread_levels",
        "quantile = (stratum + within) / draws",
        "quantile = (torch.arange(len(units))[:, None] + within) / len(units)",
        Check(ANYBODY, {"variety": Variety(spread=True), "draws": 3}),
    ),
    Fault(
        "an image chosen by the place in the batch",
        "curriculumdp.curriculum.batch:draw_batch",
        "pick = distinct_picks(uniforms(head[..., 0]), counts)",
        "pick = distinct_picks(uniforms(head[..., 0]).roll(1, 0), counts)",
        Check(ANYBODY, {"variety": PLAIN, "draws": 3}),
    ),
    Fault(
        "a unit that has shown all its images goes on with the next unit's",
        "curriculumdp.curriculum.unit_draws:distinct_picks",
        "owned = counts.clamp(min=1)",
        "owned = counts.clamp(min=uniform.shape[1])",
        Check(DRAWS + "test_a_units_draws_show_its_own_images_with_their_labels"),
    ),
    Fault(
        "draws mirrored by the place in the microbatch",
        "curriculumdp.curriculum.batch:draw_batch",
        "moves(indices, draws, key, step, variety)",
        "moves(torch.arange(len(indices)), draws, key, step, variety)",
        Check(ANYBODY, {"variety": Variety(flip=True), "draws": 1}),
    ),
    Fault(
        "a unit's first images shown more often than its last",
        "curriculumdp.curriculum.unit_draws:distinct_picks",
        "rank = torch.minimum((uniform[:, draw] * left).long(), left - 1)",
        "rank = torch.zeros_like(left)",
        Check(
            DRAWS + "test_each_draw_shows_each_image_equally_often_and_so_does_each_pair_of_draws",
            {"count": 3, "draws": 4},
        ),
    ),
    Fault(
        "a loss that mixes the units",
        "curriculumdp.curriculum.private:PrivatePhase._unit_losses",
        "return losses.view(-1, self.config.draws).mean(1)",
        "return losses.view(-1, self.config.draws).mean(1) / losses.detach().mean()",
        ADDITIVE,
    ),
    Fault(
        "central images unclipped",
        "curriculumdp.curriculum.central:query_sum",
        QUERY,
        "total += (vectors * (GRID / query.clip_norm)).round().long().sum(0)",
        Check(P1 + "test_a_central_query_clips_all_classes_as_one_vector"),
        uses={"GRID": GRID},
    ),
    Fault(
        "a colour histogram with a grey one's sensitivity",
        "curriculumdp.curriculum.central:query_sum",
        QUERY,
        "total += (vectors * (GRID / query.size)).round().long().sum(0)",
        Check(
            CENTRAL + "test_no_unit_of_coloured_images_moves_a_query_by_more_than_its_clip_norm",
            {"clip_norm": 100.0, "statistic": "mode"},
        ),
        uses={"GRID": GRID},
    ),
    Fault(
        "central images clipped class by class",
        "curriculumdp.curriculum.central:query_sum",
        QUERY,
        "for v, part in zip(vectors.chunk(query.classes, 1), total.chunk(query.classes)): "
        "add_clipped_rows(v.clone(), part, query.clip_norm, present)",
        Check(
            CENTRAL + "test_no_unit_of_coloured_images_moves_a_query_by_more_than_its_clip_norm",
            {"clip_norm": 1e-3, "statistic": "mode"},
        ),
    ),
    Fault(
        "a unit's central images summed, not averaged, and trusted",
        "curriculumdp.curriculum.central:unit_vectors",
        "weight = 1.0 / torch.from_numpy(images.counts[units.numpy()])[owners].to(torch.float64)",
        "weight = torch.ones(len(owners), dtype=torch.float64)",
        Check(CENTRAL + "test_a_units_vector_is_the_mean_of_its_images_by_class"),
    ),
]
