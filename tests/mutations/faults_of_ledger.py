"""Faults of the books: what is charged, when, how often, and what a resumed run may do."""

from curriculumdp.ledger.chain import LedgerError
from tests.mutations.planting import Check, Fault

P2 = "tests.curriculum.test_noise_of_step:"
FOLDER = "tests.curriculum.test_folder:"
LEDGER = "tests.ledger.test_run_ledger:"
CHAIN = "tests.ledger.test_chain:"
RUIN = "tests.curriculum.test_ruin:"
RESUME = "tests.curriculum.test_resume:"
LEDGER_CHANGED = "tests.ledger.test_run_ledger_changed:"
EXPORTS = "tests.curriculum.test_export_of_runs:"
OWN_RELEASE = "tests.curriculum.test_own_release:"
SECRET = "tests.privacy.test_run_secret:"
OPEN = "curriculumdp.curriculum.folder:RunFolder.open_ledger"
APPLY = "curriculumdp.ledger.run_ledger:Ledger._apply"
GOES_ON = Check(LEDGER + "test_a_run_is_planned_charged_reopened_and_goes_on")
BEFORE_NOISE = Check(P2 + "test_the_entry_is_on_disk_before_its_noise_is_drawn")

RECHARGE = "tests.curriculum.test_recharge:"

