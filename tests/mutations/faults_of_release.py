"""Faults by which something leaves round the noise, or the certificate promises what the run did not keep."""

import dataclasses

import numpy as np

from curriculumdp.privacy.grid_noise import add_noise, from_grid
from curriculumdp.release.certificate import CertificateError
from curriculumdp.release.export import ExportError
from tests.mutations.planting import Check, Fault

P3 = "tests.curriculum.test_purity:"
CENTRAL = "tests.curriculum.test_central:"
QUERY = "curriculumdp.curriculum.central:CentralPhase.step"
STEP = "curriculumdp.curriculum.private:PrivatePhase.step"
PROMISE = "curriculumdp.curriculum.release:guarantee_of"
CERTIFIED = "events=certified_events(ledger.events(), ledger.clip_norms()),"
IMAGES = "images = images_of_sum(self.query, noisy.cpu(), self.size, self.config.median)"
SHARES = "counts = data.class_counts or (data.units / data.classes,) * data.classes"
WHOLE_RUN = Check(
    P3 + "test_all_that_leaves_a_run_is_equal_to_the_bit_for_other_data",
    {"statistic": "mean with public denominators"},
)
STEPS = Check(
    P3 + "test_weights_moments_ema_and_central_images_come_from_the_noisy_sums_alone",
    {"count_weight": 0.0, "data": "others"},
)
CHARGES = Check(P3 + "test_how_long_a_run_is_and_what_it_charges_does_not_depend_on_the_data")
ONE_CHARGE = Check(CENTRAL + "test_a_query_is_charged_once_with_its_own_rate_and_noise_before_the_next")
WHOLE_LEDGER = Check(
    "tests.curriculum.test_export_of_runs:test_export_ends_a_run_early_and_certifies_the_whole_ledger"
)
TESTED = "tests.evaluation.test_what_is_tested:"
COURSES = "tests.release.test_certified_course:"
FIELDS = "tests.release.test_certificate_fields:"
COURSE = COURSES + "test_releases_must_be_what_a_run_of_the_config_can_have_come_to"

