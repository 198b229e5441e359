"""Faults of the noise: its size, its place, its bits, its keys (design D1, D3.5)."""

import torch

from curriculumdp.privacy.grid_noise import add_noise
from curriculumdp.privacy.streams import gaussian
from tests.mutations.planting import Check, Fault

P2 = "tests.curriculum.test_noise_of_step:"
CENTRAL = "tests.curriculum.test_central:"
RANDOMNESS = "tests.privacy.test_streams:"
ADD = "curriculumdp.privacy.grid_noise:add_noise"
GAUSSIAN = "curriculumdp.privacy.streams:gaussian"
UPDATE = "curriculumdp.curriculum.private:PrivatePhase.update"
STEP = "curriculumdp.curriculum.private:PrivatePhase.step"
QUERY = "curriculumdp.curriculum.run:Run.noisy_sum"
CHARGE = "curriculumdp.curriculum.run:Run._charge"
NOISY = "noisy = add_noise(total, sigma, key)"
NOISY_QUERY = "return add_noise(total, event.noise_multiplier, key)"
NOISE_KEY = 'self.secret.key("noise", incarnation=self.incarnation, nonce=nonce, entry=entry.hex())'

VARIANCE = Check(P2 + "test_all_noise_together_has_the_promised_variance")
COORDINATES = Check(P2 + "test_every_coordinate_of_every_step_has_the_promised_variance")
RANKS = Check(P2 + "test_all_ranks_add_the_noise_of_one_process_once", {"size": 2})
DISTANCES = Check(P2 + "test_parameters_are_uncorrelated_at_every_distance")
STEPS = Check(P2 + "test_steps_and_queries_are_uncorrelated")
TRIPLES = Check(P2 + "test_no_three_neighbours_of_the_noise_occur_twice")
FAR = Check(P2 + "test_the_noise_of_a_step_reaches_the_far_tail")
LOW_BITS = Check(P2 + "test_the_noise_covers_the_grid_to_its_last_bit")
STREAMS = Check(P2 + "test_no_keystream_serves_twice_in_a_run_of_two_incarnations_and_a_replay")
CENTRAL_RANKS = Check(CENTRAL + "test_every_rank_has_the_central_images_of_one_process")