LEDGER_FAULTS = [
    Fault(
        "steps charged again on another machine without a word",
        "curriculumdp.curriculum.train:run_curriculum",
        "world.from_main(lambda: consent(run, state, facts, accept_recharge))",
        "world.from_main(lambda: consent(run, state, facts, True))",
        Check(RECHARGE + "test_a_step_that_would_be_charged_again_is_counted_and_refused"),
    ),
    Fault(
        "what would be charged again is understated",
        "curriculumdp.ledger.replay:ChargedSteps.from_step",
        "for held in range(max(step, part.first), part.first + part.count)",
        "for held in range(max(step, part.first) + 1, part.first + part.count)",
        Check(RECHARGE + "test_a_step_that_would_be_charged_again_is_counted_and_refused"),
    ),
    Fault(
        "the ledger written after the work",
        "curriculumdp.curriculum.private:PrivatePhase.step",
        "key = run.charge(self.event, step, self.config.clip_norm, total)\n    self.update(state, step, total, key)",
        "self.update(state, step, total.clone(), run.secret.key('noise', phase=self.name, step=step));"
        " run.charge(self.event, step, self.config.clip_norm, total)",
        BEFORE_NOISE,
    ),
    Fault(
        "an entry that is not synced",
        "curriculumdp.ledger.chain:Chain.append",
        "_write(self._descriptor, line)\n        os.fsync(self._descriptor)",
        "_write(self._descriptor, line)",
        Check(CHAIN + "test_append_returns_only_what_was_synced"),
    ),
    Fault(
        "the ledger restarted on resume",
        "curriculumdp.ledger.run_ledger:Ledger.__init__",
        "in enumerate(chain.bodies(), start=1):",
        "in list(enumerate(chain.bodies(), start=1))[:3]:",
        GOES_ON,
    ),
    Fault(
        "spending restarted with each incarnation",
        APPLY,
        'self.incarnation, self.fingerprint = entry["number"], entry["fingerprint"]',
        'self.incarnation, self.fingerprint = entry["number"], entry["fingerprint"]; self._spending._counts.clear()',
        Check(LEDGER + "test_steps_done_again_under_a_new_incarnation_are_charged_again"),
    ),
    Fault(
        "a step that is charged once whatever its incarnation",
        APPLY,
        "self._begun, self.charged = index, ChargedSteps()",
        "self._begun = index",
        Check(LEDGER + "test_steps_done_again_under_a_new_incarnation_are_charged_again"),
        raises=(LedgerError,),
    ),
    Fault(
        "a replay with another sum and the same noise",
        "curriculumdp.ledger.run_ledger:Ledger._replayed",
        'if not hmac.compare_digest(entry["sum_mac"], before["sum_mac"]):',
        'if len(entry["sum_mac"]) != len(before["sum_mac"]):',
        Check(LEDGER + "test_a_replay_with_another_sum_is_a_mismatch_and_writes_nothing", {"place": 17}),
    ),
    Fault(
        "other arithmetic under the same keys",
        "curriculumdp.ledger.run_ledger:Ledger.begin",
        "if changed:",
        "if len(changed) > 9:",
        Check(LEDGER + "test_an_equal_fingerprint_goes_on_and_another_begins_anew"),
    ),
    Fault(
        "a budget that nobody asks about",
        "curriculumdp.ledger.spending:Spending.admit",
        "if self._is_within_bound(counts):",
        "if self._is_within_bound(counts) or counts:",
        Check(LEDGER + "test_within_the_plan_nobody_is_asked_and_beyond_it_the_budget_ends_the_run"),
    ),
    Fault(
        "the noise solved anew on resume",
        OPEN,
        'return json.dumps(self.ledger.plan["phases"]).encode()',
        "return json.dumps(plan_curriculum(config).record()).encode()",
        Check(FOLDER + "test_the_noise_is_never_solved_again_for_a_run_that_has_begun"),
    ),
    Fault(
        "a secret that two runs share",
        OPEN,
        "made = secret or RunSecret.create()",
        "made = secret or RunSecret.from_bytes(config.seed.to_bytes(32))",
        Check(FOLDER + "test_every_run_has_a_secret_of_its_own_whatever_its_config_and_seed"),
    ),
    Fault(
        "a secret reused under another config",
        "curriculumdp.ledger.run_ledger:Ledger._require_fact",
        "if canonical(was) != canonical(now):",
        "if type(was) is not type(now):",
        Check(FOLDER + "test_a_secret_never_serves_another_config", {"key": "private__clip_norm"}),
    ),
    Fault(
        "other data under the same keys",
        "curriculumdp.ledger.run_ledger:Ledger.open",
        'if data is not None and ledger._first["data"] != data_mac(subkey(key, "data"), *data):',
        "if data is not None and len(data) > 9:",
        Check(LEDGER_CHANGED + "test_changed_data_are_refused", {"array": 0}),
    ),
    Fault(
        "a rate or noise that was not planned",
        "curriculumdp.ledger.spending:Spending.row",
        "if (row.sample_rate, row.noise_multiplier) == (sample_rate, noise_multiplier):",
        "if row.sample_rate == sample_rate:",
        Check(LEDGER + "test_what_was_not_planned_cannot_be_charged"),
    ),
    Fault(
        "a ledger shorter than its checkpoint saw",
        "curriculumdp.ledger.run_ledger:Ledger.check_prefix",
        "if not 0 < count <= len(self.macs) or not hmac.compare_digest(self.macs[count - 1], mac):",
        "if count <= 0:",
        Check(LEDGER_CHANGED + "test_a_ledger_cut_back_to_a_whole_line_is_seen_by_the_checkpoint"),
    ),
    Fault(
        "a cut ledger behind a damaged checkpoint",
        "curriculumdp.curriculum.folder:RunFolder.latest",
        "for position in authentic_positions(self.private / CHECKPOINTS, self.ledger.checkpoint_key):",
        "for position in authentic_positions(self.private / CHECKPOINTS, self.ledger.checkpoint_key)[:-1]:",
        Check("tests.curriculum.test_refusals:test_a_damaged_checkpoint_still_tells_that_the_ledger_was_cut"),
    ),
    Fault(
        "a line's MAC that forgets the lines before",
        "curriculumdp.ledger.chain:Chain._mac",
        "before = self.macs[index - 1] if index else self._start",
        "before = self._start",
        Check(CHAIN + "test_moved_removed_and_doubled_lines_are_refused", {"order": [0, 2]}),
    ),
    Fault(
        "a secret that shows itself",
        "curriculumdp.privacy.secret:RunSecret.__repr__",
        'return "RunSecret(hidden)"',
        'return f"RunSecret({self._held.hex()})"',
        Check(SECRET + "test_the_secret_shows_in_no_text_pickle_or_copy"),
    ),
    Fault(
        "keys that forget what they are for",
        "curriculumdp.privacy.secret:RunSecret.key",
        "[PROTOCOL, purpose, context], sort_keys=True",
        "[PROTOCOL, sorted(context.items())], sort_keys=True",
        Check(SECRET + "test_keys_are_hkdf_sha256_of_purpose_and_context"),
    ),
    Fault(
        "a sealed run that is charged on",
        "curriculumdp.ledger.run_ledger:Ledger._require_open",
        "if self.sealed is not None:",
        "if self.sealed is not None and not self.events():",
        Check(LEDGER + "test_a_sealed_ledger_takes_nothing_more"),
    ),
    Fault(
        "a secret that outlives its run",
        "curriculumdp.curriculum.folder:RunFolder.forget_secret",
        "erase_private(self.secret_file)",
        "pass",
        Check(
            "tests.curriculum.test_export_of_runs:test_export_ends_a_run_early_and_certifies_the_whole_ledger"
        ),
    ),
    Fault(
        "a secret kept until the release is written",
        "curriculumdp.curriculum.train:finish",
        "folder.seal(reason)",
        "folder.ledger.seal(reason)",
        Check(RESUME + "test_the_secret_is_erased_before_anything_is_published"),
    ),
    Fault(
        "a secret that a kill right after the seal keeps",
        "curriculumdp.curriculum.folder:RunFolder._read_ledger",
        "self.forget_secret()",
        "pass",
        Check(
            RESUME + "test_a_kill_between_seal_and_erasure_is_made_up_for_by_the_next_command_first",
            {"command": "train"},
        ),
    ),
    Fault(
        "a run trained on beside its release",
        "curriculumdp.curriculum.folder:RunFolder._require_no_release",
        "if os.path.lexists(self.release):",
        "if self.release.is_symlink():",
        Check(
            OWN_RELEASE + "test_a_run_rolled_back_behind_its_release_is_neither_trained_on_nor_ended",
            {"command": "train"},
        ),
    ),
    Fault(
        "an export that ends the run before it looks",
        "curriculumdp.curriculum.train:export_run",
        "config, state = folder.checkpointed(untrained_state)",
        "folder.seal('operator'); config, state = folder.checkpointed(untrained_state)",
        Check(
            EXPORTS + "test_an_export_that_is_refused_does_not_end_the_run",
            {"kind": "a place that is taken"},
        ),
    ),
    Fault(
        "an export that ends the run unasked",
        "curriculumdp.curriculum.folder:RunFolder._require_end",
        "if not end_run:",
        "if ledger.sealed:",
        Check(
            EXPORTS + "test_an_export_that_is_refused_does_not_end_the_run",
            {"kind": "no word of ending the run"},
        ),
    ),
    Fault(
        "a checkpoint that anybody could have written",
        "curriculumdp.checkpoint:_mac",
        "return hmac.new(key, ",
        "return hmac.new(b'checkpoint', ",
        Check("tests.test_checkpoint:test_another_runs_checkpoint_is_refused"),
    ),
    Fault(
        "a checkpoint of a ruined network",
        "curriculumdp.curriculum.train:save",
        "run.world.from_main(lambda: require_sound(state, phase.name, run.config.run_dir))",
        "pass",
        Check(RUIN + "test_a_run_that_ends_otherwise_saves_no_ruined_network_either", {"why": "preempted"}),
    ),
    Fault(
        "weights that are no numbers trained on until the next checkpoint",
        "curriculumdp.curriculum.train:train",
        "require_weights(run, state, phase)",
        "pass",
        Check(RUIN + "test_checkpoints_that_are_farther_apart_do_not_let_a_ruined_run_spend_on"),
    ),
    Fault(
        "made images that leave a trace in the weights",
        "curriculumdp.curriculum.dry_step:_no_trace",
        "state.load(buffers)",
        "pass",
        Check("tests.curriculum.test_dry_step:test_it_leaves_no_trace"),
    ),
    Fault(
        "a rehearsal's engine left in the run's memory",
        "curriculumdp.curriculum.dry_step:_no_trace",
        "gc.collect()",
        "pass",
        Check("tests.curriculum.test_dry_step:test_the_memory_of_the_rehearsals_is_free_again"),
    ),
    Fault(
        "two clip norms in one phase",
        "curriculumdp.ledger.spending:Spending.take_clip_norm",
        "if clip_norm != first:",
        "if False:",
        Check("tests.ledger.test_spending:test_all_events_of_a_phase_have_one_clip_norm"),
    ),
    Fault(
        "a dry step after the ledger is made",
        "curriculumdp.curriculum.train:run_curriculum",
        "dry_step(config, world, state, PHASE_CLASSES)",
        "pass",
        Check(
            "tests.curriculum.test_dry_step:test_an_engine_that_does_not_fit_is_refused_before_there_is_a_ledger"
        ),
    ),
    Fault(
        "noise for an entry that the mirror refused",
        "curriculumdp.ledger.run_ledger:Ledger._append",
        "self._interrupted = True",
        "self._interrupted = False",
        Check(LEDGER + "test_without_the_mirrors_consent_no_entry_is_returned_and_it_is_still_counted"),
    ),
]