RELEASE_FAULTS = [
    Fault(
        "a number of repeated pictures on every console",
        "curriculumdp.curriculum.declared:warn_of_repeats",
        'if config.logging.show_private_metrics else "some images"',
        'if repeated else "some images"',
        Check(
            "tests.data.test_content:"
            "test_the_warning_reaches_the_console_and_the_count_only_where_private_metrics_are_shown",
            {"shown": False},
        ),
    ),
    Fault(
        "a number of test images that were trained on among public figures",
        "curriculumdp.evaluation.evaluate:evaluate_release",
        "public, private = (metrics, own) if",
        "public, private = ({**metrics, **own}, own) if",
        Check(TESTED + "test_a_part_of_the_training_set_is_counted_and_the_count_is_private"),
    ),
    Fault(
        "a test set that is the training set",
        "curriculumdp.evaluation.overlap:training_images",
        "if shared == len(real) and not allowed:",
        "if shared > len(real) and not allowed:",
        Check(TESTED + "test_a_release_alone_is_held_against_the_training_set_that_is_named"),
    ),
    Fault(
        "labels by the order of a listing",
        "curriculumdp.data.names:in_label_order",
        "return order, [places[name] for name in names]",
        "return order, list(range(len(places)))",
        Check("tests.data.test_names:test_declared_names_give_the_labels_whatever_the_order_of_the_folders"),
    ),
    Fault(
        "a class that DP-SGD never trained among those that stock diffusers draws",
        "curriculumdp.curriculum.release:classes_of",
        "return config.data.classes + int(trained)",
        "return config.data.classes + int(trained or config.warmup.label_dropout > 0)",
        Check("tests.curriculum.test_label_dropout:test_the_null_class_leaves_only_where_dp_sgd_trained_it"),
    ),
    Fault(
        "a noise multiplier that nobody holds against the budget",
        "curriculumdp.release.agreement:noise_problems",
        "if cost >= guarantee.epsilon * (1 - LEFT_BY_SOLVING):",
        "if cost <= guarantee.epsilon:",
        Check(COURSES + "test_more_noise_than_the_plan_was_solved_for_is_refused", {"stopped": "planned"}),
    ),
    Fault(
        "an EMA before the noise",
        STEP,
        "self.update(state, step, total, key)",
        "self.update(state, step, total, key); state.ema.sub_(from_grid(total, self.config.clip_norm).float() * 1e-6)",
        STEPS,
        uses={"from_grid": from_grid},
    ),
    Fault(
        "a learning rate from the realised loss",
        STEP,
        "self.update(state, step, total, key)",
        "self.update(state, step, total, key); state.weights.mul_(1 - 1e-3 * figures.get('loss', 0.0))",
        STEPS,
    ),
    Fault(
        "a run that stops because units were left out",
        STEP,
        "self.update(state, step, total, key)",
        "self.update(state, step, total, key); state.ema.mul_(float('nan') if figures['excluded'] > 0 else 1.0)",
        Check(P3 + "test_a_unit_whose_gradient_is_not_finite_shows_in_nothing_public"),
    ),
    Fault(
        "division by the units that were there",
        STEP,
        "self.update(state, step, total, key)",
        "self.expected_units = max(1, int((run.images.counts[rows] > 0).sum())); self.update(state, step, total, key)",
        STEPS,
    ),
    Fault(
        "metrics before noise on the console",
        "curriculumdp.metrics:Metrics.step",
        "if self._show else []",
        "if self._on else []",
        WHOLE_RUN,
    ),
    Fault(
        "the loss in the bar's text",
        "curriculumdp.metrics:Metrics.step",
        'self._bar.set_description_str(f"{phase:8s} ε ≤ {rounded_up(epsilon, 3)}", refresh=False)',
        "self._bar.set_description_str(f\"{phase:8s} ε ≤ {rounded_up(epsilon, 3)} {figures.get('loss')}\","
        " refresh=False)",
        WHOLE_RUN,
    ),
    Fault(
        "how many images were cut, shown on the console",
        "curriculumdp.data.sources:_cached",
        "write_whole(",
        "say(json.dumps(counted(partial.facts))); write_whole(",
        Check(
            "tests.data.test_cache:test_what_was_done_to_the_images_is_counted_beside_them_and_nowhere_else"
        ),
    ),
    Fault(
        "a label histogram on the console",
        "curriculumdp.curriculum.train:run_curriculum",
        'world.require_equal("the data", content_digest(images))',
        'world.require_equal("the data", content_digest(images)); world.print(f"{np.bincount(images.labels)}")',
        WHOLE_RUN,
        uses={"np": np},
    ),
    Fault(
        "a digest of the data in the release",
        "curriculumdp.curriculum.train:finish",
        "folder.seal(reason)",
        "folder.seal(reason); (folder.path / 'data.txt').write_text(folder.ledger._first['data'])",
        WHOLE_RUN,
    ),
    Fault(
        "a label histogram released without charge",
        "curriculumdp.curriculum.central:CentralPhase.__init__",
        SHARES,
        "counts = tuple(np.bincount(run.images.labels, minlength=data.classes).tolist())",
        STEPS,
        uses={"np": np},
    ),
    Fault(
        "central images divided by the realised count",
        QUERY,
        IMAGES,
        "images = images_of_sum(replace(self.query, denominators=tuple(np.bincount("
        "run.images.labels[np.isin(run.images.units, units)], minlength=self.query.classes).tolist())),"
        " noisy.cpu(), self.size, self.config.median)",
        STEPS,
        uses={"np": np, "replace": dataclasses.replace},
    ),
    Fault(
        "no image of a class that nobody has",
        QUERY,
        "torch.cat([state.central.labels, torch.arange(self.query.classes)]),",
        "torch.cat([state.central.labels, torch.arange(10).clamp(max=int(run.images.labels.max(initial=0)))]),",
        Check(
            P3 + "test_weights_moments_ema_and_central_images_come_from_the_noisy_sums_alone",
            {"count_weight": 0.0, "data": "nobody"},
        ),
    ),
    Fault(
        "an empty sample that is skipped",
        STEP,
        "key = run.charge(self.event, step, self.config.clip_norm, total)",
        "key = run.charge(self.event, step, self.config.clip_norm, total) if total.any() else bytes(32)",
        CHARGES,
    ),
    Fault(
        "one ledger entry for many queries",
        QUERY,
        "noisy = run.noisy_sum(self.event, step, self.query.clip_norm, mine)",
        "noisy = run.noisy_sum(self.event, step, self.query.clip_norm, mine) if step == 0 else"
        " add_noise(mine, self.event.noise_multiplier, run.secret.key('noise', query=step))",
        ONE_CHARGE,
        uses={"add_noise": add_noise},
    ),
    Fault(
        "a certificate that names fewer steps than were taken",
        PROMISE,
        CERTIFIED,
        "events=certified_events([replace(row, count=min(row.count, 2))"
        " for row in ledger.events()], ledger.clip_norms()),",
        WHOLE_LEDGER,
        uses={"replace": dataclasses.replace},
        raises=(CertificateError,),
    ),
    Fault(
        "a model beside a genuine release verified by it",
        "curriculumdp.release.files:release_of",
        "if inside.is_symlink() or not inside.is_dir() or any(os.path.lexists(folder / name) for name in own):",
        "if not inside.is_dir() or (folder / CERTIFICATE).exists():",
        Check(
            "tests.release.test_verify:test_a_model_beside_a_release_does_not_stand_for_it",
            {"beside": "unet"},
        ),
    ),
    Fault(
        "a certificate without the central phase",
        PROMISE,
        CERTIFIED,
        CERTIFIED.replace("ledger.events()", "ledger.events()[1:]"),
        WHOLE_LEDGER,
        raises=(CertificateError,),
    ),
    Fault(
        "a certificate that is silent on the weights that training began from",
        PROMISE,
        'initial_weights=without_paths(config)["init_from"],',
        "initial_weights=None,",
        Check(
            "tests.curriculum.test_export_of_runs:test_a_run_that_began_from_given_weights_is_certified_so"
        ),
        raises=(ExportError,),
    ),
    Fault(
        "private metrics that are shown before they are marked",
        "curriculumdp.curriculum.folder:RunFolder.accept",
        "if config.logging.show_private_metrics:",
        "if config.logging.show_private_metrics and self.ledger.events():",
        Check(
            "tests.curriculum.test_resume:"
            "test_metrics_that_a_killed_leg_has_shown_are_certified_whatever_later_legs_do"
        ),
    ),
    Fault(
        "another run's release replaced",
        "curriculumdp.release.export:_check_target",
        "if difference := other_release(folder, guarantee, weights):",
        "if difference := other_release(folder, guarantee, None):",
        Check(
            "tests.release.test_export:test_a_release_of_another_run_is_never_replaced",
            {"other": "other weights"},
        ),
    ),
    Fault(
        "another run's release pointed to",
        "curriculumdp.curriculum.train:publish_sealed",
        "elif problem := folder.release_problem(untrained_state):",
        "elif problem := None:",
        Check(
            "tests.curriculum.test_own_release:test_a_finished_run_points_to_no_release_but_its_own_and_whole",
            {"kind": "another run of the same config"},
        ),
    ),
    Fault(
        "a certificate at another delta",
        PROMISE,
        "delta=config.privacy.delta,",
        "delta=1 / data.units,",
        WHOLE_LEDGER,
        raises=(CertificateError,),
    ),
    Fault(
        "a stated figure that may lie below the recomputed one",
        "curriculumdp.release.verify:_agrees",
        "return found * (1 - SLACK) <= stated <= found + above",
        "return abs(stated - found) <= above",
        Check(
            FIELDS + "test_a_figure_may_be_another_versions_larger_one_but_never_a_lower_one",
            {"name": "opacus_rdp"},
        ),
    ),
    Fault(
        "a figure left out of a certificate is taken for one that was not found",
        "curriculumdp.release.verify:figure_problems",
        "if len(was) != len(now) or any(",
        "if was and now and any(",
        Check(FIELDS + "test_a_figure_left_out_or_put_in_is_noticed"),
    ),
    Fault(
        "a promise that nobody checks where Opacus is not installed",
        "curriculumdp.release.certificate:account_by_pld",
        "for contradiction in contradictions(guarantee, found):",
        "for contradiction in []:",
        Check("tests.release.test_without_opacus:test_a_promise_below_the_cost_is_refused_without_opacus"),
    ),
    Fault(
        "figures that nobody checks where Opacus is not installed",
        "curriculumdp.release.verify:figure_problems",
        "if not hasattr(found, name):",
        "if not hasattr(found, 'opacus'):",
        Check(
            "tests.release.test_without_opacus:test_a_figure_by_pld_that_was_changed_is_noticed_without_opacus",
            {"name": "epsilon_of_events", "factor": 0.9},
        ),
    ),
    Fault(
        "an upload that everyone sees at once",
        "curriculumdp.release.hub:push",
        "private=True, exist_ok=True",
        "exist_ok=True",
        Check(
            "tests.release.test_publishing:"
            "test_an_upload_creates_a_private_repository_and_sends_the_named_files_alone"
        ),
    ),
    Fault(
        "a release that says it has spent nothing",
        "curriculumdp.release.agreement:_course_problems",
        "if not any(done.values()):",
        "if False:",
        Check(
            COURSE,
            {"phases": ("private",), "stopped": "operator", "counts": {}, "picture": False}
            | {"wrong": "lists no event"},
        ),
    ),
    Fault(
        "steps of DP-SGD without the queries before them",
        "curriculumdp.release.agreement:_course_problems",
        "if name not in reached:",
        'if guarantee.stopped == "planned" and name not in reached:',
        Check(
            COURSE,
            {"phases": ("central", "private"), "stopped": "operator", "counts": {"private": 7}}
            | {"picture": False, "wrong": "not all the queries"},
        ),
    ),
    Fault(
        "a text that begins a line of its own on a terminal",
        "curriculumdp.printable:_shows",
        "return letter.isprintable() and letter not in BLANKS",
        "return ord(letter) > 31 and ord(letter) != 127",
        Check(
            "tests.test_printable:test_what_a_terminal_would_show_otherwise_is_refused_everywhere",
            {"code": 0x85},
        ),
    ),
]