NOISE_FAULTS = [
    Fault("no noise", ADD, "return total + noise.to(total.device)", "return total + 0 * noise", VARIANCE),
    Fault("no noise on a step", UPDATE, NOISY, "noisy = total", VARIANCE),
    Fault("no noise on a query", QUERY, NOISY_QUERY, "return total", VARIANCE),
    Fault(
        "noise per rank",
        STEP,
        "self.update(state, step, total, key)",
        "self.update(state, step, total, run.secret.key('noise', entry=key.hex(), rank=run.world.rank))",
        RANKS,
    ),
    Fault(
        "central images drawn per rank",
        QUERY,
        NOISY_QUERY,
        "return add_noise(total, event.noise_multiplier, self.secret.key('noise', e=key.hex(), r=self.world.rank))",
        CENTRAL_RANKS,
    ),
    Fault(
        "noise over the world's size",
        QUERY,
        NOISY_QUERY,
        "return add_noise(total, event.noise_multiplier / self.world.size, key)",
        RANKS,
    ),
    Fault(
        "noise over the root of the batch",
        UPDATE,
        NOISY,
        NOISY.replace("sigma", "sigma / self.expected_units**0.5"),
        VARIANCE,
    ),
    Fault(
        "times C forgotten in the noise", UPDATE, NOISY, NOISY.replace("sigma", "sigma / clip_norm"), VARIANCE
    ),
    Fault(
        "the variance for the deviation",
        ADD,
        "drawn *= _noise_scale(noise_multiplier)",
        "drawn *= _noise_scale(noise_multiplier**0.5)",
        VARIANCE,
    ),
    Fault(
        "noise before the reduce",
        "curriculumdp.curriculum.run:Run.charge",
        "self.world.sum_(total)",
        "total.copy_(add_noise(total, event.noise_multiplier / self.world.size**0.5,"
        " self.secret.key('noise', phase=event.name, step=step, rank=self.world.rank))); self.world.sum_(total)",
        RANKS,
        uses={"add_noise": add_noise},
    ),
    Fault(
        "noise on the weights' matrices alone",
        UPDATE,
        NOISY,
        NOISY + "; noisy[-8:] = total[-8:]",
        COORDINATES,
    ),
    Fault(
        "noise in fp32",
        ADD,
        "drawn *= _noise_scale(noise_multiplier)",
        "drawn = (drawn.astype('f4') * drawn.astype('f4').dtype.type(_noise_scale(noise_multiplier))).astype('f8')",
        LOW_BITS,
    ),
    Fault(
        "normals drawn in fp32",
        ADD,
        "drawn = gaussian(key, total.numel())",
        "drawn = gaussian(key, total.numel()).astype('f4').astype('f8')",
        Check(P2 + "test_a_normal_has_more_bits_than_fp32"),
    ),
    Fault(
        "noise added in floats",
        UPDATE,
        NOISY,
        "noisy = total.double() + torch.from_numpy(gaussian(key, total.numel())) * (sigma * 2.0**36)",
        Check(P2 + "test_a_steps_noise_is_on_the_grid_and_covers_it_to_its_last_bit"),
        uses={"gaussian": gaussian, "torch": torch},
    ),
    Fault(
        "tail cut at 5.7 sigma",
        GAUSSIAN,
        "radius *= 2.0**-64",
        "np.maximum(radius * 2.0**-64, 1e-7, out=radius)",
        FAR,
    ),
    Fault(
        "radius of 32 bits",
        GAUSSIAN,
        "radius = words[0::2].astype(np.float64)",
        "radius = ((words[0::2] >> np.uint64(32)).astype(np.float64) + 0.5) * 2.0**32",
        FAR,
    ),
    Fault(
        "noise repeated across steps",
        CHARGE,
        NOISE_KEY,
        'self.secret.key("noise", phase=event.name)',
        STEPS,
    ),
    Fault("noise repeated across phases", CHARGE, NOISE_KEY, 'self.secret.key("noise", step=step)', STEPS),
    Fault(
        "noise repeated across parameters",
        GAUSSIAN,
        "return normals[:count]",
        "return np.resize(normals[: count // 3], count)",
        DISTANCES,
    ),
    Fault(
        "noise repeated across two small layers",
        GAUSSIAN,
        "return normals[:count]",
        "return np.concatenate([normals[: count - 8], normals[100:108]])[:count]",
        TRIPLES,
    ),
    Fault(
        "the keystream begun again in every chunk",
        GAUSSIAN,
        "start // WORDS_PER_BLOCK)",
        "0)",
        Check(RANDOMNESS + "test_gaussians_are_uncorrelated_within_and_between_keys"),
    ),
    Fault(
        "the block counter wraps and repeats",
        "curriculumdp.privacy.streams:keystream",
        "if words < 0 or first_block < 0 or first_block + blocks > MAX_BLOCKS:",
        "if words < 0 or first_block < 0:",
        Check(RANDOMNESS + "test_the_keystream_refuses_to_wrap_and_repeat"),
        raises=(MemoryError,),
    ),
    Fault(
        "noise not bound to the sum",
        CHARGE,
        NOISE_KEY,
        'self.secret.key("noise", phase=event.name, step=step, nonce=nonce, incarnation=self.incarnation)',
        Check(P2 + "test_another_sum_never_meets_the_same_noise"),
    ),
    Fault(
        "a ledger entry that is not bound to the sum",
        "curriculumdp.ledger.run_ledger:Ledger.charge",
        'sum_mac = data_mac(subkey(self._key, "sum"), total)',
        'sum_mac = data_mac(subkey(self._key, "sum"), total[:0])',
        Check(P2 + "test_another_sum_never_meets_the_same_noise"),
    ),
    Fault(
        "noise of an empty step that copies of a run folder share",
        CHARGE,
        NOISE_KEY,
        NOISE_KEY.replace("nonce=nonce, ", ""),
        Check(P2 + "test_equal_sums_of_two_processes_never_meet_the_same_noise"),
    ),
    Fault(
        "one key for the rows and the noise",
        CHARGE,
        NOISE_KEY,
        "self.rows_key(event.name, step)",
        STREAMS,
    ),
    Fault(
        "noise from the config's seed",
        CHARGE,
        NOISE_KEY,
        "f'{self.config.seed} {event.name} {step} {self.ledger.incarnation}'.encode().ljust(32)",
        Check(P2 + "test_equal_steps_of_two_runs_have_no_noise_in_common"),
    ),
    Fault(
        "division by the realised batch",
        STEP,
        "total, seen = self.clipped_sum(run, state, step, rows)",
        "total, seen = self.clipped_sum(run, state, step, rows); self.expected_units = max(1, len(rows))",
        VARIANCE,
    ),
]
