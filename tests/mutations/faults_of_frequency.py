"""Faults of the frequency phase: its sensitivity, its charge, its noise, and what else could tell of the data."""

from curriculumdp.curriculum.recharge import RechargeRefused
from curriculumdp.privacy.grid_noise import add_noise
from dpkernels.grid import GRID
from tests.mutations.planting import Check, Fault

HERE = "tests.curriculum.test_frequency:"
VECTORS = "curriculumdp.curriculum.embedding:unit_vectors"
SUM = "curriculumdp.curriculum.embedding:embedded_sum"
PHASE = "curriculumdp.curriculum.frequency:FrequencyPhase."
SCALE = "sums *= 1 / (counts[owner, None] * sqrt(embedding.features))"
MADE_OF = "self.embedding = embedding_of(config, run.config.data, run.config.seed)"
NOISY = "return run.noisy_sum(self.event, step, CLIP_NORM, mine).cpu()"

NORM = Check(HERE + "test_a_units_vector_is_a_mean_and_has_the_norm_of_one_image_at_most")
OWN_VECTOR = Check(
    HERE + "test_two_neighbours_sums_differ_by_exactly_the_units_own_vector_of_norm_1_at_most", {"unit": 4}
)
CLIPPED = Check(HERE + "test_a_vector_longer_than_promised_is_clipped")
PUBLIC = Check(HERE + "test_the_projection_depends_neither_on_the_data_nor_on_the_secret")
CHARGED = Check(HERE + "test_a_release_is_one_entry_of_the_ledger_at_a_rate_of_1")
NOISE = Check(HERE + "test_a_release_adds_the_promised_noise_and_another_one_for_another_secret")
SUMMED_ONCE = Check(HERE + "test_a_world_of_two_sums_every_unit_once")
HALF = Check(HERE + "test_the_images_are_a_function_of_the_noisy_sum_and_the_config", {"data": "half"})

FREQUENCY_FAULTS = [
    Fault(
        "an embedding without its 1/√F",
        VECTORS,
        SCALE,
        "sums *= 1 / counts[owner, None]",
        NORM,
    ),
    Fault(
        "a unit's embeddings summed, not averaged",
        VECTORS,
        SCALE,
        "sums *= 1 / sqrt(embedding.features)",
        NORM,
    ),
    Fault(
        "embeddings unclipped, because their norm is 1",
        SUM,
        "add_clipped_rows(vectors, total, CLIP_NORM, present)",
        "total += (vectors * GRID).round().long().sum(0)",
        CLIPPED,
        uses={"GRID": GRID},
    ),
    Fault(
        "an angle that depends on the images beside it",
        "curriculumdp.curriculum.embedding:waves",
        "angles = ((pixels @ projection).to(torch.int64) >> 16)",
        "angles = (((pixels - pixels.mean(0)) @ projection).to(torch.int64) >> 16)",
        OWN_VECTOR,
    ),
    Fault(
        "every rank sums every unit",
        PHASE + "release",
        "torch.arange(self.data.units if run.world.is_main else 0)",
        "torch.arange(self.data.units)",
        SUMMED_ONCE,
    ),
    Fault(
        "a projection drawn for the data",
        PHASE + "__init__",
        MADE_OF,
        "self.embedding = embedding_of(config, run.config.data, int(run.images.images.sum()))",
        PUBLIC,
    ),
    Fault(
        "a projection drawn from the run's secret",
        PHASE + "__init__",
        MADE_OF,
        "self.embedding = embedding_of(config, run.config.data, run.rows_key(self.name, 0)[0])",
        PUBLIC,
    ),
    Fault(
        "an embedding released without charge",
        PHASE + "release",
        NOISY,
        "return add_noise(mine, self.event.noise_multiplier, run.rows_key(self.name, step)).cpu()",
        CHARGED,
    ),
    Fault(
        "an embedding's noise added by each rank, too",
        PHASE + "release",
        NOISY,
        "return run.noisy_sum(self.event, step, CLIP_NORM, add_noise(mine, self.event.noise_multiplier,"
        " run.rows_key(self.name, step))).cpu()",
        NOISE,
        uses={"add_noise": add_noise},
    ),
    Fault(
        "an embedding's noise under the public seed",
        PHASE + "release",
        NOISY,
        "run.noisy_sum(self.event, step, CLIP_NORM, mine); return add_noise(mine, self.event.noise_multiplier,"
        " bytes(32))",
        NOISE,
        uses={"add_noise": add_noise},
    ),
    Fault(
        "a mean embedding over the realised count",
        PHASE + "_drawn",
        "self.target(noisy).float().to(device),",
        "(self.target(noisy) * self.data.units / max(1, int((run.images.counts > 0).sum()))).float().to(device),",
        HALF,
    ),
    Fault(
        "classes' shares counted in the data",
        PHASE + "_drawn",
        "self.shares().to(device),",
        "torch.from_numpy(run.images.labels).bincount(minlength=self.data.classes).float().to(device)"
        " / max(1, len(run.images.labels)),",
        HALF,
    ),
    Fault(
        "an embedding that is in the checkpoint said to be charged again",
        "curriculumdp.curriculum.recharge:recharge_of",
        'position["frequency"] = 1',
        'position["frequency"] = 0',
        Check(
            HERE + "test_an_embedding_that_was_saved_is_not_charged_again_on_another_machine_nor_said_to_be"
        ),
        raises=(RechargeRefused,),
    ),
]
