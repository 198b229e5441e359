"""Faults of what a certificate says of names, and of which images a test set is held against."""

from tests.mutations.planting import Check, Fault

TESTED = "tests.evaluation.test_what_is_tested:"

NAMES_FAULTS = [
    Fault(
        "a run's own set held against a test set in another split than it trained on",
        "curriculumdp.evaluation.overlap:training_set_of",
        'part=data.get("split")',
        "part=None",
        Check(
            TESTED + "test_a_runs_own_set_is_read_as_the_run_read_it_and_from_its_cache",
            {"how": "validation"},
        ),
    ),
    Fault(
        "names of classes that diffusers shows and the certificate does not state",
        "curriculumdp.release.verify:check_release",
        "problems += network_problems(folder, certificate.guarantee)",
        "pass",
        Check(
            "tests.release.test_verify:test_what_diffusers_reads_must_be_what_the_certificate_states",
            {"key": "_id2label", "value": {"0": "well", "1": "ill", "2": "dead"}},
        ),
    ),
    Fault(
        "names found in the data published without a word",
        "curriculumdp.curriculum.declared:load_shared",
        "if images is not None and images.class_names is not None and data.class_names is None:",
        "if images is not None and images.class_names is not None and data.class_names is not None:",
        Check(
            "tests.data.test_names_of_runs:"
            "test_names_that_only_the_data_give_are_said_to_become_public_before_anything_begins",
            {"declared": False},
        ),
    ),
]
