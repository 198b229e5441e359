"""Faults of who is in a step: what the amplification by sampling rests on (design D1, D2)."""

import hashlib

import numpy as np

from curriculumdp.curriculum.private import PrivatePhase
from curriculumdp.privacy.streams import keystream
from tests.mutations.planting import Check, Fault

P4 = "tests.curriculum.test_sampler:"
STEP = "curriculumdp.curriculum.private:PrivatePhase.step"
ROWS_KEY = "curriculumdp.curriculum.run:Run.rows_key"
ROWS = "rows = poisson_rows(run.rows_key(self.name, step), run.config.data.units, self.event.sample_rate)"
KEYED = 'self.secret.key("rows", incarnation=self.incarnation, nonce=nonce, phase=phase, step=step)'

SIZES = Check(P4 + "test_the_number_of_units_in_a_step_has_the_binomials_variance", {"param": "private"})
LAGS = Check(P4 + "test_steps_are_independent_at_every_lag", {"param": "private"})
RANKS = Check(P4 + "test_ranks_share_each_steps_sample_without_a_gap_or_a_duplicate", {"size": 2})
REPLAY = "tests.curriculum.test_replay:"
COPIES = Check(
    REPLAY + "test_two_copies_of_a_run_share_what_was_charged_and_not_one_row_more",
    {"worlds": 1, "arithmetic": "equal"},
)
FRESH = Check(P4 + "test_phases_and_incarnations_are_independent")

SAMPLE_FAULTS = [
    Fault(
        "epoch shuffling",
        STEP,
        ROWS,
        "rows = np.argsort(keystream(run.rows_key(self.name, step // 8), run.config.data.units))[step % 8 :: 8]",
        LAGS,
        uses={"np": np, "keystream": keystream},
    ),
    Fault(
        "a batch of a fixed size",
        STEP,
        ROWS,
        "rows = np.argsort(keystream(run.rows_key(self.name, step), run.config.data.units))[:36]",
        SIZES,
        uses={"np": np, "keystream": keystream},
    ),
    Fault(
        "rows drawn per rank, with overlap",
        STEP,
        ROWS,
        "rows = poisson_rows(run.secret.key('rows', phase=self.name, step=step, rank=run.world.rank),"
        " run.config.data.units, self.event.sample_rate)",
        RANKS,
    ),
    Fault(
        "every rank takes the whole sample",
        "curriculumdp.curriculum.private:PrivatePhase.clipped_sum",
        "[world.rank :: world.size]",
        "[0:]",
        RANKS,
    ),
    Fault(
        "ranks that cut the sample into microbatches of their own size",
        "curriculumdp.curriculum.train:run_curriculum",
        'world.require_equal("the config", common_options(config))',
        "pass",
        Check(
            "tests.curriculum.test_worlds:test_a_rank_with_other_options_stops_the_run",
            {"key": "compute__microbatch", "value": 16},
        ),
    ),
    Fault(
        "images that name no patient, protected one by one and certified for patients",
        "curriculumdp.curriculum.declared:load_declared",
        "unit=data.unit,",
        "",
        Check(
            "tests.curriculum.test_refusals:test_a_run_that_protects_single_images_cannot_be_certified_for_patients"
        ),
    ),
    Fault(
        "places without people certified as protected units",
        "curriculumdp.data.listing:_integer_indices",
        "if (found := len(np.unique(indices))) != units:",
        "if (found := len(np.unique(indices))) > units:",
        Check("tests.data.test_arrays:test_units_without_images_are_declared_by_a_roster_or_refused"),
    ),
    Fault(
        "a column of owners under another name that is passed over, so that each image is a unit",
        "curriculumdp.data.folders:_unused",
        "if UNIT not in counts and any(unused):",
        "if UNIT not in counts and unused is None:",
        Check(
            "tests.data.test_folders:test_a_column_that_may_be_the_owner_under_another_name_is_not_passed_over",
            {"owner": "patient"},
        ),
    ),
    Fault(
        "images trained on under what hides them",
        "curriculumdp.data.pictures:_opaque",
        "if alpha is None or alpha.getextrema() == (255, 255):",
        "if alpha is None or alpha.getextrema():",
        Check(
            "tests.data.test_modes:test_what_lies_under_transparency_is_never_trained_on",
            {"what": "RGBA in PNG"},
        ),
    ),
    Fault(
        "weights of a release taken for public ones",
        "curriculumdp.diffusion.networks:load_public_weights",
        "_refuse_release(folder, source)",
        "pass",
        Check(
            "tests.diffusion.test_networks:test_the_weights_of_a_release_are_not_public",
            {"whole": True, "given": "release"},
        ),
    ),
    Fault(
        "a higher rate than is charged",
        STEP,
        ROWS,
        ROWS.replace("self.event.sample_rate", "2 * self.event.sample_rate"),
        Check(P4 + "test_every_unit_is_in_a_step_at_the_rate_that_is_charged", {"param": "private"}),
    ),
    Fault("the same rows in every step", ROWS_KEY, KEYED, KEYED.replace("step=step", "step=0"), LAGS),
    Fault(
        "rows reused under fresh noise after a redo",
        ROWS_KEY,
        KEYED,
        KEYED.replace("incarnation=self.incarnation, ", ""),
        FRESH,
    ),
    Fault(
        "keys of an incarnation's number, which copies of a run folder share",
        "curriculumdp.curriculum.run:Run._keys",
        "json.dumps([ledger.incarnation_mac, ",
        "json.dumps([str(ledger.incarnation), ",
        Check(
            REPLAY + "test_two_copies_that_begin_another_incarnation_each_share_no_key_even_under_one_nonce"
        ),
    ),
    Fault(
        "rows that copies of a run folder share",
        ROWS_KEY,
        KEYED,
        KEYED.replace("nonce=nonce, ", ""),
        COPIES,
    ),
    Fault(
        "draws of units that copies of a run folder share",
        "curriculumdp.curriculum.run:Run.draws_key",
        "nonce=nonce, ",
        "",
        COPIES,
    ),
    Fault(
        "one nonce for all processes",
        "curriculumdp.curriculum.run:Run.begin",
        "nonce or secrets.token_hex(32)",
        "nonce or self.secret.key('nonce').hex()",
        COPIES,
    ),
    Fault(
        "a nonce from the config's seed",
        "curriculumdp.curriculum.run:Run.begin",
        "nonce or secrets.token_hex(32)",
        "nonce or hashlib.sha256(str(self.config.seed).encode()).hexdigest()",
        Check(REPLAY + "test_every_process_has_a_nonce_of_its_own_whatever_the_seed"),
        uses={"hashlib": hashlib},
    ),
    Fault(
        "a replay under another nonce than the first time's",
        "curriculumdp.curriculum.run:Run.nonce_of",
        "return self.nonce if charged is None else charged.nonce",
        "return self.nonce",
        Check(REPLAY + "test_what_was_charged_is_replayed_to_the_bit_and_the_rest_is_drawn_anew"),
    ),
    Fault("one sample for both phases", ROWS_KEY, KEYED, KEYED.replace("phase=phase, ", ""), FRESH),
    Fault(
        "replay with other rows and the same noise",
        ROWS_KEY,
        KEYED,
        KEYED.replace("step=step", "step=step, now=__import__('time').time()"),
        Check(P4 + "test_a_step_done_again_takes_the_same_units"),
    ),
    Fault(
        "rows from the config's seed",
        ROWS_KEY,
        f"return {KEYED}",
        "return f'{self.config.seed} {phase} {step} {self.incarnation}'.encode().ljust(32)[:32]",
        Check(
            P4 + "test_rows_come_from_the_secret_and_not_from_what_the_config_says", {"kind": PrivatePhase}
        ),
    ),
    Fault(
        "only places that own something are sampled",
        STEP,
        ROWS,
        ROWS + "; rows = rows[run.images.counts[rows] > 0]",
        Check(P4 + "test_who_is_in_a_step_does_not_depend_on_what_anybody_owns"),
    ),
    Fault(
        "every rank adds its query to the sum",
        "curriculumdp.curriculum.central:CentralPhase.step",
        "chosen = torch.from_numpy(units) if run.world.is_main else torch.zeros(0, dtype=torch.int64)",
        "chosen = torch.from_numpy(units)",
        Check(P4 + "test_only_rank_0_queries_central_images"),
    ),
]
